"""What every test relies on: strict rank promotion, one CPU device, a compilation cache shared
between processes."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Drops a file's compiled programs: each holds memory maps, and XLA crashes where a process has
    too many."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def diffusion_goldens():
    """Tensors of the original TensorFlow code; see goldens/README.md."""
    return dict(np.load(GOLDENS / "ho_diffusion.npz"))


@pytest.fixture(scope="session")
def unet_goldens():
    """One forward pass of the original TensorFlow U-Net; see goldens/README.md."""
    return dict(np.load(GOLDENS / "ho_unet_a.npz"))
