"""An end for what hangs, which is a failure and no long wait."""

import contextlib
import faulthandler
import signal
import sys
from collections.abc import Iterator

SECONDS = 60  # that a command may take on a busy machine


class Hung(BaseException):
    """Which nothing between a command and its end takes for an error."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raises `Hung` out of what hangs in Python; ends, after another while, a process that hangs below it."""

    def hung(*_):
        raise Hung(f"it did not end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
