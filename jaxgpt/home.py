"""The folder for what jaxgpt downloads and caches."""

import os
from pathlib import Path


def home() -> Path:
    """`$JAXGPT_HOME`, by default `~/.cache/jaxgpt`."""
    return Path(os.environ.get("JAXGPT_HOME") or "~/.cache/jaxgpt").expanduser()
