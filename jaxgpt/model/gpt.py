"""The GPT: causal self-attention, the MLP, the block, the model. nanoGPT's names, Flax NNX's modules.

The modules hold parameters and nothing else. What changes from call to call is an argument: the
dropout key, and the cache of keys and values, which `GPT.decode` takes and returns. So after
`nnx.split(model)` everything is a pytree for plain JAX.

Shapes: B sequences, T tokens, C = n_embd channels, H heads of D = C / H channels, V the vocabulary,
S tokens that the cache has room for.
"""

import math
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.config import ModelConfig
from jaxgpt.model.attention import apply_rotary, cached_attention, causal_attention, causal_weights, token_shift
from jaxgpt.model.loss import Head, mean_loss, token_losses
from jaxgpt.model.ops import add_bias, cpu_barrier, dropout, layer_norm, matmul, relu, rms_norm, take_rows
from jaxgpt.model.protocol import STREAM, check_tokens

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": relu}


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, so that they are not computed again: the GPT's `DecodeCache`."""

    k: tuple[jax.Array, ...]  # a layer each, (B H, S, D): what one head reads for a token is contiguous
    v: tuple[jax.Array, ...]  # a layer each, (B H, S, D)
    length: jax.Array  # ()

    def with_capacity(self, capacity: int) -> "Cache":
        more = [(0, 0), (0, capacity - self.k[0].shape[1]), (0, 0)]
        k, v = jax.tree.map(lambda x: jnp.pad(x, more), (self.k, self.v))
        return Cache(k, v, self.length)

    def repeated(self, n: int) -> "Cache":
        k, v = jax.tree.map(lambda x: jnp.tile(x, (n, 1, 1)), (self.k, self.v))
        return Cache(k, v, self.length)


class LayerNorm(nnx.Module):
    """Each token's channels to mean 0 and variance 1, then a learnt scale and bias; in float32.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, n_embd: int, bias: bool):
        self.scale = nnx.Param(jnp.ones(n_embd, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(n_embd, jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], None if self.bias is None else self.bias[...])


class Linear(nnx.Module):
    """`x @ kernel + bias` in the kernel's type, with GPT-2's initialisation: N(0, std) and zero."""

    def __init__(self, n_in: int, n_out: int, bias: bool, rngs: nnx.Rngs, std: float = 0.02, dtype=None):
        self.dtype = dtype  # of the result, if not the kernel's
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(n_out, jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return linear((self.kernel[...], None if self.bias is None else self.bias[...]), x, self.dtype)


def linear(weights: tuple[jax.Array, jax.Array | None], x: jax.Array, dtype=None) -> jax.Array:
    """`Linear` as a function of its weights."""
    w, bias = weights
    y = matmul(x.astype(w.dtype), w, dtype or w.dtype)
    return y if bias is None else add_bias(y, bias)


class Embed(nnx.Module):
    """A learnt vector of channels for each of `n` tokens, or positions, from N(0, std)."""

    def __init__(self, n: int, n_embd: int, rngs: nnx.Rngs, std: float = 0.02):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (n, n_embd), jnp.float32))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(...) whole numbers to (..., C), in float32: the gradients of a token that occurs often add up in it."""
        return take_rows(self.embedding[...], tokens)


def attend(table: jax.Array, x: jax.Array) -> jax.Array:
    """The dot product of `x` (..., C) with each embedding of `table` (n, C): (..., n) in float32."""
    x = x.astype(table.dtype)
    if x.size == x.shape[-1]:  # as the matrix times one vector it is read in order
        y = jnp.matmul(table, x.reshape(-1), preferred_element_type=jnp.float32)
        return y.reshape(*x.shape[:-1], -1)
    return matmul(x, table.T, jnp.float32)


