"""What is a number and what is none."""

import math

import pytest

from ddpm_jax import numerals

NO_NUMBERS = [
    "",
    " ",
    "x",
    "²",
    "１",
    "٣",
    "1__0",
    "_1",
    "1_",
    "0x10",
    "1,2",
    "--1",
    "1 2",
    "True",
    "9" * 5000,
]


@pytest.mark.parametrize("text", ["0", "7", "+7", " 7 ", "007", "1_000", "1000000"])
def test_a_whole_number_is_read_as_python_reads_it(text):
    assert numerals.whole_number(text, lower=0, upper=1_000_000) == int(text)


@pytest.mark.parametrize(
    "text", [*NO_NUMBERS, "-1", "1000001", "9" * 20, "1.0", "1e3", "nan", "inf"]
)
def test_what_is_no_whole_number_of_the_range_is_refused(text):
    with pytest.raises(ValueError, match=r"^it must be a whole number in 0..1000000$"):
        numerals.whole_number(text, lower=0, upper=1_000_000)


@pytest.mark.parametrize(
    "text", ["0", "-2.5", "+.5", "5.", "1e-4", "1_0.5", "-1E+2", " 3 ", "1e308"]
)
def test_a_number_is_read_as_python_reads_it(text):
    assert numerals.number(text) == float(text)


@pytest.mark.parametrize(
    "text", [*NO_NUMBERS, "nan", "inf", "-inf", "Infinity", "1e400", "-1e400", ".", "e5", "1e", "½"]
)
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(ValueError, match=r"^it must be a number$"):
        numerals.number(text)


def test_a_number_that_is_not_valid_is_refused_with_what_is_wanted():
    with pytest.raises(ValueError, match=r"^it must be a number above 0$"):
        numerals.number("-1", valid=lambda value: value > 0, wanted="above 0")


def test_several_numbers_are_read_and_counted():
    assert numerals.whole_numbers("3, 5,1_0", lower=0, upper=10) == [3, 5, 10]
    assert numerals.numbers("0.5,2", count=2) == [0.5, 2.0]
    for text in ("3", "3,5,7", "3,", ",", "3,11", "3,x"):
        with pytest.raises(
            ValueError, match=r"^it must be 2 whole numbers in 0..10 separated by commas$"
        ):
            numerals.whole_numbers(text, lower=0, upper=10, count=2)
    with pytest.raises(ValueError, match=r"^it must be numbers separated by commas$"):
        numerals.numbers("1,inf")


@pytest.mark.parametrize(
    ("text", "whole"),
    [("0", True), ("2000", True), ("²", False), ("１", False), ("-1", False), ("", False)],
)
def test_only_ascii_digits_name_a_step(text, whole):
    assert numerals.is_whole(text) is whole
    assert not whole or math.isfinite(int(text))
