"""What makes a step fast changes no number: the same losses as the plainest way to compute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import presets
from jaxgpt.config import TrainConfig, override
from jaxgpt.device import backend, sharding
from jaxgpt.model import attention, ladder, ops
from jaxgpt.model import gpt as model
from jaxgpt.training import muon, optimizer
from jaxgpt.training import step as trainer

SMALL = {"vocab_size": 13, "block_size": 70, "n_layer": 2, "n_head": 2, "n_embd": 16, "batch_size": 4, "dropout": 0.0}
CONFIGS = {
    **{name: presets.preset(name, **SMALL | {"block_size": 8}) for name in ladder.RUNGS},
    "cpu": presets.preset("cpu", **SMALL, warmup_steps=1),
    "t4": presets.preset("t4", **SMALL),
    "widest": presets.preset("t4", **SMALL | {"n_embd": 96, "n_layer": 1}, tie_head=True, activation="gelu"),
    "speedrun": presets.preset("speedrun", **SMALL),
    "no bias": presets.preset("t4", **SMALL, bias=False),
}


def losses(config: TrainConfig, text: jax.Array, n_devices: int) -> list[float]:
    """Of three updates in a row."""
    mesh = sharding.over(jax.devices()[:n_devices])
    step = trainer.make_train_step(config, jnp.dtype("float32"), mesh)
    state = jax.device_put(trainer.init_state(config, jnp.dtype("float32")), sharding.replicated(mesh))
    found = []
    for _ in range(3):
        state, metrics = step(state, text)
        found += [metrics.loss.item(), metrics.grad_norm.item()]
    return found


def plain_attention(q, k, v, rate=0.0, key=None):
    T = q.shape[1]
    return attention.attend(q, k, v, jnp.tril(jnp.ones((T, T), bool)))


def plain_layer_norm(x, scale, bias):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    return y if bias is None else y + bias


def plain_rms_norm(x):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_fast_step_has_the_losses_and_gradients_of_the_plain_one(config, monkeypatch):
    text = jnp.asarray(np.cumsum(np.random.default_rng(0).choice([1, 3], 2000)) % 13, jnp.uint16)
    fast = losses(override(config, micro_batches=2), text, 2)
    for module in (model, ops, optimizer, muon):
        monkeypatch.setattr(module, "cut", lambda x: x)
    monkeypatch.setattr(model, "matmul", lambda x, w, dtype: x @ w)
    monkeypatch.setattr(model, "add_bias", jnp.add)
    monkeypatch.setattr(model, "layer_norm", plain_layer_norm)
    monkeypatch.setattr(model, "rms_norm", plain_rms_norm)
    monkeypatch.setattr(model, "ACTIVATIONS", {"gelu": jax.nn.gelu, "relu": jax.nn.relu})
    monkeypatch.setattr(model, "causal_attention", plain_attention)
    monkeypatch.setattr(backend, "compiler_options", lambda platform: {})
    assert fast == pytest.approx(losses(override(config, micro_batches=1), text, 1), rel=2e-5)
