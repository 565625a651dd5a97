"""The picture of a run: its losses against its steps."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxgpt.files import write_atomically


def plot(rows: Iterable[dict[str, Any]], title: str, path: Path, unit: str = "token") -> None:
    """Draws the losses in `rows` of metrics.jsonl as a PNG.

    A loss before the first update is left out of the line: it would hide the rest, and no measurement lies between it
    and the next.
    """
    from matplotlib.figure import Figure  # half a second to import, and only needed now and then

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    batches, evaluations = _points(rows, "train_loss", "val_loss")
    untrained, trained = ([point for point in evaluations if (point[0] == 0) == first] for first in (True, False))
    axes.plot(*zip(*batches, strict=True), color="#9ecae1", linewidth=0.8, label="training batch")
    axes.plot(*zip(*trained, strict=True), color="#08519c", marker="o", markersize=3, label="validation")
    axes.plot(*zip(*untrained, strict=True), color="#08519c", marker="o", markersize=3, linestyle="none")
    axes.set(xlabel="step", ylabel=f"loss (nats a {unit})")
    title = "".join(c if c.isprintable() else "?" for c in title)
    axes.set_title(title, parse_math=False)  # a "$" in a name is no formula
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure as a PNG, whole or not at all."""
    write_atomically(path, png(figure))


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks becomes a box
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _points(rows: Iterable[dict[str, Any]], *names: str) -> list[list[tuple[int, float]]]:
    """For each name, (step, value) of the rows that have a number; an empty plot needs one point that is none."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for row in rows:  # which may be too many to hold them all
        for name in names:
            if row.get(name) is not None:
                points[name].append((row["step"], row[name]))
    return [some or [(0, float("nan"))] for some in points.values()]
