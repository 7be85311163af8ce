"""What a foreign text of JSON may hold, and the half sentence for everything else."""

import json

import pytest

from ddpm_jax import schema
from ddpm_jax.schema import Malformed, Number, Table, Text, Whole, differing, parse

RECORD = Table({"step": Whole(0, 100)}, {"loss": Number(null=True)}, others=Text())


def test_plain_data_comes_back_as_it_was_written():
    value = {"step": 3, "loss": None, "name": "ü", "more": "\x1b[31m"}
    assert parse(json.dumps(value).encode(), RECORD) == value
    assert parse(b"[1, 2.5, -9223372036854775807, [], {}]") == [1, 2.5, -(2**63 - 1), [], {}]


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("\xff", "it is no JSON"),
        ("[]", r"it is \[\], and an object is expected"),
        ("null", "it is null, and an object"),
        ("{}", "it has no step"),
        ('{"step": null}', r"its step is null, and a whole number in 0\.\.100 is expected"),
        ('{"step": true}', "its step is true"),
        ('{"step": 1.0}', "its step is 1.0"),
        ('{"step": 101}', "its step is 101"),
        ('{"step": -1}', "its step is -1"),
        ('{"step": ' + "9" * 60 + "}", "it holds a whole number of 60 digits"),
        ('{"step": 9223372036854775808}', "it holds a whole number of 19 digits"),
        ('{"step": ' + "9" * 6000 + "}", "it holds a whole number of 6000 digits"),
        ('{"step": 1, "loss": "low"}', "its loss is 'low', and a number"),
        ('{"step": 1, "loss": true}', "its loss is true"),
        ('{"step": 1, "loss": NaN}', "it holds NaN"),
        ('{"step": 1, "loss": -Infinity}', "it holds -Infinity"),
        ('{"step": 1, "loss": 1e999}', "beyond the largest float"),
        ('{"step": 1, "more": 1}', "its more is 1, and a text"),
        ('{"step": 1, "\\u001b[31m": 1}', r"its '\\x1b\[31m' is 1"),
        ('{"step": 1, "more": "\\ud800"}', "half of a character"),
        ('{"step": 1, "\\ud800": "more"}', "half of a character"),
        ("[" * 200_000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
    ],
)
def test_everything_else_is_half_a_sentence(text, half):
    with pytest.raises(Malformed, match=half) as caught:
        parse(text.encode("latin-1"), RECORD)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_a_text_longer_than_its_bound_is_not_looked_at():
    assert parse(b"[" + b" " * 98 + b"]", largest=100) == []
    with pytest.raises(Malformed, match="more than 100 bytes"):
        parse(b"[" + b" " * 99 + b"]", largest=100)


def test_a_table_within_a_table_is_named_by_its_dots():
    with pytest.raises(Malformed, match=r"its first\.sha256 is 'abc', and a text is expected"):
        parse(b'{"first": {"sha256": "abc"}}', Table({"first": Table({"sha256": schema.SHA256})}))


def test_differences_are_named_by_their_dots():
    digests = ["a" * 64, "b" * 64]
    there = {
        "a": 1,
        "same": [1],
        "guidance": {"scale": 2.0, "kind": "weaker"},
        "gone": 0,
        "no": None,
    }
    here = {"a": 2, "same": [1], "guidance": {"scale": 3.0, "kind": "weaker"}, "new": {"x": 1}}
    there, here = there | {"sha256": digests[0]}, here | {"sha256": digests[1]}
    assert differing(there, here) == {
        "a": ("1", "2"),
        "guidance.scale": ("2.0", "3.0"),
        "gone": ("0", "absent"),
        "sha256": ("aaaaaaaaaaaa...", "bbbbbbbbbbbb..."),
        "new": ("absent", "{'x': 1}"),
    }
    assert differing(there, there) == {}
