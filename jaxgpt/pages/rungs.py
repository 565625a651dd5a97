"""What the page of the ladder shows: every rung's model, with its loss and its idea, as values that JSON has."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jaxgpt
from jaxgpt.model import build
from jaxgpt.pages import record
from jaxgpt.runs.run import Run

PROMPT = 24  # characters of the text that all of them read at first


class Card(NamedTuple):
    """A model of the ladder, as it is shown."""

    run: Run
    name: str
    idea: str
    """What it adds to the model before, in a sentence or two."""
    loss: dict[str, float]
    """Of the splits `train` and `val`, in nats a token."""
    sample: str
    """What it wrote."""


def record_rungs(cards: Sequence[Card], caption: str) -> dict[str, Any]:
    """What the page shows of models that were trained on one text.

    Args:
        caption: what the losses are.

    Returns:
        values of JSON's, by the names that static/ladder.js reads.
    """
    run = cards[0].run
    passage = record.passage(run, record.validation(run)[0])
    return {
        "version": jaxgpt.__version__,
        "caption": caption,
        "tokenizer": record.tokenizer(run.tokenizer),
        "vocabulary": record.vocabulary(run.tokenizer),
        "prompt": next((line[:PROMPT] for line in passage.splitlines() if len(line) >= PROMPT), passage[:PROMPT]),
        "passage": passage,
        "rungs": [_rung(card) for card in cards],
    }


def _rung(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "idea": card.idea,
        "loss": card.loss,
        "sample": card.sample,
        "parameters": build.n_params(card.run.config.model),
        "config": vars(card.run.config.model),
        "weights": record.weights(card.run.model),
    }
