"""`python evaluate.py`: numbers and pictures next to the checkpoint; stopped, it continues; what it
refuses."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import host_memory
from ddpm_jax.cli import evaluate
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.measuring import likelihood_bound, likelihood_flow, resuming, sample_metrics

T = 20


@pytest.mark.slow
def test_the_pixel_frechet_distance_is_printed_and_kept(invoke, copied, tmp_path):
    from ddpm_jax.evaluation.pixel_frechet import pixel_frechet_distance

    argv = ["--ckpt", copied, "--num_samples", 8, "--batch_size", 8]
    result = invoke("evaluate", *argv)
    assert result.code == 0
    path = copied / "evaluation" / "frechet_pixels_step10_ema_n8_steps20_seed0.json"
    assert str(path) in result.out
    record = json.loads(path.read_text())
    assert (record["num_samples"], record["num_held_out"], record["num_train"]) == (8, 8, 1497)
    assert (record["checkpoint_step"], record["weights"], record["steps"], record["seed"]) == (
        10,
        "ema",
        20,
        0,
    )
    assert record["ratio"] == pytest.approx(record["frechet_samples"] / record["frechet_held_out"])
    assert record["ratio"] > 1  # ten steps make no digits
    assert f"{record['frechet_samples']:.4g}" in result.out

    # The samples are those of sample.py, and the digits those of scikit-learn: the number follows
    # from the two.
    assert (
        invoke("sample", "--ckpt", copied, "--num_samples", 8, "--out", tmp_path / "eight").code
        == 0
    )
    samples = np.load(next((tmp_path / "eight").glob("samples-*.npz")))["images"]
    assert record["frechet_samples"] == pytest.approx(
        pixel_frechet_distance(samples, digits()[:1497]), rel=1e-2
    )


@pytest.mark.full
def test_every_setting_of_the_distance_has_a_file_of_its_own_and_other_weights_are_refused(
    invoke, refused, trained, tmp_path, monkeypatch
):
    # its numbers are another test's
    monkeypatch.setattr(sample_metrics, "pixel_frechet_distance", lambda *images: 1.0)
    argv = ["--ckpt", trained, "--num_samples", 2, "--steps", 2, "--out", tmp_path]
    for seed in (0, 1):
        assert invoke("evaluate", *argv, "--seed", seed).code == 0
    names = {f"frechet_pixels_step10_ema_n2_steps2_seed{seed}.json" for seed in (0, 1)}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert invoke("evaluate", *argv, "--num_reference", 100).code == 0
    path = tmp_path / "frechet_pixels_step10_ema_n2_ref100_steps2_seed0.json"
    assert json.loads(path.read_text())["num_train"] == 100
    assert invoke("evaluate", *argv).code == 0  # the same again may be written again
    monkeypatch.setattr("ddpm_jax.experiments.loading.weights_digest", lambda params: "0" * 64)
    refused("evaluate", *argv, says=["holds results made otherwise", "weights_sha256", "--out"])


def digits():
    """All digits, the training images first."""
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
    return images[np.random.RandomState(0).permutation(len(images))]


NAME = "step10_ema_test_n7_stride1_draws2_seed5"


@pytest.fixture(scope="module")
def seven(trained, tmp_path_factory):
    """Both likelihood metrics of the first seven test digits."""
    from ddpm_jax.cli import command

    out = tmp_path_factory.mktemp("seven")
    argv = [
        "--ckpt",
        trained,
        "--metric",
        "bpd,rate_distortion",
        "--num_images",
        7,
        "--draws",
        2,
        "--seed",
        5,
    ]
    assert (
        command.run(evaluate.main, [str(a) for a in [*argv, "--batch_size", 4, "--out", out]]) == 0
    )
    return out


def read_record(out, metric, name=NAME):
    return json.loads((out / f"{metric}_{name}.json").read_text())


@pytest.mark.full
def test_the_record_says_how_to_repeat_the_number(seven, trained):
    record = read_record(seven, "bpd")
    wanted = {
        "metric": "bpd",
        "checkpoint": str(trained),
        "checkpoint_step": 10,
        "weights": "ema",
        "split": "test",
        "num_images": 7,
        "seed": 5,
        "draws": 2,
        "timestep_stride": 1,
        "num_timesteps": T,
        "dtype": "float32",
        "clip_denoised": True,
        "matmul_precision": "default",
    }
    assert record.items() >= wanted.items()
    assert len(record["weights_sha256"]) == 64
    assert {"python", "ddpm-jax", "jax", "jaxlib", "flax", "numpy"} == set(record["versions"])
    assert "digits" in record["data"]


@pytest.mark.full
def test_the_bound_is_that_of_the_checkpoint_on_the_held_out_digits(seven, trained):
    """Every t by hand, with the moving average, x_0 clipped and other noise: they agree within
    their errors."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax.diffusion import gaussian, likelihood
    from ddpm_jax.experiments.loading import load_trained

    record, loaded = read_record(seven, "bpd"), load_trained(trained)
    x_0 = jnp.asarray(digits()[1497:][:7] / 127.5 - 1, jnp.float32)
    schedule = loaded.model.schedule
    denoiser = jax.jit(loaded.model.denoiser(loaded.weights, schedule))
    totals = []
    for draw in range(4):
        total = likelihood.prior_term(schedule, x_0)
        for step in range(T):
            eps = np.random.default_rng([draw, step]).standard_normal(x_0.shape, np.float32)
            t = jnp.full(len(x_0), step)
            x_t = gaussian.q_sample(schedule, x_0, t, eps)
            total += likelihood.bound_term(schedule, denoiser(x_t, t), x_0, x_t, t)
        totals.append(float(total.mean()))
    found = record["bits_per_dim"]
    np.testing.assert_allclose(
        record["prior"], likelihood.prior_term(schedule, x_0).mean(), rtol=1e-5
    )
    error = np.hypot(found["standard_error_draws"], np.std(totals, ddof=1) / 2)
    assert abs(found["mean"] - np.mean(totals)) < 4 * error
    assert error < 0.05 * found["mean"]


