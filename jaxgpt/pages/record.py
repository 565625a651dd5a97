"""What the page of a trained model shows: its weights, and what is computed beforehand, as values that JSON has.

Shapes: L blocks, H heads, T tokens of a text, A tokens of a window, V the vocabulary.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxgpt
from jaxgpt.config import ModelConfig
from jaxgpt.data import batches, corpus
from jaxgpt.data.token_files import Tokens
from jaxgpt.errors import UserError
from jaxgpt.fields import shown
from jaxgpt.files import shown as shown_path
from jaxgpt.model import build, views
from jaxgpt.pages.recorded import LENS_LIKELIEST, LIKELIEST, recorded, tokens_in
from jaxgpt.pages.texts import PROMPT, beginning, data_of, passage, validation
from jaxgpt.pages.values import array, tokenizer, vocabulary, weights
from jaxgpt.runs.folder import SAMPLE
from jaxgpt.runs.run import Run

MOST_LIVE = 1_000_000  # parameters of a model that runs in the page itself
MOST_BYTES = 2**20  # of an array of attention in the page
MOST_AT_ONCE = 2**25  # attention weights that are computed together
WINDOWS, WINDOW = 64, 64  # of the validation text, over which heads are averaged: how many, and of how many tokens
REFERENCE, GREEDY = 2**14, 50  # by which the page checks itself: logits, and tokens of a text
FEWEST_LETTERS, MOST_LETTERS = 8, 400  # that make a picture
MOST_ROWS, MOST_SAMPLES = 1000, 100  # of a run's history
SAMPLE_TOKENS = 200  # of a sample that it does not have


def record(run: Run, prompt: str | None = None) -> dict[str, Any]:
    """What a page shows of a run.

    A model of up to `MOST_LIVE` parameters is in the page, and runs there; of a larger one, what it does with `prompt`
    and with a passage of its validation text is recorded.

    Args:
        run: of any architecture.
        prompt: the text that is looked at first, of which the last tokens are shown (`shown_tokens`). None takes
            the beginning of the passage.

    Returns:
        values of JSON's, by the names that static/inside.js reads.

    Raises:
        UserError: for a prompt that is empty or that the tokenizer cannot encode, and weights that are not finite.
    """
    _check_finite(run)
    given = None if prompt is None else shown_tokens(run, prompt)
    val, note = validation(run)
    text, rows = passage(run, val), run.metrics
    tokens = run.tokenizer.encode(beginning(run, text))[: _most_shown(run)] if given is None else given
    every = vocabulary(run.tokenizer)
    letters = _letters(run, every)
    return {
        "title": title(run),
        "version": jaxgpt.__version__,
        "note": note,
        "facts": _facts(run, rows),
        "config": vars(run.config.model),
        "prompt": run.tokenizer.decode(tokens),
        "passage": text,
        "heads": {"attention": array(_mean_attention(run, val), "float16")},
        "letters": letters,
        "learning": {"losses": _losses(rows), "samples": _samples(run, rows)},
        **(_live(run, every, val) if is_live(run) else _not_live(run, every, letters, tokens, text)),
    }


def _live(run: Run, every: list[str], val: Tokens) -> dict[str, Any]:
    """Of a model that runs in the page."""
    return {
        "tokenizer": tokenizer(run.tokenizer),
        "vocabulary": every,
        "weights": weights(run.model),
        "reference": _reference(run, val),
        "recorded": None,
    }


def _not_live(
    run: Run, every: list[str], letters: dict[str, Any] | None, tokens: np.ndarray, text: str
) -> dict[str, Any]:
    """Of a larger one: the tokens that occur have a text, and no others."""
    found = recorded(run, tokens, run.tokenizer.encode(text))
    occurring = tokens_in(found).union(letters["tokens"] if letters else ())
    return {
        "tokenizer": {"kind": "recorded"},
        "vocabulary": {token: every[token] for token in sorted(occurring)},
        "weights": None,
        "reference": None,
        "recorded": found,
    }


def is_live(run: Run) -> bool:
    """Whether the page has the model itself, and not only what was recorded of it."""
    return build.n_params(run.config.model) <= MOST_LIVE and tokenizer(run.tokenizer)["kind"] != "recorded"


def shown_tokens(run: Run, prompt: str) -> np.ndarray:
    """The tokens of `prompt` (T,) that a page shows: the last `block_size`, or fewer of a model that is not in it.

    Raises:
        UserError: for a prompt that is empty or that the tokenizer cannot encode.
    """
    if not isinstance(prompt, str) or not prompt:
        raise UserError(f"the `prompt` is a text of a character at least, not {shown(prompt)}")
    return run.tokenizer.encode(prompt)[-_most_shown(run) :]


def expected_bytes(run: Run) -> int:
    """About how large `record` is as JSON, without computing it."""
    model = run.config.model
    (L, H), A = _heads(model), _longest(model, min(WINDOW, model.block_size), 2)
    size = 2 * L * H * A * A
    if is_live(run):
        size += 2 * build.n_params(model) + 4 * min(REFERENCE, model.block_size * model.vocab_size)
        size += 50 * model.vocab_size  # the tokenizer
    else:
        T = min(PROMPT, _most_shown(run))
        size += L * H * T * T + T * (10 * LIKELIEST + 10 * (L + 1) * LENS_LIKELIEST)
    return size * 4 // 3 + 10_000


# The run


def _check_finite(run: Run) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(build.params_of(run.model))):
        raise UserError(f"{shown_path(run.path)} has weights that are no finite numbers: there is nothing to see in it")


def _number(value: Any) -> float | None:
    """JSON has none for infinity and NaN."""
    return value if value is not None and math.isfinite(value) else None


def title(run: Run) -> str:
    """What a page calls a run: without the folders above, which are nobody's business where a page is sent around."""
    if run.step == 0 and run.config.init_from:  # from others: the folder may be a cache's, with a hash for its name
        return Path(run.config.init_from).name
    parent, name = run.path.parts[-2:]
    return f"{parent}/{name}" if parent == "runs" else name


