"""The ladder from a table of character pairs to a GPT, one idea a rung, as in Karpathy's "Let's build GPT".

    bigram       the next character from this one alone
    head         embeddings, positions, and one head of attention: look at the characters before
    multihead    four smaller heads: look for several things at once
    feedforward  a layer after attention: compute with what was found
    blocks       three times over, each adding to a residual stream: go deep
    layernorm    normalise before every part: train deep models well

and then the GPT of gpt.py, which adds size and dropout. `python -m jaxgpt.ladder` climbs them all;
`python train.py --preset multihead` trains one. Linear layers and embeddings start as PyTorch's do.
docs/ladder.md tells the story with figures.

Shapes: B sequences, T tokens, C = n_embd channels, H heads of D = C / H channels, V the vocabulary.
"""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config import ModelConfig
from jaxgpt.model import loss
from jaxgpt.model.gpt import Embed, LayerNorm, Linear
from jaxgpt.model.ops import product
from jaxgpt.model.protocol import check_tokens


def embedding(n: int, n_embd: int, rngs: nnx.Rngs) -> Embed:
    """A vector for each of `n` tokens, from N(0, 1)."""
    return Embed(n, n_embd, rngs, std=1.0)


class TorchLinear(Linear):
    """A linear layer, weights and bias uniform within 1 / sqrt(n_in)."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, bias: bool = True, dtype=None):
        def uniform(*shape):
            return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -1, 1) / math.sqrt(n_in))

        self.dtype = dtype  # of the result, if not the kernel's
        self.kernel = uniform(n_in, n_out)
        self.bias = uniform(n_out) if bias else None


class Window(NamedTuple):
    """A rung's `DecodeCache`: the tokens themselves."""

    tokens: jax.Array  # (B, S)
    length: jax.Array  # ()

    def with_capacity(self, capacity: int) -> "Window":
        return Window(jnp.pad(self.tokens, [(0, 0), (0, capacity - self.tokens.shape[1])]), self.length)

    def repeated(self, n: int) -> "Window":
        return Window(jnp.tile(self.tokens, (n, 1)), self.length)


