"""What is each part of `speedrun` worth? The loss without it, over several seeds: at the end, and on the way.

python bench/ablation.py --seeds 5
"""

import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import race
import tyro

import jaxgpt

WITHOUT: dict[str, dict[str, Any]] = {
    "all of it": {},
    "AdamW for Muon": {"optimizer": "adamw"},
    "learnt positions for rotary ones": {"positions": "learned"},
    "without qk_norm": {"qk_norm": False},
    "without value_shift": {"value_shift": False},
    "without embd_norm": {"embd_norm": False},
    "with a tied head": {"tie_head": True},
    "ReLU for GELU": {"activation": "relu"},
    "without the moving average": {"ema_decay": 0.0},
    "without soft targets": {"soft_targets": 0.0},
    "windows with replacement": {"replacement": True},
}
ON_THE_WAY = 512  # windows that are read after a quarter of the steps; after the last, all are


def main(preset: str = "speedrun", seeds: int = 5, json: Path | None = None) -> None:
    """Trains every variant with every seed, and prints the losses over the whole validation split.

    Args:
        preset: Whose parts to leave out.
        seeds: How many runs of each.
        json: File to write the figures to.
    """
    jaxgpt.setup()
    ends: dict[str, list[float]] = {}
    quarters: dict[str, list[float]] = {}
    for name, changes in WITHOUT.items():
        ends[name], quarters[name] = [], []
        for seed in range(1, 1 + seeds):
            config = jaxgpt.preset(preset, seed=seed, eval_windows=ON_THE_WAY, sample_tokens=0, **changes)
            config = jaxgpt.override(config, eval_interval=config.max_steps // 4)
            with tempfile.TemporaryDirectory() as folder:
                rows = jaxgpt.train(config, out=Path(folder) / "run", quiet=True).metrics
            quarters[name] += [row["val_loss"] for row in rows if row["step"] == config.eval_interval]
            ends[name].append(rows[-1]["final_val_loss"])
    table = [(name, *compared(ends, name), *compared(quarters, name)) for name in WITHOUT]
    title = f"Loss of `{preset}` over the validation split, {seeds} seeds"
    headings = ("", "at the end", "difference", "after a quarter of the steps", "difference")
    race.report(title, headings, table, {"ends": ends, "quarters": quarters}, json)


def compared(losses: dict[str, list[float]], name: str) -> tuple[str, str]:
    """The mean of a variant's losses with its spread, and how far it is from that of all parts."""
    values = losses[name]
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}", f"{mean(values) - mean(losses['all of it']):+.3f}"


if __name__ == "__main__":
    tyro.cli(main)
