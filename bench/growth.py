"""Does the cost of a training step grow as its arithmetic does? Against batch, block, width and depth.

    python bench/growth.py --json out.json

From a middle size, one dimension at a time is doubled. `growth` is how many times longer a step takes than at the
size before, `arithmetic` how many times more operations it has: where the first is well above the second, something
grows that should not.
"""

import sys
from pathlib import Path

import race
import train_step
import tyro

from jaxgpt import presets

HERE = Path(__file__)
MIDDLE = {"batch_size": 8, "block_size": 64, "n_embd": 128, "n_layer": 4}
SIZES = {
    "batch_size": (8, 16, 32, 64),
    "block_size": (64, 128, 256, 512),
    "n_embd": (64, 128, 256, 512),
    "n_layer": (2, 4, 8, 16),
}


def main(dimensions: tuple[str, ...] = tuple(SIZES), rounds: int = 5, json: Path | None = None) -> None:
    """Times steps that grow in one dimension.

    Args:
        dimensions: Which, of batch_size, block_size, n_embd, n_layer.
        rounds: Turns of each size.
        json: File to write the figures to.
    """
    rows, results = [], {}
    for dimension in dimensions:
        sizes = {value: MIDDLE | {dimension: value} for value in SIZES[dimension]}
        contestants = {
            f"{dimension}={value}": [str(HERE.with_name("train_step.py")), "--contestant", "cpu", *arguments(size)]
            for value, size in sizes.items()
        }
        figures = race.race(contestants, rounds)
        before = None
        for (value, size), figure in zip(sizes.items(), figures.values(), strict=True):
            seconds, count = figure["median_seconds"], train_step.flops(presets.preset("cpu", **size))
            growth = ("", "") if before is None else (f"{seconds / before[0]:.2f}", f"{count / before[1]:.2f}")
            rows.append((dimension, value, f"{1e3 * seconds:,.1f} ms", *growth, f"{count / seconds / 1e9:,.0f} GF/s"))
            before = seconds, count
        results |= figures
    headings = ("dimension", "size", "median", "growth", "arithmetic", "speed")
    middle = ", ".join(f"{name} {value}" for name, value in MIDDLE.items())
    race.report(f"Cost of a training step, one dimension at a time from {middle}", headings, rows, results, json)


def arguments(size: dict[str, int]) -> list[str]:
    return [f"{name}={value}" for name, value in size.items()]


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
