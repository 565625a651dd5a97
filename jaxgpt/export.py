"""The command `python -m jaxgpt.export`: a run for Hugging Face's transformers, or for llama.cpp."""

import sys
from pathlib import Path
from typing import Any

from jaxgpt.cli import flags, process
from jaxgpt.cli.command import program, run_command
from jaxgpt.cli.flags import Flag
from jaxgpt.errors import UserError
from jaxgpt.files import quoted, shown

ABOUT = """usage: {program} [RUN] --to FOLDER [--format huggingface|gguf]

Write a trained GPT for other programs: a folder that Hugging Face's transformers reads, or a file for llama.cpp.
Defaults are in brackets."""

FLAGS = [
    Flag("run", Path, None, "Folder of the run; by default the one below runs/ that was trained last."),
    Flag("to", Path, None, "Folder to write, new or empty."),
    Flag("format", ("huggingface", "gguf"), "huggingface", "For transformers, or for llama.cpp."),
    Flag("checkpoint", ("newest", "best"), "newest", "The newest one, or the best by its validation loss."),
    flags.HELP,
]
GROUPS = {"export": FLAGS}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code."""
    return run_command(_export, GROUPS, arguments, positional="run")


def _export(given: dict[str, Any]) -> None:
    if given.pop("help", False):
        print(flags.page(ABOUT.format(program=program("export")), GROUPS))
        return
    if "to" not in given:
        raise UserError("`to` is missing: the folder to write")
    with process.uninterrupted():
        process.setup()
        from jaxgpt.model.huggingface import (
            MODELING,  # not before it is needed: what is wrong so far is told without JAX
        )
        from jaxgpt.runs.export import GGUF, export
        from jaxgpt.runs.pretrained import load_pretrained

    path, which = given.get("run"), given.get("checkpoint", "newest")
    source = load_pretrained(path, which)
    to = export(source, given["to"], given.get("format", "huggingface"))
    print(f"{shown(source.path)}, step {source.step:,}, is written to {shown(to)}")
    if (to / GGUF).exists():
        print(f"llama-cli -m {quoted(to / GGUF)} -n 100")
    elif (to / MODELING).exists():
        print(f'transformers.AutoModelForCausalLM.from_pretrained("{shown(to)}", trust_remote_code=True)')
    else:
        print(f'transformers.GPT2LMHeadModel.from_pretrained("{shown(to)}")')


if __name__ == "__main__":
    sys.exit(main())