@pytest.mark.full
def test_the_terms_add_up_in_both_records(seven):
    bound, coding = read_record(seven, "bpd"), read_record(seven, "rate_distortion")
    total = bound["bits_per_dim"]["mean"]
    assert bound["prior"] + bound["divergences"]["mean"] + bound["decoder"][
        "mean"
    ] == pytest.approx(total)
    assert coding["rate"] + coding["distortion"] == pytest.approx(total)
    assert coding["curve"]["rate"][-1] == pytest.approx(coding["rate"])
    assert bound["prior"] + sum(bound["per_timestep"]["bits"]) == pytest.approx(total)
    assert bound["per_timestep"]["t"] == list(range(T))
    assert bound["per_timestep"]["visits"] == [14] * T
    assert coding["curve"]["t"] == list(range(T))[::-1]
    assert coding["distortion_rmse"] == pytest.approx(
        127.5 * bound["per_timestep"]["x_0_mse"][0] ** 0.5
    )


@pytest.mark.parametrize("metric", ["bpd", "rate_distortion"])
def test_a_picture_lies_beside_the_record(seven, metric):
    with Image.open(seven / f"{metric}_{NAME}.png") as image:
        assert image.width > image.height > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_the_table_is_printed(invoke, seven, trained):
    argv = ["--metric", "bpd", "--num_images", 7, "--draws", 2, "--seed", 5, "--out", seven]
    result = invoke("evaluate", "--ckpt", trained, *argv)
    record = read_record(seven, "bpd")["bits_per_dim"]
    assert f"bits/dim at most   {record['mean']:.4f} ± {record['standard_error']:.4f}" in result.out
    assert "7 images of test, every t, 2 draws" in result.out
    assert str(seven / f"bpd_{NAME}.json") in result.out
    assert result.err == ""


def test_given_again_nothing_is_computed_anew(invoke, seven, trained, monkeypatch):
    before = {path.name: path.read_bytes() for path in seven.glob("*.json")}
    monkeypatch.setattr(likelihood_bound, "stream_terms", lambda *_, **__: pytest.fail("computed"))
    argv = [
        "--metric",
        "bpd,rate_distortion",
        "--num_images",
        7,
        "--draws",
        2,
        "--seed",
        5,
        "--batch_size",
        4,
    ]
    assert invoke("evaluate", "--ckpt", trained, *argv, "--out", seven).code == 0
    assert {path.name: path.read_bytes() for path in seven.glob("*.json")} == before


class Stopped(Exception):
    """The machine goes down after the first batch is on disk."""


