"""The GPT: causal self-attention, the MLP, the block, the model. nanoGPT's names, Flax NNX's modules.

The modules hold parameters and nothing else. What changes from call to call is an argument: the
dropout key, and the cache of keys and values, which `GPT.decode` takes and returns. So after
`nnx.split(model)` everything is a pytree for plain JAX.

Shapes: B sequences, T tokens, C = n_embd channels, H heads of D = C / H channels, V the vocabulary,
S = block_size places in the cache.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config import ModelConfig
from jaxgpt.model.attention import attend_cached, causal_attention, rotate, shift
from jaxgpt.model.ops import add_bias, cut, dropout, layer_norm, matmul, relu, rms_norm

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": relu}


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, so that the next token need not read them again."""

    k: tuple[jax.Array, ...]  # a layer each, (B H, S, D): what one head reads for a token lies in one piece
    v: tuple[jax.Array, ...]  # a layer each, (B H, S, D)
    length: jax.Array  # (), how many of the S places are filled

    def resized(self, places: int) -> "Cache":
        """The same with S = `places`, no fewer than now."""
        more = [(0, 0), (0, places - self.k[0].shape[1]), (0, 0)]
        k, v = jax.tree.map(lambda x: jnp.pad(x, more), (self.k, self.v))
        return Cache(k, v, self.length)

    def repeated(self, n: int) -> "Cache":
        """All sequences, `n` times over."""
        k, v = jax.tree.map(lambda x: jnp.tile(x, (n, 1, 1)), (self.k, self.v))
        return Cache(k, v, self.length)


class LayerNorm(nnx.Module):
    """Each token's channels to mean 0 and variance 1, then a learnt scale and shift; in float32.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, n_embd: int, bias: bool):
        self.scale = nnx.Param(jnp.ones(n_embd))
        self.bias = nnx.Param(jnp.zeros(n_embd)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], None if self.bias is None else self.bias[...])


class Linear(nnx.Module):
    """`x @ kernel + bias` in the kernel's type, with GPT-2's initialisation: N(0, std) and zero."""

    def __init__(self, n_in: int, n_out: int, bias: bool, rngs: nnx.Rngs, std: float = 0.02, dtype=None):
        self.dtype = dtype  # of what comes out, if not the kernel's
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.kernel[...]
        y = matmul(x.astype(w.dtype), w, self.dtype or w.dtype)
        return y if self.bias is None else add_bias(y, self.bias[...])


class Embed(nnx.Module):
    """A learnt row of channels for each of `n` tokens, or positions, from N(0, std)."""

    def __init__(self, n: int, n_embd: int, rngs: nnx.Rngs, std: float = 0.02):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (n, n_embd)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(...) whole numbers to (..., C) in float32, in which the gradients of a row that occurs often add up."""
        return self.embedding[...].astype(jnp.float32)[tokens]

    def attend(self, x: jax.Array) -> jax.Array:
        """How much `x` (..., C) is like each row: (..., n) in float32, by a product in the table's type."""
        table = self.embedding[...]
        return matmul(x.astype(table.dtype), table.T, jnp.float32)


class CausalSelfAttention(nnx.Module):
    """Every token looks at itself and at those before it, in `n_head` ways at once."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C = config.n_embd
        self.config = config
        self.c_attn = Linear(C, 3 * C, config.bias and config.qkv_bias, rngs)
        self.c_proj = Linear(C, C, config.bias, rngs, residual_std(config))

    def __call__(self, x: jax.Array, past=None, key: jax.Array | None = None):
        """
        Args:
            x: (B, T, C).
            past: None to attend within `x`; or (k, v, length) of the cache (see `Cache`), to which `x` is appended.
            key: of the dropout; None for none.

        Returns:
            (B, T, C), and the keys and values that were attended to.
        """
        B, T, C = x.shape
        H = self.config.n_head
        q, k, v = (part.reshape(B, T, H, C // H) for part in jnp.split(self.c_attn(x), 3, axis=-1))
        start = 0 if past is None else past[2]
        if self.config.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if self.config.positions == "rotary":
            q, k = (rotate(part, start + jnp.arange(T), self.config.block_size) for part in (q, k))
        said = shift if self.config.value_shift else lambda v: v
        weights_key, out_key = (None, None) if key is None else jax.random.split(key)
        if past is None:
            y = causal_attention(q, k, said(v), self.config.dropout, weights_key)
        else:
            q, k, v = (part.swapaxes(1, 2).reshape(B * H, T, C // H) for part in (q, k, v))
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(before, new.astype(before.dtype), start, axis=1)  # (B H, S, D)
                for before, new in zip(past[:2], (k, v), strict=True)
            )
            mask = jnp.arange(k.shape[1]) <= start + jnp.arange(T)[:, None]  # (T, S): the past and oneself
            y = attend_cached(q, k, said(v), mask).reshape(B, H, T, C // H).swapaxes(1, 2)  # (B, T, H, D)
        return dropout(self.c_proj(y.reshape(B, T, C)), self.config.dropout, out_key), k, v


class MLP(nnx.Module):
    """What each token makes of what it gathered, on its own: four times wider, and back."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C = config.n_embd
        self.config = config
        self.c_fc = Linear(C, 4 * C, config.bias, rngs)
        self.c_proj = Linear(4 * C, C, config.bias, rngs, residual_std(config))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        hidden = ACTIVATIONS[self.config.activation](self.c_fc(x))  # (B, T, 4 C)
        return dropout(self.c_proj(hidden), self.config.dropout, key)  # (B, T, C)


