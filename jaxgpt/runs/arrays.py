"""A tree of arrays in a folder, written and read by Orbax, with what Orbax needs to be a good guest in a process.

Orbax runs event loops, which it cannot in a thread where one runs already, as in a notebook: call `write` and `read`
by `threads.in_thread`.
"""

import asyncio
import contextlib
import errno
import gc
import inspect
import logging
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.device import processes
from jaxgpt.device import sharding as shardings
from jaxgpt.errors import UserError

PLAIN = re.compile(r"[A-Za-z0-9_./ -]*")  # a path that means the same to Orbax as to everybody
LOGGERS = ("absl", "asyncio")  # of Orbax, and of every task that an error ends
LONGEST_END = 2.0  # seconds that what an error leaves half done may take to end
FILE = re.compile(r' (in OCDBT database at|of) local file "[^"]*"')  # in what TensorStore says
LONGEST_CAUSE = 200  # characters


def write(folder: Path, tree: Any) -> None:
    """Writes a tree of numpy arrays as a new folder, whole or not at all. A tree without arrays needs none."""
    if jax.tree.leaves(tree):
        ocp = _orbax()
        with _quiet, _plain(folder) as path:
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
            checkpointer = ocp.Checkpointer(handler, multiprocessing_options=_alone())
            checkpointer.save(path, args=ocp.args.StandardSave(tree))


def read(folder: Path, like: Any) -> Any:
    """The tree in `folder`, which is built as `like`, with `jax.ShapeDtypeStruct`s or arrays as leaves.

    Where a leaf has a sharding, a `jax.Array` laid out so takes its place; where it has none, a numpy array.

    Raises:
        UserError: when the arrays have other names or shapes: which is the first, and how it differs.
    """
    if not jax.tree.leaves(like):
        return like
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"it has no {folder.name}")
    ocp = _orbax()
    with _quiet, _plain(folder) as path:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
        checkpointer = ocp.Checkpointer(handler, multiprocessing_options=_alone())
        # pyrefly: ignore[bad-argument-type]
        there, here = _shapes(handler.metadata(path).tree), _shapes(like)
        for name in [*here, *there]:
            if there.get(name) != here.get(name):
                shapes = f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
                raise UserError(f"{folder.name}/{name} is {shapes}")
        how = ocp.args.PyTreeRestore(like, jax.tree.map(_restore_args, like))
        return jax.tree.map(_laid_out, checkpointer.restore(path, args=how), like)


def cause(error: BaseException) -> tuple[int, str]:
    """What lies at the bottom of `error`: the system's number for it, or 0, and a short line."""
    while error.__cause__:  # not `__context__`, which may be what the caller was busy with
        error = error.__cause__
    text = " ".join(str(error).split())
    if " " not in text:  # as of a `KeyError`
        text = f"{type(error).__name__} {text}".strip()
    if found := re.search(r"os_error_code='?(\d+)", text):  # so TensorStore tells of an `OSError`
        error = OSError(int(found[1]), os.strerror(int(found[1])))
    elif isinstance(error, MemoryError) or "out of memory" in text.lower():
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if isinstance(error, OSError) and error.errno:
        return error.errno, error.strerror or text
    text = FILE.sub("", text.partition(" [tensorstore_spec")[0])
    return 0, text if len(text) <= LONGEST_CAUSE else f"{text[:LONGEST_CAUSE]}..."


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


@cache
def _orbax() -> Any:
    """Orbax, which takes a while to import, and which a run does not need before its first checkpoint."""
    with _quiet:  # it gives the root logger a handler
        import orbax.checkpoint
    return orbax.checkpoint


def _alone() -> Any:
    """Of several processes that train a run, each works alone here: otherwise Orbax would wait for all of them."""
    ocp = _orbax()
    if not processes.several():
        return ocp.options.MultiprocessingOptions()
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(this, {this}, f"process-{this}")


def _restore_args(leaf: Any) -> Any:
    ocp, sharding = _orbax(), getattr(leaf, "sharding", None)
    if sharding is None or not sharding.is_fully_addressable:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _laid_out(array: Any, leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    return array if sharding is None or isinstance(array, jax.Array) else shardings.put(array, sharding)


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """`folder`, by a path in which there are nothing but names to Orbax and TensorStore.

    They take brackets for a pattern, a backslash for a slash, and no bytes that are not UTF-8.
    """
    if PLAIN.fullmatch(str(folder)):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="jaxgpt-") as temporary:
            link = Path(temporary, "link")
            link.symlink_to(folder.parent, target_is_directory=True)
            yield link / folder.name


class _Quiet:
    """A context in which nothing is printed of what Orbax leaves half done when a file fails: a coroutine for each
    array, on a loop that is closed. They have ended when it is left, and the process is as it was before."""

    def __init__(self):
        self.lock, self.entered = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            self.entered += 1
            if self.entered == 1:
                self.hook, self.handlers = sys.unraisablehook, list(logging.root.handlers)
                self.our_hook = sys.unraisablehook = _without_orphans(self.hook)
                for name in LOGGERS:
                    logging.getLogger(name).addFilter(_drop)

    def __exit__(self, kind, error: BaseException | None, _) -> None:
        if error is not None:
            _end_orphans(error)
        with self.lock:
            self.entered -= 1
            if self.entered == 0:
                if sys.unraisablehook is self.our_hook:
                    sys.unraisablehook = self.hook
                for name in LOGGERS:
                    logging.getLogger(name).removeFilter(_drop)
                if not self.handlers:  # absl gives the root logger one as soon as it has something to tell
                    logging.root.handlers = [h for h in logging.root.handlers if type(h) is not logging.StreamHandler]


def _drop(record: logging.LogRecord) -> bool:
    return False


def _without_orphans(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    def without_orphans(unraisable):
        if not inspect.iscoroutine(unraisable.object) and "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    return without_orphans


def _end_orphans(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)  # which hold some
        error = error.__cause__ or error.__context__
    deadline = time.monotonic() + LONGEST_END
    gc.collect()
    while any(map(_is_orphan, gc.get_objects())) and time.monotonic() < deadline:
        time.sleep(0.01)  # until TensorStore is done with them
        gc.collect()


def _is_orphan(thing: Any) -> bool:
    return type(thing) in (asyncio.Future, asyncio.Task) and not thing.done() and thing.get_loop().is_closed()


_quiet = _Quiet()
