"""`--profile`, `--compilation_cache` and `train.steps_per_call` as a user types them."""

import importlib
import pkgutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli
from ddpm_jax.experiments import config as configs

COMPUTING = (
    "train",
    "sample",
    "evaluate",
    "samplers",
    "ema",
    "encode",
    "decode",
    "draw",
    "import_first_stage",
    "edit",
    "interpolate",
    "reconstruct",
    "export",
    "import_model",
    "verify",
    "distill",
    "compare",
)

# The command in a process of its own, which then says how many programs it found in the cache.
PROGRAM = """
import sys, jax
from ddpm_jax.cli import command, train
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
code = command.run(train.main, sys.argv[1:])
print("hits", found.count("/jax/compilation_cache/cache_hits"))
sys.exit(code)
"""


@pytest.mark.slow
def test_profile_writes_a_trace_beside_the_scalars_of_tensorboard(invoke, copied, config_file):
    common = ["--config", config_file(), "--workdir", copied, "--config.train.num_steps=14"]
    assert invoke("train", *common, "--profile", "12:13").code == 0
    (trace,) = (copied / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    steps = [
        dict(e.stats)["step_num"]
        for p in planes
        for line in p.lines
        for e in line.events
        if e.name == "train"
    ]
    assert sorted(map(int, steps)) == [12, 13]


@pytest.mark.full
@pytest.mark.parametrize("steps", ["10:12", "11:21", "3:4"])
def test_steps_that_the_run_will_not_do_cannot_be_profiled(refused, copied, config_file, steps):
    refused(
        "train",
        *(
            "--config",
            config_file(),
            "--workdir",
            copied,
            "--config.train.num_steps=20",
            "--profile",
            steps,
        ),
        says=[f"profile is {steps}", "has the steps 11 to 20 before it"],
    )


def test_a_range_that_is_none_is_refused_before_the_config_is_built(refused, config_file):
    refused(
        "train",
        "--config",
        config_file(),
        "--profile",
        "12",
        says=["profile is '12'", "as in 10:12"],
    )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_steps_per_call(invoke, copied, config_file):
    result = invoke(
        "train",
        *("--config", config_file(), "--workdir", copied),
        *("--config.train.num_steps=14", "--config.train.steps_per_call=2"),
    )
    assert result.code == 0
    assert "resuming at step 10 of 14" in result.err
    assert (copied / "checkpoints" / "14").is_dir()


def test_no_steps_per_call_are_refused(refused, config_file):
    says = ["train.steps_per_call is 0", "at least 1"]
    refused("train", "--config", config_file(), "--config.train.steps_per_call=0", says=says)


def test_a_cache_that_cannot_be_made_is_refused(refused, config_file, tmp_path):
    (tmp_path / "file").touch()
    says = [f"--compilation_cache {tmp_path / 'file'} cannot be made"]
    refused("train", "--config", config_file(), "--compilation_cache", tmp_path / "file", says=says)
    says = [r"\udcff is no name in UTF-8"]
    refused(
        "train", "--config", config_file(), "--compilation_cache", f"{tmp_path}/\udcff", says=says
    )


@pytest.fixture
def _cache_as_before():
    """Ends with the cache of the tests, whatever a command has made of it."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.full
@pytest.mark.usefixtures("_cache_as_before")
@pytest.mark.parametrize("name", COMPUTING)
def test_a_command_keeps_its_programs_where_it_is_told_to(refused, config_file, tmp_path, name):
    """Asked of a run that is not there, and of a working directory that is a file: refused once JAX
    is prepared."""
    (tmp_path / "file").touch()
    np.savez(tmp_path / "latents.npz", latents=np.zeros((1, 2, 2, 1), np.float32))
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    argv = {
        "train": ("--config", config_file(), "--workdir", tmp_path / "file"),
        "export": ("--ckpt", tmp_path, "--out", tmp_path / "out"),
        "import_model": (tmp_path / "file", "--out", tmp_path / "out"),
        "verify": (tmp_path,),
        "compare": (tmp_path / "file", tmp_path / "file"),
        "distill": ("--ckpt", tmp_path, "--out", tmp_path / "out"),
        "edit": ("--ckpt", tmp_path, "--init_image", tmp_path / "photo.png"),
        "interpolate": ("--ckpt", tmp_path, "--interpolate_seeds", "1,2"),
        "reconstruct": ("--ckpt", tmp_path, "--reconstruct", tmp_path / "photo.png"),
        "encode": ("--ckpt", tmp_path, tmp_path / "file", "--out", tmp_path / "out.npz"),
        "decode": ("--ckpt", tmp_path, tmp_path / "latents.npz"),
        "import_first_stage": (
            "--config",
            config_file(),
            "--weights",
            tmp_path / "file",
            "--out",
            tmp_path / "out",
        ),
    }
    refused(
        name,
        *argv.get(name, ("--ckpt", tmp_path)),
        "--compilation_cache",
        tmp_path / "cache",
        says=[str(tmp_path)],
    )
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
    assert (tmp_path / "cache").is_dir()


def test_these_are_all_commands_that_compute():
    modules = [
        importlib.import_module(f"ddpm_jax.cli.{found.name}")
        for found in pkgutil.iter_modules(cli.__path__)
    ]
    commands = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "main")}
    assert commands == {*COMPUTING, "plot"}


@pytest.mark.slow
def test_the_second_process_finds_the_programs_of_the_first(tmp_path, config_file):
    hits = []
    for name in ("first", "second"):
        finished = subprocess.run(
            [
                *(
                    sys.executable,
                    "-c",
                    PROGRAM,
                    "--config",
                    str(config_file(2)),
                    "--workdir",
                    str(tmp_path / name),
                ),
                *("--compilation_cache", str(tmp_path / "cache"), "--config.train.sample_steps=2"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        hits.append(int(finished.stdout.split()[-1]))
    assert list((tmp_path / "cache").iterdir())
    assert hits[0] == 0
    assert hits[1] >= 3  # the first weights, the training step, the grid


@pytest.mark.parametrize(
    ("old", "now"), [(False, "none"), (True, "blocks"), ("products", "products")]
)
def test_a_config_from_when_remat_was_true_or_false_still_loads(tmp_path, old, now):
    assert configs.from_dict({"model": {"remat": old}}, source="old").model.remat == now
    path = tmp_path / "old.py"
    path.write_text(f"def get_config():\n    return {{'model': {{'remat': {old!r}}}}}\n")
    assert configs.load_config(path).model.remat == now


def test_an_unknown_remat_is_refused(refused, config_file):
    refused(
        "train",
        "--config",
        config_file(),
        "--config.model.remat=true",
        says=["model.remat is 'true'", "products", "blocks"],
    )
