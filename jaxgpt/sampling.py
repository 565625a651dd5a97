"""Text out of a model: one token after another, each drawn from the model's next-token probabilities.

`_prefill` reads text into a cache, `_decode` draws a few tokens, and `_extend` enlarges a cache that has no
room for more: every token drawn reads the whole cache, so it is no larger than the text needs.
When `block_size` is reached, the second half of what the cache holds is read afresh and decoding goes
on: a text can be of any length, and the model sees between `block_size / 2` and `block_size` tokens of it.

Many texts are written side by side. Those of equal length are a batch with one cache (`_Together`). Texts of different
lengths reach `block_size` at different moments: each has a cache of its own, and `jax.vmap` makes a batch of what is
done for one (`_Apart`). Either way each text is what it would be alone.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt.device import sharding
from jaxgpt.device.sharding import Placement
from jaxgpt.model.ops import hashed
from jaxgpt.sampler import Sampler

CHUNK = 8  # tokens drawn by one call from Python: few enough to stream, enough to hide the call
MIN_CAPACITY = 64  # tokens, of a cache: a smaller one is not worth a program


class DecodeState(NamedTuple):
    """What decoding goes on from."""

    cache: Any  # the model's `DecodeCache`
    logits: jax.Array  # (B, V), of the next token


class Drawn(NamedTuple):
    """A few new tokens of every text."""

    tokens: Any
    """(B, n) token ids."""
    logprobs: Any = None
    """(B, n) float32: the logarithm of the probability that the model itself gave each of them, before temperature and
    filters; None if nobody asked for it."""


class How(NamedTuple):
    """What a program that draws is compiled for, beside the model."""

    sampler: Sampler
    logprobs: bool


class _Graph:
    """A model without its weights, as a static argument of compiled programs. JAX hashes and compares it at every call,
    which for an `nnx.GraphDef` takes longer than a small model does for a token: `_graph` makes one of each."""

    def __init__(self, graphdef: nnx.GraphDef):
        self.graphdef = graphdef

    def merge(self, params) -> Any:
        return nnx.merge(self.graphdef, params)


_graph = cache(_Graph)


# Texts of equal length


@partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(graph: _Graph, placement: Placement, copies: int, params, window: jax.Array, length: jax.Array):
    """Reads the first `length` tokens of `window` (R, S) into a fresh cache, and makes `copies` of it, to be shared
    among the devices of `placement`."""
    state = _read(graph, params, window, length)
    state = DecodeState(state.cache.repeated(copies), jnp.tile(state.logits, (copies, 1)))
    shardings = jax.tree.map(lambda x: placement.batch if x.ndim else placement.replicated, state)
    return jax.lax.with_sharding_constraint(state, shardings)


def _read(graph: _Graph, params, window: jax.Array, length: jax.Array) -> DecodeState:
    model = graph.merge(params)
    logits, cache = model.decode(window, model.empty_cache(*window.shape), length - 1)
    # What was read beyond `length` is padding: it is masked until real tokens overwrite it.
    return DecodeState(cache._replace(length=length), logits[:, 0])


@partial(jax.jit, static_argnums=0)
def _extend(capacity: int, state: DecodeState) -> DecodeState:
    """The same with room for `capacity` tokens."""
    return state._replace(cache=state.cache.with_capacity(capacity))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(graph: _Graph, how: How, n: int, params, state: DecodeState, keys, first: jax.Array):
    """Draws `n` tokens, the `first`-th and on: the new state and what was `Drawn`."""
    model = graph.merge(params)
    words = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)  # (B, 2)

    def one(state: DecodeState, i: jax.Array):
        tokens = jax.vmap(how.sampler.draw)(state.logits, jax.vmap(uniform, (0, None))(words, i))  # (B,)
        drawn = Drawn(tokens, _logprobs(state.logits, tokens) if how.logprobs else None)
        logits, cache = model.decode(tokens[:, None], state.cache)
        return DecodeState(cache, logits[:, 0]), drawn

    state, drawn = jax.lax.scan(one, state, first + jnp.arange(n, dtype=jnp.int32))
    return state, jax.tree.map(jnp.transpose, drawn)


def uniform(words: jax.Array, i: jax.Array) -> jax.Array:
    """The random number of the `i`-th token of a text that has `words` (2,) uint32: a multiple of 2^-23 below 1."""
    return (hashed(i.astype(jnp.uint32), words) >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)


def _logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=1)[:, 0]  # (B, V) -> (B,)


# Texts of different lengths: (B, ...) states of one text each


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _blank_each(graph: _Graph, placement: Placement, rows: int, capacity: int, params):
    """States of texts that have not been read yet."""
    model = graph.merge(params)
    one = DecodeState(model.empty_cache(1, capacity), jnp.zeros((1, model.config.vocab_size), jnp.float32))
    states = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), one)
    return jax.lax.with_sharding_constraint(states, placement.batch)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _prefill_some(graph: _Graph, placement: Placement, capacity: int, params, states, rows, window, length):
    """The texts `rows` (N,) begin afresh with the first `length` tokens of `window` (1, S)."""
    fresh = _extend(capacity, _read(graph, params, window, length))
    states = jax.tree.map(lambda x, new: x.at[rows].set(new), states, fresh)
    return jax.lax.with_sharding_constraint(states, placement.batch)


@partial(jax.jit, static_argnums=0)
def _extend_each(capacity: int, states: DecodeState) -> DecodeState:
    return jax.vmap(partial(_extend, capacity))(states)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode_each(graph: _Graph, how: How, n: int, params, states: DecodeState, keys, first: jax.Array):
    def one(state: DecodeState, key: jax.Array):
        return _decode(graph, how, n, params, state, key[None], first)

    states, drawn = jax.vmap(one)(states, keys)
    return states, jax.tree.map(lambda x: x[:, 0], drawn)  # (B, 1, n) -> (B, n)


class _Batch:
    """B texts that are written side by side: their state on the devices, with room for `capacity` tokens of each."""

    extend: Callable[..., Any]
    decode: Callable[..., Any]

    def __init__(self, graph: _Graph, how: How, placement: Placement, params: Any, keys: jax.Array):
        self.graph, self.how, self.placement, self.params, self.keys = graph, how, placement, params, keys
        self.state: Any = None
        self.capacity = 0

    def read(self, text: np.ndarray, lengths: np.ndarray, full: np.ndarray, capacity: int) -> None:
        """Begins the texts that are `full` (R,) afresh, each with the last `lengths` (R,) tokens of `text` (R, S). At
        first R may be less than B: each text is then to be continued B / R times."""
        raise NotImplementedError

    def make_room(self, capacity: int) -> None:
        """For so many tokens of each text."""
        if capacity > self.capacity:
            self.state, self.capacity = self.extend(capacity, self.state), capacity

    def draw(self, n: int, first: int) -> Drawn:
        """The next `n` tokens, the `first`-th and on."""
        place = jnp.int32(first)
        self.state, drawn = self.decode(self.graph, self.how, n, self.params, self.state, self.keys, place)
        return drawn


class _Together(_Batch):
    """Texts of equal length, which are full at the same moment."""

    extend, decode = staticmethod(_extend), staticmethod(_decode)

    def read(self, text: np.ndarray, lengths: np.ndarray, full: np.ndarray, capacity: int) -> None:
        copies = len(self.keys) // len(text)
        on = self.placement.batch if copies == 1 else self.placement.replicated
        windows = jax.device_put(_windows(text, lengths, capacity), on)
        length = jnp.int32(lengths[0])
        self.state = _prefill(self.graph, self.placement, copies, self.params, windows, length)
        self.capacity = capacity


class _Apart(_Batch):
    """Texts of different lengths. Those that are full are read one by one: a token drawn costs one token read, however
    many texts there are."""

    extend, decode = staticmethod(_extend_each), staticmethod(_decode_each)

    def read(self, text: np.ndarray, lengths: np.ndarray, full: np.ndarray, capacity: int) -> None:
        (B,), (R, S) = self.keys.shape, text.shape
        if self.state is None:
            self.state, self.capacity = _blank_each(self.graph, self.placement, B, capacity, self.params), capacity
        self.make_room(capacity)
        how = self.graph, self.placement, self.capacity, self.params
        for i in np.flatnonzero(full):
            n = int(lengths[i])
            window = _windows(text[[i]], lengths[[i]], _capacity(n, S))
            self.state = _prefill_some(*how, self.state, np.arange(i, B, R), window, jnp.int32(n))


def stream(
    model: Any,
    prompt: np.ndarray | Sequence[np.ndarray],
    tokens: int,
    seed: int = 0,
    sampler: Sampler | None = None,
    samples: int = 1,
    logprobs: bool = False,
) -> Iterator[Drawn]:
    """Continues one or several prompts and yields the new tokens as they come.

    Args:
        model: a `LanguageModel`.
        prompt: (P,) token ids, at least one; or a sequence of R such prompts, of any lengths. Of a long prompt the last
            `block_size - CHUNK` tokens are read.
        tokens: how many to draw for each text.
        seed: decides the draws. Sample i of a prompt is the same whatever is written beside it: its key is
            `fold_in(key(seed), i)`, so two equal prompts have equal samples.
        sampler: how each is drawn; None is `Sampler()`.
        samples: continuations of each prompt, side by side.
        logprobs: whether to give the tokens' log-probabilities, too.

    Yields:
        What was drawn for B = samples * R texts, `tokens` of them in all. Text i * R + j is sample i of prompt j.
    """
    prompts = [prompt] if isinstance(prompt, np.ndarray) else prompt
    S, R = model.config.block_size, len(prompts)
    B = samples * R
    placement = sharding.for_sampling(B)
    graphdef, state = nnx.split(model)
    params = jax.device_put(nnx.to_pure_dict(state), placement.replicated)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(B) // R)
    keys = jax.device_put(keys, placement.batch)
    chunk = max(1, min(CHUNK, S // 2))
    text = np.stack([np.pad(np.asarray(p, np.int32)[-S:], (max(0, S - len(p)), 0)) for p in prompts])  # (R, S)
    seen = np.minimum([len(p) for p in prompts], max(1, S - chunk))  # (R,), tokens of each text before the next
    kind = _Together if seen.min() == seen.max() else _Apart
    batch = kind(_graph(graphdef), How(sampler or Sampler(), logprobs), placement, params, keys)
    full = np.full(R, True)
    pending = None  # drawn and not fetched yet: the device works on while Python hands out the piece before
    for first in range(0, tokens, chunk):
        capacity = _capacity(int(seen.max()) + chunk, S)
        if full.any():
            if pending is not None:
                text, piece, pending = *_fetch(text, pending), None
                yield piece
            batch.read(text, seen, full, capacity)
        batch.make_room(capacity)
        new = batch.draw(chunk, first)
        seen = np.resize(seen, B) + chunk
        full = seen + chunk > S
        seen = np.where(full, max(1, S // 2), seen)
        if pending is not None:
            text, piece = _fetch(text, pending)
            yield piece
        pending = new
    yield jax.tree.map(lambda x: np.asarray(x)[:, : tokens - first], pending)


def _fetch(text: np.ndarray, new: Drawn) -> tuple[np.ndarray, Drawn]:
    """The last S tokens of `text` (R, S) and `new` together, (B, S), and `new` on the host."""
    piece = jax.tree.map(np.asarray, new)
    B, S = len(piece.tokens), text.shape[1]
    return np.concatenate([np.resize(text, (B, S)), piece.tokens], axis=1)[:, -S:], piece


def _windows(text: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The last `lengths` (R,) tokens of `text` (R, S), each at the beginning of a window: (R, capacity)."""
    windows = np.zeros((len(text), capacity), np.int32)
    for window, tokens, n in zip(windows, text, lengths, strict=True):
        window[:n] = tokens[len(tokens) - n :]
    return windows


def _capacity(tokens: int, block_size: int) -> int:
    """Of a cache for this many tokens: a power of two, so that few programs serve for all lengths, and no token is
    drawn by reading more than twice what there is."""
    return min(block_size, max(MIN_CAPACITY, 1 << (tokens - 1).bit_length()))


def generate(model: Any, prompt: np.ndarray | Sequence[np.ndarray], tokens: int, **how) -> np.ndarray:
    """`stream`, waited for: (B, tokens) token ids."""
    return np.concatenate([piece.tokens for piece in stream(model, prompt, tokens, **how)], axis=1)
