"""A run's folder, which a person can read: its paths, how they are written, and what is read back from them.

runs/cpu/config.json  tokenizer.json  metrics.jsonl  loss.png  checkpoints/
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jaxgpt import config as configs
from jaxgpt.config import TrainConfig
from jaxgpt.data.tokenizer import Tokenizer, load_tokenizer
from jaxgpt.device import processes
from jaxgpt.errors import UserError
from jaxgpt.files import read_whole, reason, shown, write_atomically
from jaxgpt.runs import manifest

LOCK = ".lock"
RUNS = "runs"  # the folder of runs, below the current one
MOST_NAMED = 5  # runs that a message names
SAMPLE = "sample"  # of a row of metrics.jsonl, the one value that is a text


class RunFolder:
    """The folder at `path`, which need not exist yet. Every file but metrics.jsonl, which grows by whole lines, is
    written whole or not at all."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(os.path.abspath(os.path.expanduser(path)))
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        self.checkpoints = self.path / "checkpoints"

    def __str__(self) -> str:
        return shown(self.path)

    def check_free(self) -> None:
        """Raises `UserError` if the folder is taken; an empty one is not."""
        try:
            free = not os.path.lexists(self.path) or set(os.listdir(self.path)) <= {LOCK}
        except (OSError, ValueError) as problem:
            raise UserError(f"{self} cannot be a run's folder ({reason(problem)}): choose another `out`") from problem
        if free:
            return
        if self.config.is_file() and not self.has_checkpoint():
            self.lock().release()  # says so where somebody trains it
            raise UserError(f"{self} is a run without a checkpoint to go on from: remove it, or choose another `out`")
        raise UserError(f"{self} exists and is not overwritten: choose another `out`, or `resume` it")

    def create(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Makes the folder of a new run.

        Raises:
            UserError: if it is taken, by somebody who makes it at the same moment, too, or cannot be made.
            OSError: when a file cannot be written; then none is left.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as problem:
            raise UserError(f"{self} cannot be made ({reason(problem)}): choose another `out`") from problem
        with self.lock():
            self.check_free()
            try:
                self.write_rows([])
                tokenizer.save(self.tokenizer)
                self.write_config(config)  # the last: with it, the folder is a run
            except OSError:
                for path in (self.metrics, self.tokenizer):
                    path.unlink(missing_ok=True)
                raise

    def lock(self) -> FileLock:
        """Held while the run is trained; it is free again when the process ends, however it ends.

        Raises:
            UserError: when another process, or another thread of this one, trains the run.
        """
        for path in (self.config, self.tokenizer, self.metrics, self.plot, self.path / LOCK):
            if path.is_symlink():  # of a folder that is somebody else's, it may lead anywhere
                raise UserError(
                    f"{shown(path)} is a link, and a run is not written through one: put the file in its place"
                )
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as problem:
            raise UserError(f"{self} is being trained by another process: wait for its end, or stop it") from problem
        return lock

    def read(self) -> tuple[TrainConfig, Tokenizer]:
        """The config and the tokenizer. Raises `UserError` for a folder that is not a run, or a damaged one."""
        if not self.config.is_file():
            raise UserError(f"{self} is not a run: it has no config.json ({_runs_here()})")
        try:
            config = configs.validate(configs.from_dict(json.loads(read_whole(self.config).decode("utf-8-sig"))))
        except RecursionError as problem:
            raise UserError(f"{shown(self.config)} is damaged: nested too deep") from problem
        except (ValueError, OSError) as problem:
            raise UserError(f"{shown(self.config)} cannot be read: {reason(problem)}") from problem
        tokenizer = load_tokenizer(self.tokenizer)
        if tokenizer.vocab_size != config.model.vocab_size:
            raise UserError(
                f"{shown(self.tokenizer)} has {tokenizer.vocab_size} tokens, but the model of {shown(self.config)} has "
                f"{config.model.vocab_size}: one of them is of another run"
            )
        return config, tokenizer

    def write_config(self, config: TrainConfig) -> None:
        write_atomically(self.config, (json.dumps(configs.to_dict(config), indent=2) + "\n").encode())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, one after another, without lines that are none: the last may have been cut off."""
        if self.metrics.is_file():
            with self.metrics.open("rb") as lines:
                yield from (row for row in map(_row, lines) if row is not None)

    def write_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Makes metrics.jsonl hold these rows."""
        write_atomically(self.metrics, b"".join(map(_line, rows)))

    def append_row(self, row: dict[str, Any]) -> None:
        with self.metrics.open("ab") as file:
            file.write(_line(row))

    def checksums(self) -> dict[str, Any]:
        """Of the files that belong to a checkpoint and lie beside it, by their names; without what somebody removed."""
        return {path.name: manifest.entry(path) for path in (self.tokenizer, self.metrics) if path.is_file()}

    def unchanged(self, path: Path, checksums: dict[str, Any] | None) -> bool:
        """Whether a file is as it was when these were its checksums; metrics.jsonl may have grown. One that had none,
        as in older versions, is taken as it is."""
        try:
            expected = (checksums or {}).get(path.name)
            return expected is None or manifest.is_as(path, expected, grown=path == self.metrics)
        except OSError:
            return False

    def has_checkpoint(self) -> bool:
        return any(name.isdecimal() for name in _names(self.checkpoints))


def new(out: str | os.PathLike[str] | None, preset: str) -> RunFolder:
    """A folder for a new run: `out`, or `runs/PRESET`, or `runs/PRESET-2` and so on where that is taken.

    Raises:
        UserError: when `out` is taken.
    """

    def free() -> str:
        folder = RunFolder(free_path(preset) if out is None else out)
        folder.check_free()
        return str(folder.path)

    return RunFolder(processes.agree(free))


def free_path(name: str) -> Path:
    """`runs/NAME`, or `runs/NAME-2` and so on where that is taken."""
    name = Path(name).name or "run"
    path, n = Path(RUNS, name), 2
    while os.path.lexists(path):
        path, n = Path(RUNS, f"{name}-{n}"), n + 1
    return path


def newest(preset: str | None = None) -> RunFolder:
    """The folder below `runs/` that was trained last and has a checkpoint, of any preset or of one.

    Raises:
        UserError: when there is none.
    """
    runs = [run for run in _runs() if preset is None or _preset(run) == preset]
    of = "" if preset is None else f" of preset {preset!r}"
    if not runs:
        raise UserError(f"there is no run{of} in {RUNS}/ yet: train one first")
    saved = [run for run in runs if run.has_checkpoint()]
    if not saved:
        raise UserError(f"no run{of} in {RUNS}/ has a checkpoint yet: train for longer")
    return max(saved, key=lambda run: run.metrics.stat().st_mtime)


def _runs() -> list[RunFolder]:
    found = (RunFolder(Path(RUNS, name)) for name in sorted(_names(Path(RUNS))))
    return [run for run in found if run.config.is_file() and run.metrics.is_file()]


def _runs_here() -> str:
    names = [str(run) for run in _runs()]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"runs here: {', '.join(names[:MOST_NAMED])}{more}" if names else f"there are no runs in {RUNS}/ yet"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _preset(run: RunFolder) -> str | None:
    """Of a run whose config may be damaged: that is told when the run is asked for."""
    try:
        return run.read()[0].preset
    except UserError:
        return None


def _line(row: dict[str, Any]) -> bytes:
    """JSON has no number for infinity or NaN: they become null."""
    finite = {name: value if _is_text_or_finite(value) else None for name, value in row.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def _is_text_or_finite(value: Any) -> bool:
    return isinstance(value, str) or (value is not None and math.isfinite(value))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    types = ((value, str if name == SAMPLE else int | float | None) for name, value in row.items())
    return row if all(isinstance(value, type) for value, type in types) else None
