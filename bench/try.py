"""Is a recipe better? A verdict on changes of a preset, as JSON, within five minutes on two cores.

    python bench/try.py "muon_learning_rate=0.1" "batch_size=16 learning_rate=4e-3"

Each argument is a candidate: fields of the config that are to be others. The preset as it is, and every candidate, is
trained on the same number of tokens, to the end of its schedule, with each of a few seeds, taking turns. What counts is
the loss over the whole validation split; beside it stand the seconds of a step, which a better recipe must not lose.

A verdict is "better" or "worse" where Welch's t-test gives p below 0.05, and "unclear" otherwise. Who tries twenty
recipes will find one that is better by chance: a record takes `--seeds 5` or more, and p below 0.01.
"""

import json
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import race
import tyro
from recipe import recipe
from scipy import stats

import jaxgpt

DOUBT = 0.05  # the largest p of a verdict


def tried(config: jaxgpt.TrainConfig) -> dict[str, Any]:
    """The loss of a run, and the seconds of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        rows = jaxgpt.train(config, out=Path(folder) / "run", quiet=True).metrics
    return {"loss": rows[-1]["final_val_loss"], "step_seconds": median(row["step_seconds"] for row in rows)}


def budgeted(config: jaxgpt.TrainConfig, tokens: int) -> jaxgpt.TrainConfig:
    """The recipe, with as many steps as `tokens` are enough for, and nothing on the way."""
    steps = max(1, round(tokens / (config.batch_size * config.model.block_size)))
    return jaxgpt.override(config, max_steps=steps, eval_interval=steps, sample_tokens=0)


def judged(losses: list[float], usual: list[float]) -> dict[str, Any]:
    """How much lower or higher the losses are than the usual ones, and whether that may be chance."""
    difference = mean(losses) - mean(usual)
    error = (stats.sem(losses) ** 2 + stats.sem(usual) ** 2) ** 0.5
    p = float(stats.ttest_ind(losses, usual, equal_var=False).pvalue)
    verdict = "unclear" if not p < DOUBT else "better" if difference < 0 else "worse"
    return {"difference": difference, "standard_error": float(error), "p": p, "verdict": verdict}


def main(
    candidates: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")],
    preset: str = "speedrun",
    data: str = "tinyshakespeare",
    steps: int = 100,
    seeds: int = 3,
) -> None:
    """Tries candidates, and prints what came of it.

    Args:
        candidates: Changes of the preset: "NAME=VALUE NAME=VALUE".
        preset: What they are compared with.
        data: The text, as train.py takes it.
        steps: How many steps of the preset's own size make the budget.
        seeds: How many runs of each, two or more.
    """
    jaxgpt.setup()
    try:
        usual = recipe(preset)
        tokens = steps * usual.batch_size * usual.model.block_size
        recipes = {text: budgeted(recipe(preset, *shlex.split(text)), tokens) for text in ("", *candidates)}
    except (jaxgpt.UserError, ValueError) as error:
        sys.exit(f"error: {error}")
    runs: dict[str, list[dict[str, Any]]] = {text: [] for text in recipes}
    for seed in range(1, 1 + seeds):
        for text, config in recipes.items():
            print(f"seed {seed}: {text or 'as it is'} ...", file=sys.stderr)
            runs[text].append(tried(jaxgpt.override(config, seed=seed, data=data, vocab_size=0)))
    losses = {text: [run["loss"] for run in some] for text, some in runs.items()}
    found = {
        text: {"steps": recipes[text].max_steps, "losses": losses[text], "mean": mean(losses[text])}
        | {"step_seconds": median(run["step_seconds"] for run in some)}
        | (judged(losses[text], losses[""]) if text else {})
        for text, some in runs.items()
    }
    verdicts = {"preset": preset, "data": Path(data).name, "tokens": tokens, "usual": found.pop(""), "tried": found}
    print(json.dumps(verdicts | {"on": race.machine()}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