@pytest.mark.full
def test_a_stopped_command_goes_on_where_it_stopped(invoke, seven, trained, tmp_path, monkeypatch):
    argv = [
        "--metric",
        "bpd",
        "--num_images",
        7,
        "--draws",
        2,
        "--seed",
        5,
        "--batch_size",
        4,
        "--out",
        tmp_path,
    ]
    save, stream, begun = resuming.results.save_tally, likelihood_bound.stream_terms, []

    def stopped(*args):
        save(*args)
        raise Stopped

    def counted(*args, done, **kwargs):
        begun.append(done)
        return stream(*args, done=done, **kwargs)

    monkeypatch.setattr(likelihood_bound, "stream_terms", counted)
    with monkeypatch.context() as patch:
        patch.setattr(resuming.results, "save_tally", stopped)
        with pytest.raises(Stopped):
            invoke("evaluate", "--ckpt", trained, *argv)
    assert not list(tmp_path.glob("*.json"))
    assert invoke("evaluate", "--ckpt", trained, *argv).code == 0
    assert begun == [0, 4]
    assert read_record(tmp_path, "bpd") == read_record(seven, "bpd")


@pytest.mark.full
def test_weights_and_strides_have_files_of_their_own(invoke, copied):
    argv = ["--ckpt", copied, "--metric", "bpd", "--num_images", 3]
    assert (
        invoke(
            "evaluate", *argv, "--raw_weights", "--timestep_stride", 20, "--split", "train[:5]"
        ).code
        == 0
    )
    record = read_record(
        copied / "evaluation", "bpd", "step10_raw_train-5_n3_stride20_draws1_seed0"
    )
    assert (record["split"], record["weights"]) == ("train[:5]", "raw")
    assert record["bits_per_dim"]["standard_error_draws"] is None  # one draw: not a number, so null
    assert sum(record["per_timestep"]["visits"]) == 3 * 13  # of 20 timesteps


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_not_mixed_in(
    refused, invoke, trained, tmp_path, monkeypatch
):
    argv = [
        "--ckpt",
        trained,
        "--metric",
        "bpd",
        "--num_images",
        2,
        "--timestep_stride",
        20,
        "--out",
        tmp_path,
    ]
    assert invoke("evaluate", *argv).code == 0
    monkeypatch.setattr("ddpm_jax.experiments.loading.weights_digest", lambda params: "0" * 64)
    refused("evaluate", *argv, says=["holds results made otherwise", "weights_sha256", "--out"])


LIKELIHOODS = ("bpd", "rate_distortion", "bpd_ode")


@pytest.fixture
def refused_likelihood(refused, trained, tmp_path, monkeypatch):
    """refused_likelihood(*argv, says=...): before anything is computed, and nothing is written."""
    for module, name in ((likelihood_bound, "stream_terms"), (likelihood_flow, "stream_bits")):
        monkeypatch.setattr(
            module, name, lambda *args, **kwargs: pytest.fail("it went as far as to compute")
        )

    def check(*argv, says, metrics=LIKELIHOODS):
        for metric in metrics:
            refused(
                "evaluate",
                "--ckpt",
                trained,
                "--metric",
                metric,
                "--out",
                tmp_path / "out",
                *argv,
                says=says,
            )
        assert not (tmp_path / "out").exists()

    return check


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--split", "tset"], ["'tset'"]),
        (["--split", "train["], ["train["]),
        (["--num_images", "0"], ["num_images is 0", "whole number in 1.."]),
        (["--num_images", "301"], ["num_images is 301", "split 'test' has 300 images"]),
        (["--timestep_stride", "0"], ["timestep_stride is 0", "whole number in 1.."]),
        (["--probes", "0"], ["probes is 0", "whole number in 1.."]),
        (["--rtol", "0"], ["rtol is 0", "number above 0"]),
        (["--atol", "-0.1"], ["atol is -0.1", "number above 0"]),
        (["--atol", "inf"], ["atol is 'inf'", "number above 0"]),
        (["--rtol", "small"], ["rtol is 'small'", "number above 0"]),
        (["--draws", "0"], ["draws is 0", "whole number in 1.."]),
        (["--batch_size", "0"], ["batch_size is 0", "whole number in 1.."]),
        (["--metric", "bdp"], ["Unknown metric 'bdp'", "Did you mean 'bpd'?"]),
        (["--metric", "bpd,"], ["Unknown metric ''"]),
    ],
)
def test_what_is_not_there_is_refused(refused_likelihood, argv, says):
    refused_likelihood(*argv, says=says)


