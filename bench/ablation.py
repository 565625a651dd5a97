"""What is each part of `speedrun` worth? The loss without it, over several seeds.

python bench/ablation.py --seeds 5
"""

import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import race
import tyro

from jaxgpt import fit, presets

WITHOUT: dict[str, dict[str, Any]] = {
    "all of it": {},
    "AdamW for Muon": {"optimizer": "adamw"},
    "learnt positions for rotary ones": {"positions": "learned"},
    "without qk_norm": {"qk_norm": False},
    "without value_shift": {"value_shift": False},
    "without embd_norm": {"embd_norm": False},
    "with a tied head": {"tie_head": True},
    "GELU for ReLU": {"activation": "gelu"},
}


def main(preset: str = "speedrun", seeds: int = 5, json: Path | None = None) -> None:
    """Trains every variant with every seed, and prints the losses over the whole validation split.

    Args:
        preset: Whose parts to leave out.
        seeds: How many runs of each.
        json: File to write the figures to.
    """
    losses: dict[str, list[float]] = {}
    for name, changes in WITHOUT.items():
        losses[name] = []
        for seed in range(1, 1 + seeds):
            config = presets.preset(preset, seed=seed, eval_interval=10**6, eval_windows=1, sample_tokens=0, **changes)
            with tempfile.TemporaryDirectory() as folder:
                trained = fit.train(config, out=Path(folder) / "run", quiet=True)
                losses[name].append(trained.metrics[-1]["final_val_loss"])
    whole = mean(losses["all of it"])
    rows = []
    for name, values in losses.items():
        spread = f" ± {stdev(values):.3f}" if seeds > 1 else ""
        rows.append((name, f"{mean(values):.3f}{spread}", f"{mean(values) - whole:+.3f}"))
    title = f"Loss of `{preset}` over the whole validation split, {seeds} seeds"
    race.report(title, ("", "loss", "difference"), rows, {"losses": losses}, json)


if __name__ == "__main__":
    tyro.cli(main)
