"""Climbs the ladder: trains every rung, measures it as the lecture does, and writes the report.

`python -m jaxgpt.ladder`, or with `--seeds 5` for the spread over seeds, or with `--page` for a page that has all the
models in it.
"""

import inspect
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.cli import flags, process
from jaxgpt.cli.command import run_command
from jaxgpt.cli.flags import HELP, Flag
from jaxgpt.config import TrainConfig, override, validate
from jaxgpt.data import batches, corpus
from jaxgpt.device import backend
from jaxgpt.errors import UserError
from jaxgpt.evaluation import make_evaluate
from jaxgpt.files import shown, write_atomically
from jaxgpt.model import build
from jaxgpt.model.ladder import RUNGS
from jaxgpt.pages.bundle import bundle
from jaxgpt.pages.rungs import Card, record_rungs
from jaxgpt.presets import preset
from jaxgpt.runs import plot as pictures
from jaxgpt.runs.folder import free_path
from jaxgpt.runs.report import Report
from jaxgpt.runs.run import Run
from jaxgpt.training import step
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
FIRST_SEED = 1337
LAST = "speedrun"  # the preset that stands behind the rungs in the page: a GPT that is small enough for it
ABOUT_LAST = """The same, larger: four layers, 64 characters of context, and what others have found since, such as
rotary positions and a better optimiser."""
START, END = "<!-- figures: python -m jaxgpt.ladder -->", "<!-- end of figures -->"


@dataclass
class Result:
    """What came of a rung, trained with one seed or more."""

    name: str
    parameters: int = 0
    seconds: float = 0.0  # of the first seed's training, compilation included
    losses: list[dict[str, float]] = field(default_factory=list)  # a seed each, as from `measure`
    curve: list[tuple[int, float]] = field(default_factory=list)  # the first seed's: step, validation loss
    sample: str = ""  # the first seed's
    run: Run | None = None  # the first seed's

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
    params = jax.device_put(build.params_of(run.model), placement.replicated)
    losses = {}
    for i, (name, text) in enumerate(zip(("train", "val"), batches.split(tokens), strict=True)):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        windows = (LECTURE_BATCHES * config.batch_size,)
        starts = np.asarray(jax.random.randint(key, windows, 0, len(text) - config.model.block_size, jnp.int32))
        losses[name] = evaluate(params, text, starts, np.zeros_like(starts))
        losses[f"whole {name}"] = evaluate(params, text, *batches.fixed_windows(len(text), config.model.block_size))
    return losses


def climb(recipe: TrainConfig, out: Path, seeds: int) -> Result:
    """Trains a rung with `seeds` seeds, each run in a folder below `out`."""
    result = Result(recipe.preset)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        began, first = time.monotonic(), seed == FIRST_SEED
        folder = out / (result.name if first else f"{result.name}-seed{seed}")
        run = train(override(recipe, seed=seed), out=folder, quiet=True)
        if first:
            result.seconds = time.monotonic() - began
            result.parameters = build.n_params(run.config.model)
            result.curve = [(row["step"], row["val_loss"]) for row in run.metrics if "val_loss" in row]
            result.sample = run.generate(tokens=300, seed=1).strip()
            result.run = run
        result.losses.append(measure(run))
    return result


HEADINGS = ("rung", "published", "ours", "difference", "ours, whole splits", "parameters", "seconds")


def cells(r: Result) -> tuple[str, ...]:
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


def caption(results: list[Result]) -> str:
    """What the table's figures are."""
    seeds = len(results[0].losses)
    return (
        "Losses are train / validation, in nats a character. `ours` is the lecture's estimate over "
        f"{LECTURE_BATCHES} random batches, `whole splits` counts every character; "
        f"{'one seed' if seeds == 1 else f'mean ± standard deviation of {seeds} seeds'}. "
        f"{_machine()}."
    )


