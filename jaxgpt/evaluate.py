"""Score a trained GPT on a text: `python -m jaxgpt.evaluate runs/speedrun --data other.txt`."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.cli import flags, process
from jaxgpt.cli.command import program, run_command
from jaxgpt.cli.flags import Flag
from jaxgpt.config import fields
from jaxgpt.files import shown

if TYPE_CHECKING:
    from jaxgpt.data.tokenizer import Tokenizer

ABOUT = """usage: {program} [RUN] [--data PATH ...]

Score a trained GPT on a text: its loss, its perplexity, and its bits a byte, which can be compared with those of models
that have other tokenizers. Every token but the first is predicted once, from those before it in its window of
`block_size`."""

FLAGS = [
    Flag("run", str, None, "Folder of the run, or what --from of train.py takes; by default the newest run."),
    Flag("checkpoint", ("newest", "best"), "newest", "The newest one, or the best by its validation loss."),
    fields()["data"]._replace(default=None),
    fields()["text_field"],
    Flag("losses", Path, None, "File to write the loss of every token to: JSON lines with token, text, loss."),
    Flag("json", bool, False, "Print the figures as one JSON object."),
    flags.HELP,
]
GROUPS = {"evaluate": FLAGS}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code."""
    return run_command(_evaluate, GROUPS, arguments, positional="run")


def _evaluate(given: dict[str, Any]) -> None:
    if given.get("help"):
        print(flags.page(ABOUT.format(program=program("evaluate")), GROUPS))
        return
    with process.uninterrupted():
        process.setup()
        from jaxgpt.data import corpus
        from jaxgpt.runs.pretrained import load_pretrained  # not before it is needed: mistakes so far are told at once

    run = load_pretrained(given.get("run"), given.get("checkpoint", "newest"))
    with _writer(given.get("losses"), run.tokenizer) as each:
        scored = run.evaluate(given.get("data"), text_field=given.get("text_field", "text"), each=each)
    figures = {
        "loss": scored.loss,
        "perplexity": scored.perplexity,
        "bits_per_byte": scored.bits_per_byte,
        "tokens": scored.tokens,
        "bytes": scored.bytes,
    }
    if given.get("json"):
        print(json.dumps(figures))
        return
    what = "its validation split" if "data" not in given else corpus.describe(given["data"])
    print(f"{shown(run.path)}, step {run.step:,}, on {what}:")
    print(f"{scored.tokens:,} {run.tokenizer.unit}s predicted, {scored.bytes:,} bytes\n")
    print(f"{'loss':>14}  {scored.loss:.4f} nats a {run.tokenizer.unit}")
    print(f"{'perplexity':>14}  {scored.perplexity:.2f}")
    print(f"{'bits a byte':>14}  {scored.bits_per_byte:.4f}")


@contextlib.contextmanager
def _writer(path: Path | None, tokenizer: "Tokenizer") -> Iterator[Callable | None]:
    """What `Run.evaluate` gives each piece to: it writes a line a token to `path`."""
    if path is None:
        yield None
        return
    with path.expanduser().open("w", encoding="utf-8") as file:

        def each(tokens, losses) -> None:
            for token, loss in zip(tokens.tolist(), losses.tolist(), strict=True):
                line = {"token": token, "text": tokenizer.decode([token]), "loss": round(loss, 6)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield each


if __name__ == "__main__":
    sys.exit(main())
