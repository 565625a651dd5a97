"""Work that goes on beside the main thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_working: set[threading.Thread] = set()


def in_thread(work: Callable[..., T], *args) -> "Future[T]":
    """Begins `work(*args)`. The thread is a daemon: neither a disk that does not answer nor a long compilation keeps a
    process from ending."""
    future: Future[T] = Future()

    def run():
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)
        finally:
            _working.discard(thread)

    thread = threading.Thread(target=run, daemon=True)
    _working.add(thread)
    thread.start()
    return future


def at_work() -> bool:
    """Whether some of that work is still going on."""
    return bool(_working)
