"""What a person sees of a run: the console while it trains, the rows and the plot it leaves behind."""

import io
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

PLAIN_SECONDS = 30  # between two progress lines where the output is no terminal


class Report:
    """Tells of a run on standard output: a live line in a terminal, plain lines elsewhere, or nothing."""

    def __init__(self, quiet: bool = False):
        self.console = Console(highlight=False, quiet=quiet, soft_wrap=True)
        self._progress: Progress | None = None
        self._last = time.monotonic()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exception) -> None:
        self._clear()

    def banner(self, facts: dict[str, str]) -> None:
        """A few facts, one a line."""
        for name, value in facts.items():
            self.console.print(Text(f"{name:>10}  ", style="bold").append(value, style="not bold"))
        self.console.print()

    def note(self, text: str) -> None:
        self.console.print(Text(text))

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """The progress line: step, loss, speed, time left."""
        left = duration((max_steps - row["step"]) * row["step_seconds"])
        line = f"loss {row['train_loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s  {left} left"
        if self.console.is_terminal and not self.console.quiet:
            if self._progress is None:
                columns = (
                    TextColumn("step {task.completed}/{task.total}"),
                    BarColumn(24),
                    TextColumn("{task.description}"),
                )
                self._progress = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
                self._progress.add_task("", total=max_steps)
                self._progress.start()
            self._progress.update(self._progress.task_ids[0], completed=row["step"], description=line)
            if time.monotonic() - self._last > 0.2:
                self._progress.refresh()
                self._last = time.monotonic()
        elif time.monotonic() - self._last > PLAIN_SECONDS:
            self.console.print(f"step {row['step']}/{max_steps}  {line}", markup=False)
            self._last = time.monotonic()

    def evaluation(self, step: int, train_loss: float, val_loss: float, best: bool, sample: str) -> None:
        """Both losses, and a few lines of what the model writes."""
        line = Text(f"step {step:>5}  train loss {train_loss:.4f}  val loss ")
        self.console.print(line.append(f"{val_loss:.4f}", style="bold green" if best else "bold"))
        if sample:
            lines = [line for line in sample.strip("\n").split("\n") if line.strip()][:4]
            self.console.print(Text("\n".join(f"    │ {line}" for line in lines), style="dim"))
        self._last = time.monotonic()

    def _clear(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def duration(seconds: float) -> str:
    """`42 s`, `7 min 05 s`, `3 h 20 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Makes the metrics.jsonl of the run in `path` hold these rows."""
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to the metrics.jsonl of the run in `path`."""
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws the losses of a run against its steps, as a PNG."""
    from matplotlib.figure import Figure  # half a second to import, and only needed now and then

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    batches = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    evals = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
    axes.plot(*zip(*batches, strict=True), color="#9ecae1", linewidth=0.8, label="training batch")
    axes.plot(*zip(*evals, strict=True), color="#08519c", marker="o", markersize=3, label="validation")
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path.write_bytes(picture.getvalue())
