"""The ladder and the GPT against an independent PyTorch implementation: losses, gradients, updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_models
from flax import nnx
from torch.nn import functional as F

from jaxgpt import presets
from jaxgpt.config import override
from jaxgpt.data import batches
from jaxgpt.model import ladder
from jaxgpt.training import optimizer
from jaxgpt.training import step as trainer

VOCAB = 65
SMALL = {"block_size": 16, "n_layer": 3, "n_head": 4, "n_embd": 32, "dropout": 0.0, "batch_size": 8}
CONFIGS = {
    **{name: presets.preset(name) for name in ladder.RUNGS},
    "cpu": presets.preset("cpu", **SMALL),
    "t4": presets.preset("t4", **SMALL),
    "gpt2": presets.preset("cpu", **SMALL, bias=True, weight_decay=0.1, grad_clip=0.5, beta2=0.95),
    "speedrun": presets.preset("speedrun", **SMALL, optimizer="adamw"),  # Muon is held against Optax in test_muon.py
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return override(CONFIGS[request.param], vocab_size=VOCAB, warmup_steps=5)


@pytest.fixture(scope="module")
def tokens():
    """Text with something to learn: a noisy walk through the alphabet."""
    steps = np.random.default_rng(0).choice([1, 2, 5], 20_000)
    return jnp.asarray(np.cumsum(steps) % VOCAB, jnp.uint16)


def batch(config, tokens, step):
    """The batch that the train step draws, for PyTorch."""
    key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))[0]
    x, y = batches.random_windows(key, tokens, config.batch_size, config.model.block_size)
    return x, y, torch.from_numpy(np.asarray(x).astype(np.int64)), torch.from_numpy(np.asarray(y).astype(np.int64))


def torch_loss(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def test_the_same_weights_and_batch_give_the_same_loss_and_gradients(config, tokens):
    params = trainer.init_params(config.model, config.seed)
    graphdef = trainer.graph(config.model)
    x, y, torch_x, torch_y = batch(config, tokens, 0)

    def loss_fn(params):
        return trainer.cross_entropy(nnx.merge(graphdef, params)(x), y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    model = torch_models.build(config.model)
    torch_models.load(model, params)
    theirs = torch_loss(model, torch_x, torch_y)
    theirs.backward()

    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    pairs = torch_models.gradients(model, grads)
    assert sum(a.size for a, _ in pairs) == sum(g.size for g in jax.tree.leaves(grads))  # none left out
    largest = max(np.abs(a).max() for a, _ in pairs)
    for a, b in pairs:
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * largest)


def test_twenty_optimizer_steps_stay_together(config, tokens):
    state = trainer.init_state(config, jnp.dtype("float32"))
    model = torch_models.build(config.model)
    torch_models.load(model, state.params)
    step, schedule = trainer.make_train_step(config, jnp.dtype("float32")), optimizer.learning_rate(config)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-8)

    for i in range(20):
        _, _, x, y = batch(config, tokens, i)
        theirs = torch_loss(model, x, y)
        adamw.zero_grad()
        theirs.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(i))
        adamw.step()
        state, metrics = step(state, tokens)
        np.testing.assert_allclose(metrics.loss, theirs.item(), rtol=1e-4)

    # As one vector: where a gradient is nothing but rounding (a key's bias, a ReLU that never fires), Adam
    # still makes a full step of it, so that single weights may part by more.
    pairs = torch_models.weights(model, state.params)
    apart = np.sqrt(sum(np.square(ours - theirs).sum() for theirs, ours in pairs))
    assert apart <= 1e-4 * np.sqrt(sum(np.square(theirs).sum() for theirs, _ in pairs))
