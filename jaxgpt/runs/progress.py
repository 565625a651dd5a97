"""How far a long text is read: a line that says how much is done, how fast, and how long the rest will take."""

import time

from jaxgpt.runs.report import Report, duration

SILENT_SECONDS = 2  # at first, for a text that is no long one


class Progress:
    """Called with how many of how many units are done, it shows that, but not of a text that is read in a moment.

    Args:
        report: where it is shown.
        what: what is done to the text: "encoding".
        unit: a million of what is counted: "MB".
        done: units that were done before, and take no time now.
    """

    def __init__(self, report: Report, what: str, unit: str, done: int = 0):
        self._report, self._what, self._unit, self._before = report, what, unit, done
        self._began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        seconds = time.monotonic() - self._began
        if seconds < SILENT_SECONDS or done <= self._before:
            return
        speed = (done - self._before) / seconds
        share = min(done / total, 1) if total else 0
        left = f"{duration(max(total - done, 0) / speed)} left"
        self._report.progress([f"{self._what} {share:.0%}", left, f"{speed / 1e6:.1f} {self._unit}/s"], share)
