"""What a person sees of a run while it trains."""

import time
import unicodedata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxgpt.config import TrainConfig
from jaxgpt.data import corpus
from jaxgpt.device import backend
from jaxgpt.device.memory import Need
from jaxgpt.device.sharding import Placement
from jaxgpt.files import shown
from jaxgpt.model import build

PLAIN_SECONDS = 30  # between two progress lines where the output is no terminal
LIVE_SECONDS = 0.2  # between two updates of a terminal's progress line
CELL_SECONDS = 0.5  # and of a notebook's
BAR_WIDTH = 24
LONG_RUN_SECONDS = 30 * 60  # on a CPU, worth a note


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the program, and close its output."""
        self.quiet = True


class Report:
    """Tells of a run on standard output: plain lines, and below them a progress line that changes in place in a
    terminal and in a notebook's cell, and is printed now and then elsewhere. Or nothing.

    A reader who goes away (`train.py | head`, a closed terminal) ends the report, not the run.
    """

    def __init__(self, quiet: bool = False):
        self.in_cell = Console().is_jupyter
        plain = False if self.in_cell else None  # as Rich would make an output of its own of every line there
        self.console = _Console(highlight=False, quiet=quiet, soft_wrap=True, force_jupyter=plain, force_terminal=plain)
        self._live: Live | None = None
        self._width = 0  # of the progress line that a cell shows
        self._last = time.monotonic()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exception) -> None:
        self._try(self._stop_live)
        self._try(self._clear)

    def banner(self, facts: dict[str, str]) -> None:
        """A few facts, one a line."""
        for name, value in facts.items():
            self._print(Text(f"{name:>10}  ", style="bold").append(value, style="not bold"))
        self._print(Text())

    def note(self, text: str) -> None:
        self._print(Text(text))

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """The progress line of a run; after the first update, a line that stays."""
        if row["step"] == 1:
            self._print(Text(f"step {1:>5}  train loss {row['train_loss']:.4f}"))
        self.progress(progress_parts(row, max_steps), row["step"] / max_steps)

    def progress(self, parts: list[str], done: float) -> None:
        """The progress line, unless the last one is new: what it tells, the most important first, and the share that
        is done."""
        now, terminal = time.monotonic(), self.console.is_terminal
        pause = LIVE_SECONDS if terminal else CELL_SECONDS if self.in_cell else PLAIN_SECONDS
        if now - self._last <= pause:
            return
        self._last = now
        if terminal and not self.console.quiet:
            self._try(lambda: self._show(progress_line(parts, done, self.console.width)))
        elif self.in_cell:
            self._try(lambda: self._rewrite("  ".join(parts)))
        else:
            self._print(Text("  ".join(parts)))

    def evaluation(self, step: int, train_loss: float, val_loss: float, best: bool, sample: str) -> None:
        """Both losses, and a few lines of what the model writes."""
        line = Text(f"step {step:>5}  train loss {train_loss:.4f}  val loss ")
        self._print(line.append(f"{val_loss:.4f}", style="bold green" if best else "bold"))
        if sample:
            lines = [line for line in visible(sample).strip("\n").split("\n") if line.strip()][:4]
            self._print(Text("\n".join(f"    │ {line}" for line in lines), style="dim"))
        self._last = time.monotonic()

    def _show(self, line: Text) -> None:
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(line, refresh=True)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _rewrite(self, line: str) -> None:
        """Shows `line` in the place of the last one; a cell's output knows no other control character than this."""
        self._clear()
        self.console.file.write(line)
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            self.console.file.write(f"\r{' ' * self._width}\r")
            self._width = 0

    def _print(self, text: Text) -> None:
        self._try(self._clear)
        encoding = self.console.encoding
        text.plain = text.plain.encode(encoding, "replace").decode(encoding)  # what a console cannot show becomes "?"
        self._try(lambda: self.console.print(text))

    def _try(self, write) -> None:
        if self.console.quiet:
            return
        try:
            write()
        except (OSError, ValueError):  # nobody reads any more: a closed pipe, terminal or file
            self.console.quiet = True


