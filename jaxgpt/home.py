"""The folder for what jaxgpt downloads and caches."""

import os
import tempfile
from pathlib import Path


def home() -> Path:
    """`$JAXGPT_HOME`, by default `~/.cache/jaxgpt`, as an absolute path; it need not exist.

    Users without a home folder, as in many containers, get one below the machine's temporary folder.
    """
    try:
        return Path(os.environ.get("JAXGPT_HOME") or "~/.cache/jaxgpt").expanduser().absolute()
    except RuntimeError:
        user = getattr(os, "getuid", int)()  # Windows has no numbers for users, and a temporary folder for each
        return Path(tempfile.gettempdir(), f"jaxgpt-{user}")
