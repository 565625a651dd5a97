"""What every model has in common, so that training, sampling and a run's folder need not know which one it is."""

from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import ModelConfig
from jaxgpt.errors import UserError

STREAM = "residual stream"  # a name for `jax.ad_checkpoint.checkpoint_name`, see `LanguageModel.loss`


class DecodeCache(Protocol):
    """What a model remembers of the tokens that it has read. A pytree of arrays."""

    length: jax.Array
    """(), how many tokens have been read. It may be set back: what was read beyond it then does not count."""

    def with_capacity(self, capacity: int) -> Self:
        """The same with room for `capacity` tokens, no fewer than now."""
        ...

    def repeated(self, n: int) -> Self:
        """All sequences, `n` times over."""
        ...

    def _replace(self, **fields: Any) -> Self: ...


class LanguageModel(Protocol):
    """An NNX module made by `Model(config, rngs)`, that holds parameters and nothing else.

    A new architecture is a file with such a class, and a line in build.py.
    """

    config: ModelConfig
    sizes: ClassVar[tuple[str, ...]]
    """The fields of `config` that decide its shape, beside `vocab_size` and `block_size`."""

    def __call__(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Scores of every next token: (B, T) whole numbers to (B, T, V) float32 logits. With a `key`, dropout is on."""
        ...

    def losses(self, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of every target, in nats, without dropout: `tokens` and `targets` (B, T) to (B, T) float32."""
        ...

    def loss(self, tokens: jax.Array, targets: jax.Array, key: jax.Array | None = None, remat=False) -> jax.Array:
        """Their mean, (), to be differentiated. With a `key`, dropout is on. With `remat`, the gradient keeps little
        more than what goes from block to block, which is called `STREAM`, and computes the rest again."""
        ...

    def empty_cache(self, batch_size: int, capacity: int | None = None) -> Any:
        """A `DecodeCache` of `batch_size` empty sequences, with room for `capacity` tokens (or `block_size`)."""
        ...

    def decode(self, tokens: jax.Array, cache: Any, logits_at: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """Reads `tokens` (B, T) after those in `cache`: logits (B, T, V) and the longer cache.

        There must be room for `cache.length + T` tokens. With `logits_at` (), the index of one of the T tokens, the
        logits are that token's alone, (B, 1, V).
        """
        ...

    def layers(self, tokens: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """What happens inside, without dropout, to tokens (B, T): the residual stream (B, T, C) before the first block
        and after each, and each block's attention weights (B, H, T, T). views.py makes arrays of them."""
        ...

    def read_out(self, stream: jax.Array) -> jax.Array:
        """What the head makes of a stream: (..., T, C) to logits (..., T, V). Of the last one, it is the model's."""
        ...


def check_tokens(tokens: Any, config: ModelConfig) -> jax.Array:
    """`tokens` as an array (B, T) of whole numbers.

    Raises:
        UserError: for another shape or type, for more than `block_size` tokens, and, unless they are traced by a
            transformation such as `jax.jit`, for tokens outside the vocabulary.
    """
    if isinstance(tokens, jax.core.Tracer):
        return _shaped(tokens, config)
    try:
        known = np.asarray(tokens)
    except ValueError as problem:
        raise UserError("tokens are whole numbers of shape (B, T), not rows of different lengths") from problem
    _shaped(known, config)
    outside = known[(known < 0) | (known >= config.vocab_size)]
    if outside.size:
        raise UserError(f"token {outside[0]} is outside the vocabulary of {config.vocab_size}")
    return tokens if isinstance(tokens, jax.Array) else jnp.asarray(known)


def _shaped(tokens: Any, config: ModelConfig) -> Any:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"tokens are whole numbers of shape (B, T), not {tokens.dtype} of shape {tokens.shape}")
    if tokens.shape[1] > config.block_size:
        raise UserError(f"{tokens.shape[1]} tokens are more than the model's block_size of {config.block_size}")
    return tokens
