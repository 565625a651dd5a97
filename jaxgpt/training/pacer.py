"""Time: how long an update takes, and so how many of them one call to the device makes."""

import time

from jaxgpt.config import TrainConfig

CALL_SECONDS = 0.1  # that one call may take: less than Ctrl-C may wait, more than Python needs for it
TIMED_STEPS = 3  # before the time that a run will take can be told


class Pacer:
    """Measures a run's updates; `restart` before the first of them."""

    def __init__(self, config: TrainConfig):
        self._config = config
        self._steps_per_call = 1
        self._first: int | None = None
        self._step, self._began = 0, 0.0

    def restart(self, step: int) -> None:
        """Measure from here, after update `step`: at the start, at a new row, after a pause."""
        self._first = step if self._first is None else self._first
        self._step, self._began = step, time.monotonic()

    def steps_to_go(self, step: int) -> int:
        """How many updates the next call makes: up to the next row, evaluation, or end, but none that takes long."""
        c = self._config
        intervals = (c.log_interval, c.eval_interval)
        return min(self._steps_per_call, c.max_steps - step, *(interval - step % interval for interval in intervals))

    def step_seconds(self, step: int) -> float:
        """Mean seconds an update since the last restart, now that update `step` is done."""
        seconds = max(time.monotonic() - self._began, 1e-9) / (step - self._step)
        self._steps_per_call = max(1, int(CALL_SECONDS / seconds))
        return seconds

    def can_tell(self, step: int) -> bool:
        """Whether enough updates were timed to tell how long the rest will take."""
        return self._first is not None and step >= self._first + TIMED_STEPS