class CausalSelfAttention(nnx.Module):
    """Multi-head attention of every token to itself and to those before it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C = config.n_embd
        self.config = config
        self.c_attn = Linear(C, 3 * C, config.bias and config.qkv_bias, rngs)
        self.c_proj = Linear(C, C, config.bias, rngs, residual_std(config))

    def __call__(self, x: jax.Array, past=None, key: jax.Array | None = None):
        """
        Args:
            x: (B, T, C).
            past: None to attend within `x`; or a layer's k, v and the length of the cache, to which `x` is appended.
            key: of the dropout; None for none.

        Returns:
            (B, T, C), and the keys and values, those of the cache included.
        """
        B, T, C = x.shape
        H = self.config.n_head
        start = 0 if past is None else past[2]
        q, k, v = self.heads(x, start)
        shift = token_shift if self.config.value_shift else lambda v: v
        weights_key, out_key = (None, None) if key is None else jax.random.split(key)
        if past is None:
            y = causal_attention(q, k, shift(v), self.config.dropout, weights_key)
        else:
            q, k, v = (part.swapaxes(1, 2).reshape(B * H, T, C // H) for part in (q, k, v))
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(before, new.astype(before.dtype), start, axis=1)  # (B H, S, D)
                for before, new in zip(past[:2], (k, v), strict=True)
            )
            mask = jnp.arange(k.shape[1]) <= start + jnp.arange(T)[:, None]  # (T, S)
            y = cached_attention(q, k, shift(v), mask).reshape(B, H, T, C // H).swapaxes(1, 2)  # (B, T, H, D)
        return dropout(self.c_proj(y.reshape(B, T, C)), self.config.dropout, out_key), k, v

    def heads(self, x: jax.Array, start: Any = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of `x` (B, T, C), whose first token is at position `start`: (B, T, H, D) each."""
        B, T, C = x.shape
        H = self.config.n_head
        qk, v = jnp.split(self.c_attn(x), [2 * C], axis=-1)
        qk = qk.reshape(B, T, 2 * H, C // H)  # as what is done to the one is done to the other
        if self.config.qk_norm:
            qk = rms_norm(qk)
        if self.config.positions == "rotary":
            qk = apply_rotary(qk, start + jnp.arange(T), self.config.block_size)
        q, k = jnp.split(qk, 2, axis=2)
        return q, k, v.reshape(B, T, H, C // H)

    def weights(self, x: jax.Array) -> jax.Array:
        """How much each token of `x` (B, T, C) takes from itself and those before it: (B, H, T, T) in float32."""
        q, k, _ = self.heads(x)
        return causal_weights(q, k)


class MLP(nnx.Module):
    """Two linear layers for each token on its own, four times wider between them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C = config.n_embd
        self.config = config
        self.c_fc = Linear(C, 4 * C, config.bias, rngs)
        self.c_proj = Linear(4 * C, C, config.bias, rngs, residual_std(config))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        hidden = ACTIVATIONS[self.config.activation](self.c_fc(x))  # (B, T, 4 C)
        return dropout(self.c_proj(hidden), self.config.dropout, key)  # (B, T, C)


class Block(nnx.Module):
    """Attention, then the MLP; each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, rngs)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: jax.Array, past=None, key: jax.Array | None = None):
        """(B, T, C) to (B, T, C), and the keys and values, as in `CausalSelfAttention`."""
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        y, k, v = self.attn(self.ln_1(x), past, attn_key)
        x = cpu_barrier(x + y)
        x = cpu_barrier(x + self.mlp(self.ln_2(x), mlp_key))
        return x, k, v


def _again(block: Block, x, past, key):
    """`block(x, past, key)`, of which the gradient keeps the arguments alone (https://arxiv.org/abs/1604.06174)."""
    graphdef, params = nnx.split(block)
    return jax.checkpoint(lambda params, *given: nnx.merge(graphdef, params)(*given))(params, x, past, key)