def markdown(results: list[Result], picture: str) -> str:
    """Table, picture and samples, for a page."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, results)]
    parts = [
        "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n",
        caption(results) + "\n",
        f"![Validation loss of every rung against steps]({picture})\n",
        "What each rung writes (300 characters, temperature 1):\n",
        *(f"`{r.name}`\n\n```text\n{r.sample}\n```\n" for r in results),
    ]
    return "\n".join(parts)


def plain(results: list[Result]) -> str:
    """Samples and table, for a terminal."""
    samples = [f"── {r.name} ──\n{r.sample}\n" for r in results]
    rows = [HEADINGS, *map(cells, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(["", *samples, *table, "", caption(results).replace("`", "")])


def plot(results: list[Result], path: Path) -> None:
    """The validation loss of every rung in one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for r in results:
        (line,) = axes.plot(*zip(*r.curve, strict=True), label=r.name)
        axes.axhline(PUBLISHED[r.name][1], color=line.get_color(), linestyle=":", linewidth=0.8)
    highest = max(3.0, *(1.05 * r.curve[-1][1] for r in results))  # of what is of interest: how the curves end
    axes.set(xlabel="step", ylabel="validation loss (nats a character)", ylim=(1.9, highest))
    axes.set_title("Every rung of the ladder; dotted: the published loss")
    axes.grid(alpha=0.3)
    axes.legend()
    pictures.save(figure, path)


def page(results: list[Result]) -> str:
    """All models in one HTML file, where they run."""
    cards = []
    for r in results:
        about = inspect.getdoc(RUNGS[r.name]) if r.name in RUNGS else ABOUT_LAST
        idea = " ".join((about or "").partition("\n\n")[0].split())
        losses = {split: r.losses[0][f"whole {split}"] for split in ("train", "val")}
        assert r.run is not None, "a rung that was climbed has a run"
        cards.append(Card(r.run, r.name, idea, losses, r.sample))
    told = f"Losses over the whole splits of tiny Shakespeare, in nats a character. Trained on: {_machine()}."
    return bundle("ladder", "The ladder", record_rungs(cards, told))


def _machine() -> str:
    return f"{backend.describe(jax.devices()[0])}, {time.strftime('%Y-%m-%d')}"


ABOUT = """usage: python -m jaxgpt.ladder [--seeds 5] [--page]

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
        Flag(
            "page",
            bool,
            False,
            f"Train the preset {LAST}, too, and write a page in which all of them run side by side: the report's name, "
            "with .html.",
        ),
        HELP,
    ]
}


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m jaxgpt.ladder`: returns the exit code."""
    return run_command(_main, FLAGS, arguments)


def _main(given: dict[str, Any]) -> None:
    if "help" in given:
        print(flags.page(ABOUT, FLAGS))
        return
    seeds, max_steps = given.get("seeds", 1), given.get("max_steps")
    if seeds < 1:
        raise UserError(f"`seeds` must be 1 or more, not {seeds}")
    changes: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
    recipes = [validate(preset(name, **changes)) for name in RUNGS]
    with process.uninterrupted():
        process.setup()
    out = Path(os.path.realpath(os.path.expanduser(given.get("out", free_path("ladder")))))
    path = Path(os.path.realpath(os.path.expanduser(given.get("report", out / "ladder.md"))))
    page_before = _prepare(out, path)

    report, results = Report(), []
    for recipe in recipes:
        r = climb(recipe, out, seeds)
        results.append(r)
        report.note(f"{r.name:>12}  train {r.loss('train')}  val {r.loss('val')}  in {r.seconds:.0f} s")
    picture = path.with_suffix(".png")
    write_atomically(path, between_marks(page_before, markdown(results, picture.name)).encode())
    report.note(plain(results))
    plot(results, picture)
    report.note(f"written to {shown(path)}")
    if given.get("page"):
        last = climb(validate(preset(LAST, **changes)), out, 1)
        write_atomically(path.with_suffix(".html"), page([*results, last]).encode())
        report.note(f"and to {shown(path.with_suffix('.html'))}, to be opened in a browser")


def _prepare(out: Path, path: Path) -> str:
    """The page at `path` as it is. What is wrong with it or with `out` is told before the climb, not after it."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{shown(out)} exists and is not overwritten: choose another `out`")
    if path.suffix == ".png":
        raise UserError(f"`report` is a markdown file, which has its picture beside it, not {shown(path)}")
    try:
        page = path.read_bytes().decode() if path.exists() else ""
    except UnicodeDecodeError as problem:
        raise UserError(f"{shown(path)} is not UTF-8 text: choose another `report`") from problem
    between_marks(page, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())
    return page


def between_marks(page: str, text: str) -> str:
    """`page` with `text` between the marks, which come at its end where it has none.

    Raises:
        UserError: for a page with the first mark alone.
    """
    if START not in page:
        page = f"{page.rstrip()}\n\n{START}\n{END}\n".lstrip()
    before, _, rest = page.partition(START)
    if END not in rest:
        raise UserError(f"`report` has the line {START} and no {END} after it: add that where the figures end")
    return f"{before}{START}\n{text}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    sys.exit(main())
