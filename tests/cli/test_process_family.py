"""EDM and flow matching through the commands: trained, resumed, sampled, guided, evaluated."""

import json

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.cli import command
from ddpm_jax.experiments.loading import load_trained

from .conftest import find_main, write_config

CHANGES = {
    "edm": [
        "process=edm",
        "parameterization=edm",
        "levels=lognormal",
        "weighting=learned",
        "clip=none",
    ],
    "vdm": ["process=vdm", "variance=posterior", "timestep_sampling=low_discrepancy"],
    "flow": [
        "process=flow",
        "parameterization=velocity",
        "rescale_timesteps=true",
        "timestep_sampling=antithetic",
        "clip=none",
    ],
}
CLASSES = ["--config.condition.num_classes=10", "--config.condition.label_dropout=0.25"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=CHANGES)
def run(request, train_with):
    changes = [f"--config.diffusion.{change}" for change in CHANGES[request.param]]
    return request.param, train_with(*changes, *CLASSES)


def _shapes(trained):
    return jax.tree.map(np.shape, trained.weights.params)


def images_in(directory):
    (shard,) = directory.glob("samples-*.npz")
    with np.load(shard) as arrays:
        return arrays["images"]


def test_every_command_takes_the_run(run, invoke, tmp_path):
    process, workdir = run
    said = invoke("sample", "--ckpt", workdir, "--num_samples", 2, "--out", tmp_path / "default")
    method = {
        "edm": "heun, 18 steps, 35 network evaluations",
        "vdm": "heun, 18 steps, 35 network evaluations",
        "flow": "euler, 20 steps, 20 network evaluations",
    }
    assert said.code == 0, said.err
    assert method[process] in said.out + said.err
    guided = ["--guidance_scale", 2, "--guidance_interval", "0.1,0.9", "--sampler", "runge_kutta"]
    said = invoke(
        *("sample", "--ckpt", workdir, "--num_samples", 2, "--out", tmp_path / "guided"),
        *(*guided, "--steps", 4),
    )
    assert said.code == 0, said.err
    assert not np.array_equal(images_in(tmp_path / "default"), images_in(tmp_path / "guided"))
    said = invoke(
        *("evaluate", "--ckpt", workdir, "--metric", "bpd,bpd_ode", "--num_images", 2),
        *("--out", tmp_path / "evaluated"),
    )
    assert said.code == 0, said.err
    results = [json.loads(path.read_text()) for path in (tmp_path / "evaluated").glob("*.json")]
    assert {result["metric"] for result in results} == {"bpd", "bpd_ode"}


def test_it_is_loaded_and_edits(run):
    model = ddpm_jax.load(run[1])
    images = model.sample(2, steps=3, seed=0)
    assert images.shape == (2, 8, 8, 1)
    edited = model.edit(images[0], strength=0.5, steps=4, n=2)
    assert edited.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(images, model.sample(2, steps=3, seed=0))
    raw = load_trained(run[1], raw_weights=True)  # without what only training uses
    jax.tree.map(np.testing.assert_equal, _shapes(raw), _shapes(model.trained))


def test_a_resumed_run_is_the_one_that_was_not_stopped(run, tmp_path, data_dir):
    process, whole = run
    changes = [f"--config.diffusion.{change}" for change in CHANGES[process]]
    for num_steps in (4, 10):
        config = write_config(tmp_path / "mine.py", data_dir=data_dir, num_steps=num_steps)
        argv = ["--config", str(config), "--workdir", str(tmp_path / "run"), *changes, *CLASSES]
        assert command.run(find_main("train"), argv) == 0
    stopped = tmp_path / "run"
    ours, theirs = (jax.tree.leaves(load_trained(path).params) for path in (stopped, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
