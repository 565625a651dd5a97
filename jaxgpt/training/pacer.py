"""Time: how long an update takes, and so how many of them one call to the device makes."""

import time

CALL_SECONDS = 0.1  # that one call may take: less than Ctrl-C may wait, more than Python needs for it
TIMED_STEPS = 3  # before the time that a run will take can be told


class Pacer:
    """Measures a run's updates; `restart` before the first of them.

    Args:
        max_steps: the last update.
        intervals: a call ends at their multiples.
    """

    def __init__(self, max_steps: int, *intervals: int):
        self._max_steps, self._intervals = max_steps, intervals
        self._steps_per_call = 1
        self._first: int | None = None
        self._step, self._began = 0, 0.0

    def restart(self, step: int) -> None:
        """Measure from here, after update `step`: at the start, at a new row, after a pause."""
        self._first = step if self._first is None else self._first
        self._step, self._began = step, time.monotonic()

    def steps_to_go(self, step: int) -> int:
        """How many updates the next call makes: up to the next row, evaluation, or end, but none that takes long."""
        ends = (interval - step % interval for interval in self._intervals)
        return min(self._steps_per_call, self._max_steps - step, *ends)

    def step_seconds(self, step: int) -> float:
        """Mean seconds an update since the last restart, now that update `step` is done."""
        seconds = max(time.monotonic() - self._began, 1e-9) / (step - self._step)
        self._steps_per_call = max(1, int(CALL_SECONDS / seconds))
        return seconds

    def can_tell(self, step: int) -> bool:
        """Whether enough updates were timed to tell how long the rest will take."""
        return self._first is not None and step >= self._first + TIMED_STEPS
