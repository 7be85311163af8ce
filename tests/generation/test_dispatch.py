"""Dispatches of bounded time: every row once and in order, at most two in flight."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from ddpm_jax.generation import dispatch


class Device:
    """A device that takes a given time for rows, and counts the dispatches in flight."""

    def __init__(self, seconds_a_row, monkeypatch, *, enough=math.inf):
        self.enough = enough
        self.now, self.seconds_a_row, self.spans, self.under_way, self.most = (
            0.0,
            seconds_a_row,
            [],
            0,
            0,
        )
        monkeypatch.setattr(dispatch.time, "perf_counter", lambda: self.now)

    def advance(self, carry, first, last):
        self.spans.append((int(first), int(last)))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return [*carry, *range(first, last)], _Result(self, int(last - first), last >= self.enough)

    def wait(self, rows):
        self.under_way -= 1
        self.now += rows * self.seconds_a_row


class _Result(NamedTuple):
    """What the host waits for."""

    device: Device
    rows: int
    finished: bool

    def __array__(self, dtype=None, copy=None):
        self.device.wait(self.rows)
        return np.asarray(self.finished, dtype)


@pytest.mark.parametrize("total", [1, 2, 37, 1000])
@pytest.mark.parametrize("seconds_a_row", [1e-6, 0.004, 7.0])
def test_every_row_is_done_once_in_order_with_at_most_two_dispatches_under_way(
    monkeypatch, total, seconds_a_row
):
    device, seen = Device(seconds_a_row, monkeypatch), []
    rows = dispatch.walk(
        device.advance, [], total, pace=dispatch.Pace(), watch=lambda *at: seen.append(at)
    )
    assert rows == list(range(total))
    assert seen == [(last, total) for _, last in device.spans]
    assert (device.most, device.under_way) == (min(2, len(device.spans)), 0)


@pytest.mark.parametrize("seconds_a_row", [1e-5, 0.004, 0.3, 7.0])
def test_a_dispatch_takes_half_a_second_at_most_or_is_one_row(monkeypatch, seconds_a_row):
    device, pace = Device(seconds_a_row, monkeypatch), dispatch.Pace()
    for _ in range(2):  # the second chain begins as fast as the first ended
        device.spans.clear()
        dispatch.walk(device.advance, [], 1000, pace=pace)
    lengths = np.diff(device.spans)[:, 0]
    assert np.all((lengths == 1) | (lengths * seconds_a_row <= 1.001 * dispatch.SECONDS))
    assert lengths[0] == max(1, min(1000, int(dispatch.SECONDS / seconds_a_row)))


def test_processes_that_walk_together_make_the_same_dispatches_whatever_time_they_take(monkeypatch):
    monkeypatch.setattr(dispatch.jax, "process_count", lambda: 2)
    spans = []
    for seconds_a_row in (1e-4, 2.0):
        device = Device(seconds_a_row, monkeypatch)
        dispatch.walk(device.advance, [], 990, pace=dispatch.Pace(), together=True)
        spans.append(device.spans)
    assert spans[0] == spans[1]
    assert len(spans[0]) <= dispatch.PARTS


def test_a_walk_ends_early_when_nothing_is_left_to_do(monkeypatch):
    device = Device(1.0, monkeypatch, enough=5)
    rows = dispatch.walk(device.advance, [], 100, pace=dispatch.Pace())
    assert rows == list(range(6)), (
        "one dispatch more was in flight when the device reported the end"
    )


def test_what_the_watch_raises_ends_the_walk(monkeypatch):
    device = Device(1.0, monkeypatch)

    def watch(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dispatch.walk(device.advance, [], 10, pace=dispatch.Pace(), watch=watch)
    assert len(device.spans) == dispatch.AHEAD
