"""What `pip install` gives: a fast import, the public names, a command, the configs."""

import ast
import configparser
import importlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email import message_from_bytes

import pytest

import ddpm_jax
from ddpm_jax.__main__ import COMMANDS, main, module_of

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "ddpm_jax", "configs")
DATA = {
    "ddpm_jax/py.typed",
    "ddpm_jax/data/emoji.npz",
    "ddpm_jax/data/emoji.LICENSE",
    "ddpm_jax/measuring/digit_features.npz",
    "ddpm_jax/text/clip_merges.txt.gz",
    "ddpm_jax/text/clip_merges.LICENSE",
}
PATIENCE = 300  # seconds until a command counts as hanging


def _python(program):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_package_imports_at_once_and_without_jax():
    program = (
        "import sys, time; start = time.perf_counter(); import ddpm_jax;"
        "print(time.perf_counter() - start, {'jax', 'numpy', 'flax', 'absl'} & {*sys.modules})"
    )
    seconds, loaded = zip(*(_python(program) for _ in range(3)), strict=True)
    assert set(loaded) == {"set()"}
    assert min(map(float, seconds)) < 0.1


def test_commands_import_what_draws_and_measures_only_when_they_do():
    """Together these libraries take longer to import than JAX."""
    late = {"diffrax", "grain", "matplotlib", "sklearn", "tensorboardX", "tensorflow_datasets"}
    program = (
        "import sys, ddpm_jax.cli.train, ddpm_jax.cli.sample, ddpm_jax.cli.evaluate;"
        f"print(*({late} | {{'scipy.linalg', 'scipy.stats', 'optimistix'}}) & {{*sys.modules}})"
    )
    assert _python(program) == []


def test_sampling_imports_nothing_that_trains_or_reads_files_of_other_projects():
    program = (
        "import sys, ddpm_jax.cli.sample; print(*{'orbax', 'optax', 'tqdm', "
        "'ddpm_jax.families.openai_unet', 'ddpm_jax.measuring'} & {*sys.modules})"
    )
    assert _python(program) == []


def test_every_public_name_is_what_its_module_defines():
    assert len(set(ddpm_jax.__all__)) == len(ddpm_jax.__all__) > 5
    for name in set(ddpm_jax.__all__) - {"__version__"}:
        value = getattr(ddpm_jax, name)
        assert getattr(sys.modules[value.__module__], name) is value
        assert value.__module__.startswith("ddpm_jax.")
    assert set(ddpm_jax.__all__) <= set(dir(ddpm_jax))
    assert importlib.import_module("ddpm_jax.samplers.loop").sample is ddpm_jax.sample


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'ddpm_jax' has no attribute 'smaple'"):
        ddpm_jax.smaple  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'smaple'"):
        exec("from ddpm_jax import smaple")


def test_the_list_of_commands_is_that_of_the_files_and_needs_no_jax(capsys):
    files = {
        path.stem
        for path in (ROOT / "ddpm_jax" / "cli").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    }
    assert files == set(map(module_of, COMMANDS))
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, purpose in COMMANDS.items():
        assert sum(line.split()[:1] == [name] and purpose in line for line in lines) == 1
    program = (
        "import sys; from ddpm_jax.__main__ import main; main(['--help']); print('jax' in "
        "sys.modules)"
    )
    assert _python(program)[-1] == "False"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "Name a command, one of train, sample"),
        (["trian"], "There is no command 'trian'. Did you mean 'train'?"),
        (["--ckpt", "run"], "There is no command '--ckpt'."),
    ],
)
def test_what_is_no_command_is_one_sentence(capsys, argv, says):
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {says}")
    assert said.err.endswith("`ddpm-jax --help` lists the commands.\n")
    assert said.err.count("\n") == 1


def test_a_command_gets_the_words_behind_its_name(capfd):
    assert main(["plot", "no_such_run"]) == 2
    assert "no_such_run" in capfd.readouterr().err


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built from a copy of what it is made of, without a network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (required,) = project["build-system"]["requires"]
    packaging = pytest.importorskip("packaging.requirements")
    metadata = pytest.importorskip("importlib.metadata")
    try:
        found = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if found not in packaging.Requirement(required).specifier:
        pytest.skip(f"setuptools {found} is too old for {required}")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    _pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", out, source)
    (path,) = out.glob("*.whl")
    return path


def _pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_package_its_configs_and_its_command(wheel):
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "ddpm_jax").rglob("*.py")}
    configs = {f"ddpm_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        files = {name for name in archive.namelist() if not name.startswith(info)}
        assert files == package | configs | DATA
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(f"{info}/entry_points.txt").decode())
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert dict(entries["console_scripts"]) == {"ddpm-jax": "ddpm_jax.__main__:main"}
    assert metadata["Version"] == ddpm_jax.__version__
    assert any(
        "orbax-checkpoint" in line and "<1" in line for line in metadata.get_all("Requires-Dist")
    )


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {ddpm_jax.__version__}" in lines
    assert "cff-version: 1.2.0" in lines


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """installed("train", ...) -> output: the command of the wheel, in a folder that begins empty.

    The environment has this one's libraries, but neither this checkout nor what `.pth` files name.
    """
    place, folder = tmp_path_factory.mktemp("venv"), tmp_path_factory.mktemp("folder")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    _pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    scheme = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    (pathlib.Path(scheme) / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments, program=place / "bin" / "ddpm-jax"):
        done = subprocess.run(
            [program, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.python, run.folder, run.place = python, folder, place
    return run


@pytest.mark.full
def test_an_installed_wheel_trains_and_samples_in_an_empty_folder(installed):
    where = installed("-c", "import ddpm_jax; print(ddpm_jax.__file__)", program=installed.python)
    assert pathlib.Path(where).is_relative_to(installed.place)
    assert "import-first-stage" in installed("--help")
    small = [
        "--config.model.ch=32",
        "--config.model.ch_mult=1,1",
        "--config.model.num_res_blocks=1",
        "--config.train.batch_size=8",
        "--config.train.num_samples=4",
        "--config.train.sample_steps=5",
        "--config.train.sample_every=0",
    ]
    said = installed("train", *small, "--config.train.num_steps=1")
    assert "next: ddpm-jax sample --ckpt runs/digits" in said
    assert "done: 1 steps" in installed(
        "train", "--config", "digits", *small, "--config.train.num_steps=1"
    )
    installed("sample", "--ckpt", "runs/digits", "--num_samples", 2, "--steps", 5)
    run = installed.folder / "runs" / "digits"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1"]
    assert list(run.rglob("grid.png"))
    assert [path.name for path in installed.folder.iterdir()] == ["runs"]
