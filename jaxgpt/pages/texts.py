"""The texts that a page shows: of what the run was validated on, as far as that can be read."""

from pathlib import Path

import numpy as np

from jaxgpt.data import batches, corpus, dataset
from jaxgpt.data.token_files import Tokens
from jaxgpt.errors import UserError
from jaxgpt.files import reason
from jaxgpt.runs.run import Run

PROMPT, PASSAGE = 40, 300  # tokens, and characters
OWN = 600  # tokens of the model's own text where there is no other


def data_of(run: Run) -> tuple[str, ...]:
    """What the run's `data` names, one or several."""
    data = run.config.data
    return (data,) if isinstance(data, str) else tuple(data)


def validation(run: Run) -> tuple[Tokens, str | None]:
    """The validation split of the run's own data, (N,), in memory or in a file. Where that cannot be read any more,
    a text that the model writes, and a note that says so."""
    try:
        if any(map(_is_pipe, data_of(run))):
            raise UserError("it came through a pipe")
        return dataset.load(run.config, run.tokenizer).val, None
    except (UserError, OSError) as problem:
        own = run.tokenizer.encode(run.tokenizer.start + run.generate(tokens=OWN))
        note = f"The text that it was trained on cannot be read any more ({reason(problem)}): this is what it writes."
        return own, note


def passage(run: Run, val: Tokens) -> str:
    """Some 300 characters of a text (N,), from the beginning of a paragraph, or of a line, to the end of a word."""
    n = min(len(val), 4 * PASSAGE)
    (tokens,) = batches.windows(val, np.zeros(1, int), n - 1)
    text = run.tokenizer.decode(tokens[tokens != run.tokenizer.end_of_text])
    for gap in ("\n\n", "\n"):
        before, found, _ = text[:-PASSAGE].partition(gap)
        if found:
            text = text[len(before + gap) :]
            break
    whole_words = text[: PASSAGE + 1].rpartition(" ")[0]
    return whole_words if PASSAGE // 2 < len(whole_words) < len(text) else text[:PASSAGE]


def beginning(run: Run, passage: str) -> str:
    """A prompt: up to 40 tokens of a passage, to the end of a line, or of a word where no line ends in their second
    half."""
    text = run.tokenizer.decode(run.tokenizer.encode(passage)[:PROMPT])
    for gap in ("\n", " "):
        whole = text.rpartition(gap)[0].rstrip()
        if len(whole) > len(text) // 2:
            return whole
    return text


def _is_pipe(item: str) -> bool:
    return item in corpus.STDIN or Path(item).is_fifo()
