"""How long until the first step is done: at the first start, which compiles, and at the second, which need not?

    python bench/start.py --preset cpu

Measured from the start of Python, for the training step alone and for `python train.py`, which before its first step
also evaluates. The text is made up, the cache of compiled programs a folder of its own.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import race
import tyro

from jaxgpt.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
TEXT = "".join(chr(32 + (i * i) % 65) for i in range(100_000))


def step_alone(preset: str, home: Path, root: Path = ROOT) -> float:
    """Seconds from the start of Python to the end of the first training step, of the checkout at `root`."""
    began = time.perf_counter()
    arguments = [str(root / "bench/train_step.py"), "--contestant", preset]
    contestant = race.Contestant(arguments, cwd=root, env=race.environment(home))
    contestant.process.stdout.readline()
    seconds = time.perf_counter() - began
    contestant.stop()
    return seconds


def whole_command(preset: str, home: Path, root: Path = ROOT) -> float:
    """Seconds from the start of `python train.py` to the row of the first step in its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        text, out = Path(folder) / "text.txt", Path(folder) / "run"
        text.write_text(TEXT, "utf-8")
        flags = [f"--preset={preset}", f"--data={text}", f"--out={out}", "--log-interval=1", "--max-steps=100000"]
        command = [sys.executable, str(root / "train.py"), *flags]
        options = {"stdout": subprocess.DEVNULL, "cwd": root, "env": race.environment(home)}
        began = time.perf_counter()
        with subprocess.Popen(command, **options) as process:
            while steps_done(out) < 1:
                if process.poll() is not None:
                    raise SystemExit("train.py ended before its first step")
                time.sleep(0.01)
            seconds = time.perf_counter() - began
            process.kill()
    return seconds


def steps_done(path: Path) -> int:
    return max((row["step"] for row in RunFolder(path).rows()), default=0)


STARTS = {"the training step alone": step_alone, "python train.py": whole_command}


def main(preset: str = "cpu", rounds: int = 3, json: Path | None = None) -> None:
    """Times first and second starts.

    Args:
        preset: Whose size.
        rounds: How often; the medians count.
        json: File to write the figures to.
    """
    results: dict[str, list[list[float]]] = {}
    for name, seconds_of in STARTS.items():
        results[name] = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as home:
                results[name].append([seconds_of(preset, Path(home)) for _ in range(2)])
    rows = []
    for name, pairs in results.items():
        first, second = ([pair[i] for pair in pairs] for i in range(2))
        rows.append((name, *(f"{race.median(s):.1f} s ({min(s):.1f} to {max(s):.1f})" for s in (first, second))))
    race.report(f"To the end of the first step, `{preset}`", ("", "first start", "second start"), rows, results, json)


if __name__ == "__main__":
    tyro.cli(main)
