"""See inside a trained GPT: `python -m jaxgpt.inside runs/speedrun` writes a page that a browser opens."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.cli import flags, process
from jaxgpt.cli.command import program, run_command
from jaxgpt.cli.flags import Flag
from jaxgpt.errors import UserError
from jaxgpt.files import quoted, shown

if TYPE_CHECKING:
    from jaxgpt.runs.run import Run

ABOUT = """usage: {program} [RUN] [--prompt TEXT] [--to FILE]

Make a page that shows a trained GPT from inside: what it predicts, where it looks, where it is surprised, what it has
learnt, and how. It is one HTML file, which any browser opens without a network. A model of up to a million parameters
runs in the page itself, on what is typed there; of a larger one the page shows what it does with one prompt.

The file is inside.html in the run's folder, or NAME-inside.html here where that folder is somebody else's or cannot be
written to. An earlier page is replaced; any other file only if --to names it."""

FLAGS = [
    Flag("run", str, None, "Folder of the run, or what --from of train.py takes; by default the newest run."),
    Flag("checkpoint", ("newest", "best"), "newest", "The newest one, or the best by its validation loss."),
    Flag("prompt", str, None, "Text that is looked at first; by default some of the validation text."),
    Flag("to", Path, None, "File to write; one that is there is replaced."),
    flags.HELP,
]
GROUPS = {"inside": FLAGS}
MARK = b'<meta name="generator" content="jaxgpt">'  # of our pages, near their beginning


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code."""
    return run_command(_inside, GROUPS, arguments, positional="run")


def _inside(given: dict[str, Any]) -> None:
    if given.get("help"):
        print(flags.page(ABOUT.format(program=program("inside")), GROUPS))
        return
    with process.uninterrupted():
        process.setup()
        from jaxgpt.pages import record
        from jaxgpt.pages.bundle import bundle
        from jaxgpt.pages.page import megabytes
        from jaxgpt.runs.pretrained import load_pretrained  # not before it is needed: mistakes so far are told at once

    run = load_pretrained(given.get("run"), given.get("checkpoint", "newest"))
    to = _checked(given["to"].expanduser()) if "to" in given else _default(run, record.title(run))
    prompt = given.get("prompt")
    if prompt is not None:
        _tell_of_cut(run, prompt, len(record.shown_tokens(run, prompt)))
    content = "the model in it" if record.is_live(run) else "what the model does with one text: it is too large itself"
    size = megabytes(record.expected_bytes(run) + len(bundle("inside", "", {})))
    print(f"{shown(run.path)}, step {run.step:,}: a page of about {size}, with {content}", flush=True)
    page = run.inside(prompt)
    page.save(to)
    print(f"{shown(to)}, {megabytes(len(page.content))}, is written: {_how_to_open(to)}")
    if page.note:
        print(page.note)


def _default(run: "Run", title: str) -> Path:
    """Where the page goes if nobody says. Raises `UserError` where something else is there."""
    is_ours = (run.path / "metrics.jsonl").is_file() and os.access(run.path, os.W_OK)
    to = run.path / "inside.html" if is_ours else Path.cwd() / f"{Path(title).name}-inside.html"
    if os.path.lexists(to) and not _is_page(to):
        raise UserError(f"{shown(to)} is there already, and is no page of jaxgpt's: name another file as `to`")
    return to


def _is_page(path: Path) -> bool:
    """Whether an earlier call wrote this file; a link may lead anywhere."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK in file.read(1000)


def _checked(to: Path) -> Path:
    if to.is_dir():
        raise UserError(f"{shown(to)} is a folder: name a file in it as `to`")
    if not to.parent.is_dir():
        raise UserError(f"there is no folder {shown(to.parent)}: make it, or name another `to`")
    return to.absolute()


def _tell_of_cut(run: "Run", prompt: str, kept: int) -> None:
    there = len(run.tokenizer.encode(prompt))
    if kept < there:
        print(f"of the prompt's {there:,} {run.tokenizer.unit}s, the page shows the last {kept:,}")


def _how_to_open(path: Path) -> str:
    if sys.platform == "darwin":
        return f"open {quoted(path)}"
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return f"xdg-open {quoted(path)}"
    return f"open {path.absolute().as_uri()} in a browser, or copy the file to where there is one"


if __name__ == "__main__":
    sys.exit(main())