def _facts(run: Run, rows: list[dict[str, Any]]) -> dict[str, Any]:
    row = next((row for row in rows if row["step"] == run.step and "val_loss" in row), {})
    items = tuple(Path(item).name or item for item in data_of(run))
    return {
        "parameters": build.n_params(run.config.model),
        "step": run.step,
        "val_loss": _number(row.get("final_val_loss", row.get("val_loss"))),
        "unit": run.tokenizer.unit,
        "data": corpus.describe(items),
    }


def _losses(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """[step, train_loss, val_loss] of every row that has one; of a long run, of every n-th and those evaluated."""
    found = [[row["step"], _number(row.get("train_loss")), _number(row.get("val_loss"))] for row in rows]
    found = [row for row in found if row[1:] != [None, None]]
    apart = -(-len(found) // MOST_ROWS)
    return [row for i, row in enumerate(found) if i % apart == 0 or row[2] is not None]


def _samples(run: Run, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model wrote, from noise to now."""
    found = [_sample(row["step"], row.get("val_loss"), row[SAMPLE]) for row in rows if row.get(SAMPLE)]
    if not run.config.init_from:
        at_first = build.merge(run.config.model, build.init_params(run.config.model, run.config.seed))
        untrained = Run(run.path, run.config, run.tokenizer, at_first, 0)
        val_loss = next((row.get("val_loss") for row in rows if row["step"] == 0), None)
        found.insert(0, _sample(0, val_loss, untrained.generate(tokens=SAMPLE_TOKENS)))
    if all(sample["step"] != run.step for sample in found):  # of an older run, or one that draws none
        found.append(_sample(run.step, _facts(run, rows)["val_loss"], run.generate(tokens=SAMPLE_TOKENS)))
    some = np.linspace(0, len(found) - 1, min(len(found), MOST_SAMPLES)).round().astype(int)
    return [found[i] for i in some]


def _sample(step: int, val_loss: float | None, text: str) -> dict[str, Any]:
    return {"step": step, "val_loss": _number(val_loss), "text": text}


# The model


def _reference(run: Run, val: Tokens) -> dict[str, Any]:
    """What the arithmetic in the page is measured by: the model's own logits (T, V), and its likeliest text."""
    model = run.config.model
    T = max(1, min(model.block_size, len(val), REFERENCE // model.vocab_size))
    (tokens,) = _windows(val, 1, T)
    (likeliest,) = run.completions(tokens=GREEDY, temperature=0)
    logits = views.look(run.model, tokens[None]).logits[0]
    return {
        "tokens": tokens.tolist(),
        "logits": array(logits, "float32"),
        "prompt": likeliest.prompt,
        "greedy": likeliest.text,
    }


def _mean_attention(run: Run, val: Tokens) -> np.ndarray:
    """Where each head looks by habit: the mean over windows that begin all over the text, (L, H, A, A)."""
    model = run.config.model
    A = _longest(model, min(WINDOW, model.block_size, len(val)), 2)
    (L, H), windows = _heads(model), _windows(val, WINDOWS, A)
    B = max(1, min(len(windows), MOST_AT_ONCE // max(1, L * H * A * A)))
    parts = [windows[first : first + B] for first in range(0, len(windows) - len(windows) % B, B)]
    return np.mean([np.asarray(views.look(run.model, part).attention).mean(1) for part in parts], axis=0)


def _windows(tokens: Tokens, most: int, T: int) -> np.ndarray:
    """Up to `most` windows of T tokens, evenly spread over a text (N,): (B, T) int32. N is T at least."""
    starts = np.linspace(0, len(tokens) - T, min(most, len(tokens) // T)).round().astype(int)
    return batches.windows(tokens, starts, T - 1).astype(np.int32)


@cache
def _heads(config: ModelConfig) -> tuple[int, int]:
    """L and H."""
    tokens = np.zeros((1, 1), np.int32)
    weights = jax.eval_shape(
        lambda params: build.merge(config, params).layers(tokens)[1], build.abstract_params(config)
    )
    return len(weights), weights[0].shape[1] if weights else 0


def _most_shown(run: Run) -> int:
    """Tokens of a prompt."""
    model = run.config.model
    return model.block_size if is_live(run) else _longest(model, model.block_size, 1)


def _longest(config: ModelConfig, most: int, n_bytes: int) -> int:
    """Up to `most` tokens, so few that an array of their attention, `n_bytes` each, stays small."""
    L, H = _heads(config)
    return max(1, min(most, int((MOST_BYTES / (L * H * n_bytes)) ** 0.5) if L else most))


def _letters(run: Run, every: list[str]) -> dict[str, Any] | None:
    """The characters of the vocabulary in the plane on which their embeddings differ most."""
    letters = [i for i, text in enumerate(every) if len(text) == 1 and (text.isprintable() or text == "\n")]
    tokens, params = letters[:MOST_LETTERS], build.params_of(run.model)
    table = params.get("wte", params.get("table"))  # of a bigram, what follows each
    if len(tokens) < FEWEST_LETTERS or table is None:
        return None
    rows = np.asarray(table["embedding"], np.float32)[tokens]
    left, scale, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    share = scale**2 / max((scale**2).sum(), 1e-30)
    return {"tokens": tokens, "xy": array(left[:, :2] * scale[:2], "float32"), "share": share[:2].tolist()}
