"""First stages by the same commands: trained, resumed, shown, scored; and every sentence about what
cannot be."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import command
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.measuring.first_stage_pictures import collapse, latent_images

from .conftest import find_main, write_config

# The config of the tests sets what a first stage does not have.
PLAIN = [
    "--config.objective=first_stage",
    "--config.diffusion.num_timesteps=1000",
    "--config.train.sample_steps=1000",
]
STAGE = [*PLAIN, "--config.model.ch_mult=1,1", "--config.train.sample_every=2"]
OF_KIND = {
    "ae": ["--config.first_stage.family=gaussian"],
    "vae": ["--config.first_stage.family=discretized_logistic"],
    "vq": ["--config.first_stage.family=discretized_logistic", "--config.first_stage.num_codes=16"],
}


def overrides(kind):
    return [*STAGE, f"--config.first_stage.kind={kind}", *OF_KIND[kind]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """Kind -> the directory of a run of four steps, made when it is first asked for."""

    class Runs(dict):
        def __missing__(self, kind):
            directory = tmp_path_factory.mktemp(kind)
            config = write_config(directory / "mine.py", data_dir=data_dir, num_steps=4)
            arguments = [
                "--config",
                str(config),
                "--workdir",
                str(directory / "run"),
                *overrides(kind),
            ]
            assert command.run(find_main("train"), arguments) == 0
            self[kind] = directory / "run"
            return self[kind]

    return Runs()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        pytest.param("ae", set(), marks=pytest.mark.slow),
        ("vae", {"kl", "bits_per_dim"}),
        ("vq", {"perplexity", "bits_per_dim"}),
    ],
)
def test_a_run_leaves_records_of_its_kind_pictures_and_a_checkpoint(runs, kind, more):
    records = [json.loads(line) for line in (runs[kind] / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if "loss" in record]
    assert [record["step"] for record in trained] == [2, 4]
    assert {"kl", "perplexity", "bits_per_dim", "nll", "mse"} & trained[0].keys() == {
        "nll",
        "mse",
    } | more
    # original, reconstruction, from the prior; latents
    columns = {"ae": 2 + 4, "vae": 3 + 4, "vq": 2 + 4}[kind]
    with Image.open(runs[kind] / "samples" / "step_00000004.png") as picture:
        assert picture.width == columns * (2 * 66 + 2) + (columns - 1) * 16
    assert (runs[kind] / "loss.png").exists()
    beside = {"interpolation", "codes"} if kind == "vq" else {"interpolation"}
    assert {path.stem[14:] for path in (runs[kind] / "samples").glob("step_00000004_*")} == beside


@pytest.mark.slow
def test_a_command_draws_the_pictures_that_training_drew(invoke, runs):
    result = invoke("draw", "--ckpt", runs["vq"], "--num_samples", "4")
    assert result.code == 0, result.err
    theirs = sorted((runs["vq"] / "samples").glob("step_00000004*.png"))
    assert len(result.out.splitlines()) == len(theirs) == 3
    for path in theirs:
        name = path.stem[14:] or "first_stage"
        ours = runs["vq"] / "pictures" / f"{name}_step4_ema_n4_seed0.png"
        assert str(ours) in result.out
        np.testing.assert_array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(path)))


@pytest.mark.slow
def test_the_same_command_resumes(invoke, runs, config_file):
    result = invoke("train", "--config", config_file(4), "--workdir", runs["vq"], *overrides("vq"))
    assert result.code == 0
    assert "resuming at step 4" in result.err
    assert f"next: python evaluate.py --ckpt {runs['vq']} --metric reconstruction" in result.out


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_where_an_undisturbed_one_does(
    tmp_path, invoke, runs, config_file
):
    """The dictionary and the count of the warm-up are part of a checkpoint."""
    for steps in (2, 4):
        result = invoke(
            "train", "--config", config_file(steps), "--workdir", tmp_path / "run", *overrides("vq")
        )
        assert result.code == 0
    whole, resumed = (
        load_first_stage(path, raw_weights=True).params for path in (runs["vq"], tmp_path / "run")
    )
    np.testing.assert_array_equal(resumed["codebook"], whole["codebook"])
    np.testing.assert_array_equal(
        resumed["decoder"]["conv_out"]["kernel"], whole["decoder"]["conv_out"]["kernel"]
    )


@pytest.mark.slow
def test_evaluate_scores_a_vae(invoke, runs, tmp_path):
    flags = [
        "--metric",
        "elbo,reconstruction",
        "--num_images",
        "20",
        "--draws",
        "3",
        "--out",
        tmp_path,
    ]
    result = invoke("evaluate", "--ckpt", runs["vae"], *flags)
    assert result.code == 0, result.err
    record = json.loads(next(tmp_path.glob("elbo*.json")).read_text())
    assert record["bits_per_dim"]["mean"] == pytest.approx(
        record["reconstruction"]["mean"] + record["kl"]["mean"], rel=1e-6
    )
    assert record["importance_weighted"]["mean"] < record["bits_per_dim"]["mean"]
    assert sum(record["kl_nats_per_channel"]) == pytest.approx(
        record["kl_nats_per_image"]["mean"], rel=1e-5
    )
    assert record["kl_nats_per_image"]["mean"] == pytest.approx(
        record["kl"]["mean"] * 64 * np.log(2), rel=1e-5
    )
    errors = json.loads(next(tmp_path.glob("reconstruction*.json")).read_text())
    assert errors["rmse"] == pytest.approx(errors["mse"]["mean"] ** 0.5)


@pytest.mark.full
def test_evaluate_counts_a_vq_vaes_codes(invoke, runs, tmp_path):
    result = invoke(
        "evaluate",
        "--ckpt",
        runs["vq"],
        "--metric",
        "reconstruction",
        "--num_images",
        "20",
        "--out",
        tmp_path,
    )
    assert result.code == 0, result.err
    record = json.loads(next(tmp_path.glob("reconstruction*.json")).read_text())
    assert sum(record["codes"]) == 20 * 16  # 4x4 codes an image
    assert record["codes_used"] == np.count_nonzero(record["codes"])
    assert 1 <= record["perplexity"] <= 16


@pytest.mark.slow
def test_an_autoencoder_has_no_bound(refused, runs):
    refused(
        "evaluate", "--ckpt", runs["ae"], "--metric", "elbo", says=["no prior over its latents"]
    )


def test_what_a_first_stage_cannot_do_is_refused(refused, shipped, trained):
    vae = shipped("vae")
    says = f"{vae} holds a first stage and not a diffusion model"
    refused("sample", "--ckpt", vae, says=[says])
    refused(
        "evaluate",
        "--ckpt",
        trained,
        "--metric",
        "elbo",
        says=["holds a diffusion model and not a first stage"],
    )
    refused("draw", "--ckpt", trained, says=["holds a diffusion model and not a first stage"])
    refused("evaluate", "--ckpt", vae, "--metric", "elbo,bpd", says=["elbo is of a first stage"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--config.first_stage.kind=gan"], "first_stage.kind is 'gan': choose one of ae, vae, vq"),
        (
            ["--config.first_stage.num_codes=8"],
            "num_codes is 8, but a first stage of the kind 'vae' has none",
        ),
        (
            ["--config.first_stage.kind=vq", "--config.first_stage.beta=2"],
            "first_stage.beta is 2.0, but a first stage",
        ),
        (
            ["--config.diffusion.num_timesteps=50"],
            "diffusion.num_timesteps is 50, but a first stage has none",
        ),
        (
            ["--config.condition.num_classes=10"],
            "condition.num_classes is 10, but a first stage has none",
        ),
        (["--config.first_stage.log_scale=-8"], "log_scale is -8.0: it must be between -7 and 7"),
        (["--config.train.raw_grid=true"], "train.raw_grid is True, but a first stage has none"),
        (
            [
                f"--config.first_stage.{field}"
                for field in ("kind=vq", "codebook=gradient", "restart_below=0.5")
            ],
            "first_stage.restart_below is 0.5, but a codebook that is learned by its gradient has "
            "none",
        ),
        (
            [f"--config.first_stage.{field}" for field in ("scale=pixel", "log_scale=-2.0")],
            "first_stage.log_scale is -2.0, but a decoder that gives a scale for each number has "
            "none",
        ),
        (["--config.first_stage.family=poisson"], "first_stage.family is 'poisson': choose one of"),
        (["--config.first_stage.scale=big"], "first_stage.scale is 'big': choose one of"),
        (
            ["--config.first_stage.family=bernoulli", "--config.first_stage.scale=pixel"],
            "a bernoulli decoder has no scale",
        ),
        (["--config.model.ch_mult=1,1,1,1,1"], "not divisible by 16"),
        (
            ["--config.objective=diffusion", "--config.first_stage.beta=2"],
            "first_stage.beta is 2.0, but a diffusion model",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(refused, config_file, tmp_path, changes, says):
    refused(
        "train",
        "--config",
        config_file(4),
        "--workdir",
        tmp_path / "run",
        *PLAIN,
        *changes,
        says=[says],
    )


def test_a_collapse_is_told_with_its_numbers():
    assert "KL is 0.01 nats an image" in collapse("vae", 0.01, ())
    assert collapse("vae", 5.0, ()) is None
    assert "perplexity of the codes is 1 of 64" in collapse("vq", 66.0, np.eye(64, dtype=int)[3])
    assert collapse("vq", 66.0, np.ones(64, int)) is None


def test_latents_are_shown_channel_by_channel_each_on_its_own_scale():
    z = np.stack([np.arange(8.0).reshape(2, 2, 2), -5 * np.arange(8.0).reshape(2, 2, 2)], axis=-1)
    shown = latent_images(z, (2, 4, 4, 3))
    assert list(shown) == ["latent 1", "latent 2"]
    for pixels in shown.values():
        assert pixels.shape == (2, 4, 4, 3)
        assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_array_equal(
        shown["latent 1"][0, ::2, ::2, 0], np.round([[0, 255 / 7], [510 / 7, 765 / 7]])
    )
