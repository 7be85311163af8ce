"""The docs name things that exist, and their commands parse."""

import contextlib
import importlib
import pathlib
import re

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.run_settings import run_settings
from ddpm_jax.randomness import base_key

ROOT = pathlib.Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_name_in_the_docs_exists(path):
    text = path.read_text()
    for dotted in sorted(set(re.findall(r"`(ddpm_jax(?:\.\w+)+)(?:\(\))?`", text))):
        _resolve(dotted)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_file_in_the_docs_exists(path):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_config_and_benchmark_in_the_docs_exists(path):
    for name in re.findall(r"\b((?:configs|benchmarks)/\w+\.py)\b", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_check_of_names_can_fail():
    with pytest.raises(AttributeError):
        _resolve("ddpm_jax.diffusion.gaussian.q_smaple")


def _python_blocks(path):
    return "".join(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))


@contextlib.contextmanager
def _compilations():
    """Collect what XLA compiles, by the name of the event."""
    events = []

    def listen(event, seconds, **_):
        if "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A directory with the checkpoint of a small, untrained model in runs/digits."""
    monkeypatch.chdir(tmp_path)
    config = configs.load_config(ROOT / "configs" / "digits.py")
    config.model.update(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    model = build(config)
    checkpointer = Checkpointer(tmp_path / "runs" / "digits", keep_last=1)
    checkpointer.save(1, {"ema_params": model.init_params(base_key(0))}, {}, run_settings(model))
    checkpointer.close()


@pytest.mark.slow
def test_the_python_of_the_readme_has_five_lines_and_runs(run):
    text, names = _python_blocks(ROOT / "README.md"), {}
    assert len([line for line in text.splitlines() if line]) == 5
    exec(text, names)
    images = names["images"]
    assert images.shape == (16, 8, 8, 1)
    assert images.dtype == np.uint8
    assert names["edited"].shape == (4, 8, 8, 1)
    assert np.isfinite(names["bits"].values).all()


@pytest.mark.slow
def test_a_loaded_model_compiles_once_for_a_size_of_batch(run):
    model = ddpm_jax.load("runs/digits")
    settings = {"sampler": "dpmpp_2m", "steps": 20, "batch_size": 16}
    images = model.sample(16, seed=0, **settings)
    with _compilations() as compiled:
        again, more = model.sample(16, seed=0, **settings), model.sample(16, seed=1, **settings)
    assert compiled == []
    np.testing.assert_array_equal(again, images)
    assert np.any(more != images)
    with _compilations() as compiled:
        model.sample(3, **settings | {"batch_size": 3})
    assert compiled, "the check sees a compilation where there is one"


@pytest.mark.full
def test_the_python_of_the_page_on_samplers_makes_images(monkeypatch):
    """With a stand-in for the network and a directory of diffusers, which the reader is to bring."""

    class Unet:
        def apply(self, variables, x_t, time):
            return x_t * variables["params"]

    monkeypatch.chdir(ROOT / "tests" / "goldens" / "sd" / "sd1")
    names = {"unet": Unet(), "params": 0.9}
    exec(_python_blocks(ROOT / "docs" / "samplers.md"), names)
    assert names["samples"].shape == (16, 32, 32, 3)
    assert abs(names["samples"]).max() <= 1
    assert round(names["sampler"].start_scale, 5) == 0.99767  # of Stable Diffusion's chain
    assert names["x_T"].shape == (16, 32, 32, 3)
