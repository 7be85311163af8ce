"""Flags of settings records: what is typed becomes a record, what makes no sense one sentence."""

import dataclasses

import pytest

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.errors import UsageError
from ddpm_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class Inner(Settings, prefix="inner_"):
    """Inside another"""

    scale: float = setting(1.0, "A number, 100% of it.", lower=0, upper=10)
    levels: tuple[float, float] | None = setting(None, "Two numbers.", metavar="LO,HI")


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    """Holds another"""

    count: int = setting(3, "How many.", lower=1, upper=9)
    pair: tuple[str, str] | None = setting(None, "Two files.", path=True, metavar="A B")
    is_fast: bool = setting(False, "A switch.", flag="fast")
    inner: Inner = Inner()


PARSER = Parser("`python x.py`: it.", Outer, fields=("model.ch", "data.flip"))


def test_nothing_given_is_the_record_without_arguments():
    flags = PARSER.parse([])
    assert flags.make(Outer) == Outer()
    assert flags.given == set()


def test_what_is_given_is_in_the_record_and_in_those_that_it_holds():
    argv = ["--count=5", "--pair", "a.png", "b.png", "--fast", "--inner_levels", "0.2,0.8"]
    flags = PARSER.parse([*argv, "--inner_scale", "2", "--config.model.ch=64", "--platform", "cpu"])
    inner = Inner(scale=2.0, levels=(0.2, 0.8))
    assert flags.make(Outer) == Outer(count=5, pair=("a.png", "b.png"), is_fast=True, inner=inner)
    assert flags.fields == {"model.ch": "64"}
    assert flags.platform == "cpu"
    assert {"count", "fast", "inner_scale"} <= flags.given


def test_the_last_of_two_counts_and_a_switch_can_be_taken_back():
    flags = PARSER.parse(["--count", "5", "--fast", "--count", "6", "--nofast"])
    assert flags.make(Outer) == Outer(count=6)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--cuont", "5"], "no flag --cuont. Did you mean 'count'"),
        (["--count", "0"], "count is 0: it must be a whole number in 1..9"),
        (["--count"], "--count: expected one argument"),
        (["--pair", "a.png"], "--pair: expected 2 arguments"),
        (["--inner_levels", "1"], "inner_levels is 1"),
        (["--platform", "gpux"], "choose one of cpu, gpu, tpu"),
        (["--compilation_cache", ""], "compilation_cache is empty"),
        (["--config.model.hc=64"], "no config field 'model.hc'. Did you mean 'model.ch'"),
        (["--batch_size=8"], "Did you mean 'config.train.batch_size'"),
        (["5"], "Unexpected argument '5'"),
        (["-5"], "no flag --5"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(argv, says):
    with pytest.raises(UsageError) as refused:
        PARSER.parse(argv)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_words_stand_anywhere_between_the_flags():
    parser = Parser("`python x.py`: it.", Outer, words=True)
    assert parser.parse(["a", "--count", "5", "b", "--fast", "c"]).words == ("a", "b", "c")
    with pytest.raises(UsageError, match="An argument is empty"):
        parser.parse(["a", " "])


def test_the_help_names_every_flag_its_range_of_words_and_its_default(capsys):
    with pytest.raises(SystemExit) as exited:
        PARSER.parse(["--help"])
    page = capsys.readouterr().out
    assert exited.value.code == 0
    for text in ("--count N", "(default: 3)", "--pair A B", "--inner_levels LO,HI", "100% of it"):
        assert text in page
    assert "--nofast" not in page
    assert "--config.model.ch" not in page
