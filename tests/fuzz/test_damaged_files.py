"""Files of weights that are damaged anywhere: one sentence, or what they hold, and nothing else.

Case n of a kind is always the same; `python -m tests.fuzz.damaged_files KIND 0:2000` makes more.
"""

import pytest

from . import damaged_files

CASES = 16


@pytest.mark.parametrize("kind", damaged_files.KINDS)
def test_a_damaged_file_is_opened_or_refused(kind):
    outcomes = [damaged_files.fault(kind, number) for number in range(CASES)]
    assert [wrong for wrong, _ in outcomes if wrong] == []
    assert any(refused for _, refused in outcomes)


@pytest.mark.parametrize("kind", damaged_files.KINDS)
def test_an_undamaged_file_is_opened(kind, monkeypatch):
    monkeypatch.setattr(damaged_files, "_damaged", lambda rng, data: data)
    monkeypatch.setattr(damaged_files, "_damaged_json", lambda rng, data: data)
    monkeypatch.setattr(damaged_files, "GONE", 0)
    assert [damaged_files.fault(kind, number) for number in range(4)] == [(None, False)] * 4
