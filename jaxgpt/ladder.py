"""Climbs the ladder: trains every rung, measures it as the lecture does, and writes the report.

`python -m jaxgpt.ladder`, or with `--seeds 5` for the spread over seeds.
"""

import io
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgpt.cli import process
from jaxgpt.cli.command import run_command
from jaxgpt.cli.flags import HELP, Flag, page
from jaxgpt.data import batches, corpus
from jaxgpt.device import backend
from jaxgpt.errors import UserError
from jaxgpt.files import shown, write_atomically
from jaxgpt.model import build
from jaxgpt.model.ladder import RUNGS
from jaxgpt.presets import preset
from jaxgpt.runs.folder import free_path
from jaxgpt.runs.run import Run
from jaxgpt.training import step
from jaxgpt.training.evaluation import make_evaluate
from jaxgpt.training.train import train

PUBLISHED = {  # train and validation loss that the ladder's blog post gives for each rung
    "bigram": (2.47, 2.49),
    "head": (2.40, 2.41),
    "multihead": (2.27, 2.29),
    "feedforward": (2.23, 2.24),
    "blocks": (2.00, 2.08),
    "layernorm": (1.98, 2.06),
}
LECTURE_BATCHES = 200  # random ones; their mean is the lecture's estimate of a loss
MARKS = ("<!-- figures: python -m jaxgpt.ladder -->\n", "<!-- end of figures -->\n")


@dataclass
class Climbed:
    """One rung, trained with one seed or more."""

    name: str
    parameters: int = 0
    seconds: float = 0.0  # of the first seed's training, compilation included
    losses: list[dict[str, float]] = field(default_factory=list)  # a seed each
    curve: list[tuple[int, float]] = field(default_factory=list)  # the first seed's: step, validation loss
    sample: str = ""

    def loss(self, kind: str) -> str:
        """Mean over the seeds, with the spread where there are several."""
        values = [losses[kind] for losses in self.losses]
        return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def measure(run: Run) -> dict[str, float]:
    """Train and validation loss, each over the lecture's random batches and over the whole split."""
    config = run.config
    tokens = run.tokenizer.encode(corpus.load(config.data))
    placement = step.placement(config)
    evaluate = make_evaluate(config, jnp.dtype("float32"), placement)
    params = jax.device_put(build.params_of(run.model), placement.state)
    losses = {}
    for i, (name, text) in enumerate(zip(("train", "val"), batches.split(tokens), strict=True)):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        windows = (LECTURE_BATCHES * config.batch_size,)
        starts = np.asarray(jax.random.randint(key, windows, 0, len(text) - config.model.block_size))
        losses[name] = evaluate(params, text, starts, np.zeros_like(starts))
        losses[f"whole {name}"] = evaluate(params, text, *batches.fixed_windows(len(text), config.model.block_size))
    return losses


def climb(name: str, out: Path, seeds: int, max_steps: int | None) -> Climbed:
    """Trains the rung `name` into folders below `out`."""
    climbed = Climbed(name)
    changes: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
    for seed in range(1337, 1337 + seeds):
        began = time.monotonic()
        folder = out / (name if seed == 1337 else f"{name}-seed{seed}")
        run = train(preset(name, seed=seed, **changes), out=folder, quiet=True)
        if seed == 1337:
            climbed.seconds = time.monotonic() - began
            climbed.parameters = build.n_params(run.config.model)
            climbed.curve = [(row["step"], row["val_loss"]) for row in run.metrics if "val_loss" in row]
            climbed.sample = run.generate(tokens=300, seed=1)
        climbed.losses.append(measure(run))
    return climbed


HEADINGS = ("rung", "published", "ours", "difference", "ours, whole splits", "parameters", "seconds")


def cells(r: Climbed) -> tuple[str, ...]:
    """A rung's row of the table; the losses are train / validation."""
    published = PUBLISHED[r.name]
    means = [mean(losses[kind] for losses in r.losses) for kind in ("train", "val")]
    difference = (f"{ours - theirs:+.3f}" for ours, theirs in zip(means, published, strict=True))
    return (
        r.name,
        f"{published[0]:.2f} / {published[1]:.2f}",
        f"{r.loss('train')} / {r.loss('val')}",
        " / ".join(difference),
        f"{r.loss('whole train')} / {r.loss('whole val')}",
        f"{r.parameters:,}",
        f"{r.seconds:.0f}",
    )