class GPT(nnx.Module):
    """A decoder-only transformer.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), and Karpathy's
    "Let's build GPT: from scratch, in code, spelled out".

    >>> model = GPT(ModelConfig(vocab_size=65), nnx.Rngs(0))
    >>> model(jnp.zeros((1, 8), jnp.int32)).shape
    (1, 8, 65)

    Its custom gradients have no forward mode (`jax.jvp`), and so no Hessian by forward over reverse.
    """

    sizes: ClassVar = ("n_layer", "n_head", "n_embd")

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C, V = config.n_embd, config.vocab_size
        self.config = config
        self.wte = Embed(V, C, rngs)
        self.wpe = Embed(config.block_size, C, rngs) if config.positions == "learned" else None
        self.h = nnx.List([Block(config, rngs) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(C, config.bias)
        self.lm_head = None if config.tie_head else Linear(C, V, config.bias, rngs)

    def __call__(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Scores of every next token: (B, T) whole numbers to (B, T, V) float32 logits; T <= block_size.

        With a `key`, dropout is on. Raises `UserError` for tokens that cannot be (see `check_tokens`).
        """
        x, _ = self._body(check_tokens(tokens, self.config), None, key)
        head, weights = self._head()
        return head(weights, x)

    def losses(self, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        """See `LanguageModel.losses`."""
        x, _ = self._body(tokens, None, None)
        return token_losses(*self._head(), x, targets, self.config.vocab_size)

    def loss(self, tokens: jax.Array, targets: jax.Array, key: jax.Array | None = None, remat=False) -> jax.Array:
        """See `LanguageModel.loss`."""
        x, _ = self._body(tokens, None, key, remat)
        return mean_loss(*self._head(), x, targets, self.config.vocab_size)

    def empty_cache(self, batch_size: int, capacity: int | None = None) -> Cache:
        """See `LanguageModel.empty_cache`."""
        c = self.config
        shape = (batch_size * c.n_head, capacity or c.block_size, c.n_embd // c.n_head)
        zeros = tuple(jnp.zeros(shape, self.wte.embedding.dtype) for _ in self.h)
        return Cache(zeros, zeros, jnp.int32(0))

    def decode(self, tokens: jax.Array, cache: Cache, logits_at: jax.Array | None = None) -> tuple[jax.Array, Cache]:
        """See `LanguageModel.decode`."""
        x, longer = self._body(tokens, cache, None)
        x = x if logits_at is None else jax.lax.dynamic_slice_in_dim(x, logits_at, 1, axis=1)  # (B, 1, C)
        head, weights = self._head()
        return head(weights, x), longer

    def layers(self, tokens: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """See `LanguageModel.layers`."""
        x = self._embedded(tokens, 0, None)
        streams, weights = [x], []
        for block in self.h:
            weights.append(block.attn.weights(block.ln_1(x)))
            x, _, _ = block(x)
            streams.append(x)
        return streams, weights

    def read_out(self, stream: jax.Array) -> jax.Array:
        """See `LanguageModel.read_out`."""
        head, weights = self._head()
        return head(weights, self.ln_f(stream))

    def _head(self) -> tuple[Head, Any]:
        """A function from the head's weights and (..., C) to logits (..., V) in float32, and those weights."""
        if self.lm_head is None:
            return attend, self.wte.embedding[...]
        bias = self.lm_head.bias
        weights = self.lm_head.kernel[...], None if bias is None else bias[...]
        return partial(linear, dtype=jnp.float32), weights

    def _body(self, tokens: jax.Array, cache: Cache | None, key: jax.Array | None, remat=False):
        """All but the head: (B, T) to (B, T, C), and the longer cache."""
        start: Any = 0 if cache is None else cache.length
        keys = [None] * (1 + len(self.h)) if key is None else jax.random.split(key, 1 + len(self.h))
        x = self._embedded(tokens, start, keys[0])
        ks, vs = [], []
        for i, block in enumerate(self.h):
            past = None if cache is None else (cache.k[i], cache.v[i], start)
            x, k, v = _again(block, x, past, keys[1 + i]) if remat else block(x, past, keys[1 + i])
            x = checkpoint_name(x, STREAM)
            ks.append(k)
            vs.append(v)
        return self.ln_f(x), Cache(tuple(ks), tuple(vs), start + tokens.shape[1])

    def _embedded(self, tokens: jax.Array, start: Any, key: jax.Array | None) -> jax.Array:
        """What enters the first block: tokens (B, T), the first at position `start`, to (B, T, C)."""
        x = self.wte(tokens)  # (B, T, C)
        x = x if self.wpe is None else x + self.wpe(start + jnp.arange(tokens.shape[1]))
        x = rms_norm(x) if self.config.embd_norm else x
        # The stream has the products' type: it is read and written more often than anything else (bench/t4.py), float32
        # would be twice the bytes each time, and it rounds off no more than the products do.
        return dropout(x, self.config.embd_dropout, key).astype(self.wte.embedding.dtype)


def residual_std(config: ModelConfig) -> float:
    """GPT-2's scale for the 2 n_layer projections that add to the stream, so that their sum stays near 1."""
    return 0.02 / math.sqrt(2 * config.n_layer)