class Block(nnx.Module):
    """Tokens talk, then think: attention and MLP, each on a normalised copy, each added to the stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, rngs)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: jax.Array, past=None, key: jax.Array | None = None):
        """(B, T, C) to (B, T, C), and the keys and values, as in `CausalSelfAttention`."""
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        y, k, v = self.attn(self.ln_1(x), past, attn_key)
        x = cut(x + y)
        x = cut(x + self.mlp(self.ln_2(x), mlp_key))
        return x, k, v


class GPT(nnx.Module):
    """A decoder-only transformer.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), and Karpathy's
    "Let's build GPT: from scratch, in code, spelled out".

    >>> model = GPT(ModelConfig(vocab_size=65), nnx.Rngs(0))
    >>> model(jnp.zeros((1, 8), jnp.int32)).shape
    (1, 8, 65)
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C, V = config.n_embd, config.vocab_size
        self.config = config
        self.wte = Embed(V, C, rngs)
        self.wpe = Embed(config.block_size, C, rngs) if config.positions == "learned" else None
        self.h = nnx.List([Block(config, rngs) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(C, config.bias)
        self.lm_head = None if config.tie_head else Linear(C, V, config.bias, rngs, dtype=jnp.float32)

    def __call__(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Scores of every next token: (B, T) whole numbers to (B, T, V) float32 logits; T <= block_size.

        With a `key`, dropout is on.
        """
        return self._run(tokens, None, key)[0]

    def empty_cache(self, batch_size: int, places: int | None = None) -> Cache:
        """A cache for `batch_size` sequences that have read nothing yet, with `places` for tokens or `block_size`."""
        c = self.config
        shape = (batch_size * c.n_head, places or c.block_size, c.n_embd // c.n_head)
        zeros = tuple(jnp.zeros(shape, self.wte.embedding.dtype) for _ in self.h)
        return Cache(zeros, zeros, jnp.int32(0))

    def decode(self, tokens: jax.Array, cache: Cache, only: jax.Array | None = None) -> tuple[jax.Array, Cache]:
        """Reads `tokens` (B, T) after those in `cache`: logits (B, T, V) and the longer cache.

        There must be room: `cache.length + T` places at least. With `only` (), the index of one of the
        T tokens, the logits are that token's alone, (B, 1, V).
        """
        return self._run(tokens, cache, None, only)

    def _run(self, tokens: jax.Array, cache: Cache | None, key: jax.Array | None, only: jax.Array | None = None):
        T, start = tokens.shape[1], 0 if cache is None else cache.length
        keys = [None] * (1 + len(self.h)) if key is None else jax.random.split(key, 1 + len(self.h))
        x = self.wte(tokens)  # (B, T, C)
        x = x if self.wpe is None else x + self.wpe(start + jnp.arange(T))
        x = rms_norm(x) if self.config.embd_norm else x
        # The stream is in the type of the products: it is read and written more often than anything else (bench/t4.py),
        # in float32 twice the bytes each time, and what it rounds off is no more than what the products do.
        x = dropout(x, self.config.embd_dropout, keys[0]).astype(self.wte.embedding.dtype)
        ks, vs = [], []
        for i, block in enumerate(self.h):
            past = None if cache is None else (cache.k[i], cache.v[i], start)
            x, k, v = block(x, past, keys[1 + i])
            ks.append(k)
            vs.append(v)
        x = x if only is None else jax.lax.dynamic_slice_in_dim(x, only, 1, axis=1)  # (B, 1, C)
        x = self.ln_f(x)
        logits = self.wte.attend(x) if self.lm_head is None else self.lm_head(x)  # (B, T, V)
        return logits.astype(jnp.float32), Cache(tuple(ks), tuple(vs), start + T)


def residual_std(config: ModelConfig) -> float:
    """GPT-2's scale for the 2 n_layer projections that add to the stream, so that their sum stays near 1."""
    return 0.02 / math.sqrt(2 * config.n_layer)
