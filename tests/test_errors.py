"""The look-up of names and its sentence."""

import pytest

from ddpm_jax.errors import LONGEST, UsageError, choose, plural, sentence, suggest, visible

TABLE = {"linear": 1, "cosine": 2}


def test_a_valid_name_gives_its_entry():
    assert choose("beta schedule", "cosine", TABLE) == 2


def test_an_unknown_name_is_named_with_all_valid_ones_and_the_nearest():
    with pytest.raises(UsageError) as caught:
        choose("beta schedule", "linar", TABLE)
    assert (
        str(caught.value)
        == "Unknown beta schedule 'linar': choose one of cosine, linear. Did you mean 'linear'?"
    )


def test_no_name_is_suggested_where_none_is_near():
    assert suggest("zzz", TABLE) == ""
    with pytest.raises(UsageError, match=r"choose one of cosine, linear\.$"):
        choose("beta schedule", "", TABLE)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä日本 é", "plain ä日本 é"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\rb\bc", r"a\rb\x08c"),
        ("right\u202eleft\u2066", r"right\u202eleft\u2066"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert visible(text) == shown
    assert visible(f"{text}\n{text}") == rf"{shown}\n{shown}"
    assert visible(f"{text}\n{text}", lines=True) == f"{shown}\n{shown}"


def test_a_sentence_is_one_line_that_ends():
    assert sentence(UsageError("a\nerror: b")) == r"a\nerror: b"
    text = sentence(UsageError("begin" + "x" * 10**6 + "end"))
    assert text.startswith("begin")
    assert text.endswith("end")
    assert len(text) < LONGEST + 10


def test_one_is_no_plural():
    assert [plural(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
