"""Environments that commands are started in: each works, or is one sentence."""

import io
import os
import subprocess
import sys

import jax
import pytest

from ddpm_jax.cli import command, devices
from ddpm_jax.errors import UsageError


def _python(*argv, **environment):
    return subprocess.run(
        [sys.executable, *argv],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("JAX_DEFAULT_MATMUL_PRECISION", "bad", 'Invalid value "bad"'),
        ("JAX_ENABLE_X64", "maybe", "invalid truth value 'maybe'"),
        ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "x", 'Invalid value "x"'),
    ],
)
def test_a_setting_that_jax_does_not_have_is_one_sentence(name, value, says):
    result = _python("-m", "ddpm_jax.cli.evaluate", "--help", **{name: value})
    assert result.returncode == command.USAGE
    assert result.stdout == ""
    assert result.stderr.startswith("error: JAX cannot be imported (")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert f"unset {name}, or set it" in result.stderr


@pytest.mark.full
@pytest.mark.parametrize("backend", ["module://no_such_notebook.backend_inline", "no such backend"])
def test_the_backend_of_a_notebook_keeps_no_picture_from_being_drawn(tmp_path, backend):
    """`!python train.py` in a notebook has the notebook's backend, which the command's Python may
    lack."""
    draw = (
        "import os, numpy as np; from ddpm_jax.plotting.curves import loss_curve; "
        f"loss_curve({str(tmp_path / 'a.png')!r}, np.arange(3.0), np.ones(3)); "
        "print(os.environ['MPLBACKEND'])"
    )
    result = _python("-c", draw, MPLBACKEND=backend)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{backend}\n"  # for whoever else reads it
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["--help"], ["no_such_run"]])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_nobody_reads_ends_without_a_traceback(argv, stream):
    """`| head` closes the pipe while the command still prints."""
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    reading, unread = os.pipe()
    os.close(reading)
    with open(unread, "wb") as unread:
        command_line = [sys.executable, "-m", "ddpm_jax.cli.plot", *argv]
        result = subprocess.run(
            command_line, **{stream: unread, other: subprocess.PIPE}, check=False
        )
    printed_there = "stdout" if argv == ["--help"] else "stderr"
    expected = command.USAGE if argv != ["--help"] else 0
    assert result.returncode == (command.UNREAD if stream == printed_there else expected)
    if stream == printed_there:
        assert getattr(result, other) == b""


@pytest.mark.slow
def test_help_without_docstrings_lists_the_flags():
    result = _python("-OO", "-m", "ddpm_jax.cli.plot", "--help")
    assert result.returncode == 0, result.stderr
    assert "drops the text of the help (-OO)" in result.stdout
    assert "--smooth X" in result.stdout


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_terminal_cannot_show_is_printed_as_its_code(monkeypatch, stream):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)
    monkeypatch.setattr(sys, stream, terminal)

    def main(argv):
        print("3.1 \xb1 0.2 \udcff", file=getattr(sys, stream))
        return 0

    assert command.run(main, []) == 0
    assert terminal.buffer.getvalue() == b"3.1 \\xb1 0.2 \\udcff\n"


def test_no_command_runs_operation_by_operation(refused, tmp_path):
    with jax.disable_jit():
        refused("sample", "--ckpt", tmp_path, says=["JAX_DISABLE_JIT is set", "unset it"])


def test_no_command_runs_where_nothing_may_be_copied_to_a_device(refused, tmp_path):
    before = jax.config.jax_transfer_guard_host_to_device
    jax.config.update("jax_transfer_guard_host_to_device", "disallow")  # as the variable sets it
    try:
        refused(
            "sample",
            "--ckpt",
            tmp_path,
            says=["JAX_TRANSFER_GUARD_HOST_TO_DEVICE is disallow", "set it to log"],
        )
    finally:
        jax.config.update("jax_transfer_guard_host_to_device", before)


@pytest.mark.parametrize("place", ["foo://bar", "s3://bucket/programs", "gs://"])
def test_a_cache_of_programs_lies_on_a_disk_or_in_a_bucket(place):
    with pytest.raises(
        UsageError, match=r"^--compilation_cache: .*(can be read or written|names no bucket)"
    ):
        devices.keep_compiled(place)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", place)  # as the variable sets it
    try:
        with pytest.raises(
            UsageError,
            match=r"^JAX_COMPILATION_CACHE_DIR: .*(can be read or written|names no bucket)",
        ):
            devices.keep_compiled(None)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_refusal_of_the_system_that_nothing_foresaw_is_one_sentence(capsys, tmp_path):
    (tmp_path / "a").mkdir()

    def main(argv):
        return len((tmp_path / "a" / ("b" * 300)).read_text())

    assert command.run(main, []) == command.USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/a/bbb")
    assert said.endswith("File name too long. Make it usable, or name another.\n")


def test_a_defect_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        command.run(lambda argv: (tmp_path / "missing").read_text(), [])