def caption(rungs: list[Climbed]) -> str:
    """What the table's figures are."""
    seeds = len(rungs[0].losses)
    return (
        "Losses are train / validation, in nats a character. `ours` is the lecture's estimate over "
        f"{LECTURE_BATCHES} random batches, `whole splits` counts every character; "
        f"{'one seed' if seeds == 1 else f'mean ± standard deviation of {seeds} seeds'}. "
        f"{backend.describe(jax.devices()[0])}, {time.strftime('%Y-%m-%d')}."
    )


def report(rungs: list[Climbed], picture: str) -> str:
    """Table, picture and samples, as markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(cells(r) for r in rungs)]
    parts = [
        "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n",
        caption(rungs) + "\n",
        f"![Validation loss of every rung against steps]({picture})\n",
        "What each rung writes (300 characters, temperature 1):\n",
        *(f"`{r.name}`\n\n```text\n{r.sample.strip()}\n```\n" for r in rungs),
    ]
    return "\n".join(parts)


def show(rungs: list[Climbed], console: Console) -> None:
    """Samples and table, in the terminal."""
    for r in rungs:
        console.print(Text(f"\n── {r.name} ──\n", style="bold").append(r.sample.strip(), style="not bold"))
    table = Table(*HEADINGS, box=box.SIMPLE)
    for r in rungs:
        table.add_row(*cells(r))
    console.print(table, crop=False)
    console.print(Text(caption(rungs).replace("`", "")))


def plot(rungs: list[Climbed], path: Path) -> None:
    """The validation loss of every rung in one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for r in rungs:
        (line,) = axes.plot(*zip(*r.curve, strict=True), label=r.name)
        axes.axhline(PUBLISHED[r.name][1], color=line.get_color(), linestyle=":", linewidth=0.8)
    axes.set(xlabel="step", ylabel="validation loss (nats a character)", ylim=(1.9, 3.0))
    axes.set_title("Every rung of the ladder; dotted: the published loss")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


ABOUT = """usage: python -m jaxgpt.ladder [--seeds 5]

Climb the ladder from bigram to layernorm: train every rung, print the table and the samples."""

FLAGS = {
    "options": [
        Flag("out", Path, None, "Folder to make for the runs; by default runs/ladder, or the next free name."),
        Flag("seeds", int, 1, "How many seeds to train each rung with, for the spread of the losses."),
        Flag("max_steps", int, None, "Updates of every rung, for a quick look; by default each rung's own number."),
        Flag(
            "report",
            Path,
            None,
            "Markdown file to write, with the picture beside it; by default ladder.md in the folder of the runs. In a "
            "file that exists, only what stands between the marks is replaced.",
        ),
        HELP,
    ]
}


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m jaxgpt.ladder`: returns the exit code."""
    return run_command(_main, FLAGS, arguments)


def _main(given: dict[str, Any]) -> None:
    if "help" in given:
        print(page(ABOUT, FLAGS))
        return
    seeds = given.get("seeds", 1)
    if seeds < 1:
        raise UserError(f"`seeds` must be 1 or more, not {seeds}")
    process.setup()
    out = Path(given.get("out", free_path("ladder"))).expanduser()
    path = Path(given.get("report", out / "ladder.md")).expanduser()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    rungs = []
    for name in RUNGS:
        rungs.append(climb(name, out, seeds, given.get("max_steps")))
        r = rungs[-1]
        console.print(f"{name:>12}  train {r.loss('train')}  val {r.loss('val')}  in {r.seconds:.0f} s", markup=False)
    plot(rungs, path.with_suffix(".png"))
    text = report(rungs, path.with_suffix(".png").name)
    page_before = path.read_text("utf-8") if path.exists() else ""
    write_atomically(path, between_marks(page_before, text).encode())
    show(rungs, console)
    console.print(f"written to {shown(path)}", markup=False)


def between_marks(page: str, text: str) -> str:
    """`page` with what stands between the marks replaced; without marks, marks and text after it."""
    before, _, rest = page.partition(MARKS[0])
    return before + MARKS[0] + text + MARKS[1] + rest.partition(MARKS[1])[2]


if __name__ == "__main__":
    sys.exit(main())
