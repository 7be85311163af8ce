"""When the training loop logs, samples and saves."""

from typing import NamedTuple


class LoopOptions(NamedTuple):
    """When the loop logs, samples and saves, in steps."""

    num_steps: int  # of the whole run
    batch_size: int  # over all devices and hosts
    log_every: int
    sample_every: int  # 0: only at the end
    save_every: int
    steps_per_call: int = 1  # dispatched together; fewer where a grid or a save is due sooner
    # steps in a row that may be skipped as not finite: as in `StepOptions`
    skip_nonfinite: int = 0
    snapshot_every: int = 0  # and at the end; 0: never
    eval_every: int = 0  # likewise

    def next_call(self, step: int) -> int:
        """Return how many steps the call after `step` updates dispatches.

        All of `steps_per_call`, or one where that many would pass a save, a grid or the end. So
        every cadence is exact, and there are at most two programs.
        """
        due = [(step // every + 1) * every for every in self._cadences() if every]
        return self.steps_per_call if step + self.steps_per_call <= min(self.num_steps, *due) else 1

    def is_snapshot_due(self, step: int) -> bool:
        """Return whether averages are kept after `step` updates."""
        return (
            step > 0
            and self.snapshot_every > 0
            and (step % self.snapshot_every == 0 or step == self.num_steps)
        )

    def is_evaluation_due(self, step: int) -> bool:
        """Return whether a metric of samples is measured after `step` updates."""
        return (
            step > 0
            and self.eval_every > 0
            and (step % self.eval_every == 0 or step == self.num_steps)
        )

    def is_grid_due(self, step: int) -> bool:
        """Return whether a grid is drawn after `step` updates."""
        return step > 0 and (
            step == self.num_steps or (self.sample_every > 0 and step % self.sample_every == 0)
        )

    def _cadences(self) -> tuple[int, ...]:
        return self.sample_every, self.save_every, self.snapshot_every, self.eval_every
