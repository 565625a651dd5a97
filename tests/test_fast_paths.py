"""What makes a step fast changes no number: the same losses as the plainest way to compute them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxgpt import presets
from jaxgpt.config import TrainConfig
from jaxgpt.data import batches
from jaxgpt.device import backend
from jaxgpt.model import attention, gpt, ladder, ops
from jaxgpt.training import feed, muon, optimizer

pytestmark = pytest.mark.slow

SMALL = {"vocab_size": 13, "block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 16, "batch_size": 4, "dropout": 0.0}
CONFIGS = {
    "layernorm": presets.preset("layernorm", **SMALL | {"block_size": 8}),
    "gpt2": presets.preset("cpu", **SMALL | {"n_embd": 96}, bias=True, warmup_steps=1),
    "t4": presets.preset("t4", **SMALL),
    "speedrun": presets.preset("speedrun", **SMALL | {"n_layer": 2}),
}


def figures(config: TrainConfig, n_devices: int, micro_batches: int) -> tuple[list[float], list[np.ndarray]]:
    """The losses and the norms of the gradients of three updates in a row; and the optimiser's moments after the first,
    which are its gradient and its square."""
    on = toy.placement(n_devices, micro_batches)
    state, host_step = toy.init_state(config, toy.F32, on), feed.host_step(config, toy.F32, on)
    found, moments = [], []
    for i in range(3):
        windows = batches.host_batch(0, i, toy.TEXT, config.batch_size, config.model.block_size)
        state, metrics = host_step(state, windows)
        found += [metrics.loss.item(), metrics.grad_norm.item()]
        moments = moments or [np.array(leaf) for leaf in jax.tree.leaves(state.opt_state)]
    return found, moments


def plain_attention(q, k, v, rate=0.0, key=None):
    """Equation 1 of Vaswani et al. 2017, (B, T, H, D)."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


def plain_layer_norm(x, scale, bias):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    return y if bias is None else y + bias


def plain_rms_norm(x):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def plain_orthogonalize(matrices, mesh=None):
    """One matrix after the other, by the steps of Jordan et al. 2024."""

    def one(x):
        wide = x if x.shape[0] <= x.shape[1] else x.T
        wide = wide / jnp.linalg.norm(wide)
        for _ in range(5):
            square = wide @ wide.T
            wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
        return (wide if x.shape[0] <= x.shape[1] else wide.T) * max(1, x.shape[1] / x.shape[0]) ** 0.5

    return jax.tree.map(one, matrices)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_fast_step_has_the_losses_and_gradients_of_the_plain_one(config, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 16)  # two chunks, the last shorter
    fast, fast_moments = figures(config, n_devices=2, micro_batches=2)
    for module in (gpt, ops, optimizer, muon):
        monkeypatch.setattr(module, "cpu_barrier", lambda x: x)
    monkeypatch.setattr(gpt, "matmul", lambda x, w, dtype: x @ w)
    monkeypatch.setattr(gpt, "add_bias", jnp.add)
    monkeypatch.setattr(gpt, "layer_norm", plain_layer_norm)
    monkeypatch.setattr(gpt, "rms_norm", plain_rms_norm)
    monkeypatch.setattr(gpt, "ACTIVATIONS", {"gelu": jax.nn.gelu, "relu": jax.nn.relu})
    monkeypatch.setattr(gpt, "causal_attention", plain_attention)
    monkeypatch.setattr(ladder, "product", lambda formula, a, b, dtype: jnp.einsum(formula, a, b))
    monkeypatch.setattr(muon, "orthogonalize", plain_orthogonalize)
    monkeypatch.setattr(backend, "compiler_options", lambda platform: {})
    plain, plain_moments = figures(config, n_devices=1, micro_batches=1)
    assert fast == pytest.approx(plain, rel=2e-5)
    for one, other in zip(fast_moments, plain_moments, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
