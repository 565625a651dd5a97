"""Checkpoints: trees of arrays under a step's number, written in the background; the newest and the best are kept.

    checkpoints/2000/params/            an item: a tree of arrays, as Orbax writes it
    checkpoints/2000/progress/metadata  JSON, what the run tells of itself
    checkpoints/2000/metrics/metrics    JSON, the validation loss
    checkpoints/2000/manifest.json      checksums of all these

A folder has a number for its name from the moment it is whole until it is about to be removed.
"""

import contextlib
import errno
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown, write_atomically
from jaxgpt.runs import arrays, manifest
from jaxgpt.threads import in_thread

T = TypeVar("T")

STEP = re.compile("0|[1-9][0-9]*")  # not `-1` or `6 (1)`, which are somebody else's
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is not whole
FULL = (errno.ENOSPC, errno.EDQUOT)
ADVICE = {
    **dict.fromkeys(FULL, ": free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ": make the folder writable"),
}


class Checkpoints:
    """The checkpoints in `folder`. As a context: leaving it waits for the last write.

    Args:
        folder: made if it is not there.
        read_only: the folder is neither made nor changed.

    Raises:
        OSError: when the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], *, read_only: bool = False):
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self.read_only = read_only
        self._write: futures.Future[None] | None = None
        if not read_only:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(f"the folder {shown(self.folder)} cannot be made: {reason(error)}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, exception: BaseException | None, _) -> None:
        try:
            self.wait()
        except OSError as failure:
            if exception is None:
                raise
            exception.add_note(str(failure))

    def save(self, step: int, items: dict[str, Any], progress: dict[str, Any], val_loss: float = math.inf) -> None:
        """Begins to write a checkpoint, as soon as the one before is written.

        Args:
            step: its number; a checkpoint that has it already is replaced.
            items: names to trees of arrays. A `jax.Array` may be donated at once, a numpy array must stay as it is.
            progress: what goes into JSON.
            val_loss: the least makes the best checkpoint; infinity and NaN never do.

        Raises:
            OSError: when the write before failed, in one line with the cause.
        """
        if self.read_only:
            raise io.UnsupportedOperation("these checkpoints were opened to be read")
        self.wait()
        loss = math.inf if math.isnan(val_loss) else float(val_loss)
        files = {"progress/metadata": json.dumps(progress), "metrics/metrics": json.dumps({"val_loss": loss})}
        self._write = in_thread(self._write_step, int(step), jax.device_get(items), files)

    def wait(self) -> None:
        """Until the last write is done. Raises `OSError`, once, if it failed."""
        if self._write is not None:
            futures.wait([self._write])
            write, self._write = self._write, None
            write.result()

    def verify(self, items: dict[str, Any]) -> None:
        """Waits, then reads the newest checkpoint back. Raises `OSError` unless it holds `items` bit for bit."""
        self.wait()
        try:
            step = self.newest()
            read = self.restore(step, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), items))
        except UserError as error:
            raise OSError(str(error)) from error
        if not all(jax.tree.leaves(jax.tree.map(_same_bits, items, read))):
            raise OSError(f"the checkpoint {self._shown(step)} does not hold what was saved: the disk may be damaged")

    def newest(self) -> int:
        """The step of the newest checkpoint. Raises `UserError` where there is none."""
        return self._some_steps()[-1]

    def best(self) -> int:
        """The step of the checkpoint with the least validation loss; of several, or where none has one, the newest."""
        while True:
            steps = self._some_steps()
            losses = {step: self._val_loss(step) for step in reversed(steps)}
            if steps == self._some_steps():  # otherwise one may have gone before its loss was read
                known = {step: loss for step, loss in losses.items() if loss is not None}
                return min(known or losses, key=lambda step: known.get(step, math.inf))

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved as `progress`. Raises as `restore`."""
        path = self.folder / str(step) / "progress" / "metadata"
        with self._told(step):
            manifest.check(self.folder / str(step), "progress")
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "it has no progress")
            return json.loads(path.read_bytes())

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """The items that `like` names, out of those of a checkpoint.

        Args:
            step: as from `newest` or `best`.
            like: names to trees as they were saved, with `jax.ShapeDtypeStruct`s or arrays as leaves. A leaf with a
                sharding becomes a `jax.Array` that is laid out so, one without a numpy array; both in its dtype.

        Raises:
            UserError: when it cannot be read, or has other arrays or shapes.
            OSError: when there is too little memory.
        """
        with self._told(step):
            return in_thread(self._read_step, step, like).result()

    def read(self, which: str, work: Callable[[int], T]) -> T:
        """`work(step)` for the "newest" or the "best" checkpoint, though the run may be training.

        When `work` raises `UserError` and another checkpoint has taken that one's place, it is called again.
        """
        find = {"newest": self.newest, "best": self.best}[which]
        while True:
            step = find()
            try:
                return work(step)
            except UserError:
                if find() == step:
                    raise

    def _steps(self) -> list[int]:
        """In order. A link to a folder counts as the folder."""
        return sorted(int(path.name) for path in self.folder.iterdir() if STEP.fullmatch(path.name) and path.is_dir())

    def _some_steps(self) -> list[int]:
        try:
            steps = self._steps()
        except FileNotFoundError:
            steps = []
        except OSError as error:
            raise UserError(f"the checkpoints in {shown(self.folder)} cannot be read: {reason(error)}") from error
        if not steps:
            raise UserError(f"{shown(self.folder)} has no checkpoint yet: train for longer, or choose another run")
        return steps

    def _val_loss(self, step: int) -> float | None:
        """None where it cannot be read."""
        folder = self.folder / str(step)
        try:
            manifest.check(folder, "metrics")
            return float(json.loads((folder / "metrics" / "metrics").read_bytes())["val_loss"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _read_step(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        folder = self.folder / str(step)
        for name in like:
            manifest.check(folder, name)
        return {name: arrays.read(folder / name, tree) for name, tree in like.items()}

    def _write_step(self, step: int, items: dict[str, Any], files: dict[str, str]) -> None:
        unfinished = self.folder / f"{step}{UNFINISHED}"
        try:
            self._remove_unfinished()
            unfinished.mkdir()
            for name, tree in items.items():
                arrays.write(unfinished / name, tree)
            for name, text in files.items():
                (unfinished / name).parent.mkdir()
                write_atomically(unfinished / name, text.encode())
            manifest.write(unfinished)
            self._remove(step)
            unfinished.rename(self.folder / str(step))
            self._remove_all_but({self.newest(), self.best()})
        except Exception as error:
            failure = self._not_written(error)  # which tells how much was free
            _delete(unfinished)
            raise failure from error

    def _remove_all_but(self, kept: set[int]) -> None:
        for step in self._steps():
            if step not in kept and self._val_loss(step) is not None:  # which may have been the best
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Under another name, so that nobody takes what is left for a checkpoint. Of a link, only the link."""
        with contextlib.suppress(OSError):  # what cannot be removed does no harm
            _delete((self.folder / str(step)).rename(self.folder / f"{step}{UNFINISHED}-old"))

    def _remove_unfinished(self) -> None:
        """What writes that were killed have left."""
        for path in self.folder.iterdir():
            number, suffix, _ = path.name.partition(UNFINISHED)
            if suffix and STEP.fullmatch(number):
                _delete(path)

    def _shown(self, step: int) -> str:
        return shown(self.folder / str(step))

    @contextlib.contextmanager
    def _told(self, step: int) -> Iterator[None]:
        """Says why a checkpoint cannot be read, and which others there are."""
        try:
            yield
        except UserError as error:
            raise UserError(f"the checkpoint {self._shown(step)} is of another model: {error}") from error
        except Exception as error:  # Orbax has none of its own for a file that is not as it wrote it
            number, cause = arrays.cause(error)
            message = f"the checkpoint {self._shown(step)} cannot be read: {cause}"
            if number == errno.ENOMEM:
                raise OSError(message) from error
            with contextlib.suppress(OSError):
                if others := [str(other) for other in self._steps() if other != step]:
                    message += f"; there is also that of step {' and '.join(others)}"
            raise UserError(message) from error

    def _not_written(self, error: Exception) -> OSError:
        number, cause = arrays.cause(error)
        advice = ADVICE.get(number, "") if self.folder.is_dir() else ": the folder is no longer there"
        kept = ""
        with contextlib.suppress(OSError):
            if number in FULL:
                cause += f", {shutil.disk_usage(self.folder).free / 2**20:,.0f} MiB free there"
            if self._steps():
                kept = "; the one before it is kept"
        return OSError(f"a checkpoint could not be written to {shown(self.folder)} ({cause}){advice}{kept}")


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)


def _same_bits(a: Any, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == b.tobytes()
