"""Tokens in files, for texts that outgrow memory: how they are read, and known again.

A folder of token files has train.bin and val.bin, which are nothing but tokens, in the byte order of small machines.
Ours has manifest.json beside them, which tells all about them, and tokenizer.json; nanoGPT's has neither.
"""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.files import read_whole, reason, shown

TRAIN, VAL, MANIFEST, TOKENIZER = "train.bin", "val.bin", "manifest.json", "tokenizer.json"
FORMAT = 1  # of the manifest
DTYPES = ("uint16", "uint32")
BLOCK = 2**20  # bytes that are read at once
PLACES, PLACE = 256, 2**13  # of a file without a manifest that are looked at, and how many tokens at each


class TokenFile:
    """Tokens (N,) in a file, of which only what is asked for comes into memory; `np.asarray` takes all of them.

    Args:
        path: the file, of nothing but tokens.
        dtype: their type, in little-endian byte order.

    Raises:
        UserError: for a file that can't be read, or has a part of a token at its end.
    """

    def __init__(self, path: str | Path, dtype: np.dtype | str):
        self.path, self.dtype = Path(path), np.dtype(dtype).newbyteorder("<")
        try:
            self.nbytes = os.stat(path).st_size
        except OSError as problem:
            raise UserError(f"cannot read {shown(path)} ({reason(problem)})") from problem
        if self.nbytes % self.dtype.itemsize:
            raise UserError(f"{shown(path)} has {self.nbytes:,} bytes, which are no {self.dtype.name} tokens")

    def __len__(self) -> int:
        return self.nbytes // self.dtype.itemsize

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The tokens (B, length) from each of `starts` (B,) on.

        They are read, not mapped: for short windows all over a file that takes a tenth of the time, and what was mapped
        would stay in this process's memory.

        Raises:
            OSError: for a file that cannot be read any more, or ends before they do.
        """
        found = np.empty((len(starts), length), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for row, start in zip(found, np.asarray(starts).tolist(), strict=True):
                file.seek(start * self.dtype.itemsize)
                if file.readinto(row.data.cast("B")) != row.nbytes:
                    raise OSError(errno.EIO, f"it ends before token {start + length:,}", str(self.path))
        return found

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        tokens = np.fromfile(self.path, self.dtype)
        return tokens if dtype is None else tokens.astype(dtype, copy=False)


Tokens = np.ndarray | TokenFile


def folder_of(data: str | tuple[str, ...]) -> Path | None:
    """The folder of token files that `data` names; None if it names something else."""
    path = Path(data if isinstance(data, str) else data[0])
    single = isinstance(data, str) or len(data) == 1
    return path if single and (path / TRAIN).is_file() and (path / VAL).is_file() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What manifest.json says, or None where there is none.

    Raises:
        UserError: for one that cannot be read, is damaged, or of a newer version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(read_whole(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{shown(path)} cannot be read ({reason(problem)}): prepare the text anew") from problem
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise UserError(f"{shown(path)} was written by a newer version of jaxgpt: install that one")
    if problem := _problem(content):
        raise UserError(f"{shown(path)} is damaged ({problem}): prepare the text anew")
    return content


def _problem(content: Any) -> str:
    if not isinstance(content, dict):
        return "it is no JSON object"
    if content.get("dtype") not in DTYPES:
        return f"its dtype is none of {', '.join(DTYPES)}"
    if not isinstance(content.get("sha256"), str):
        return "it has no sha256"
    files = content.get("files")
    for name in (TRAIN, VAL):
        file = files.get(name) if isinstance(files, dict) else None
        if not isinstance(file, dict) or not isinstance(file.get("tokens"), int):
            return f"it does not tell the tokens of {name}"
        if not isinstance(file.get("sha256"), str) or not re.fullmatch("[0-9a-f]{64}", file["sha256"]):
            return f"it has no sha256 of {name}"
    return ""


def open_split(folder: Path, name: str, manifest: dict[str, Any] | None) -> TokenFile:
    """One of the two files of a folder. Without a manifest it is of uint16, as nanoGPT's are.

    Raises:
        UserError: for a file that is not as long as its manifest says.
    """
    tokens = TokenFile(folder / name, "uint16" if manifest is None else manifest["dtype"])
    if manifest and len(tokens) != manifest["files"][name]["tokens"]:
        said = manifest["files"][name]["tokens"]
        raise UserError(
            f"{shown(tokens.path)} has {len(tokens):,} tokens, and {MANIFEST} says {said:,}: "
            "copy it again, or prepare the text anew"
        )
    return tokens


def fingerprint(*files: TokenFile) -> tuple[str, int]:
    """By which files without a manifest are known again, and the greatest token that was seen: how long they are, and
    what is at places that are evenly spread over them, or all of a short one."""
    digest, greatest = hashlib.sha256(), 0
    for file in files:
        length = min(len(file), PLACE)
        starts = np.unique(np.linspace(0, len(file) - length, PLACES).astype(np.int64))
        tokens = file.windows(starts, length)
        digest.update(len(file).to_bytes(8, "little") + tokens.tobytes())
        greatest = max(greatest, int(tokens.max(initial=0)))
    return digest.hexdigest(), greatest


def checksums(*paths: Path) -> list[str]:
    """The SHA-256 of each file, and at last that of all of them in a row.

    Raises:
        OSError: for a file that cannot be read.
    """
    of_all, found = hashlib.sha256(), []
    for path in paths:
        of_one = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                of_one.update(block)
                of_all.update(block)
        found.append(of_one.hexdigest())
    return [*found, of_all.hexdigest()]
