"""Checkpoints: trees of arrays under a step's number, written in the background. The newest two are kept, so that there
is one to go back to, and the best.

    checkpoints/2000/params/            an item: a tree of arrays, as Orbax writes it
    checkpoints/2000/progress/metadata  JSON, what the run tells of itself
    checkpoints/2000/metrics/metrics    JSON, the validation loss
    checkpoints/2000/manifest.json      checksums of all these
    checkpoints/2500.damaged/           one that could not be read when the run went on; nobody removes it

A folder has a number for its name from the moment it is whole, and on the disk, until it is about to be removed.
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
from jaxgpt.files import read_whole, reason, shown, sync, write_atomically
from jaxgpt.runs import arrays, manifest
from jaxgpt.threads import in_thread

T = TypeVar("T")

STEP = re.compile("0|[1-9][0-9]*")  # not `-1` or `6 (1)`, which are somebody else's
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is not whole
KEPT = 2  # of the newest
DAMAGE = (0, errno.ENOENT, errno.EIO, errno.ENOTDIR, errno.EISDIR)  # not a want of permission, or of memory
FULL = (errno.ENOSPC, errno.EDQUOT)
ADVICE = {
    **dict.fromkeys(FULL, ": free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ": make the folder writable"),
}


class DamagedCheckpoint(UserError):
    """A checkpoint is not as it was written: `damage` says which and how, `instead` what may be done about it."""

    def __init__(self, damage: str, instead: str = ""):
        super().__init__(damage, instead)
        self.damage = damage

    def __str__(self) -> str:
        return "".join(self.args)


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
        """The step of the checkpoint with the least validation loss; of several, the newest. Raises `UserError` where
        there is none, and where the loss of one cannot be read: it may be the best."""
        while True:
            steps = self._some_steps()
            try:
                losses = {step: self._val_loss(step) for step in reversed(steps)}
            except UserError:
                if steps == self._some_steps():  # otherwise it has gone before its loss was read
                    raise
            else:
                if steps == self._some_steps():
                    return min(losses, key=lambda step: losses[step])

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved as `progress`. Raises as `restore`."""
        path = self.folder / str(step) / "progress" / "metadata"
        with self._told(step):
            manifest.check(self.folder / str(step), "progress")
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "it has no progress")
            progress = json.loads(read_whole(path))
            if not isinstance(progress, dict):
                raise ValueError("its progress is no JSON object")
            return progress

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

    def go_back(self, work: Callable[[int], T], note: Callable[[str], None]) -> T:
        """`work(step)` for the newest checkpoint that is whole: for one that is damaged it raises
        `DamagedCheckpoint`, as `progress` and `restore` do.

        Those that are damaged are told to `note` in a line each, and get a name that is no number, unless these are
        `read_only`: the run will come to a step of theirs again, and none of them is the newest any more.

        Raises:
            UserError: the damage of the newest one where none is whole, and then nothing is changed; or what else
                `work` raises.
            OSError: when a damaged one cannot be renamed.
        """
        damaged: dict[int, DamagedCheckpoint] = {}
        for step in reversed(self._some_steps()):
            try:
                result = work(step)
            except DamagedCheckpoint as error:
                damaged[step] = error
                continue
            for other, error in damaged.items():
                kept = self._set_aside(other).name
                note(f"{error.damage}; going back to step {step}, and keeping the damaged one as {kept}")
            return result
        newest = next(iter(damaged.values()))
        raise DamagedCheckpoint(newest.damage, "; no other is whole" if len(damaged) > 1 else "; there is no other")

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
            none = f"{shown(self.folder)} has no checkpoint yet"
            raise UserError(f"{none}: wait for the first, or remove the run and begin it again")
        return steps

    def _val_loss(self, step: int) -> float:
        folder = self.folder / str(step)
        with self._told(step):
            manifest.check(folder, "metrics")
            return float(json.loads(read_whole(folder / "metrics" / "metrics"))["val_loss"])

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
            sync(unfinished)
            self._remove(step)
            unfinished.rename(self.folder / str(step))
            sync(self.folder, below=False)
            self._remove_old()
        except Exception as error:
            failure = self._not_written(error)  # which tells how much was free
            _delete(unfinished)
            raise failure from error

    def _remove_old(self) -> None:
        """All but the newest, the best, and those whose loss cannot be read: they may have been the best."""
        losses = {}
        for step in reversed(self._steps()):
            with contextlib.suppress(UserError):
                losses[step] = self._val_loss(step)
        best = min(losses, key=lambda step: losses[step], default=None)
        for step in self._steps()[:-KEPT]:
            if step in losses and step != best:
                self._remove(step)

    def _set_aside(self, step: int) -> Path:
        aside, n = self.folder / f"{step}.damaged", 2
        while os.path.lexists(aside):
            aside, n = self.folder / f"{step}.damaged-{n}", n + 1
        try:
            if not self.read_only:  # of the processes that train a run together, the first does it
                (self.folder / str(step)).rename(aside)
        except OSError as error:
            raise OSError(f"{self._shown(step)} is damaged and cannot be renamed: {reason(error)}") from error
        return aside

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
        """Says why a checkpoint cannot be read, and what to do then."""
        try:
            yield
        except UserError as error:
            raise UserError(f"the checkpoint {self._shown(step)} is of another model: {error}") from error
        except Exception as error:  # Orbax has none of its own for a file that is not as it wrote it
            number, cause = arrays.cause(error)
            message = f"the checkpoint {self._shown(step)} cannot be read: {cause}"
            if number == errno.ENOMEM:
                raise OSError(message) from error
            if number not in DAMAGE:
                raise UserError(message) from error
            raise DamagedCheckpoint(message, self._instead(step)) from error

    def _instead(self, step: int) -> str:
        with contextlib.suppress(OSError):
            others = [str(other) for other in self._steps() if other != step]
            if len(others) == 1:
                return f"; to take that of step {others[0]}, rename the damaged one"
            if others:
                return f"; to take one of steps {' and '.join(others)}, rename the damaged one"
        return ""

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
