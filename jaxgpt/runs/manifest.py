"""Checksums of a folder's files, so that damage is told before anything is made of it.

    {"params/d/0f3a...": {"bytes": 1048576, "sha256": "..."}, ...}

Orbax's format has checksums for its index alone: a bit that flips in an array would be read as another number.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxgpt.files import shown, write_atomically

NAME = "manifest.json"
BLOCK = 2**20  # bytes that are read at once


def write(folder: Path) -> None:
    """Writes manifest.json for all files below `folder`."""
    files = _files(folder)
    with ThreadPoolExecutor() as pool:
        entries = dict(zip(files, pool.map(lambda name: _entry(folder / name), files), strict=True))
    write_atomically(folder / NAME, json.dumps(entries, indent=1).encode())


def check(folder: Path, part: str) -> None:
    """Compares the files of `folder / part` with what manifest.json says. A folder without one, as older versions wrote
    them, is taken as it is.

    Raises:
        ValueError: that names a file that is missing, is not as it was written, or was not there.
        OSError: for a file that cannot be read.
    """
    entries = _entries(folder / NAME)
    if entries is None:
        return
    expected = {name: entry for name, entry in entries.items() if name.startswith(f"{part}/")}
    there = [f"{part}/{name}" for name in _files(folder / part)]
    if missing := sorted(expected.keys() - set(there)):
        raise ValueError(f"its file {missing[0]} is missing")
    with ThreadPoolExecutor() as pool:
        for name, entry in zip(there, pool.map(lambda name: _entry(folder / name), there), strict=True):
            if name not in expected:
                raise ValueError(f"the file {shown(name)} does not belong to it")
            if entry != expected[name]:
                raise ValueError(f"its file {name} is not as it was written")


def _entries(path: Path) -> dict[str, Any] | None:
    """What the file says; None where there is none."""
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"its file {NAME} is damaged") from problem
    if not isinstance(entries, dict):
        raise ValueError(f"its file {NAME} is damaged")
    return entries


def _files(folder: Path) -> list[str]:
    """By their paths from `folder` on."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(path: Path) -> dict[str, int | str]:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
    return {"bytes": path.stat().st_size, "sha256": sha256.hexdigest()}
