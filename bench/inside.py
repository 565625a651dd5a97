"""The page of a run in a real browser: its size, how far its arithmetic is from jaxgpt's, and how fast it writes.

    python bench/inside.py runs/speedrun

Needs Chromium and `pip install playwright`.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import race
from playwright.sync_api import Page, sync_playwright

import jaxgpt
from jaxgpt.data import batches, dataset

WINDOWS = 100  # of the validation text
TOKENS = 1000  # that are written
ROUNDS = 5


def main() -> None:
    run = jaxgpt.load(*sys.argv[1:2])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = run.inside().save(Path(folder, "inside.html"))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(file.as_uri())
        print(", ".join(race.machine().values()))
        print(f"{run!r}: {file.stat().st_size / 1e6:.2f} MB, Chromium {browser.version}")
        val = dataset.load(run.config, run.tokenizer).val
        print(compared(run, page, np.asarray(val)))
        speeds = [speed(page, np.asarray(val[:TOKENS])) for _ in range(ROUNDS)]
        median, unit = statistics.median(speeds), run.tokenizer.unit
        print(f"{median:.0f} {unit}s a second, from {min(speeds):.0f} to {max(speeds):.0f}")
        browser.close()


def compared(run: jaxgpt.Run, page: Page, val: np.ndarray) -> str:
    """The page's logits beside jaxgpt's in float32."""
    T = run.config.model.block_size
    windows = batches.windows(val, T * np.arange(min(WINDOWS, len(val) // T)), T - 1)  # (N, T)
    most, same = 0.0, 0
    for window in windows:
        expected = np.asarray(run.model(window[None]))[0]  # (T, V)
        found = page.evaluate("(tokens) => [...jaxgpt.model.read(tokens).logits]", window.tolist())
        found = np.asarray(found, np.float32).reshape(expected.shape)
        most = max(most, np.abs(found - expected).max())
        same += (found.argmax(-1) == expected.argmax(-1)).sum()
    return f"over {windows.size:,} places: largest error of a logit {most:.4f}, likeliest the same in {same:,}"


def speed(page: Page, text: np.ndarray) -> float:
    """Tokens a second, one after the other, as a text is written."""
    milliseconds = page.evaluate(
        """(tokens) => {
            const began = performance.now();
            const cache = jaxgpt.model.start(tokens.slice(0, 8));
            for (const token of tokens) jaxgpt.model.next(cache, token);
            return performance.now() - began;
        }""",
        text.tolist(),
    )
    return 1000 * len(text) / milliseconds


if __name__ == "__main__":
    main()
