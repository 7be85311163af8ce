"""`--help` and what a command says of its own flags."""

import re

import pytest

from ddpm_jax.cli import command, evaluate, sample, train

COMMANDS = {"train": train, "sample": sample, "evaluate": evaluate}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_a_page_that_fits_a_terminal(capsys, name, flag):
    with pytest.raises(SystemExit) as exited:
        command.run(COMMANDS[name].main, [flag])
    assert exited.value.code == 0
    page, noise = capsys.readouterr()
    assert noise == ""
    assert page.startswith(f"`python {name}.py")
    assert max(map(len, page.splitlines())) <= 120
    assert "ddpm_jax.cli.command" not in page  # absl's own layout heads the flags with the module
    flags = page.partition("\nFlags:\n")[2].splitlines()
    assert all(re.match(r" {26}\S|  --\S+( \S+){0,2}(  |$)", line) for line in flags)  # the text never touches the flag


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_flag_with_its_default(capsys, name):
    with pytest.raises(SystemExit):
        command.run(COMMANDS[name].main, ["--help"])
    page = " ".join(capsys.readouterr().out.split())
    wanted = {
        "train": ["config FILE", "workdir DIR"],
        "sample": ["ckpt DIR", "ckpt_step N", "num_samples N", "batch_size N", "seed N", "steps N", "out DIR", "chain"],
        "evaluate": ["ckpt DIR", "ckpt_step N", "metric NAME", "num_samples N", "seed N", "steps N", "data_dir DIR"],
    }
    defaults = {"train": "configs/digits.py", "sample": "64", "evaluate": "frechet_pixels"}
    assert all(f"--{flag} " in page for flag in [*wanted[name], "platform cpu|gpu|tpu", "help"])
    assert f"(default: {defaults[name]})" in page


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_refused_before_anything_else(refused, name):
    refused(name, "--plattform", "cpu", says=["no flag --plattform", "Did you mean 'platform'?", "--help"])
    refused(name, "cpu", says=["Unexpected argument 'cpu'"])
    refused(name, "--platform", "gpux", says=["--platform=gpux", "cpu|gpu|tpu"])
    refused(name, "--platform", says=["Missing value", "--platform"])


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("sample", ["--num_sample", "3"], ["--num_sample.", "'num_samples'"]),
        ("sample", ["--num_samples", "0"], ["--num_samples=0", "whole number of at least 1"]),
        ("sample", ["--num_samples", "-3"], ["--num_samples=-3", "whole number of at least 1"]),
        ("sample", ["--steps", "0"], ["--steps=0", "whole number of at least 1"]),
        ("sample", ["--steps", "1.5"], ["--steps=1.5", "whole number of at least 1"]),
        ("sample", ["--steps", "many"], ["--steps=many", "whole number of at least 1"]),
        ("sample", ["--batch_size", "0"], ["--batch_size=0", "whole number of at least 1"]),
        ("sample", ["--ckpt_step", "-1"], ["--ckpt_step=-1", "whole number of at least 0"]),
        ("sample", ["--seed", "-1"], ["--seed=-1", "0..4294967295"]),
        ("sample", ["--seed", "4294967296"], ["--seed=4294967296", "0..4294967295"]),
        ("sample", [], ["--ckpt is missing", "--ckpt runs/digits"]),
        ("evaluate", [], ["--ckpt is missing", "--ckpt runs/digits"]),
        ("evaluate", ["--num_samples", "1"], ["--num_samples=1", "whole number of at least 2"]),
        ("evaluate", ["--ckpt", "x", "--metric", "frechet_pixel"], ["'frechet_pixel'", "mean 'frechet_pixels'"]),
    ],
)
def test_a_bad_flag_is_named_with_what_is_expected(refused, name, argv, says):
    refused(name, *argv, says=says)
