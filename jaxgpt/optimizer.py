"""AdamW as GPT-2 is trained with it: decay on matrices only, warm-up, cosine, clipping. From optax."""

import jax
import optax

from jaxgpt.config import TrainConfig


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


def build(config: TrainConfig) -> optax.GradientTransformation:
    """The chain that turns gradients into updates.

    Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    adamw = optax.adamw(
        learning_rate(config),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
    )
    return optax.chain(clip, adamw)
