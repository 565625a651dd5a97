"""A real browser for the tests: Debian's `chromium`, or a `google-chrome` in the path, driven by playwright."""

import importlib.util
import shutil
from contextlib import contextmanager

import pytest

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "Chromium" if PATH is None else "playwright" if importlib.util.find_spec("playwright") is None else None


@contextmanager
def launched():
    """A browser without a window. Without any, the tests that ask for it are left out."""
    if MISSING is not None:
        pytest.skip(f"needs {MISSING}: apt install chromium, pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
        yield browser
        browser.close()
