"""The ladder and the GPT against an independent PyTorch implementation: losses, gradients, updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch_models
from models import noise
from torch.nn import functional as F

from jaxgpt.config import override
from jaxgpt.data import batches
from jaxgpt.device import precision, sharding
from jaxgpt.model.ladder import RUNGS
from jaxgpt.presets import preset
from jaxgpt.training import optimizer
from jaxgpt.training.step import TrainState, make_update

torch.set_num_threads(1)  # so small that threads would wait for each other longer than they work
F32 = jnp.dtype("float32")
pytestmark = pytest.mark.slow

VOCAB = 65
SMALL = {"block_size": 16, "n_layer": 1, "n_head": 4, "n_embd": 32, "dropout": 0.0, "batch_size": 8}
CONFIGS = {
    **{name: preset(name, n_layer=2 if name == "layernorm" else 1) for name in RUNGS},
    "cpu": preset("cpu", **SMALL),
    "t4": preset("t4", **SMALL),
    "gpt2": preset("cpu", **SMALL | {"n_layer": 2}, bias=True, weight_decay=0.1, grad_clip=0.5, beta2=0.95),
    "speedrun": preset("speedrun", **SMALL, optimizer="adamw", ema_decay=0.0),  # for Muon see test_muon.py
}
# Text with something to learn: a noisy walk through the alphabet.
TEXT = np.cumsum(np.random.default_rng(0).choice([1, 2, 5], 20_000)) % VOCAB


def torch_adamw(config, model: torch.nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-8)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_losses_gradients_and_twenty_updates_are_those_of_pytorch(config):
    config = override(config, vocab_size=VOCAB, warmup_steps=5)
    params, scale = noise(config.model, std=0.2), precision.initial_scale(F32)
    state = TrainState(jnp.int32(0), params, (), jax.jit(optimizer.build(config).init)(params), scale, jnp.int32(0))
    update = jax.jit(make_update(config, F32, sharding.place(jax.devices()[:1])))
    model = torch_models.build(config.model)
    torch_models.load(model, params)
    adamw, key = torch_adamw(config, model), jax.random.key(0)

    for i in range(20):
        windows = batches.host_batch(config.seed, i, TEXT, config.batch_size, config.model.block_size).astype(np.int32)
        x, y = windows[:, :-1], windows[:, 1:]
        state, metrics = update(state, x, y, key)
        adamw.zero_grad()
        scores = model(torch.from_numpy(x.astype(np.int64)))
        loss = F.cross_entropy(scores.flatten(0, 1), torch.from_numpy(y.astype(np.int64)).flatten())
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for group in adamw.param_groups:
            group["lr"] = metrics.learning_rate.item()
        adamw.step()
        np.testing.assert_allclose(metrics.loss, loss.item(), rtol=1e-5 if i == 0 else 1e-4)
        if i == 0:
            assert_same_gradients(model, config, state)

    # As one vector: where a gradient is nothing but rounding (a key's bias, a ReLU that never fires), Adam
    # still makes a full step of it, so that single weights may part by more.
    pairs = torch_models.weights(model, state.params)
    apart = np.sqrt(sum(np.square(ours - theirs).sum() for theirs, ours in pairs))
    assert apart <= 1e-4 * np.sqrt(sum(np.square(theirs).sum() for theirs, _ in pairs))


def assert_same_gradients(model: torch.nn.Module, config, state: TrainState) -> None:
    """Ours, as they reach Adam: its first moment, which after one update is a share of the gradient."""
    moment = optax.tree.get(state.opt_state, "ScaleByAdamState").mu
    pairs = torch_models.gradients(model, jax.tree.map(lambda mu: mu / (1 - config.beta1), moment))
    assert sum(a.size for a, _ in pairs) == sum(g.size for g in jax.tree.leaves(moment))  # none left out
    largest = max(np.abs(a).max() for a, _ in pairs)
    for a, b in pairs:
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * largest)
