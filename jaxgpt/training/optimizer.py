"""AdamW as GPT-2 is trained with it, from optax: decay on matrices only, warm-up, cosine, clipping; or with Muon."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxgpt.config import TrainConfig
from jaxgpt.model.ops import cpu_barrier
from jaxgpt.training.muon import scale_by_muon


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """AdamW's learning rate by step: a linear warm-up over `warmup_steps`, then the config's schedule."""
    peak, end = config.learning_rate, config.min_learning_rate
    warmup, last = config.warmup_steps, max(config.max_steps, config.warmup_steps + 1)
    start = peak / (warmup + 1)  # the first update counts, too
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(start, peak, warmup, last, end)
    constant = optax.warmup_constant_schedule(start, peak, warmup)
    if config.schedule == "constant":
        return constant
    decay_start = max(warmup, int(config.decay_start * config.max_steps))
    return optax.join_schedules([constant, optax.linear_schedule(peak, end, last - decay_start)], [decay_start])


def build(config: TrainConfig, mesh: Mesh | None = None) -> optax.GradientTransformationExtraArgs:
    """The chain that turns gradients into updates: `update(grads, state, params, finite=...)`, as in `scale_by_adam`.

    Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101; for
    `optimizer` "muon" see muon.py, whose work is shared among the devices of `mesh`. A new optimiser is a value of
    `TrainConfig.optimizer` and a chain here.
    """
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    schedule = learning_rate(config)
    decay = optax.add_decayed_weights(config.weight_decay, lambda params: jax.tree.map(lambda p: p.ndim >= 2, params))
    adamw = optax.chain(scale_by_adam(config.beta1, config.beta2), decay, optax.scale_by_learning_rate(schedule))
    if config.optimizer == "adamw":
        return optax.chain(clip, adamw)
    ratio = config.muon_learning_rate / config.learning_rate
    muon_rate = optax.scale_by_learning_rate(lambda step: ratio * schedule(step))
    muon = optax.chain(scale_by_muon(config.muon_momentum, mesh), decay, muon_rate)
    return optax.chain(clip, optax.partition({"muon": muon, "adamw": adamw}, param_labels))


def param_labels(params):
    """Which optimiser each weight belongs to where Muon is on: Muon takes the matrices of the blocks.

    Embeddings and the head are lists of vectors, one a token, of which an update touches a few.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, p: "muon" if path[0].key == "h" and p.ndim == 2 else "adamw", params
    )


def scale_by_adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, whose `update` takes one argument more: where `finite` is false, the moments stay as they
    are."""

    def update(updates, state: Any, params=None, *, finite: Any = True, **_):
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        new = optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)
        # The barrier: else XLA computes them a second time, from the old moments, which it must copy for that.
        new = cpu_barrier(jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state))
        mu = optax.tree.bias_correction(new.mu, b1, new.count)
        nu = optax.tree.bias_correction(new.nu, b2, new.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), new

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)
