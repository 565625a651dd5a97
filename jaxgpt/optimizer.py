"""AdamW as GPT-2 is trained with it: decay on matrices only, warm-up, cosine, clipping. From optax."""

import jax
import jax.numpy as jnp
import optax

from jaxgpt.config import TrainConfig
from jaxgpt.ops import cut


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Step size by step: a climb over `warmup_steps`, then the config's schedule."""
    start = config.learning_rate / (config.warmup_steps + 1)  # the first update counts, too
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(start, config.learning_rate, config.warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        start,
        config.learning_rate,
        config.warmup_steps,
        max(config.max_steps, config.warmup_steps + 1),
        config.min_learning_rate,
    )


def build(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The chain that turns gradients into updates: `update(grads, state, params, finite=...)`, as in `scale_by_adam`.

    Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    adamw = optax.chain(
        scale_by_adam(config.beta1, config.beta2),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
    return optax.chain(clip, adamw)


def scale_by_adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, with moments that a bad gradient does not touch, and that are computed once.

    Its `update` takes one argument more, `finite`: where that is false, the moments stay as they are.
    """

    def update(grads, state: optax.ScaleByAdamState, params=None, *, finite: jax.Array | bool = True, **_):
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        new = optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)
        # Read from here, and not computed a second time from the old moments, which would have to be copied first.
        new = cut(jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state))
        mu = optax.tree.bias_correction(new.mu, b1, new.count)
        nu = optax.tree.bias_correction(new.nu, b2, new.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), new

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)