def visible(text: str) -> str:
    """`text` for a terminal, which would obey control characters: all but line breaks and tabs become U+FFFD."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def progress_parts(row: dict[str, Any], max_steps: int) -> list[str]:
    """What a progress line tells, the most important first."""
    left = duration((max_steps - row["step"]) * row["step_seconds"])
    return [
        f"step {row['step']}/{max_steps}",
        f"loss {row['train_loss']:.4f}",
        f"{left} left",
        f"{row['tokens_per_second']:,.0f} tokens/s",
    ]


def progress_line(parts: list[str], done: float, width: int) -> Text:
    """As many of the parts as are whole within `width` columns, and a bar if there is room."""
    line = Text(parts[0])
    rest = ""
    for part in parts[1:]:
        if len(line) + len(rest) + len(part) + 2 >= width:
            break
        rest += f"  {part}"
    if len(line) + len(rest) + BAR_WIDTH + 2 < width:
        filled = round(BAR_WIDTH * done)
        line.append("  ").append("━" * filled, style="bold").append("━" * (BAR_WIDTH - filled), style="dim")
    return line.append(rest)


def facts(
    config: TrainConfig, path: Path, placement: Placement, dtype: str, unit: str, sizes: tuple[int, int], split: str
) -> dict[str, str]:
    """What is about to run, and on what, for `Report.banner`.

    Args:
        dtype: the type of the products, and why.
        unit: what a token is.
        sizes: tokens of the training and of the validation split.
        split: what the validation split is: "the last 10 %".
    """
    c, m = config, config.model
    shape = ", ".join(_size(name, getattr(m, name)) for name in build.architecture(m).sizes)
    model = f"{m.architecture}, {count(build.n_params(m), 'parameter')}"
    train, val = sizes
    return {
        "device": backend.describe(placement.mesh.devices.flat[0]),
        **({"mesh": mesh} if (mesh := _mesh(placement)) else {}),
        "dtype": dtype,
        "model": f"{model}: {shape}" if shape else model,
        **({"from": f"the weights of {shown(c.init_from)}"} if c.init_from else {}),
        "data": f"{corpus.describe(c.data)}: {count(train, unit)} to train on, {val:,} to validate ({split}), "
        f"{m.vocab_size:,} different ones",
        "step": f"{count(c.batch_size * m.block_size, 'token')}: {_shares(c, placement)}",
        "run": f"{shown(path)}, {count(c.max_steps, 'step')}",
    }


def _size(name: str, value: int) -> str:
    words = {"n_layer": "layer", "n_head": "head"}
    return count(value, words[name]) if name in words else f"{value} wide"


def _shares(config: TrainConfig, placement: Placement) -> str:
    """How the windows of a batch are worked through."""
    n, used, there = placement.shares, placement.mesh.size, jax.device_count()
    unit = "core" if placement.platform == "cpu" else "device"
    at_a_time = config.batch_size // n // placement.micro_batches
    words = f"{count(config.batch_size, 'window')} of {config.model.block_size}, {at_a_time} at a time"
    if n < used:
        words += f" on each of {count(n, 'group')} of {used // n} {unit}s"
    elif n > 1:
        words += f" on each of {n} {unit}s"
    if used < there and placement.platform != "cpu" and not config.mesh:
        words += f" ({there - used} of {there} devices are idle: they cannot share the windows equally)"
    return words


def _mesh(placement: Placement) -> str:
    """Who works on what, where it is not all in data parallel in one process."""
    if not placement.shards_state and jax.process_count() == 1:
        return ""
    axes = " x ".join(f"{axis} {size}" for axis, size in placement.mesh.shape.items())
    return f"{axes}, {count(jax.process_count(), 'process', 'processes')}"


def memory(need: Need) -> str:
    """A note on what a step takes of a device's memory."""
    return f"a step needs {need} of memory"


def too_large(need: Need, devices: int) -> str:
    """What to say where that is more than there is."""
    each, fsdp = (" a device", "an fsdp axis in `mesh`, ") if devices > 1 else ("", "")
    return f"training needs {need} of memory{each}: try {fsdp}`remat`, more `micro_batches`, or a smaller model"


def count(n: int, noun: str, plural: str = "") -> str:
    """`1 step`, `2,000 steps`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """`42 s`, `7 min 05 s`, `3 h 20 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def long_run(seconds: float, step_seconds: float) -> str:
    """A note for a CPU on which a run takes long."""
    return (
        f"at {step_seconds:.1f} s a step, as the first ones took, this run needs {duration(seconds)} on this CPU; "
        "the preset speedrun is done in a minute or so\n"
    )


def going_on(at: int, max_steps: int, before: dict[str, Any] | None) -> str:
    """A note for a run that goes on, whose config is `before` in its checkpoint, if it is there."""
    end = max_steps if before is None else before["max_steps"]
    return f"going on after step {at}" + (f", to step {max_steps} instead of {end}\n" if end != max_steps else "\n")


def damaged_metrics(path: Path) -> str:
    """A note for a run that goes on without some of its rows."""
    return f"{shown(path)} is not as it was written: rows that can be read are kept, and may be wrong\n"


def other_dropout(before: tuple[int, int], now: tuple[int, int]) -> str:
    """A note for a run that goes on with other numbers of devices and of micro-batches."""
    was, is_ = (
        f"{count(devices, 'device')} with {count(parts, 'micro-batch', 'micro-batches')}"
        for devices, parts in (before, now)
    )
    return f"a batch is shared among {is_} each, and was among {was}: dropout is another one from here on\n"


def result(config: TrainConfig, seconds: float, best_val_loss: float, best_step: int, final_val_loss: float) -> str:
    """How a run ended."""
    return (
        f"\n{count(config.max_steps, 'step')} in {duration(seconds)}. "
        f"Best val loss {best_val_loss:.4f}, after step {best_step}.\n"
        f"Loss over the whole validation split, after the last step: {final_val_loss:.4f}.\n"
    )
