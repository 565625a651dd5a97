"""Is this checkout slower than another one of this project? Races the two against each other.

    git worktree add ../before 1a0260c
    python bench/compare.py --other ../before --what cpu layernorm t4 sample start

Each runs the scripts of its own `bench/`, so the other one may be laid out differently, and keeps compiled programs in
a folder of its own. Both take turns. Since a process can be lucky as a whole, all is repeated in fresh ones, those that
began second beginning first.
"""

import tempfile
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import race
import start
import tyro

from jaxgpt import presets

THIS = start.ROOT
SAMPLE = ("bench/sample.py", "--contestant", "t4", "500", "1")
Seconds = dict[str, list[list[float]]]  # by the checkout's name, a list for each repetition


def main(
    other: Path,
    what: tuple[str, ...] = ("cpu", "layernorm", "t4", "sample", "start"),
    repeats: int = 3,
    rounds: int = race.ROUNDS,
    json: Path | None = None,
) -> None:
    """Races this checkout against another.

    Args:
        other: Folder of the other one.
        what: Presets, whose training steps are timed; `sample`, 500 tokens of one text at the size of `t4`; `start`,
            from the start of Python to the end of the first step of `cpu`.
        repeats: Processes of each, one after another.
        rounds: Turns of each process.
        json: File to write the figures to.
    """
    if not (other / "bench/train_step.py").is_file():
        raise SystemExit(f"error: {other} is no checkout of this project: it has no bench/train_step.py")
    if unknown := [name for name in what if name not in (*presets.PRESETS, "sample", "start")]:
        raise SystemExit(f"error: --what takes presets, sample and start, not {', '.join(unknown)}")
    roots = {"this": THIS, "other": other.resolve()}
    rows, results = [], {}
    for name in what:
        timed = starts(roots, repeats) if name == "start" else turns(name, roots, repeats, rounds)
        for title, seconds in timed.items():
            results[title] = seconds
            rows += compared(title, seconds)
    headings = ("", "checkout", "median (ms)", "least", "most", "this / other", "of each repetition")
    title = f"This checkout ({race.commit(THIS)}) beside the other ({race.commit(other)})"
    race.report(title, headings, rows, results, json)


def turns(name: str, roots: dict[str, Path], repeats: int, rounds: int) -> dict[str, Seconds]:
    """Seconds of every turn of a training step, or of drawing a text."""
    script, *arguments = SAMPLE if name == "sample" else ("bench/train_step.py", "--contestant", name)
    seconds: Seconds = {checkout: [] for checkout in roots}
    with tempfile.TemporaryDirectory() as homes:
        for checkouts in orders(roots, repeats):
            contestants = {checkout: [str(roots[checkout] / script), *arguments] for checkout in checkouts}
            options = {
                checkout: {"cwd": roots[checkout], "env": race.environment(Path(homes, checkout))}
                for checkout in checkouts
            }
            for checkout, result in race.race(contestants, rounds, options).items():
                seconds[checkout].append(result["seconds"])
    return {"500 tokens of `t4`" if name == "sample" else f"a training step of `{name}`": seconds}


def starts(roots: dict[str, Path], repeats: int) -> dict[str, Seconds]:
    """Seconds to the end of the first step, at the first start and at the second."""
    timed: dict[str, Seconds] = {}
    for kind, seconds_of in start.STARTS.items():
        first, second = (
            timed.setdefault(f"{kind}, {which} start", {checkout: [] for checkout in roots})
            for which in ("first", "second")
        )
        for checkouts in orders(roots, repeats):
            for checkout in checkouts:
                with tempfile.TemporaryDirectory() as home:
                    for times in (first, second):
                        times[checkout].append([seconds_of("cpu", Path(home), roots[checkout])])
    return timed


def orders(roots: dict[str, Path], repeats: int) -> list[list[str]]:
    """Which of them begins, at each repetition."""
    return [list(roots)[:: 1 if i % 2 == 0 else -1] for i in range(repeats)]


def compared(title: str, seconds: Seconds) -> list[tuple[Any, ...]]:
    """Two rows of the table."""
    ratios = [median(this) / median(other) for this, other in zip(*seconds.values(), strict=True)]
    together = {checkout: list(chain(*repetitions)) for checkout, repetitions in seconds.items()}
    ratio = median(together["this"]) / median(together["other"])
    ends = {"this": (f"{ratio:.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"), "other": ("", "")}
    return [
        (title, checkout, *(f"{1e3 * f(s):,.2f}" for f in (median, min, max)), *ends[checkout])
        for checkout, s in together.items()
    ]


if __name__ == "__main__":
    tyro.cli(main)
