"""A transformer through the commands: trained, resumed, guided, evaluated; and what its config
refuses."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax.cli import command
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.models.dit import SIZES, DiT

from .conftest import find_main

CONFIG = """def get_config():
    return {{
        "data": {{"name": "digits", "data_dir": {data_dir!r}, "image_size": 8, "channels": 1, "flip": False}},
        "diffusion": {{"num_timesteps": 10, "variance": "learned_range", "loss": "hybrid"}},
        "model": {{"name": "dit", "time_embedding": "cos_sin"}},
        "dit": {{"size": "custom", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2}},
        "condition": {{"num_classes": 10, "label_dropout": 0.25}},
        "optimizer": {{"learning_rate": 1e-2, "warmup_steps": 0, "clip_norm": 0.0}},
        "ema": {{"decay": 0.5}},
        "train": {{
            "num_steps": 8, "batch_size": 8, "log_every": 2, "sample_every": 0, "num_samples": 10, "sample_steps": 10,
        }},
        "checkpoint": {{"save_every": 4, "keep_every": 4}},
    }}
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory, data_dir):
    """train("--config.seed=1", ...) -> the directory of a run of eight steps with these
    overrides."""

    def train(*overrides, workdir=None):
        directory = tmp_path_factory.mktemp("dit")
        path = directory / "mine.py"
        path.write_text(CONFIG.format(data_dir=data_dir))
        workdir = workdir or directory / "run"
        assert (
            command.run(
                find_main("train"), ["--config", str(path), "--workdir", str(workdir), *overrides]
            )
            == 0
        )
        return workdir

    return train


@pytest.fixture(scope="module")
def trained(train):
    return train()


def weights(workdir, **options):
    return np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(load_trained(workdir, **options).params)]
    )


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_is_the_one_that_was_not(trained, train):
    stopped = train("--config.train.num_steps=4")
    train(workdir=stopped)
    np.testing.assert_array_equal(weights(stopped), weights(trained))
    assert np.abs(weights(trained) - weights(trained, step=4)).max() > 0


@pytest.mark.slow
def test_split_recomputed_in_parts_and_several_steps_at_once_it_learns_the_same(trained, train):
    other = train(
        "--config.parallel=fsdp",
        "--config.model.remat=blocks",
        "--config.optimizer.accumulate_steps=2",
        "--config.train.steps_per_call=2",
    )
    # Sums in another order, eight updates on: float32 has lost three digits of seven.
    np.testing.assert_allclose(losses(other), losses(trained), rtol=1e-3)


@pytest.mark.full
def test_it_is_sampled_by_class_with_guidance_and_its_bound_is_evaluated(trained, invoke, tmp_path):
    assert (trained / "samples" / "step_00000008.png").exists()

    def sample(scale):
        out = tmp_path / f"at_{scale}"
        arguments = [
            "--ckpt",
            trained,
            "--out",
            out,
            "--num_samples",
            4,
            "--steps",
            3,
            "--guidance_scale",
            scale,
        ]
        result = invoke("sample", *arguments, "--labels", "3")
        assert result.code == 0, result.err
        return np.load(next(out.glob("samples-*.npz")))["images"]

    assert sample(0).shape == (4, 8, 8, 1)
    assert np.any(sample(0) != sample(20))
    result = invoke("evaluate", "--ckpt", trained, "--metric", "bpd", "--num_images", 8)
    assert result.code == 0, result.err


def settings(**groups):
    fields = {"model": {"name": "dit"}, "data": {"name": "digits", "image_size": 8, "channels": 1}}
    return configs.from_dict(fields | groups, source="a test")


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_said_by_its_letter(size):
    model = build(settings(dit={"size": size, "patch_size": 4})).network
    assert isinstance(model, DiT)
    assert (model.hidden_size, model.depth, model.num_heads, model.patch_size) == (*SIZES[size], 4)


def test_fields_of_the_model_that_are_not_the_u_nets_alone_reach_the_transformer():
    shared = {
        "dropout": 0.2,
        "time_embedding": "cos_sin_inclusive",
        "norm_eps": 1e-5,
        "remat": "blocks",
    }
    own = {"size": "custom", "hidden_size": 64, "depth": 3, "num_heads": 4, "patch_size": 2}
    config = settings(
        model={"name": "dit", "dtype": "bfloat16", **shared},
        dit=own,
        condition={"num_classes": 10, "low_res_factor": 2},
        diffusion={"variance": "learned_range", "loss": "hybrid"},
    )
    told = {"num_classes": 10, "low_res_channels": 1, "out_channels": 2}
    del own["size"]
    assert build(config).network == DiT(dtype=jax.numpy.bfloat16, **shared, **own, **told)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"dit": {"size": "M"}}, "dit.size is 'M': choose one of S, B, L, XL, custom"),
        ({"dit": {"size": "XXL"}}, "Did you mean 'XL'"),
        (
            {"dit": {"depth": 6}},
            r"dit\.depth is 6, but that of the size 'S' is 12: set dit\.size to 'custom' too",
        ),
        (
            {"dit": {"size": "XL", "num_heads": 12}},
            r"dit\.num_heads is 12, but that of the size 'XL' is 16",
        ),
        ({"dit": {"patch_size": 3}}, "height 8 is not divisible by patch_size 3"),
        (
            {"dit": {"size": "custom", "num_heads": 5}},
            "num_heads 5 does not divide hidden_size 384",
        ),
        ({"dit": {"size": "custom", "hidden_size": 6}}, "hidden_size 6 is not divisible by 4"),
        ({"model": {"name": "dti"}}, "model.name is 'dti'.*Did you mean 'dit'"),
        (
            {"model": {"name": "dit", "ch": 64}},
            r"model\.ch is 64, but a transformer, .* group dit, has none: set it back to 128",
        ),
        ({"model": {"name": "dit", "num_heads": 4}}, r"model\.num_heads is 4, but a transformer"),
        (
            {"model": {}, "dit": {"size": "B"}},
            r"dit\.size is 'B', but a U-Net has none: set it back to 'S'",
        ),
        (
            {"objective": "classifier", "condition": {"num_classes": 10}},
            r"model\.name is 'dit', but a classifier is made of the U-Net's blocks: set it to 'unet'",
        ),
        ({"objective": "first_stage"}, r"model\.name is 'dit', but a first stage is made"),
    ],
)
def test_fields_that_cannot_work_or_would_do_nothing_are_refused(groups, words):
    with pytest.raises(UsageError, match=words):
        build(settings(**groups))


def test_a_run_from_before_there_was_a_choice_is_one_of_a_u_net():
    ours, theirs = (
        configs.to_dict(configs.default_config()),
        configs.to_dict(configs.default_config()),
    )
    del theirs["dit"], theirs["model"]["name"]
    assert configs.differences(ours, theirs) == []
    assert configs.from_dict(theirs, source="an old run").model.name == "unet"
    ours["model"]["name"] = "dit"
    assert configs.differences(ours, theirs) == ["model.name ('unet' there, 'dit' here)"]
