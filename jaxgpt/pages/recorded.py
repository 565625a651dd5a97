"""What is recorded of a model that is too large for a page: what it does with a prompt, and with a passage.

Shapes: L blocks, T tokens, V the vocabulary.
"""

from typing import Any

import numpy as np

from jaxgpt.data import batches
from jaxgpt.model import views
from jaxgpt.pages.values import array
from jaxgpt.runs.run import Run

LIKELIEST, LENS_LIKELIEST = 50, 5  # tokens of a prediction, and of one in between


def recorded(run: Run, tokens: np.ndarray, passage: np.ndarray) -> dict[str, Any]:
    """What the model makes of the tokens (T,) of a prompt, and what surprises it in a passage (N,), as values that JSON
    has."""
    tokens = np.asarray(tokens, np.int32)
    lens = np.asarray(views.logit_lens(run.model, tokens[None])[:, 0])  # (L + 1, T, V)
    lens = lens - lens.max(-1, keepdims=True)  # near 0, float16 is most precise
    lse, logits = np.log(np.exp(lens).sum(-1)), lens[-1]
    ids, lens_ids = _likeliest(logits, LIKELIEST), _likeliest(lens, LENS_LIKELIEST)
    probs = np.exp(np.take_along_axis(lens, lens_ids, -1) - lse[..., None])
    weights = views.look(run.model, tokens[None]).attention[:, 0]
    return {
        "tokens": tokens.tolist(),
        "attention": array(np.round(255 * weights), "uint8"),
        "top": {
            "ids": ids.tolist(),
            "logits": array(np.take_along_axis(logits, ids, -1), "float16"),
            "lse": lse[-1].tolist(),
        },
        "lens": {"ids": lens_ids.tolist(), "probs": array(probs, "float16")},
        "losses": _losses(logits[:-1], tokens[1:]).tolist(),
        "passage": _judged(run, passage),
    }


def tokens_in(recorded: dict[str, Any]) -> set[int]:
    """The tokens that a page may show of it."""
    passage = recorded["passage"]
    shown = (recorded["tokens"], recorded["top"]["ids"], recorded["lens"]["ids"], passage["tokens"], passage["top"])
    return {int(token) for tokens in shown for token in np.ravel(tokens)}


def _judged(run: Run, tokens: np.ndarray) -> dict[str, Any]:
    """The losses of all tokens (N,) but the first, in the windows of `Run.losses`, and what was likeliest instead."""
    T = min(run.config.model.block_size, len(tokens) - 1)
    starts, skips = batches.fixed_windows(len(tokens), T)
    windows = batches.windows(tokens.astype(np.int32), starts, T)
    found = np.asarray(views.look(run.model, windows[:, :-1]).logits)
    logits = np.concatenate([window[skip:] for window, skip in zip(found, skips, strict=True)])  # (N - 1, V)
    losses = _losses(logits, tokens[1:])
    return {"tokens": tokens.tolist(), "losses": losses.tolist(), "top": logits.argmax(-1).tolist()}


def _likeliest(logits: np.ndarray, most: int) -> np.ndarray:
    """The tokens of the largest logits (..., V), the likeliest first: (..., up to `most`)."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :most]


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n, V) and (n,) to (n,), in nats."""
    return np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(targets)), targets]
