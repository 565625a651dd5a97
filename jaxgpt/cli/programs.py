"""Checksums of compiled programs, which are kept from one command to the next: a flipped bit in one would be executed.

JAX keeps a program as a Zstandard frame without a checksum. A frame with one it reads as well, and checks: what is
damaged is then compiled anew. (Programs of another processor, or another version of JAX, have other names.)
"""

import contextlib
from pathlib import Path

import zstandard

from jaxgpt.files import write_atomically

HEADER = 18  # bytes, the longest that a frame can have


def seal(folder: str | Path) -> None:
    """Gives a checksum to each program in JAX's cache that has none."""
    for path in Path(folder).glob("*-cache"):
        with contextlib.suppress(OSError, zstandard.ZstdError):  # of what cannot be sealed nothing is worse than before
            if not _is_sealed(path):
                program = zstandard.ZstdDecompressor().decompress(path.read_bytes())
                write_atomically(path, zstandard.ZstdCompressor(write_checksum=True).compress(program))


def _is_sealed(path: Path) -> bool:
    with path.open("rb") as file:
        return zstandard.get_frame_parameters(file.read(HEADER)).has_checksum
