"""Pictures of what a model does with a text: matplotlib figures of `Run.attention`, `Run.losses` and `Run.logit_lens`.

>>> jaxgpt.plots.attention(run, "ROMEO:", layer=0, head=1).savefig("head.png")

A notebook shows them. Space is drawn as ␣ and a line break as ⏎.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxgpt.errors import UserError
from jaxgpt.fields import shown
from jaxgpt.pages.values import token_text
from jaxgpt.runs.plot import png
from jaxgpt.runs.run import Run

COLUMNS = 80  # characters a line of a coloured text
LONGEST = 8  # characters that are shown of a token in a grid
MOST_LOSS = 6.0  # nats, where the colours end
MARKS = {" ": "␣", "\n": "⏎", "\x7f": "␡"}
PLAIN = {"family": "monospace", "parse_math": False}  # a "$" in a text begins no formula


class Picture(Figure):
    """A figure that a notebook shows whether pyplot is there or not."""

    def _repr_png_(self) -> bytes:
        return png(self)


def attention(run: Run, text: str, layer: int | None = None, head: int | None = None) -> Figure:
    """Who looks at whom: a square for every head, in which row t shows how much token t takes from each before it.

    Args:
        run: of any architecture but `bigram`.
        text: at most `block_size` tokens.
        layer, head: from 0; None for all. Of one head alone, the tokens stand at both axes.

    Raises:
        UserError: as `Run.attention`; for a layer or a head that there is not, and a `bigram`, which has none.
    """
    weights = run.attention(text)  # (L, H, T, T)
    if not len(weights):
        raise UserError(f"a {run.config.model.architecture} has no attention: it looks at nothing but the last token")
    layers, heads = _chosen("layer", layer, weights.shape[0]), _chosen("head", head, weights.shape[1])
    labels = _labels(run, run.tokenizer.encode(text))
    if len(layers) == len(heads) == 1:
        return _one_head(weights[layers[0], heads[0]], labels, f"layer {layers[0]}, head {heads[0]}")
    side = max(0.7, min(1.8, 12 / len(heads)))  # inches
    figure = Picture(figsize=(side * len(heads) + 0.6, side * len(layers) + 0.6), dpi=110, layout="constrained")
    squares = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, i in zip(squares, layers, strict=True):
        row[0].set_ylabel(f"layer {i}")
        for axes, j in zip(row, heads, strict=True):
            _square(axes, weights[i, j])
            axes.set(xticks=[], yticks=[])
    for axes, j in zip(squares[0], heads, strict=True):
        axes.set_title(f"head {j}", fontsize=9)
    return figure


def losses(run: Run, text: str) -> Figure:
    """Where a text is surprising: each token on the colour of its loss, in nats. The first, which nothing predicts, is
    grey. Raises `UserError` as `Run.losses`."""
    each = run.losses(text)
    pieces = [token_text(run.tokenizer, token) for token in run.tokenizer.encode(text)]
    lines = _lines(pieces)
    width, height = max(30, *map(len, lines)), 0.2 * len(lines)
    figure = Picture(figsize=(0.09 * width + 1, height + 0.6), dpi=120, layout="constrained")  # inches
    axes = figure.subplots()
    grid = np.full((len(lines), width), np.nan)
    for y, line in enumerate(lines):
        for x, (character, i) in enumerate(line):
            grid[y, x] = each[i - 1] if i else np.nan
            axes.text(x, y, character, ha="center", va="center", fontsize=8, color="0.1" if i else "0.5", **PLAIN)
    colours = axes.imshow(grid, cmap="Reds", vmin=0, vmax=MOST_LOSS, alpha=0.8, aspect="auto")
    axes.set_title(f"loss {each.mean():.3f} nats a {run.tokenizer.unit}", fontsize=10)
    axes.axis("off")
    figure.colorbar(colours, ax=axes, extend="max", fraction=0.03, aspect=max(8, 4 * height), label="nats")
    return figure


def logit_lens(run: Run, text: str) -> Figure:
    """When the model knows: what each layer would predict after each token, and how sure it is. What really came next
    is framed. Raises `UserError` as `Run.logit_lens`."""
    logits = run.logit_lens(text)  # (L + 1, T, V)
    tokens = run.tokenizer.encode(text)
    likeliest = logits.argmax(-1)
    sureness = np.exp(logits.max(-1) - np.logaddexp.reduce(logits, axis=-1))
    labels = [_labels(run, row) for row in likeliest]
    width = 0.16 + 0.09 * max(len(label) for row in labels for label in row)  # inches a column
    figure = Picture(figsize=(width * len(tokens) + 1.8, 0.32 * len(logits) + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = axes.imshow(sureness, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for y, row in enumerate(labels):
        for x, label in enumerate(row):
            colour = "white" if sureness[y, x] > 0.6 else "black"
            axes.text(x, y, label, ha="center", va="center", fontsize=9, color=colour, **PLAIN)
            if x + 1 < len(tokens) and likeliest[y, x] == tokens[x + 1]:
                frame = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, color="#d95f02")
                axes.add_patch(frame)
    axes.set_xticks(range(len(tokens)), _labels(run, tokens), fontsize=9, **PLAIN)
    axes.set_yticks(range(len(logits)), ["embeddings", *(f"after block {i}" for i in range(len(logits) - 1))])
    axes.set_xlabel("the text, and above each token what would come next")
    figure.colorbar(colours, ax=axes, label="probability", fraction=0.03)
    return figure


def _one_head(weights: np.ndarray, labels: list[str], title: str) -> Figure:
    side = max(4, min(12, 0.22 * len(labels)))  # inches
    figure = Picture(figsize=(side + 1.2, side + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = _square(axes, weights)
    axes.set_xticks(range(len(labels)), labels, fontsize=9, **PLAIN)
    axes.set_yticks(range(len(labels)), labels, fontsize=9, **PLAIN)
    axes.tick_params(length=0)
    axes.set_title(f"{title}: what each token (a row) takes from those before it", fontsize=10)
    figure.colorbar(colours, ax=axes, fraction=0.04, label="weight")
    return figure


def _square(axes: Any, weights: np.ndarray) -> Any:
    """Attention (T, T); the future, which nobody sees, is white, whatever the weight of nothing."""
    future = np.triu(np.ones_like(weights, bool), 1)
    return axes.imshow(np.ma.masked_array(weights, future), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")


def _chosen(name: str, which: int | None, there: int) -> Sequence[int]:
    if which is None:
        return range(there)
    if not isinstance(which, int | np.integer) or not 0 <= which < there:
        raise UserError(f"`{name}` is a whole number from 0 to {there - 1}, or None for all, not {shown(which)}")
    return [int(which)]


def _labels(run: Run, tokens: Any) -> list[str]:
    """The tokens as people can tell them apart on an axis."""
    texts = ("".join(map(_visible, token_text(run.tokenizer, int(token)))) for token in tokens)
    return [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]


def _visible(character: str) -> str:
    if character < " ":
        return MARKS.get(character, chr(0x2400 + ord(character)))
    unseen = unicodedata.category(character)[0] == "C" or unicodedata.category(character) in ("Zl", "Zp")
    return MARKS.get(character, "\ufffd" if unseen else character)


def _lines(pieces: list[str]) -> list[list[tuple[str, int]]]:
    """The characters of a text, each with the number of its token, line by line."""
    lines: list[list[tuple[str, int]]] = [[]]
    for character, i in _characters(pieces):
        if len(lines[-1]) == COLUMNS:
            lines.append([])
        lines[-1].append((character if character == " " else _visible(character), i))
        if character == "\n":
            lines.append([])
    return lines if lines[-1] else lines[:-1]


def _characters(pieces: list[str]) -> Iterator[tuple[str, int]]:
    for i, piece in enumerate(pieces):
        for character in piece:
            yield character, i
