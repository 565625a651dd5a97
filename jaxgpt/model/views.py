"""A look inside: where each token looks, what stands between the blocks, and what the head would make of it.

Shapes: L blocks, B sequences, T tokens, H heads, C channels, V the vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model.protocol import LanguageModel, check_tokens


class Look(NamedTuple):
    """What a model computes on its way to the logits; all in float32.

    Of the rungs, `bigram` has no block: L is 0, and its stream is the row of its table. `head`, `multihead` and
    `feedforward` count as one block, which replaces the stream instead of adding to it.
    """

    logits: jax.Array
    """(B, T, V)."""
    attention: jax.Array
    """(L, B, H, T, T): row t has how much token t takes from each token, and sums to 1."""
    streams: jax.Array
    """(L + 1, B, T, C): what enters the first block, and what leaves each."""


def look(model: LanguageModel, tokens: Any) -> Look:
    """What `model` computes for tokens (B, T), without dropout. Raises `UserError` as `check_tokens`."""
    return _look(*nnx.split(model), check_tokens(tokens, model.config))


def logit_lens(model: LanguageModel, tokens: Any) -> jax.Array:
    """What the head would predict after each block, if it were the last: (B, T) to float32 logits (L + 1, B, T, V).

    The first is of the embeddings alone, the last the model's own. From nostalgebraist 2020, "interpreting GPT: the
    logit lens".
    """
    return _logit_lens(*nnx.split(model), check_tokens(tokens, model.config))


@partial(jax.jit, static_argnums=0)
def _look(graphdef: nnx.GraphDef, params: Any, tokens: jax.Array) -> Look:
    model = nnx.merge(graphdef, params)
    streams, weights = model.layers(tokens)
    B, T = tokens.shape
    attention = jnp.stack(weights) if weights else jnp.zeros((0, B, model.config.n_head, T, T))
    return Look(model.read_out(streams[-1]), attention, jnp.stack(streams).astype(jnp.float32))


@partial(jax.jit, static_argnums=0)
def _logit_lens(graphdef: nnx.GraphDef, params: Any, tokens: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    streams, _ = model.layers(tokens)
    return jnp.stack([model.read_out(stream) for stream in streams])
