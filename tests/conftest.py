"""Settings of every test: strict rank promotion, one CPU device, a shared compilation cache."""

import gc
import os
import pathlib
import subprocess
import sys

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
ROOT = pathlib.Path(__file__).parents[1]
MEMORY_MAPS = pathlib.Path("/proc/self/maps")  # on Linux, which allows 65,530 of them
EMITTERS = "xla_cpu_use_fusion_emitters"  # they take half of the time of a compilation


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="also run the tests marked full, as CI does"
    )
    parser.addoption("--slow", action="store_true", help="run all tests")


def pytest_configure(config):
    """Compile quickly where most programs run once, and with --full as users' programs are."""
    quickly = "0" if config.getoption("--full") or config.getoption("--slow") else "1"
    quickly = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", quickly)  # subprocesses too
    jax.config.update("jax_disable_most_optimizations", quickly == "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if quickly == "1" and jax.__version_info__ < (0, 11) and EMITTERS not in flags:
        # XLA of later versions ends at a flag that it does not know, and this is one
        quick = f"--{EMITTERS}=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{flags} {quick}".strip()


def _left_out(config):
    """The markers whose tests do not run."""
    if config.getoption("--slow"):
        return []
    return ["slow"] if config.getoption("--full") else ["full", "slow"]


def pytest_report_header(config):
    left_out = " and ".join(_left_out(config))
    return f"without the tests marked {left_out}" if left_out else "all tests"


def pytest_collection_modifyitems(config, items):
    left_out = _left_out(config)
    chosen = [item for item in items if not any(map(item.get_closest_marker, left_out))]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_collectstart():
    gc.disable()  # imports and tests stay


def pytest_collection_finish():
    """Exempt half a million objects of imports and tests from collections, and collect rarely."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Drop the compiled programs when they are some hundreds, three maps and 2 MB each.

    XLA crashes with too many maps.
    """
    yield
    if not MEMORY_MAPS.exists() or MEMORY_MAPS.read_bytes().count(b"\n") > 3_000:
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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where data sets are prepared; nothing is there yet."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def ddpm_objective():
    """Return ddpm_objective(apply, schedule, **changes): DDPM's objective with changed options."""
    from ddpm_jax.diffusion.losses import make_loss
    from ddpm_jax.diffusion.process import make_process
    from ddpm_jax.training.objective import Drawing, diffusion_objective

    def make(apply, chain, **changes):
        process = make_process(chain, "eps", "fixed_large")
        drawn = {name: changes.pop(name) for name in Drawing._fields if name in changes}
        drawing = Drawing(**{"flip": True} | drawn)
        options = {"timestep_sampling": "uniform"} | changes
        loss = make_loss("simple", variance=process.variance)
        return diffusion_objective(apply, process, loss, drawing, **options)

    return make


@pytest.fixture(scope="session")
def run_python():
    """Return run_python(*arguments, devices=1, **kwargs): `python -W error` on virtual devices."""

    def run(*arguments, devices=1, **kwargs):
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),  # this tree, whether or not it is the one installed
        }
        command = [sys.executable, "-W", "error", *map(str, arguments)]
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, **kwargs
        )
        assert result.returncode == 0, result.stderr
        return result

    return run
