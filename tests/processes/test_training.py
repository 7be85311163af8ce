"""Several processes train one run, save it, move between topologies, and end together, asked to or
robbed of one."""

import signal
import time

import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import find_step, saved_steps

# seconds in which a process must have noticed that another is gone: `hosts.LOST_SECONDS` and a
# margin
LOST_WITHIN = 90
LOST = "error: Another process of this run was lost or could not be reached, so this one stops too."


def _said(output):
    """The lines of our own: without those of Gloo and XLA's log."""
    return [
        line
        for line in output.splitlines()
        if line and not line.startswith(("[Gloo]", "E1", "F1", "W1", "I1"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signalled", "fields"),
    [(0, ("--config.parallel=fsdp", "--config.train.steps_per_call=2")), (1, ())],
)
def test_a_signal_to_one_process_saves_at_a_common_step_and_ends_both_with_success(
    tmp_path, train, last_recorded, signalled, fields
):
    run = train(tmp_path / "run", 100_000, *fields, processes=2, devices=2)
    run.until(lambda: last_recorded(tmp_path / "run") >= 3)
    run.processes[signalled].send_signal(signal.SIGTERM)
    outputs = run.succeed()
    step = find_step(tmp_path / "run")
    assert (
        f"saved step {step} in {tmp_path / 'run'}. To resume, give the same command again."
        in outputs[0]
    )
    assert step == last_recorded(tmp_path / "run") >= 3
    assert "4 cpu devices of 2 processes" in outputs[0]
    # Of the second there is its own answer to the signal, if it got one, and what Gloo prints.
    answers = [line for line in _said(outputs[1]) if line.startswith("SIGTERM: saving")]
    assert answers == _said(outputs[1])
    assert len(answers) == signalled


@pytest.mark.slow
def test_a_run_moves_between_devices_and_processes_and_keeps_its_curve(
    tmp_path, train, losses, last_recorded
):
    """1 device, 4 devices, 2 processes of 2 devices stopped and killed, 1 device; next to it a run
    that never moves."""
    moving, still = tmp_path / "moving", tmp_path / "still"
    train(moving, 6).succeed()
    train(moving, 12, devices=4).succeed()

    stopped = train(moving, 100_000, processes=2, devices=2)
    stopped.until(lambda: last_recorded(moving) >= 16)
    stopped.processes[0].send_signal(signal.SIGTERM)
    stopped.succeed()
    after_stop = find_step(moving)

    killed = train(moving, 100_000, processes=2, devices=2)
    killed.until(lambda: find_step(moving) > after_stop)
    killed.processes[1].kill()
    start = time.monotonic()
    (code, killed_code), (output, _) = killed.finish()
    assert time.monotonic() - start < LOST_WITHIN
    assert (code, killed_code) == (1, -signal.SIGKILL)
    assert LOST in output, output
    after_kill = find_step(moving)
    assert after_kill > after_stop

    last = last_recorded(moving) + 4
    (resumed,) = train(moving, last).succeed()
    assert f"resuming at step {after_kill} of {last}" in resumed
    train(still, last).succeed()
    ours, expected = losses(moving), losses(still)
    assert len(ours) == len(expected) == last
    # Float32 sums in another order, over some tens of updates. Other images or draws would change
    # it by tenths.
    np.testing.assert_allclose(ours, expected, rtol=2e-3)
    assert np.std(expected) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "killed"), [(2, 0), (3, 1)])
def test_when_one_is_lost_all_others_end_with_one_sentence(tmp_path, train, processes, killed):
    run = train(tmp_path, 100_000, "--config.train.batch_size=6", processes=processes)
    run.until(lambda: saved_steps(tmp_path))
    saved = find_step(tmp_path)
    run.processes[killed].kill()
    start = time.monotonic()
    codes, outputs = run.finish()
    assert time.monotonic() - start < LOST_WITHIN
    for process, (code, output) in enumerate(zip(codes, outputs, strict=True)):
        if process == killed:
            continue
        assert code == 1
        said = _said(output)
        assert [line for line in said if "error: " in line] == [said[-1]], output
        assert said[-1].startswith(LOST)
        assert "start all processes with the same command again to resume" in said[-1]
        assert "Traceback" not in output
    assert find_step(tmp_path) >= saved
