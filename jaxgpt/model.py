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

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu}


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


def cut(x: jax.Array) -> jax.Array:
    """`x`, computed once and kept. XLA otherwise computes what looks cheap again for every reader of it, and the
    gradient of the residual stream, a sum with a term a layer, has many readers."""
    return jax.lax.optimization_barrier(x)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest up to keep its mean; without a key, `x` itself.

    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    if key is None or rate == 0:
        return x
    keep = random_bits(key, x.shape) >= jnp.uint32(rate * 2**32)
    return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for each place of `shape`: its index, hashed with two words of the key.

    The hash is Chris Wellons' lowbias32 with the second word added half-way. It is far cheaper than
    `jax.random.bits`, and the backward pass computes it again instead of keeping a mask.
    """
    first, second = jax.random.bits(key, (2,))
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = index ^ first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) + second
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


QUERIES = 64  # in a chunk of causal attention


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, rate: float = 0.0, key=None) -> jax.Array:
    """`attend` where token t may see tokens 0 to t, (B, T, H, D) all: a chunk of queries at a time, each with
    the keys that one of them may see, so that almost half of the scores are never computed."""
    T = q.shape[1]
    chunks = []
    for i, start in enumerate(range(0, T, QUERIES)):
        end = min(start + QUERIES, T)
        mask = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        chunk_key = None if key is None else jax.random.fold_in(key, i)
        chunks.append(attend(q[:, start:end], k[:, :end], v[:, :end], mask, rate, chunk_key))
    return jnp.concatenate(chunks, axis=1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rate: float = 0.0, key=None) -> jax.Array:
    """Scaled dot-product attention: each token's average of the values it may see, weighted by likeness.

    Args:
        q: (B, T, H, D) what each token asks.
        k, v: (B, S, H, D) what each token offers, and what it says.
        mask: (T, S) true where token t may see token s.
        rate, key: dropout of the weights.

    Returns:
        (B, T, H, D).

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1.
    """
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)  # (B, H, T, S)
    scores = scores / math.sqrt(q.shape[-1])  # by the head's width D: keeps the softmax from saturating
    scores = jnp.where(mask, scores, -jnp.inf)  # no weight at all on what may not be seen
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key).astype(v.dtype)  # (B, H, T, S)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` with a head of a sequence a row: q (N, T, D), k and v (N, S, D), to (N, T, D)."""
    scores = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("nts,nsd->ntd", weights, v)


class LayerNorm(nnx.Module):
    """Each token's channels to mean 0 and variance 1, then a learnt scale and shift; in float32.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, n_embd: int, bias: bool):
        self.scale = nnx.Param(jnp.ones(n_embd))
        self.bias = nnx.Param(jnp.zeros(n_embd)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w`, (..., K) by (K, N), with operands that are computed once and a backward pass that is fast."""
    return row_matmul(x, w) if x.size == x.shape[-1] and jax.default_backend() == "cpu" else x @ w


def row_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w` for a single row `x`, as the sum of the products of its halves with those of `w`: XLA's CPU code
    reads a large matrix faster as a batch of two."""
    K, N = w.shape
    n = 2 if K % 2 == 0 else 1
    halves = jnp.einsum("nk,nkm->nm", x.reshape(n, K // n), w.reshape(n, K // n, N))
    return halves.sum(0).reshape(*x.shape[:-1], N)


def _matmul_forward(x, w):
    x = cut(x)  # read here and again for the gradient of w
    return x @ w, (x, w)


def _matmul_backward(kept, g):
    x, w = kept
    g = cut(g)  # read for both gradients
    rows = tuple(range(x.ndim - 1))
    # A product over rows transposes a copy of its left operand: let that be the narrow one.
    left, right = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    dw = jax.lax.dot_general(left, right, ((rows, rows), ((), ())))
    return g @ w.T, dw if left is x else dw.T


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Module):
    """`x @ kernel + bias`, with GPT-2's initialisation: N(0, std) and zero."""

    def __init__(self, n_in: int, n_out: int, bias: bool, rngs: nnx.Rngs, std: float = 0.02):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


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
        weights_key, out_key = (None, None) if key is None else jax.random.split(key)
        if past is None:
            y = causal_attention(q, k, v, self.config.dropout, weights_key)
        else:
            past_k, past_v, start = past
            q, k, v = (part.swapaxes(1, 2).reshape(B * H, T, C // H) for part in (q, k, v))
            k = jax.lax.dynamic_update_slice_in_dim(past_k, k.astype(past_k.dtype), start, axis=1)  # (B H, S, D)
            v = jax.lax.dynamic_update_slice_in_dim(past_v, v.astype(past_v.dtype), start, axis=1)
            mask = jnp.arange(k.shape[1]) <= start + jnp.arange(T)[:, None]  # (T, S): the past and oneself
            y = attend_cached(q, k, v, mask).reshape(B, H, T, C // H).swapaxes(1, 2)  # (B, T, H, D)
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
    """A decoder-only transformer with learnt positions.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), and Karpathy's
    "Let's build GPT: from scratch, in code, spelled out".

    >>> model = GPT(ModelConfig(vocab_size=65), nnx.Rngs(0))
    >>> model(jnp.zeros((1, 8), jnp.int32)).shape
    (1, 8, 65)
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.config = config
        self.wte = nnx.Embed(config.vocab_size, config.n_embd, embedding_init=init, rngs=rngs)
        self.wpe = nnx.Embed(config.block_size, config.n_embd, embedding_init=init, rngs=rngs)
        self.h = nnx.List([Block(config, rngs) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.bias)
        self.lm_head = None if config.tie_head else Linear(config.n_embd, config.vocab_size, config.bias, rngs)

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
        x = self.wte(tokens) + self.wpe(start + jnp.arange(T))  # (B, T, C)
        x = dropout(x, self.config.embd_dropout, keys[0])
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
