"""The user's own directory of compiled programs, which commands use unasked."""

import os
import pathlib
import subprocess
import sys
import zlib

import jax
import pytest

from ddpm_jax.cli import arguments, compiled_programs, devices

TEN_STEPS = pathlib.Path(__file__).parents[1] / "fixtures" / "runs" / "ten_steps"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache directory of a user, whose JAX names none."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_enable_compilation_cache",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DDPM_JAX_CACHE", raising=False)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def _entry(directory, name, data, used):
    path = directory / f"{name}-cache"
    path.write_bytes(data)
    os.utime(path, (used, used))
    return path


def test_unasked_programs_are_kept_in_the_users_cache_directory(home):
    devices.keep_compiled(None)
    kept = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert kept.parent == home / "ddpm_jax" / "compiled"
    assert kept.stat().st_mode & 0o777 == 0o700


def test_the_variable_of_all_that_is_kept_names_another_place(home, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(home / "mine"))
    assert compiled_programs.own_directory().parent == home / "mine" / "compiled"


def test_none_keeps_nothing(home):
    devices.keep_compiled(arguments.NOWHERE)
    assert not jax.config.jax_enable_compilation_cache
    assert list(home.iterdir()) == []


def test_who_told_jax_to_keep_nothing_is_obeyed(home):
    jax.config.update("jax_enable_compilation_cache", False)
    devices.keep_compiled(None)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_directory_that_others_may_write_to_is_not_used(home):
    compiled_programs.own_directory().chmod(0o777)
    assert compiled_programs.own_directory() is None


def test_without_a_place_there_is_no_directory(home, monkeypatch):
    (home / "ddpm_jax").write_text("a file")
    assert compiled_programs.own_directory() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compiled_programs.own_directory() is None


def test_each_kind_of_processor_has_programs_of_its_own(home, monkeypatch):
    before = compiled_programs.own_directory()
    monkeypatch.setattr(compiled_programs.platform, "machine", lambda: "another")
    assert compiled_programs.own_directory() != before


def test_tidy_removes_what_a_killed_process_left_half_written(tmp_path):
    whole = zlib.compress(bytes(range(256)) * 10)
    kept = _entry(tmp_path, "kept", whole, 1000)
    half = _entry(tmp_path, "half", whole[: len(whole) // 2], 1000)
    empty = _entry(tmp_path, "empty", b"", 1000)
    (tmp_path / "other").write_bytes(b"not an entry")
    compiled_programs.tidy(tmp_path)
    assert kept.exists()
    assert (tmp_path / "other").exists()
    assert not half.exists()
    assert not empty.exists()


def test_tidy_reads_an_entry_once(tmp_path):
    """What was read before and has not changed is not read again: its damage would be found."""
    entry = _entry(tmp_path, "entry", zlib.compress(b"a program"), 1000)
    compiled_programs.tidy(tmp_path)
    _entry(tmp_path, "entry", b"damaged, and older than the mark", 1000)
    compiled_programs.tidy(tmp_path)
    assert entry.exists()


def test_tidy_removes_the_longest_unused_beyond_the_limit(tmp_path):
    data = zlib.compress(os.urandom(1000))
    old, middle, new = (_entry(tmp_path, f"used_{time}", data, time) for time in (1, 2, 3))
    compiled_programs.tidy(tmp_path, limit=2 * len(data))
    assert [path.exists() for path in (old, middle, new)] == [False, True, True]


@pytest.mark.slow
def test_a_second_command_starts_from_the_programs_of_the_first(tmp_path):
    """Also after they were damaged, and both at once; nothing is said of it."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "DDPM_JAX_CACHE"):
        environment.pop(name, None)

    def start(name):
        argv = ["sample.py", "--ckpt", TEN_STEPS, "--num_samples", "2", "--out", tmp_path / name]
        command = [sys.executable, "-W", "error", *map(str, argv)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )

    def entries():
        return {path.name: path for path in tmp_path.glob("ddpm_jax/compiled/*/*-cache")}

    pairs = [start("a"), start("b")]
    assert [process.communicate()[1] for process in pairs] == ["", ""]
    first = entries()
    assert first
    for path in first.values():
        path.write_bytes(path.read_bytes()[:100])
    process = start("c")
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert all(path.stat().st_size > 100 for path in entries().values())
    # those that again took the tenth of a second from which a program is kept
    assert entries().keys() & first.keys()
