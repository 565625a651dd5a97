"""How well a model predicts a text, without dropout: the mean loss over windows of it, or the loss of every token.

Windows lie end to end, so a token is predicted from those before it in its window: from one to `block_size` of them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxgpt.config import ModelConfig, TrainConfig
from jaxgpt.data import batches
from jaxgpt.data.token_files import Tokens
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.device import collectives, precision, sharding
from jaxgpt.device.sharding import ROWS, Placement
from jaxgpt.model import build

TOKENS_AT_ONCE = 8192  # that `token_losses` reads
Evaluate = Callable[[Any, Tokens, np.ndarray, np.ndarray], float]


def make_evaluate(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Evaluate:
    """`evaluate(params, tokens, starts, skips) -> mean loss` in nats a token.

    `tokens` (N,) is a text on the host, possibly mapped from a file; `starts` and `skips` (W,) are as those of
    `batches.fixed_windows`. One program, of `eval_windows` windows, serves for any number of them.
    """
    B, T = config.batch_size // placement.micro_batches, config.model.block_size
    rows = -(-config.eval_windows // B)
    total_loss = make_total_loss(config, dtype, placement)

    def evaluate(params: Any, tokens: Tokens, starts: np.ndarray, skips: np.ndarray) -> float:
        loss = count = 0
        for first in range(0, len(starts), rows * B):
            part = slice(first, first + rows * B)
            missing = rows * B - len(starts[part])
            windows = batches.windows(tokens, np.pad(starts[part], (0, missing)), T).reshape(rows, B, T + 1)
            skipped = np.pad(skips[part], (0, missing), constant_values=T).reshape(rows, B)
            windows, skipped = (sharding.put(x, placement.rows_of_batches) for x in (windows, skipped))
            loss += total_loss(params, windows, skipped).item()
            count += (T - skips[part]).sum()
        return float(loss / count)

    return evaluate


def make_total_loss(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Callable:
    """The jitted `total_loss(params, windows, skips)`: the sum of the losses of windows (N, B, T + 1), without the
    first `skips` (N, B) of each; batch by batch."""
    graphdef = build.graph(config.model)
    T = config.model.block_size
    param_specs = placement.specs(build.abstract_params(config.model))

    def total_loss(params, windows, skips):
        params = precision.cast(collectives.gather(params, param_specs, dtype), dtype)

        def add(total, batch):
            windows, skips = batch
            inputs, targets = batches.inputs_and_targets(windows)
            losses = nnx.merge(graphdef, params).losses(inputs, targets)
            return total + jnp.where(jnp.arange(T) >= skips[:, None], losses, 0).sum(), None

        total, _ = jax.lax.scan(add, jnp.float32(0), (windows, skips))
        return jax.lax.psum(total, ROWS)

    rows = P(None, ROWS)
    return jax.jit(collectives.share_rows(total_loss, placement, (param_specs, rows, rows), P()))


class Score(NamedTuple):
    """How well a model predicts a text."""

    loss: float
    """Mean over all tokens but the first, in nats a token."""
    tokens: int
    """How many that are."""
    bytes: int
    """How many bytes of UTF-8 they stand for; the ends of documents stand for none."""

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model is as uncertain."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits for each byte of the text: comparable across tokenizers."""
        return self.loss * self.tokens / self.bytes / math.log(2)


def score(
    config: ModelConfig,
    params: Any,
    tokens: Any,
    tokenizer: Tokenizer,
    dtype: jnp.dtype,
    each: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Score:
    """The score of a tokenized text (N,), in memory or in a file; N at least 2.

    Args:
        each: is given the tokens (n,) that were predicted and their losses (n,), piece by piece.
    """
    total, done, size, decoder = 0.0, 0, 0, tokenizer.decoder()
    for losses in token_losses(config, params, tokens, dtype):
        targets = np.asarray(tokens[done + 1 : done + 1 + len(losses)])
        text = decoder.decode(targets[targets != (-1 if tokenizer.end_of_text is None else tokenizer.end_of_text)])
        size += len(text.encode("utf-8", "surrogatepass"))
        total += losses.sum(dtype=np.float64)
        done += len(losses)
        if each is not None:
            each(targets, losses)
    size += len(decoder.flush().encode())
    return Score(float(total / done), done, size)


def token_losses(config: ModelConfig, params: Any, tokens: Any, dtype: jnp.dtype) -> Iterator[np.ndarray]:
    """The losses of all tokens but the first of a text (N,), N at least 2, piece by piece: (n,) float32, in nats."""
    T = config.block_size
    if len(tokens) <= T:  # one window; what is added stands after all that counts
        padded = np.concatenate([tokens, np.zeros(T + 1 - len(tokens), np.asarray(tokens).dtype)])
        yield next(token_losses(config, params, padded, dtype))[: len(tokens) - 1]
        return
    starts, skips = batches.fixed_windows(len(tokens), T)
    B = min(len(starts), max(1, TOKENS_AT_ONCE // T))
    placement = sharding.for_training(B, T, build.n_params(config), micro_batches=1)
    losses = _make_losses(build.graph(config), dtype, placement)
    params = jax.device_put(params, placement.replicated)
    for first in range(0, len(starts), B):
        part = slice(first, first + B)
        missing = B - len(starts[part])
        windows = batches.windows(tokens, np.pad(starts[part], (0, missing)), T)
        found = np.asarray(losses(params, jax.device_put(windows, placement.batch)))  # (B, T)
        yield np.concatenate([row[skip:] for row, skip in zip(found, skips[part], strict=False)])


def _make_losses(graphdef: nnx.GraphDef, dtype: jnp.dtype, placement: Placement) -> Callable:
    """The jitted `losses(params, windows)`: (B, T + 1) tokens to the losses of the last T, (B, T)."""

    def losses(params, windows):
        return nnx.merge(graphdef, precision.cast(params, dtype)).losses(*batches.inputs_and_targets(windows))

    return jax.jit(collectives.share_rows(losses, placement, (P(), P(ROWS)), P(ROWS)))
