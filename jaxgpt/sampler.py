"""How the next token is drawn from the model's scores: temperature, top-k, top-p, min-p."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt.errors import UserError
from jaxgpt.fields import shown


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

    def draw(self, logits: jax.Array, uniform: jax.Array) -> jax.Array:
        """One token from the logits (V,) of one sequence: the one in whose share of the probabilities, laid end to end,
        the random number `uniform` (), at least 0 and below 1, falls."""
        if self.temperature == 0:
            return jnp.argmax(logits).astype(jnp.int32)
        # jax.random.categorical draws a random number for each token, which is far slower for a large vocabulary.
        ends = jnp.cumsum(jax.nn.softmax(self.filter(logits / self.temperature)))
        return (ends <= uniform * ends[-1]).sum(dtype=jnp.int32)

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
