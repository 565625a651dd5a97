"""Small models for the tests: every weight is noise, and a program that one test has compiled serves the others."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt.config import ModelConfig
from jaxgpt.model import build

CONFIG = ModelConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=16)
MODERN = {"embd_norm": True, "positions": "rotary", "qk_norm": True, "value_shift": True, "tie_head": False}
TOKENS = np.random.default_rng(7).integers(0, 11, (2, 6), np.int32)


def changed(**changes: Any) -> ModelConfig:
    return dataclasses.replace(CONFIG, **changes)


def noise(config: ModelConfig = CONFIG, std: float = 0.4) -> Any:
    """Weights far from their quiet start, biases and norms too; the same ones for the same config."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, std, p.shape), p.dtype), build.abstract_params(config))


@cache
def noisy(config: ModelConfig = CONFIG, std: float = 0.4) -> Any:
    """A model with `noise` for its weights, which no test changes."""
    return build.merge(config, noise(config, std))


def logits_of(model: Any, tokens: np.ndarray = TOKENS, key: jax.Array | None = None) -> np.ndarray:
    return np.asarray(_logits(*nnx.split(model), tokens, key))


@partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, tokens, key):
    return nnx.merge(graphdef, params)(tokens, key)


def decode(model: Any, tokens: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
    logits, cache = _decode(*nnx.split(model), tokens, cache)
    return np.asarray(logits), cache


@partial(jax.jit, static_argnums=0)
def _decode(graphdef, params, tokens, cache):
    return nnx.merge(graphdef, params).decode(tokens, cache)


def by_path(params: Any) -> dict[str, jax.Array]:
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