def test_a_stride_that_is_not_of_the_chain_is_refused(refused_likelihood):
    says = ["stride is 21", "the chain has 20 timesteps"]
    refused_likelihood("--timestep_stride", "21", says=says, metrics=("bpd", "rate_distortion"))


def test_a_trace_that_is_not_there_is_refused(refused_likelihood):
    says = ["Unknown trace 'hutchinson'", "exact, gaussian, rademacher"]
    refused_likelihood("--trace", "hutchinson", says=says, metrics=["bpd_ode"])
    says = ["probes 2", "no part in trace exact"]
    refused_likelihood("--trace", "exact", "--probes", "2", says=says, metrics=["bpd_ode"])


def test_images_of_another_shape_are_refused(refused_likelihood, monkeypatch):
    larger = ArraySource(np.zeros((5, 16, 16, 1), np.uint8), np.zeros(5, np.int32), 0, "larger")
    monkeypatch.setattr("ddpm_jax.experiments.datasets.load_split", lambda *args, **kwargs: larger)
    refused_likelihood(says=["images of split 'test' are 16x16x1", "trained on 8x8x1"])


def load_with(monkeypatch, betas):
    """Makes evaluate.py find this chain in every checkpoint."""
    load_trained, chain = evaluate.load_trained, Chain(betas)

    def changed(*args, **kwargs):
        trained = load_trained(*args, **kwargs)
        model = dataclasses.replace(trained.model, chain=chain)
        with np.errstate(divide="ignore", invalid="ignore"):
            assert len(model.schedule.alphas_bar) == T
        return dataclasses.replace(trained, model=model)

    monkeypatch.setattr(evaluate, "load_trained", changed)


def test_a_model_without_a_likelihood_is_refused(refused_likelihood, monkeypatch):
    load_with(monkeypatch, make_betas("linear", T, beta_start=1e-30))
    refused_likelihood(says=["has no likelihood", "adds no noise at t = 0", "beta_start"])


def test_a_flow_without_an_end_is_refused(refused_likelihood, monkeypatch):
    load_with(monkeypatch, make_betas("jsd", T))
    refused_likelihood(says=["ends at alphas_bar = 0"], metrics=["bpd_ode"])


def test_a_file_in_place_of_the_directory_of_results_is_refused(refused, trained, tmp_path):
    (tmp_path / "file").write_text("")
    argv = [
        "--metric",
        "bpd",
        "--num_images",
        1,
        "--timestep_stride",
        20,
        "--out",
        tmp_path / "file",
    ]
    refused("evaluate", "--ckpt", trained, *argv, says=["is a file: name a directory"])


@pytest.mark.slow
def test_the_accuracy_of_a_classifier_of_samples_is_beside_that_of_the_training_images(
    invoke, trained_by_class, tmp_path
):
    argv = [
        "--metric",
        "classification_accuracy",
        "--num_samples",
        40,
        "--steps",
        2,
        "--out",
        tmp_path,
    ]
    assert invoke("evaluate", "--ckpt", trained_by_class, *argv).code == 0
    (path,) = tmp_path.glob("classification_accuracy_*.json")
    record = json.loads(path.read_text())
    assert record["fitted_to_training_images"] > 0.9  # the digits are nearly linearly separable
    assert record["fitted_to_samples"] < 0.6  # a model of ten steps knows no digits
    assert record["labels"] == list(range(10))


def test_a_distance_that_needs_more_memory_than_there_is_is_refused_before_a_sample_is_made(
    refused, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(host_memory, "available", lambda: 2**20)
    monkeypatch.setattr(
        sample_metrics,
        "draw_samples",
        lambda *args, **kwargs: pytest.fail("samples are made"),
    )
    says = [
        "300 and 1,497 examples of 64 numbers needs 0.4 GiB",
        "0.0 GiB are available",
        "num_reference",
    ]
    refused("evaluate", "--ckpt", trained, "--out", tmp_path, says=says)
    assert not list(tmp_path.iterdir())


def test_a_model_without_classes_has_no_classification_accuracy(refused, trained):
    argv = ["--ckpt", trained, "--metric", "classification_accuracy"]
    refused("evaluate", *argv, says=["classification_accuracy", "trained without labels"])
