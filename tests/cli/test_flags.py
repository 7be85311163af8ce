"""Numbers and paths in flags: every flag of every command that takes one, found in the parsers
themselves."""

import importlib
import pkgutil
import typing
import unittest.mock

import pytest

import ddpm_jax.cli
from ddpm_jax.cli import arguments, flag_synonyms
from ddpm_jax.errors import UsageError
from ddpm_jax.tasks.sampler_options import options_from, spacing_from, typed_options

OF_NO_FLAG = [  # there is none that takes any of these
    *("9" * 20, "-" + "9" * 20, "9" * 5000, "-1", "0x10"),
    *("²", "１", "٣", "½", "1__0", "_1", "", " ", "x", "1;2"),
    *("nan", "inf", "-inf", "1e400", "1e39", "-1e39"),
]


class _Found(Exception):
    pass


def _parser(module):
    """Return the parser that a command makes before it reads its arguments."""
    found = {"autospec": True, "side_effect": _Found}
    with unittest.mock.patch.object(arguments.Parser, "parse", **found) as parse:
        try:
            module.main([])
        except _Found:
            return parse.call_args.args[0]
    raise AssertionError(f"{module.__name__} parses no flags")


def _takes_numbers(spec):
    kinds = [kind for kind in spec.kinds for kind in (kind, *typing.get_args(kind))]
    return spec.read is None and any(kind in kinds for kind in (int, float))


MODULES = [
    importlib.import_module(f"ddpm_jax.cli.{m.name}")
    for m in pkgutil.iter_modules(ddpm_jax.cli.__path__)
]
PARSERS = {
    module.__name__.rpartition(".")[2]: _parser(module)
    for module in MODULES
    if hasattr(module, "main")
}
NUMERALS = [
    (name, flag)
    for name, parser in PARSERS.items()
    for flag, spec in parser.settings.items()
    if _takes_numbers(spec)
]
PLACES = [
    (name, flag)
    for name, parser in PARSERS.items()
    for flag, spec in parser.settings.items()
    if spec.is_path
]
TOO_LONG = ["a" * 256, "runs/" + "ü" * 128 + "/x", "/".join(["a" * 250] * 20)]


def test_the_flags_that_take_numbers_are_found():
    found = {flag for _, flag in NUMERALS}
    assert {
        "num_samples",
        "batch_size",
        "seed",
        "ckpt_step",
        "draws",
        "probes",
        "resamplings",
        "rtol",
    } <= found
    assert {
        "interpolate_seeds",
        "evaluations",
        "sigma_rel",
        "guidance_interval",
        "strength",
        "smooth",
    } <= found


@pytest.mark.parametrize(("name", "flag"), NUMERALS)
def test_a_number_that_makes_no_sense_is_one_sentence(refused, name, flag):
    for text in OF_NO_FLAG:
        refused(name, f"--{flag}={text}", says=[flag, text[:40], "it must be "])


@pytest.mark.parametrize("name", PARSERS)
def test_every_default_is_in_its_own_range(name):
    settings = PARSERS[name].settings
    for flag in (flag for of, flag in NUMERALS if of == name):
        default = settings[flag].default
        if default is not None:
            listed = isinstance(default, list | tuple)
            text = ",".join(map(str, default)) if listed else str(default)
            assert settings[flag].parse(text) == default


@pytest.mark.parametrize("text", ["9" * 20, "-1,5", "²,5", "１,5", "5,,7", "5,", "5;7"])
def test_times_that_no_chain_has_are_no_spacing(text):
    with pytest.raises(UsageError, match="is no list of timesteps"):
        spacing_from(text)


def test_a_spacing_is_a_name_or_times():
    assert spacing_from("karras") == "karras"
    assert spacing_from("nan") == "nan"  # a name, and unknown
    assert spacing_from("19,7.5,0") == (19, 7.5, 0)


@pytest.mark.parametrize(
    "steps",
    ["9" * 20 + ":" + "9" * 21, "²:³", "１:２", "-1:2", "0:1", "3:2", "1,2", "5", "1:2:3", ":"],
)
def test_steps_that_no_run_has_are_not_profiled(refused, steps):
    refused("train", f"--profile={steps}", says=["profile is ", "as in 10:12"])


@pytest.mark.parametrize(
    ("sampler", "option"),
    [
        *(("lms", f"order={text}") for text in ("9" * 20, "²", "1.5", "-1", "nan")),
        *(("predictor_corrector", f"corrector_steps={text}") for text in ("9" * 20, "1001")),
        *(("ddim", f"eta={text}") for text in ("nan", "inf", "1e400", "½")),
        ("edm", "s_max=nan"),
    ],
)
def test_an_option_that_is_no_number_is_refused(sampler, option):
    name, _, text = option.partition("=")
    with pytest.raises(
        UsageError, match=rf"^The option {name} of the sampler {sampler} is '{text}': it must be a "
    ):
        typed_options(sampler, options_from(option))


def test_options_have_the_type_of_their_default_and_may_be_it():
    assert typed_options("edm", options_from("s_churn=2,s_max=inf")) == {
        "s_churn": 2.0,
        "s_max": float("inf"),
    }
    assert typed_options("unipc", options_from("order=3,variant=bh1")) == {
        "order": 3,
        "variant": "bh1",
    }
    for text in ("rounded=true", {"rounded": True}):
        options = options_from(text) if isinstance(text, str) else text
        assert typed_options("edm", options) == {"rounded": True}


def test_the_flags_that_take_paths_are_found():
    found = {flag for _, flag in PLACES}
    assert {
        "ckpt",
        "out",
        "workdir",
        "config",
        "data_dir",
        "weaker",
        "classifier",
        "compilation_cache",
    } <= found
    assert {
        "init_image",
        "inpaint",
        "mask",
        "low_res",
        "interpolate",
        "reconstruct",
        "weights",
    } <= found


@pytest.mark.parametrize(("name", "flag"), PLACES)
def test_a_name_that_no_file_can_have_is_one_sentence(refused, name, flag):
    says = ["bytes, and the system allows", "choose a shorter one"]
    for path in TOO_LONG:
        given = [f"--{flag}", path, path] if flag == "interpolate" else [f"--{flag}={path}"]
        refused(name, *given, says=says)


@pytest.mark.parametrize("name", ["plot", "encode", "decode"])
def test_an_argument_that_no_file_can_be_called_is_one_sentence(refused, name):
    for path in TOO_LONG:
        refused(name, path, says=["bytes, and the system allows"])


def test_both_pictures_of_a_pair_are_looked_at(refused):
    refused("sample", "--interpolate", "a.png", "b" * 300, says=["has 300 bytes", "allows 255"])


@pytest.mark.parametrize(
    ("name", "flag", "meant"),
    [
        ("train", "--lr", "config.optimizer.learning_rate"),
        ("train", "--batch_size", "config.train.batch_size"),
        ("train", "--output_dir", "workdir"),
        ("train", "--device", "platform"),
        ("sample", "--num_inference_steps", "steps"),
        ("sample", "--cfg_scale", "guidance_scale"),
        ("sample", "--scheduler", "sampler"),
        ("sample", "--checkpoint", "ckpt"),
        ("evaluate", "--output_dir", "out"),
    ],
)
def test_a_flag_of_another_library_is_answered_with_ours(refused, name, flag, meant):
    refused(name, flag, "1", says=[f"There is no flag {flag}.", f"Did you mean '{meant}'?"])


def test_every_synonym_is_of_a_flag():
    flags = {flag for parser in PARSERS.values() for flag in parser.settings}
    assert set(flag_synonyms.FLAGS) <= flags
