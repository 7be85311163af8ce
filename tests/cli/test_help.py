"""`--help` and what a command says of its own flags."""

import importlib
import pkgutil
import re
import runpy
import sys

import pytest

import ddpm_jax.cli
from ddpm_jax.cli import arguments, command
from ddpm_jax.distributed import interrupt
from ddpm_jax.samplers.registry import SAMPLERS, default_options

MODULES = [
    importlib.import_module(f"ddpm_jax.cli.{m.name}")
    for m in pkgutil.iter_modules(ddpm_jax.cli.__path__)
]
COMMANDS = {
    module.__name__.rpartition(".")[2]: module for module in MODULES if hasattr(module, "main")
}
# at the root of the repository, and so called in their help
OF_A_FILE = ("train", "sample", "evaluate")


def test_the_commands_are_found():
    assert {*OF_A_FILE, "draw", "ema", "encode", "decode", "plot", "samplers"} <= set(COMMANDS)


@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no_such_flag", command.USAGE)])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_module(monkeypatch, capsys, name, flag, code):
    """As `python -m ddpm_jax.cli.NAME` does it, in this process."""
    module = f"ddpm_jax.cli.{name}"
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", [name, flag])
    monkeypatch.setattr(interrupt, "own_process", lambda: None)  # it may not be ended on the spot
    with pytest.raises(SystemExit) as exited:
        runpy.run_module(module, run_name="__main__")
    said, complaint = capsys.readouterr()
    assert exited.value.code == code
    if flag == "--help":
        assert said.startswith(("`python ", "`ddpm-jax "))
        assert "\n  --" in said
        assert complaint == ""
    else:
        assert said == ""
        assert complaint.startswith("error: There is no flag --no_such_flag.")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_a_page_that_fits_a_terminal(capsys, name, flag):
    with pytest.raises(SystemExit) as exited:
        command.run(COMMANDS[name].main, [flag])
    assert exited.value.code == 0
    page, noise = capsys.readouterr()
    assert noise == ""
    assert page.startswith(f"`python {name}.py" if name in OF_A_FILE else "`")
    assert max(map(len, page.splitlines())) <= 120
    # the text never touches the flag
    flags = [line for line in page.splitlines() if line.startswith("  --")]
    assert flags
    assert all(re.match(r"  --\S+( \S+){0,2}(  |$)", line) for line in flags)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_breaks_no_name(monkeypatch, capsys, name):
    texts, parse = [], arguments.Parser.parse

    def remembering_all(self, argv):
        texts.extend(spec.help for spec in self.settings.values())
        return parse(self, argv)

    monkeypatch.setattr(arguments.Parser, "parse", remembering_all)
    with pytest.raises(SystemExit):
        COMMANDS[name].main(["--help"])
    words = set(capsys.readouterr().out.split())
    assert len(texts) > 1
    assert {word for text in texts for word in text.split()} <= words


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_help_lists_the_options_of_every_sampler_with_their_defaults(capsys, name):
    with pytest.raises(SystemExit):
        COMMANDS[name].main(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    for sampler, options in (
        ("ddim", "eta=0.0"),
        ("edm", "s_churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0"),
        ("lms", "order=4"),
        ("unipc", "order=2, variant=bh2"),
        ("predictor_corrector", "snr=0.16, corrector_steps=1"),
    ):
        assert f"of {sampler} {options}" in page
    assert all(default_options(sampler) or f"of {sampler} " not in page for sampler in SAMPLERS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_without_docstrings_lists_the_flags(monkeypatch, capsys, name):
    """As `python -OO` leaves a module, without its docstring."""
    monkeypatch.setattr(COMMANDS[name], "__doc__", None)
    with pytest.raises(SystemExit) as exited:
        COMMANDS[name].main(["--help"])
    assert exited.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("This Python drops the text of the help (-OO)")
    assert "--help" in said
    assert "\n  --" in said


@pytest.mark.parametrize("name", OF_A_FILE)
def test_help_lists_every_flag_with_its_default(capsys, name):
    with pytest.raises(SystemExit):
        command.run(COMMANDS[name].main, ["--help"])
    page = " ".join(capsys.readouterr().out.split())
    wanted = {
        "train": ["config FILE", "workdir DIR"],
        "sample": [
            "ckpt DIR",
            "ckpt_step N",
            "num_samples N",
            "batch_size N",
            "seed N",
            "steps N",
            "out DIR",
            "chain",
        ],
        "evaluate": [
            "ckpt DIR",
            "ckpt_step N",
            "metric NAME",
            "num_samples N",
            "seed N",
            "steps N",
            "data_dir DIR",
        ],
    }
    defaults = {"train": "digits", "sample": "64", "evaluate": "frechet_pixels"}
    assert all(f"--{flag} " in page for flag in [*wanted[name], "platform cpu|gpu|tpu", "help"])
    assert f"(default: {defaults[name]})" in page


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_choice(monkeypatch, capsys, name):
    made = []
    add = arguments.Parser._add

    def keep(parser, record):
        made.append(parser)
        add(parser, record)

    monkeypatch.setattr(arguments.Parser, "_add", keep)
    with pytest.raises(SystemExit):
        command.run(COMMANDS[name].main, ["--help"])
    page = capsys.readouterr().out
    for spec in made[0].settings.values():
        flag = re.search(rf"^  --{spec.name}\b.*?(?=^  --|^\S|\Z)", page, re.MULTILINE | re.DOTALL)
        missing = [choice for choice in spec.choices if not re.search(rf"\b{choice}\b", flag[0])]
        assert not missing, spec.name


@pytest.mark.parametrize("name", OF_A_FILE)
def test_flags_are_refused_before_anything_else(refused, name):
    refused(
        name,
        "--plattform",
        "cpu",
        says=["no flag --plattform", "Did you mean 'platform'?", "--help"],
    )
    refused(name, "cpu", says=["Unexpected argument 'cpu'"])
    refused(name, "--platform", "gpux", says=["gpux", "platform", "cpu", "tpu"])
    refused(name, "--platform", says=["--platform"])


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_takes_nothing_for_a_value(capsys, tmp_path, monkeypatch, name):
    """Nothing is what a variable that is not set gives: `--workdir ""` must not be another
    directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command.run(COMMANDS[name].main, ["--help"])
    flags = re.findall(r"^  --(\S+) (\S+)", capsys.readouterr().out, re.MULTILINE)
    texts = [flag for flag, value in flags if value not in ("N", "X", "TEXT", "cpu|gpu|tpu")]
    assert texts
    for flag in texts:
        for nothing in ("", " "):
            assert command.run(COMMANDS[name].main, [f"--{flag}", nothing]) == command.USAGE
            says = (
                rf"(--)?{flag} is (empty|'\s*'): ",
                rf"flag --{flag}=\s*: it must be",
                rf"--{flag}: expected 2 arguments",
            )
            assert re.match(f"error: ({'|'.join(says)})", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_no_file_or_directory_is_named_by_nothing(refused):
    refused("encode", "--ckpt", "run", "", says=["An argument is empty"])


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("sample", ["--num_sample", "3"], ["--num_sample.", "'num_samples'"]),
        ("sample", ["--num_samples", "0"], ["num_samples is 0", "whole number in 1.."]),
        ("sample", ["--num_samples", "-3"], ["num_samples is -3", "whole number in 1.."]),
        ("sample", ["--steps", "0"], ["steps is 0", "whole number in 1.."]),
        ("sample", ["--steps", "1.5"], ["steps is 1.5", "whole number in 1.."]),
        ("sample", ["--steps", "many"], ["steps is 'many'", "whole number in 1.."]),
        ("sample", ["--batch_size", "0"], ["batch_size is 0", "whole number in 1.."]),
        ("sample", ["--ckpt_step", "-1"], ["ckpt_step is -1", "whole number in 0.."]),
        ("sample", ["--seed", "-1"], ["seed is -1", "0..4294967295"]),
        ("sample", ["--seed", "4294967296"], ["seed is 4294967296", "0..4294967295"]),
        ("sample", [], ["--ckpt is missing", "--ckpt runs/digits"]),
        ("evaluate", [], ["--ckpt is missing", "--ckpt runs/digits"]),
        ("evaluate", ["--num_samples", "1"], ["num_samples is 1", "whole number in 2.."]),
        (
            "evaluate",
            ["--ckpt", "x", "--metric", "frechet_pixel"],
            ["'frechet_pixel'", "mean 'frechet_pixels'"],
        ),
    ],
)
def test_a_bad_flag_is_named_with_what_is_expected(refused, name, argv, says):
    refused(name, *argv, says=says)
