"""Work that goes on beside the main thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[..., T], *args) -> "Future[T]":
    """Begins `work(*args)`. The thread is a daemon: neither a disk that does not answer nor a long compilation keeps a
    process from ending."""
    future: Future[T] = Future()

    def run():
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
