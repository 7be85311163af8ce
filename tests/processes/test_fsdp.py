"""`parallel=fsdp` over 2 processes of 2 devices each: as one device under pmap, with the same
checkpoints."""

import re

import jax
import numpy as np
import pytest

from ddpm_jax.experiments.loading import load_trained

FSDP = "--config.parallel=fsdp"
SPREAD = {"processes": 2, "devices": 2}


def _megabytes_on_each(announcement):
    return float(
        re.search(r"([\d.,]+) MB of state on each", announcement).group(1).replace(",", "")
    )


def _weights(workdir, **options):
    return np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(load_trained(workdir, **options).params)]
    )


def _assert_same_weights(ours, theirs, start):
    """Both have gone the same way from `start`, but for sums in another order that Adam may
    amplify."""
    assert np.linalg.norm(ours - theirs) < 2e-3 * np.linalg.norm(theirs - start)


@pytest.mark.slow
def test_a_state_split_over_processes_trains_as_one_device_and_moves_to_it_and_back(
    tmp_path, train, command, losses
):
    split, still = tmp_path / "split", tmp_path / "still"
    every = ("--config.checkpoint.save_every=1", "--config.checkpoint.keep_every=1")
    first, second = train(split, 6, FSDP, *every, **SPREAD).succeed()
    (alone,) = train(still, 6, *every).succeed()
    assert "4 cpu devices of 2 processes" in first
    assert "MB" not in second
    # A quarter, and the small leaves that are on every device.
    assert _megabytes_on_each(first) < 0.4 * _megabytes_on_each(alone)
    np.testing.assert_allclose(losses(split), losses(still), rtol=1e-4)
    for raw in (True, False):
        ours, theirs, start = (
            _weights(workdir, raw_weights=raw, step=step)
            for workdir, step in ((split, 6), (still, 6), (still, 1))
        )
        _assert_same_weights(ours, theirs, start)

    (on_one,) = train(split, 9, FSDP, *every).succeed()
    assert "resuming at step 6 of 9" in on_one
    back, _ = train(split, 12, FSDP, *every, **SPREAD).succeed()
    assert "resuming at step 9 of 12" in back
    train(still, 12, *every).succeed()
    np.testing.assert_allclose(losses(split), losses(still), rtol=1e-3)
    _assert_same_weights(_weights(split), _weights(still), _weights(still, step=1))

    for workdir in (split, still):
        arguments = ["--ckpt", workdir, "--num_samples", 6, "--steps", 2, "--out", workdir / "out"]
        command("sample.py", *arguments, **(SPREAD if workdir == split else {})).succeed()
    ours, theirs = (
        np.load(next((workdir / "out").glob("*.npz")))["images"] for workdir in (split, still)
    )
    assert np.abs(np.int32(ours) - theirs).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "fsdp"])
def test_everything_at_once_over_processes_is_what_it_is_in_one(tmp_path, train, losses, parallel):
    """Several steps in a dispatch, gradients in parts, several averages, snapshots, grids of raw
    weights."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    fields = [
        *(
            "--config.train.steps_per_call=2",
            "--config.optimizer.accumulate_steps=2",
            "--config.ema.snapshot_every=4",
        ),
        *(
            "--config.ema.sigma_rels=0.1,0.2",
            "--config.train.raw_grid=true",
            "--config.train.sample_every=4",
        ),
    ]
    train(together, 8, f"--config.parallel={parallel}", *fields, **SPREAD).succeed()
    train(alone, 8, *fields).succeed()
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-3)
    names = [
        {
            str(path.relative_to(workdir))
            for folder in ("samples", "snapshots")
            for path in (workdir / folder).glob("*")
        }
        for workdir in (together, alone)
    ]
    assert names[0] == names[1]
    assert "samples/step_00000004.png" in names[0]
    for folder in ("checkpoints", "snapshots/checkpoints"):
        assert sorted(path.name for path in (together / folder).iterdir()) == ["4", "8"]
