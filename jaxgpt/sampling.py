"""Text out of a model: one token after another, each drawn from the model's next-token probabilities.

`_prefill` reads text into a cache, `_decode` draws a few tokens, and `_extend` enlarges a cache that has no
room for more: every token drawn reads the whole cache, so it is no larger than the text needs.
When `block_size` is reached, the second half of what the cache holds is read afresh and decoding goes
on: a text can be of any length, and the model sees between `block_size / 2` and `block_size` tokens of it.
"""

import numbers
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt.device import sharding
from jaxgpt.device.sharding import Placement
from jaxgpt.errors import UserError
from jaxgpt.fields import shown

CHUNK = 8  # tokens drawn by one call from Python: few enough to stream, enough to hide the call
MIN_CAPACITY = 64  # tokens, of a cache: a smaller one is not worth a program


class Sampler(NamedTuple):
    """How a token is drawn from the logits. Hashable, so that a compiled program belongs to it."""

    temperature: float = 1.0
    """Divides the logits: below 1 bolder, above 1 wilder; 0 always takes the likeliest."""
    top_k: int = 0
    """Only the k likeliest tokens may be drawn; 0 for all. https://arxiv.org/abs/1805.04833."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability; 1 for all. https://arxiv.org/abs/1904.09751."""
    min_p: float = 0.0
    """Only tokens with at least this share of the likeliest one's probability. https://arxiv.org/abs/2407.01082."""

    def check(self) -> "Sampler":
        """Returns itself, or raises `UserError` with every value that makes no sense."""
        wrong = [
            f"`{name}` is a {'whole ' if name == 'top_k' else ''}number, not {value!r}"
            for name, value in self._asdict().items()
            if not _is_number(value, whole=name == "top_k")
        ]
        if wrong:
            raise UserError("; ".join(wrong))
        temperature = self.temperature if isinstance(self.temperature, int) else float(self.temperature)
        if not 0 <= temperature <= 1e308:
            wrong.append(f"`temperature` must be a finite number, 0 or more, not {shown(self.temperature)}")
        if self.top_k < 0:
            wrong.append(f"`top_k` must be 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            wrong.append(f"`top_p` must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            wrong.append(f"`min_p` must be from 0 to 1, not {self.min_p}")
        if wrong:
            raise UserError("; ".join(wrong))
        return self

    def draw(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """One token from the logits (V,) of one sequence."""
        if self.temperature == 0:
            return jnp.argmax(logits).astype(jnp.int32)
        return jax.random.categorical(key, self.filter(logits / self.temperature)).astype(jnp.int32)

    def filter(self, logits: jax.Array) -> jax.Array:
        """The logits (V,) with those of tokens that may not be drawn at minus infinity."""
        if 0 < self.top_k < logits.shape[-1]:
            logits = jnp.where(logits >= jax.lax.top_k(logits, self.top_k)[0][-1], logits, -jnp.inf)
        if self.top_p < 1:
            order = jnp.argsort(-logits)
            probs = jax.nn.softmax(logits[order])
            keep = jnp.cumsum(probs) - probs < self.top_p  # the one that crosses top_p is still in
            logits = jnp.where(jnp.zeros_like(keep).at[order].set(keep), logits, -jnp.inf)
        if self.min_p > 0:
            probs = jax.nn.softmax(logits)
            logits = jnp.where(probs >= self.min_p * probs.max(), logits, -jnp.inf)
        return logits


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


class DecodeState(NamedTuple):
    """What decoding goes on from."""

    cache: Any  # the model's `DecodeCache`
    logits: jax.Array  # (B, V), of the next token


class _Graph:
    """A model without its weights, as a static argument of compiled programs. JAX hashes and compares it at every call,
    which for an `nnx.GraphDef` takes longer than a small model does for a token: `_graph` makes one of each."""

    def __init__(self, graphdef: nnx.GraphDef):
        self.graphdef = graphdef

    def merge(self, params) -> Any:
        return nnx.merge(self.graphdef, params)


_graph = cache(_Graph)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(graph: _Graph, placement: Placement, copies: int, params, window: jax.Array, length: jax.Array):
    """Reads the first `length` tokens of `window` (R, S) into a fresh cache, and makes `copies` of it, to be shared
    among the devices of `placement`."""
    model = graph.merge(params)
    logits, cache = model.decode(window, model.empty_cache(*window.shape), length - 1)
    # What was read beyond `length` is padding: it is masked until real tokens overwrite it.
    state = DecodeState(cache._replace(length=length).repeated(copies), jnp.tile(logits[:, 0], (copies, 1)))
    shardings = jax.tree.map(lambda x: placement.batch if x.ndim else placement.state, state)
    return jax.lax.with_sharding_constraint(state, shardings)


@partial(jax.jit, static_argnums=0)
def _extend(capacity: int, state: DecodeState) -> DecodeState:
    """The same with room for `capacity` tokens."""
    return state._replace(cache=state.cache.with_capacity(capacity))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(graph: _Graph, sampler: Sampler, n: int, params, state: DecodeState, keys, first: jax.Array):
    """Draws `n` tokens, the `first`-th and on: the new state and (B, n) tokens."""
    model = graph.merge(params)

    def one(state: DecodeState, i: jax.Array):
        tokens = jax.vmap(sampler.draw)(state.logits, jax.vmap(jax.random.fold_in, (0, None))(keys, i))  # (B,)
        logits, cache = model.decode(tokens[:, None], state.cache)
        return DecodeState(cache, logits[:, 0]), tokens

    state, tokens = jax.lax.scan(one, state, first + jnp.arange(n, dtype=jnp.int32))
    return state, tokens.T


def stream(
    model: Any, prompt: np.ndarray, tokens: int, seed: int = 0, sampler: Sampler | None = None, samples: int = 1
) -> Iterator[np.ndarray]:
    """Continues `prompt` and yields the new tokens as they come.

    Args:
        model: a `LanguageModel`.
        prompt: (P,) token ids, at least one; of a long prompt the last `block_size - CHUNK` are read.
        tokens: how many to draw.
        seed: decides the draws. Sample i is the same however many are drawn beside it.
        sampler: how each is drawn; None is `Sampler()`.
        samples: continuations to draw side by side (B).

    Yields:
        (B, n) token ids, `tokens` of them in all.
    """
    S = model.config.block_size
    placement = sharding.for_sampling(samples)
    graphdef, state = nnx.split(model)
    graph = _graph(graphdef)
    params = jax.device_put(nnx.to_pure_dict(state), placement.state)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(samples))
    keys = jax.device_put(keys, placement.batch)
    text = np.asarray(prompt, np.int32)[None]  # (1, P), and with the first new tokens (B, P)
    chunk = max(1, min(CHUNK, S // 2))
    keep = max(1, S - chunk)  # of the prompt; later, when the cache is full, half of it
    decoding: Any = None
    filled = capacity = S
    pending = None  # drawn and not fetched yet: the device works on while Python hands out the piece before
    for first in range(0, tokens, chunk):
        if filled + chunk > S:
            if pending is not None:
                text, piece, pending = *_fetch(text, pending, S), None
                yield piece
            kept = text[:, -keep:]
            filled, keep = kept.shape[1], max(1, S // 2)
            capacity = _capacity(filled + chunk, S)
            window = np.zeros((len(kept), capacity), np.int32)
            window[:, :filled] = kept
            window = jax.device_put(window, placement.batch if len(kept) == samples else placement.state)
            decoding = _prefill(graph, placement, samples // len(kept), params, window, jnp.int32(filled))
        elif filled + chunk > capacity:
            capacity = _capacity(filled + chunk, S)
            decoding = _extend(capacity, decoding)
        decoding, new = _decode(graph, sampler or Sampler(), chunk, params, decoding, keys, jnp.int32(first))
        filled += chunk
        if pending is not None:
            text, piece = _fetch(text, pending, S)
            yield piece
        pending = new
    yield np.asarray(pending)[:, : tokens - first]


def _fetch(text: np.ndarray, new: jax.Array, S: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `S` tokens of `text` and `new` (B, n) together, and `new` on the host."""
    piece = np.asarray(new)
    text = np.broadcast_to(text, (len(piece), text.shape[1]))
    return np.concatenate([text, piece], axis=1)[:, -S:], piece


def _capacity(tokens: int, block_size: int) -> int:
    """Of a cache for this many tokens: a power of two, so that few programs serve for all lengths, and no token is
    drawn by reading more than twice what there is."""
    return min(block_size, max(MIN_CAPACITY, 1 << (tokens - 1).bit_length()))


def generate(model: Any, prompt: np.ndarray, tokens: int, **how) -> np.ndarray:
    """`stream`, waited for: (B, tokens)."""
    return np.concatenate(list(stream(model, prompt, tokens, **how)), axis=1)
