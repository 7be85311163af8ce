"""What processes agree on, as far as one process can tell; tests/processes runs several."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import FailureError, UsageError


@pytest.fixture(params=[1, 2, 3, 8])
def processes(request, monkeypatch):
    """Run a function as each of several processes; return the results of all."""
    monkeypatch.setattr(jax, "process_count", lambda: request.param)

    def run(function):
        results = []
        for p in range(request.param):
            monkeypatch.setattr(jax, "process_index", lambda p=p: p)
            results.append(function())
        return results

    return run


@pytest.mark.parametrize("count", [1, 2, 7, 8, 30])
def test_shares_are_equally_long_and_cover_everything_in_order(processes, count):
    shares = processes(lambda: hosts.share(count))
    assert len({len(share) for share in shares}) == 1
    assert list(dict.fromkeys(np.concatenate(shares))) == list(range(count))
    np.testing.assert_array_equal(np.concatenate(shares)[:count], np.arange(count))


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 30), (17, 30), (4, 4)])
def test_spans_follow_one_another_and_differ_by_one_at_most(processes, first, last):
    for spans in processes(lambda: hosts.span(first, last)):
        assert np.concatenate([np.arange(*span) for span in spans]).tolist() == list(
            range(first, last)
        )
        sizes = [b - a for a, b in spans]
        assert max(sizes) - min(sizes) <= 1


class _Devices:
    """The maximum over three processes in lockstep, each with its own clock.

    It replaces `hosts.maximum`.
    """

    def __init__(self, seconds_per_call):
        self.seconds, self.clocks, self.current = seconds_per_call, [0.0] * 3, 0
        self.rounds = [[], [], []]

    def enter(self, process):
        self.current = process
        self.clocks[process] += self.seconds[process]

    def maximum(self, values):
        self.rounds[self.current].append(values)
        return _Queued(self.rounds, len(self.rounds[self.current]) - 1)


class _Queued:
    def __init__(self, rounds, number):
        self._rounds, self._number = rounds, number

    def addressable_data(self, _):
        # fails if one has not voted
        return np.max([votes[self._number] for votes in self._rounds], axis=0)


@pytest.mark.parametrize("seconds", [(0.002, 0.003, 0.01), (0.2, 0.1, 0.1), (3.0, 2.0, 2.5)])
def test_all_processes_learn_of_a_signal_after_the_same_call_and_vote_seldom(monkeypatch, seconds):
    devices, calls, signalled = _Devices(seconds), 400, 137
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "maximum", devices.maximum)
    monkeypatch.setattr(hosts.time, "monotonic", lambda: devices.clocks[devices.current])
    votes, answers = [hosts.StopVote() for _ in range(3)], []
    for call in range(calls):
        wishes = [0, 0, signal.SIGTERM if call >= signalled else 0]
        answers.append([])
        for process, vote in enumerate(votes):
            devices.enter(process)
            answers[-1].append(vote(wishes[process]))
    assert all(len(set(answer)) == 1 for answer in answers)
    stopped = next(call for call, answer in enumerate(answers) if any(answer))
    assert answers[stopped] == [signal.SIGTERM] * 3
    # In time: half a second, and the two calls that cast and read the vote.
    assert signalled < stopped <= signalled + hosts.VOTE_SECONDS / max(seconds) + 2
    assert len(devices.rounds[0]) <= 1 + calls / max(2, hosts.VOTE_SECONDS // max(seconds))


def test_one_process_alone_agrees_with_itself_without_a_device():
    hosts.check_equal({"anything": object()})  # not even read
    vote = hosts.StopVote()
    assert [vote(0), vote(signal.SIGTERM), vote(0)] == [0, signal.SIGTERM, 0]
    batches = [np.arange(3), np.arange(3, 5)]
    np.testing.assert_array_equal(hosts.gather(batches, 5), np.arange(5))


def test_a_directory_that_another_process_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "wait_for_all", lambda name: None)
    monkeypatch.setattr(hosts, "VISIBLE_SECONDS", 0.2)
    path = tmp_path / "config.json"
    with pytest.raises(
        UsageError, match=r"not the same directory for all processes: config\.json, .* by process 1"
    ):
        hosts.check_shared(path)
    # as a slow file system shows it
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: path.write_text("{}"))
    hosts.check_shared(path)


def test_a_save_that_fails_because_a_process_is_gone_is_told_as_its_loss(tmp_path, monkeypatch):
    def save(*_, **__):
        raise jax.errors.JaxRuntimeError(
            "INTERNAL: Barrier failed because: UNAVAILABLE: Task 1 heartbeat timeout."
        )

    checkpointer = Checkpointer(tmp_path, keep_last=1)
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", save)
    # one process has none to lose
    with pytest.raises(FailureError, match=r"Saving a checkpoint in .* failed"):
        checkpointer.save(1, {"x": jnp.zeros(2)}, {}, {})
    monkeypatch.setattr(hosts, "joined", lambda: True)
    with pytest.raises(FailureError) as raised:
        checkpointer.save(1, {"x": jnp.zeros(2)}, {}, {})
    assert str(raised.value) == hosts.LOST
    checkpointer.close()


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout."), True),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 bytes."
            ),
            False,
        ),
        (
            ValueError(
                "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:55990"
            ),
            True,
        ),
        (ValueError("UNAVAILABLE: Error opening gs://bucket: connection refused"), False),
        (KeyError("gloo"), False),
    ],
)
def test_the_loss_of_a_process_is_told_from_other_errors(error, loss):
    assert hosts.is_loss(error) is loss


def test_all_tell_one_another_what_they_say():
    assert hosts.gather_json([0, "a cause"]) == [[0, "a cause"]]


def test_a_failing_command_alone_ends_as_it_always_did():
    hosts.leave(1)  # returns


@pytest.mark.parametrize(
    "coordinator", ["host", "host:", ":1234", "host:port", "host:0", "host:65536"]
)
def test_an_address_without_a_port_is_refused_before_anything_is_tried(coordinator):
    with pytest.raises(UsageError, match="is no address: give HOST:PORT"):
        hosts.join(coordinator, 2, 1)


def test_the_stand_in_of_a_writer_takes_every_call_and_closes():
    with hosts.Silent() as silent:
        assert silent.write(3, {"loss": 1.0}) is None
        assert silent.anything(of=object()) is None
