"""`ddpm-jax ema`: other averages of a run, as directories that the other commands
take."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import read_weights
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.training.ema_profiles import Profile, gamma_from_sigma_rel, step_weights

KEPT = (
    "--config.ema.decays=0.5",
    "--config.ema.sigma_rels=0.1,0.2",
    "--config.ema.snapshot_every=1",
)


@pytest.fixture(scope="module")
def averaged(train_with):
    """Ten steps, a snapshot after each, and every checkpoint kept: read it, do not write in it."""
    return train_with(*KEPT, "--config.checkpoint.save_every=1", "--config.checkpoint.keep_every=1")


@pytest.fixture
def mine(averaged, tmp_path):
    return pathlib.Path(shutil.copytree(averaged, tmp_path / "run"))


def _flat(params):
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(params)])


def _trajectory(workdir, shapes):
    """The parameters after steps 1..10, float64 [10, n], from the checkpoints."""
    return np.stack(
        [_flat(read_weights(workdir, step, {"params": shapes})["params"]) for step in range(1, 11)]
    )


@pytest.mark.slow
def test_averages_made_of_snapshots_are_those_of_the_weights_as_they_went(invoke, mine):
    result = invoke("ema", "--ckpt", mine, "--sigma_rel", "0.15,0.25")
    assert result.code == 0
    shapes = load_trained(mine).model.params_shapes()
    path = _trajectory(mine, shapes)
    for width in (0.15, 0.25):
        directory = mine / "ema" / f"sigma_rel_{width}"
        assert f"python sample.py --ckpt {directory}" in result.out
        direct = step_weights(Profile(gamma_from_sigma_rel(width), 10)) @ path
        record, made = (
            json.loads((directory / "average.json").read_text()),
            _flat(load_trained(directory).params),
        )
        assert record["snapshots"] == list(range(1, 11))
        # Twenty averages of ten steps determine every average of these steps but for the rounding
        # of float32.
        scale = np.linalg.norm(step_weights(Profile(gamma_from_sigma_rel(width), 10)))
        bound = record["fit_error"] * scale * np.linalg.norm(path - direct, axis=0) + 1e-6
        assert np.all(np.abs(made - direct) <= bound)
        assert np.linalg.norm(made - direct) < 0.05 * np.linalg.norm(direct - path[-1])


@pytest.mark.slow
def test_an_average_kept_in_training_becomes_a_directory_to_sample_from(invoke, mine):
    result = invoke("ema", "--ckpt", mine, "--average", "decay_0.5")
    assert result.code == 0
    directory, usual = mine / "ema" / "decay_0.5", load_trained(mine)
    # The run's own average has the decay 0.5 too.
    np.testing.assert_array_equal(_flat(load_trained(directory).params), _flat(usual.params))
    sampled = invoke("sample", "--ckpt", directory, "--num_samples", "2", "--steps", "2")
    assert sampled.code == 0, sampled.err
    assert list(directory.glob("generated/*/grid.png"))


@pytest.mark.slow
def test_it_lists_what_there_is(invoke, mine):
    assert invoke("ema", "--ckpt", mine, "--sigma_rel", "0.15", "--ckpt_step", "6").code == 0
    listed = invoke("ema", "--ckpt", mine).out
    assert "at step 10: decay_0.5, sigma_rel_0.1, sigma_rel_0.2" in listed
    assert "snapshots: 10, from step 1 to 10, of sigma_rel_0.1 and sigma_rel_0.2" in listed
    assert "made: sigma_rel_0.15" in listed
    record = json.loads((mine / "ema" / "sigma_rel_0.15" / "average.json").read_text())
    assert (record["step"], record["snapshots"]) == (6, [1, 2, 3, 4, 5, 6])


@pytest.mark.slow
def test_a_resumed_run_adds_to_its_snapshots(invoke, mine, config_file):
    more = [
        "--config.checkpoint.save_every=1",
        "--config.checkpoint.keep_every=1",
        "--config.train.num_steps=11",
    ]
    result = invoke(
        "train",
        "--config",
        config_file(),
        "--workdir",
        mine,
        *KEPT,
        *more,
        "--config.ema.snapshot_every=4",
    )
    assert result.code == 0, result.err
    assert "snapshots: 11, from step 1 to 11" in invoke("ema", "--ckpt", mine).out


@pytest.mark.slow
def test_what_cannot_be_is_refused(refused, averaged, trained, mine, invoke):
    refused("ema", says=["--ckpt is missing"])
    refused(
        "ema",
        "--ckpt",
        trained,
        "--sigma_rel",
        "0.1",
        says=["no snapshots", "ema.sigma_rels=0.05,0.10"],
    )
    refused(
        "ema", "--ckpt", trained, "--average", "decay_0.5", says=["keeps no average", "ema.decays"]
    )
    refused(
        "ema",
        "--ckpt",
        averaged,
        "--sigma_rel",
        "wide",
        says=["sigma_rel is 'wide'", "numbers above 0"],
    )
    refused("ema", "--ckpt", averaged, "--sigma_rel", "0.3", says=["0.3", "below 0.2887"])
    refused(
        "ema",
        "--ckpt",
        averaged,
        "--sigma_rel",
        "0.1",
        "--average",
        "decay_0.5",
        says=["give one of them"],
    )
    refused(
        "ema",
        "--ckpt",
        averaged,
        "--average",
        "decay_0.6",
        says=["'decay_0.6'", "Did you mean 'decay_0.5'?"],
    )
    refused(
        "ema",
        "--ckpt",
        averaged,
        "--sigma_rel",
        "0.15",
        "--ckpt_step",
        "99",
        says=["no snapshot of step 99", "10"],
    )
    assert invoke("ema", "--ckpt", mine, "--average", "decay_0.5").code == 0
    refused(
        "ema",
        "--ckpt",
        mine,
        "--average",
        "decay_0.5",
        says=["holds this average at step 10 already", "--out"],
    )
    refused(
        "sample",
        "--ckpt",
        mine / "ema" / "decay_0.5",
        "--raw_weights",
        says=["holds no weights as trained"],
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (["warmup=true", "sigma_rel=0.1"], ["ema.warmup and ema.sigma_rel are two laws"]),
        (["decays=0.9,1.0"], ["1.0", "in [0, 1)"]),
        (["decays=0.9,0.9"], ["every average once"]),
        (["sigma_rels=0.1,0.9", "snapshot_every=5"], ["0.9", "in (0, 0.2887)"]),
        (["snapshot_every=5"], ["no averages to save", "ema.sigma_rels"]),
        (["sigma_rels=0.05,0.1"], ["no snapshots are saved", "ema.snapshot_every"]),
    ],
)
def test_laws_that_cannot_be_are_refused(refused, config_file, tmp_path, fields, says):
    overrides = [f"--config.ema.{field}" for field in fields]
    refused(
        "train", "--config", config_file(), "--workdir", tmp_path / "run", *overrides, says=says
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_from_before_there_were_these_fields_is_resumed():
    ours = configs.to_dict(configs.default_config())
    theirs = json.loads(json.dumps(ours))
    for field in ("rampup_ratio", "sigma_rel", "decays", "sigma_rels", "snapshot_every"):
        del theirs["ema"][field]
    assert configs.differences(ours, theirs) == []
