"""Checksums of a folder's files, so that damage is told before anything is made of it.

    {"params/d/0f3a...": {"bytes": 1048576, "xxh3_128": "..."}, ...}

Orbax's format has checksums for its index alone: a bit that flips in an array would be read as another number.
"""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from jaxgpt.files import read_whole, shown, write_atomically

NAME = "manifest.json"
WRITTEN = "xxh3_128"  # against accidents, not forgers: it is as fast as memory, and SHA-256 was 9 % of a save
HASHES = {WRITTEN: xxhash.xxh3_128, "sha256": hashlib.sha256}  # the latter is read: the first manifests had it
BLOCK = 2**20  # bytes that are read at once


def write(folder: Path) -> None:
    """Writes manifest.json for all files below `folder`."""
    files = _files(folder)
    with ThreadPoolExecutor() as pool:
        entries = dict(zip(files, pool.map(lambda name: entry(folder / name), files), strict=True))
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
        raise ValueError(f"its file {shown(missing[0])} is missing")
    if others := sorted(set(there) - expected.keys()):
        raise ValueError(f"the file {shown(others[0])} does not belong to it")
    with ThreadPoolExecutor() as pool:
        for name, same in zip(there, pool.map(lambda name: is_as(folder / name, expected[name]), there), strict=True):
            if not same:
                raise ValueError(f"its file {name} is not as it was written")


def entry(path: Path, algorithm: str = WRITTEN, most: float = math.inf) -> dict[str, int | str]:
    """The length and the checksum of a file, or of its first `most` bytes."""
    checksum, size, block = HASHES[algorithm](), 0, memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(block[: int(min(BLOCK, most - size))]):
            checksum.update(block[:n])
            size += n
    return {"bytes": size, algorithm: checksum.hexdigest()}


def is_as(path: Path, expected: Any, grown: bool = False) -> bool:
    """Whether a file is as its entry says, or, if it may have `grown`, begins so. Raises `OSError` as reading it."""
    if not isinstance(expected, dict) or not isinstance(expected.get("bytes"), int):
        return False
    known = [name for name in HASHES if name in expected]
    most = expected["bytes"] if grown else math.inf
    return bool(known) and entry(path, known[0], most) == expected


def _entries(path: Path) -> dict[str, Any] | None:
    """What the file says; None where there is none."""
    try:
        entries = json.loads(read_whole(path))
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
