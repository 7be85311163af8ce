"""A count for people: a bar on a terminal, lines now and then elsewhere, nothing for what is done
soon."""

import functools
import io

import pytest

from ddpm_jax.monitoring import progress
from ddpm_jax.monitoring.progress import Counter, duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_is_done_soon_prints_nothing_where_there_is_no_terminal():
    clock, file = Clock(), io.StringIO()
    with Counter("sampling", 4, unit="image", file=file, clock=clock) as counter:
        for done in range(1, 5):
            clock.now += progress.FIRST / 4 - 0.01
            counter.reach(done)
    assert file.getvalue() == ""


def test_lines_come_now_and_then_with_the_share_the_time_and_what_is_left_of_it():
    """60 s of compiling, then an image a second in batches of ten, with twenty looks at each
    chain."""
    clock, file = Clock(), io.StringIO()
    counter = Counter("sampling", 100, unit="image", file=file, clock=clock)
    counter.reach(0)  # what is on disk
    clock.now += 60
    for batch in range(10):
        for done in range(1, 21):
            clock.now += 0.5
            counter.within(10, done, 20)
        counter.reach(10 * (batch + 1))
    lines = file.getvalue().splitlines()
    assert lines[0] == "sampling: 0% of 100 images after 60 s"
    assert lines[1] == "sampling: 10% of 100 images after 70 s, about 90 s to go"
    assert lines[5] == "sampling: 50% of 100 images after 2 min, about 50 s to go"
    assert len(lines) == 10
    assert "100%" not in file.getvalue(), "what is done is said by the command"


def test_what_was_done_before_counts_for_the_share_and_not_for_the_speed():
    clock, file = Clock(), io.StringIO()
    counter = Counter("evaluating", 100, unit="image", initial=80, file=file, clock=clock)
    clock.now += 2
    counter.add(5)
    clock.now += 10
    counter.add(5)
    assert file.getvalue() == "evaluating: 90% of 100 images after 12 s, about 20 s to go\n"


def test_a_terminal_has_a_bar_and_one_within_for_the_chain():
    file = Terminal()
    counter = Counter("sampling", 4, unit="image", file=file)
    assert "compiling" in file.getvalue()
    counter.within(2, 500, 1000)
    assert "chain" in file.getvalue()
    counter.within(2, 1000, 1000)
    counter.reach(2)
    counter.close()
    counter.close()
    assert "2.00/4.00" in file.getvalue()
    assert file.getvalue().endswith("\n")


def test_of_several_processes_the_first_counts(monkeypatch):
    monkeypatch.setattr(progress.hosts, "is_primary", lambda: False)
    clock, file = Clock(), Terminal()
    counter = Counter("sampling", 4, unit="image", file=file, clock=clock)
    clock.now += 60
    counter.reach(2)
    counter.close()
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_a_time_is_said_in_the_unit_of_people(seconds, said):
    assert duration(seconds) == said


def test_items_are_counted_when_they_are_done_with():
    seen = []
    for item in progress.counted("abc", "encoding", 3, unit="picture"):
        seen.append(item)
    assert seen == ["a", "b", "c"]


def test_training_says_that_it_draws_in_its_bar_or_by_lines_where_drawing_takes_long(monkeypatch):
    clock, file, terminal = Clock(), io.StringIO(), Terminal()
    monkeypatch.setattr(progress, "Counter", functools.partial(Counter, clock=clock))
    for shown in (
        progress.Progress(100, file=file),
        progress.Progress(100, file=terminal),
    ):
        for done in (250, 500, 1000):
            clock.now += 6
            shown.drawing("64 samples", done, 1000)
        shown.update(100, None)
        shown.close()
    assert file.getvalue() == "drawing 64 samples: 50% of 1,000 rows after 6 s, about 12 s to go\n"
    assert "drawing 64 samples, 25%" in terminal.getvalue()
    assert "drawing" not in terminal.getvalue().rpartition("\r")[2]
