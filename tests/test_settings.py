"""Settings: a value comes to the same by a flag's text and by Python, and so does its refusal."""

import dataclasses
import pathlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.settings import Settings, setting, settings_in

SHARE = {"valid": lambda value: 0 < value <= 1, "wanted": "above 0 and at most 1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push(Settings, prefix="push_"):
    scale: float = setting(1.0, "How far.", lower=0, upper=1_000_000)
    interval: tuple[float, float] | None = setting(
        None, "Where.", lower=0, upper=1, metavar="LO,HI"
    )
    share: float | None = setting(None, "How much.", **SHARE)
    weaker: str | None = setting(None, "Away from it.", flag="weaker", path=True, metavar="DIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making(Settings):
    sampler: str = setting("ancestral", "How.", choices=("ancestral", "ddim", "heun"))
    steps: int | None = setting(None, "How many.", lower=1, upper=1000)
    spacing: tuple[float, ...] | str | None = setting(
        None, "Which.", choices=("linspace", "karras")
    )
    labels: tuple[int | str, ...] | None = setting(None, "Of what.", metavar="K", lower=0)
    seeds: tuple[int, int] = setting((0, 1), "Two.", lower=0, upper=9)
    pair: tuple[str, str] | None = setting(None, "Two files.", path=True, metavar="A B")
    chain: bool = setting(False, "Also the chain.")
    options: dict | None = setting(None, "Options.", read=lambda text: dict([text.split("=")]))
    push: Push | None = None


def named(record, name):
    return next(spec for spec in settings_in(record) if spec.name == name)


def test_settings_are_named_as_flags_in_the_order_of_the_fields():
    assert [(s.name, s.field, s.metavar) for s in settings_in(Push)] == [
        ("push_scale", "scale", "X"),
        ("push_interval", "interval", "LO,HI"),
        ("push_share", "share", "X"),
        ("weaker", "weaker", "DIR"),
    ]
    assert "push" not in {s.name for s in settings_in(Making)}, "a record in a record is no flag"
    assert [s.metavar for s in settings_in(Making)[:2]] == ["NAME", "N"]
    words = {s.name: s.words for s in settings_in(Making)}
    assert (words["chain"], words["steps"], words["seeds"], words["pair"]) == (0, 1, 1, 2)


@pytest.mark.parametrize(
    ("record", "name", "texts", "value"),
    [
        (Push, "push_scale", ["2"], 2.0),
        (Push, "push_interval", ["0.2,0.8"], (0.2, 0.8)),
        (Push, "weaker", ["runs/a"], "runs/a"),
        (Making, "sampler", ["ddim"], "ddim"),
        (Making, "steps", ["1_000"], 1000),
        (Making, "spacing", ["9,7.5,0"], (9.0, 7.5, 0.0)),
        (Making, "spacing", ["karras"], "karras"),
        (Making, "labels", ["3, cat"], (3, "cat")),
        (Making, "seeds", ["4,5"], (4, 5)),
        (Making, "pair", ["a.png", "b.png"], ("a.png", "b.png")),
        (Making, "chain", ["false"], False),
        (Making, "options", ["eta=1"], {"eta": "1"}),
    ],
)
def test_a_text_is_read_by_the_fields_type(record, name, texts, value):
    spec = named(record, name)
    parsed = spec.parse(*texts)
    assert parsed == value
    assert type(parsed) is type(value)
    assert getattr(record(**{spec.field: parsed}), spec.field) == value, "and is valid in Python"


@pytest.mark.parametrize(
    ("record", "name", "text", "value", "complaint"),
    [
        (Push, "push_scale", "-1", -1, "is -1: it must be a number in 0..1000000."),
        (Push, "push_scale", "nan", float("nan"), "it must be a number in 0..1000000."),
        (Push, "push_scale", "wide", "wide", "is 'wide': it must be a number in 0..1000000."),
        (Push, "push_interval", "0.5", (0.5,), ": it must be 2 "),
        (Push, "push_interval", "0,2", (0, 2), "in 0..1"),
        (Push, "push_share", "0", 0, "is 0: it must be a number above 0 and at most 1."),
        (Push, "weaker", " ", " ", "is empty: give it a value, as in DIR, or leave it out."),
        (Push, "weaker", "a" * 256, "a" * 256, "a name in it has 256 bytes"),
        (Making, "sampler", "dim", "dim", "Did you mean 'ddim'?"),
        (Making, "steps", "0", 0, "is 0: it must be a whole number in 1..1000."),
        (Making, "steps", "1.5", 1.5, "is 1.5: it must be a whole number in 1..1000."),
        (Making, "steps", "9" * 20, 10**20 - 1, "it must be a whole number in 1..1000."),
        (Making, "steps", "True", True, "is "),
        (Making, "spacing", "karas", "karas", "Did you mean 'karras'?"),
        (Making, "seeds", "1,10", (1, 10), "in 0..9"),
        (Making, "chain", "maybe", "maybe", "is 'maybe': it must be true or false."),
        (Making, "chain", "2", 1, "it must be true or false."),
    ],
)
def test_what_a_field_cannot_be_is_refused_alike_as_a_text_and_in_python(
    record, name, text, value, complaint
):
    spec = named(record, name)
    with pytest.raises(UsageError) as of_text:
        spec.parse(text)
    with pytest.raises(UsageError) as of_value:
        record(**{spec.field: value})
    for error in (of_text, of_value):
        assert complaint in str(error.value)
        assert name in str(error.value)


def test_python_values_are_kept_in_one_form():
    made = Making(
        steps=np.int64(5), labels=[3, "cat"], spacing=np.array([9.0, 0.0]), seeds=range(2)
    )
    assert (made.steps, made.labels, made.spacing, made.seeds) == (
        5,
        (3, "cat"),
        (9.0, 0.0),
        (0, 1),
    )
    assert type(made.steps) is int
    push = Push(scale=2, share=np.float32(0.1), weaker=pathlib.Path("runs/a"))
    assert (type(push.scale), push.weaker) == (float, "runs/a")
    assert push.share == float(np.float32(0.1)), "the number itself, not its shortest digits"


def test_none_is_for_what_is_optional():
    assert Making(steps=None).steps is None
    with pytest.raises(UsageError, match="sampler is None: it must be a text"):
        Making(sampler=None)


def test_what_is_not_a_default_is_recorded():
    assert Making().record() == {}
    assert Making(seeds=(0, 1), sampler="ancestral").record() == {}
    made = Making(steps=5, seeds=[3, 4], push=Push(interval=(0.2, 0.8)))
    assert made.record() == {"steps": 5, "seeds": [3, 4], "push": {"interval": [0.2, 0.8]}}


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Push().scale = 2.0


@dataclasses.dataclass(frozen=True)
class Saying(Settings):
    prompt: tuple[str, ...] | None = setting(None, "What.", metavar="TEXT", prose=True)


def test_prose_is_taken_as_it_is_one_text_a_flag():
    spec = named(Saying, "prompt")
    assert spec.parse("a, b", "") == ("a, b", "")
    assert Saying(prompt="a, b").prompt == ("a, b",)
    assert Saying(prompt=["", "b"]).prompt == ("", "b")
    for wrong in ((), 3, ["a", 3], "half \ud800"):
        with pytest.raises(UsageError, match="prompt is"):
            Saying(prompt=wrong)