class Rung(nnx.Module):
    """A model without a cache of keys and values: for every new token, it reads the whole window again."""

    config: ModelConfig
    sizes: ClassVar[tuple[str, ...]] = ()

    def __call__(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """As `GPT.__call__`; there is no dropout, and `key` does nothing."""
        return self.forward(check_tokens(tokens, self.config))

    def forward(self, tokens: jax.Array) -> jax.Array:
        """(B, T) to (B, T, V)."""
        raise NotImplementedError

    def layers(self, tokens: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """See `LanguageModel.layers`."""
        raise NotImplementedError

    def read_out(self, stream: jax.Array) -> jax.Array:
        """See `LanguageModel.read_out`."""
        raise NotImplementedError

    def losses(self, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        """See `LanguageModel.losses`."""
        return loss.cross_entropy(self.forward(tokens), targets)

    def loss(self, tokens: jax.Array, targets: jax.Array, key: jax.Array | None = None, remat=False) -> jax.Array:
        """See `LanguageModel.loss`. These are too small for `remat` to matter."""
        return self.losses(tokens, targets).mean()

    def empty_cache(self, batch_size: int, capacity: int | None = None) -> Window:
        """See `LanguageModel.empty_cache`."""
        return Window(jnp.zeros((batch_size, capacity or self.config.block_size), jnp.int32), jnp.int32(0))

    def decode(self, tokens: jax.Array, cache: Window, logits_at: Any = None) -> tuple[jax.Array, Window]:
        """See `LanguageModel.decode`."""
        T, start = tokens.shape[1], cache.length
        text = jax.lax.dynamic_update_slice_in_dim(cache.tokens, tokens, start, axis=1)  # (B, S)
        first, count = (start, T) if logits_at is None else (start + logits_at, 1)
        return jax.lax.dynamic_slice_in_dim(self.forward(text), first, count, axis=1), Window(text, start + T)


class Bigram(Rung):
    """Rung 1. A table: row i holds the scores of what follows character i."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.table = embedding(config.vocab_size, config.vocab_size, rngs)

    def forward(self, tokens: jax.Array) -> jax.Array:
        return self.table(tokens)  # (B, T) -> (B, T, V)

    def layers(self, tokens: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        return [self.table(tokens)], []

    def read_out(self, stream: jax.Array) -> jax.Array:
        return stream


class SelfAttention(nnx.Module):
    """Each token's weighted average over itself and those before it: h_i = sum_j w_ij v_j."""

    def __init__(self, n_embd: int, n_head: int, rngs: nnx.Rngs, project: bool = False):
        self.n_head = n_head
        self.query = TorchLinear(n_embd, n_embd, rngs, bias=False)  # what a token looks for
        self.key = TorchLinear(n_embd, n_embd, rngs, bias=False)  # what it offers
        self.value = TorchLinear(n_embd, n_embd, rngs, bias=False)  # what it says
        self.proj = TorchLinear(n_embd, n_embd, rngs) if project else None

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.heads(x)
        h = product("bhts,bhsd->bhtd", causal_weights(q, k).astype(v.dtype), v, v.dtype)  # weights @ v
        h = h.swapaxes(1, 2).reshape(x.shape)  # the heads side by side
        return h if self.proj is None else self.proj(h)

    def heads(self, x: jax.Array) -> list[jax.Array]:
        """Queries, keys and values of every head: (B, T, C) -> (B, H, T, D)."""
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        return [part(x).reshape(B, T, H, D).swapaxes(1, 2) for part in (self.query, self.key, self.value)]

    def weights(self, x: jax.Array) -> jax.Array:
        """(B, T, C) -> (B, H, T, T)."""
        q, k, _ = self.heads(x)
        return causal_weights(q, k)


def causal_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """How much each token takes from those before it, by how well its query fits their keys: the w_ij.

    (B, H, T, D) -> (B, H, T, T).
    """
    scores = product("bhtd,bhsd->bhts", q, k, jnp.float32)  # q @ k.T
    scores = scores / math.sqrt(q.shape[-1])  # by the head's width, not by C
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))  # each row: positive, sums to 1


class Head(Rung):
    """Rung 2. Characters become vectors with a position, one head of attention mixes them."""

    sizes: ClassVar = ("n_embd",)

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        C = config.n_embd
        self.config = config
        self.wte = embedding(config.vocab_size, C, rngs)
        self.wpe = embedding(config.block_size, C, rngs)
        self.lm_head = TorchLinear(C, config.vocab_size, rngs, dtype=jnp.float32)
        self.add_body(config, rngs)

    def forward(self, tokens: jax.Array) -> jax.Array:
        return self.lm_head(self.body(self.embed(tokens)))  # (B, T, V)

    def embed(self, tokens: jax.Array) -> jax.Array:
        return self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))  # (B, T) -> (B, T, C)

    def add_body(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attn = SelfAttention(config.n_embd, 1, rngs)

    def body(self, x: jax.Array) -> jax.Array:
        return self.attn(x)

    def layers(self, tokens: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        x = self.embed(tokens)
        return [x, self.body(x)], [self.attn.weights(x)]

    def read_out(self, stream: jax.Array) -> jax.Array:
        return self.lm_head(stream)


class MultiHead(Head):
    """Rung 3. The same width, split into several heads that each look for something else."""

    sizes: ClassVar = ("n_head", "n_embd")

    def add_body(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attn = SelfAttention(config.n_embd, config.n_head, rngs)


class FeedForward(MultiHead):
    """Rung 4. After attention, a linear layer and a ReLU for each token on its own."""

    def add_body(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        super().add_body(config, rngs)
        self.think = TorchLinear(config.n_embd, config.n_embd, rngs)

    def body(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.think(super().body(x)))


class Block(nnx.Module):
    """Attention and the MLP, each added to the residual stream; with `norm`, on a normalised copy of it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, norm: bool):
        C = config.n_embd
        self.attn = SelfAttention(C, config.n_head, rngs, project=True)
        self.c_fc = TorchLinear(C, 4 * C, rngs)
        self.c_proj = TorchLinear(4 * C, C, rngs)
        self.ln_1 = LayerNorm(C, bias=True) if norm else None
        self.ln_2 = LayerNorm(C, bias=True) if norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.norm(x))
        hidden = jax.nn.relu(self.c_fc(x if self.ln_2 is None else self.ln_2(x)))  # (B, T, 4 C)
        return x + self.c_proj(hidden)

    def norm(self, x: jax.Array) -> jax.Array:
        """What attention reads."""
        return x if self.ln_1 is None else self.ln_1(x)


class Blocks(Head):
    """Rung 5. Three blocks on a residual stream; the MLP four times wider."""

    sizes: ClassVar = ("n_layer", "n_head", "n_embd")

    def add_body(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.h = nnx.List([Block(config, rngs, norm=False) for _ in range(config.n_layer)])

    def body(self, x: jax.Array) -> jax.Array:
        for block in self.h:
            x = block(x)
        return x

    def layers(self, tokens: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        streams, weights = [self.embed(tokens)], []
        for block in self.h:
            weights.append(block.attn.weights(block.norm(streams[-1])))
            streams.append(block(streams[-1]))
        return streams, weights


class LayerNormed(Blocks):
    """Rung 6. LayerNorm before each part of a block, and before the head."""

    def add_body(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.h = nnx.List([Block(config, rngs, norm=True) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, bias=True)

    def body(self, x: jax.Array) -> jax.Array:
        return self.ln_f(super().body(x))

    def read_out(self, stream: jax.Array) -> jax.Array:
        return self.lm_head(self.ln_f(stream))


RUNGS: dict[str, type[Rung]] = {
    "bigram": Bigram,
    "head": Head,
    "multihead": MultiHead,
    "feedforward": FeedForward,
    "blocks": Blocks,
    "layernorm": LayerNormed,
}
