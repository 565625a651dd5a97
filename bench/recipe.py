"""A preset with fields changed, as the command line of a contestant has it: `t4 batch_size=8 dropout=0.0`."""

import contextlib
import json

from jaxgpt import presets
from jaxgpt.config import TrainConfig

VOCABULARY = 65  # of tiny Shakespeare


def recipe(preset: str, *changes: str) -> TrainConfig:
    """The preset, with each of `changes` (NAME=VALUE) made."""
    values = {"vocab_size": VOCABULARY}
    for name, value in (change.split("=", 1) for change in changes):
        values[name] = value
        with contextlib.suppress(ValueError):  # a word
            values[name] = json.loads(value)
    return presets.preset(preset, **values)
