"""The command `sample.py`: writes text with a trained GPT."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.cli import flags, process
from jaxgpt.cli.command import program, run_command
from jaxgpt.cli.flags import Flag
from jaxgpt.config import WEIGHTS
from jaxgpt.errors import UserError
from jaxgpt.fields import Texts
from jaxgpt.files import read_whole, reason
from jaxgpt.files import shown as shown_path

if TYPE_CHECKING:
    from jaxgpt.runs.completion import Completion

ABOUT = """usage: {program} [--run PATH] [--prompt TEXT] [--tokens N ...]

Write text with a trained GPT. Defaults are in brackets."""

RUN_FLAGS = [
    Flag(
        "run",
        Path,
        None,
        "Folder of the run; by default the one below runs/ that was trained last. Or a folder with a GPT-2 in Hugging "
        "Face's format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl, or the name of another one on its hub.",
    ),
    Flag("checkpoint", ("newest", "best"), "newest", "The newest one, or the best by its validation loss."),
    Flag("prompt", str, None, "Text to continue, or - for what comes through standard input; by default a line break."),
    Flag(
        "prompt_file",
        Texts,
        None,
        "File with the text to continue, as it is: the line break at its end, too. Several files are several prompts.",
    ),
    Flag("weights", WEIGHTS, "float32", "Type of the model's matrices: the two shorter ones are faster on a GPU."),
    flags.HELP,
]
SAMPLING_FLAGS = [
    Flag("tokens", int, 500, "Length of the new text, in tokens; longer than the model's block_size is fine."),
    Flag("temperature", float, 0.8, "Divides the logits: below 1 is bolder, above 1 wilder, 0 takes the likeliest."),
    Flag("top_k", int, 0, "Draw from the k likeliest tokens only; 0 for all."),
    Flag("top_p", float, 1.0, "Draw from the likeliest tokens that together have this probability; 1 for all."),
    Flag("min_p", float, 0.0, "Draw only tokens with this share of the likeliest one's probability; 0 for all."),
    Flag("stop", Texts, None, "Stop before this text; more than one may follow."),
    Flag("samples", int, 1, "How many texts to write."),
    Flag("seed", int, 0, "The same seed gives the same text."),
    Flag("json", bool, None, "Write a JSON object a line: prompt, text, tokens, logprobs, finish_reason."),
]
GROUPS = {"run": RUN_FLAGS, "sampling": SAMPLING_FLAGS}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code."""
    return run_command(_sample, GROUPS, arguments)


def _sample(given: dict[str, Any]) -> None:
    if given.pop("help", False):
        print(flags.page(ABOUT.format(program=program("sample")), GROUPS))
        return
    prompts = _prompts(given.pop("prompt", None), given.pop("prompt_file", ()))
    path, which = given.pop("run", None), given.pop("checkpoint", "newest")
    weights = given.pop("weights", "float32")
    as_json = given.pop("json", False)
    how = {flag.name: flag.default for flag in SAMPLING_FLAGS if flag.default is not None} | given
    with process.uninterrupted():
        process.setup()
        from jaxgpt.runs import pretrained  # not before it is needed: what is wrong so far is told without JAX
        from jaxgpt.runs.report import visible

    trained = pretrained.load_pretrained(path, which).cast(weights)
    shown = visible if sys.stdout.isatty() else str
    if as_json:
        for completion in trained.completions(prompts, **how):
            print(_line(completion))
    elif len(prompts) == how["samples"] == 1:
        pieces = trained.stream(prompts[0], **how)
        print(shown(prompts[0] or ""), end="")
        for (text,) in pieces:
            print(shown(text), end="", flush=True)
        print()
    else:
        for i, one in enumerate(trained.completions(prompts, **how)):
            prompt = prompts[i // how["samples"]] or ""
            print(f"{'─' * 24} {i + 1}\n{shown(prompt + one.text)}")


def _line(completion: "Completion") -> str:
    """The completion as JSON, in ASCII, which every terminal takes."""
    numbers = {
        "tokens": completion.tokens.tolist(),
        "logprobs": [round(logprob, 6) for logprob in completion.logprobs.tolist()],
    }
    return json.dumps(completion._asdict() | numbers)


def _prompts(text: str | None, files: str | tuple[str, ...]) -> list[str | None]:
    """The texts to continue, from wherever they come; one that is None stands for none.

    Raises:
        UserError: for prompts of two kinds, a file that cannot be read, and what is not UTF-8.
    """
    files = (files,) if isinstance(files, str) else files
    if text is not None and files:
        raise UserError("`prompt` and `prompt_file` are two prompts: leave out one")
    if files:
        return [_decoded(_content(Path(file))) for file in files]
    if text == "-":
        return [_decoded(sys.stdin.buffer.read())]
    return [None if text is None else _decoded(_bytes(text))]


def _content(file: Path) -> bytes:
    try:
        return read_whole(file.expanduser(), pipe=True)
    except (OSError, RuntimeError, ValueError) as problem:  # RuntimeError: of a home that nobody has
        raise UserError(
            f"{shown_path(file)} cannot be read ({reason(problem)}): choose another `prompt_file`"
        ) from problem


def _bytes(text: str) -> bytes:
    """Of a prompt as it was typed. A surrogate stands for a byte that Python could not read, in a terminal of another
    encoding; on Windows it may be one."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as problem:
        raise UserError("the prompt has half a character, which no text has: leave it out") from problem


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")  # as texts are read to train on
    except UnicodeDecodeError as problem:
        raise UserError(f"the prompt is not UTF-8 text at byte {problem.start}: convert it to UTF-8") from problem
