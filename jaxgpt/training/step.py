"""One step of training as a pure function: state and batch in, state and metrics out.

Nothing here reads a file, prints, or remembers anything between calls; `feed.py` brings the batches, `loop.py` does the
rest.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxgpt.config import TrainConfig
from jaxgpt.device import collectives, precision, sharding
from jaxgpt.device.mesh import FSDP
from jaxgpt.device.sharding import ROWS, Placement
from jaxgpt.model import build
from jaxgpt.model.loss import cross_entropy, soft_cross_entropy
from jaxgpt.model.ops import cpu_barrier
from jaxgpt.model.protocol import STREAM
from jaxgpt.training import optimizer


class TrainState(NamedTuple):
    """Everything that a step changes, and so everything that a checkpoint holds."""

    step: jax.Array  # () int32, updates done
    params: Any  # nested dict of float32 arrays
    ema_params: Any  # their moving average, or () where `ema_decay` is 0
    opt_state: Any  # optax's
    loss_scale: precision.LossScale
    skipped: jax.Array  # () int32, updates in a row left out for a gradient that was not finite

    @property
    def eval_params(self) -> Any:
        """What is evaluated and sampled from: the moving average, where there is one."""
        return self.ema_params or self.params


class Metrics(NamedTuple):
    """What a step reports."""

    loss: jax.Array  # mean over the batch, in nats a token
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array
    loss_scale: jax.Array
    skipped: jax.Array  # updates in a row left out for a gradient that was not finite
    total_skipped: jax.Array  # since the first step


Update = Callable[..., tuple[TrainState, Metrics]]


def placement(config: TrainConfig) -> Placement:
    """The devices that a run of `config` uses. Raises `UserError` as `sharding.for_training`."""
    c, m = config, config.model
    return sharding.for_training(c.batch_size, m.block_size, build.n_params(m), c.micro_batches, c.mesh)


@partial(jax.jit, static_argnums=(0, 1))  # so that it is traced once, for the state's shapes and for the state
def init_state(config: TrainConfig, dtype: jnp.dtype, params: Any = None) -> TrainState:
    """The state before the first step; with `params`, from these weights."""
    params = build.init_params(config.model, config.seed) if params is None else params
    opt_state = optimizer.build(config).init(params)
    ema_params = jax.tree.map(jnp.copy, params) if config.ema_decay else ()
    return TrainState(jnp.int32(0), params, ema_params, opt_state, precision.initial_scale(dtype), jnp.int32(0))


def abstract_state(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> TrainState:
    """The state's shapes, types, and how it lies on the devices."""
    return placement.abstract(_shapes(config, dtype))


def shardings(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> TrainState:
    """How the state lies on the devices."""
    return placement.shardings(_shapes(config, dtype))


@cache  # to trace it takes a while, and a run needs it a few times before its first step
def _shapes(config: TrainConfig, dtype: jnp.dtype) -> TrainState:
    return jax.eval_shape(lambda: init_state(config, dtype))


def make_update(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Update:
    """`update(state, inputs, targets, key, soft=None) -> (state, metrics)`, pure and not compiled yet.

    `inputs` and `targets` are (B, T) int32, to be shared among the devices of `placement`; `key` is of the dropout;
    `soft` are the soft targets (B, T, V) of a config that has a share for them.
    """
    graphdef = build.graph(config.model)
    tx = optimizer.build(config, placement.mesh)
    schedule = optimizer.learning_rate(config)
    specs = placement.specs(build.abstract_params(config.model))
    loss_and_grads = _make_loss_and_grads(graphdef, config, dtype, placement, specs)

    def update(state: TrainState, inputs: jax.Array, targets: jax.Array, key: jax.Array, soft: Any = None):
        scale = state.loss_scale.factor
        loss, grads = loss_and_grads(state.params, (inputs, targets, soft), key, scale)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)

        updates, opt_state = tx.update(grads, state.opt_state, state.params, finite=finite)
        # A gradient that is not finite must not reach the weights: such an update is left out.
        params = jax.tree.map(lambda p, u: jnp.where(finite, p + u, p), state.params, updates)
        ema_params = moving_average(state.ema_params, params, config.ema_decay, state.step) if config.ema_decay else ()
        skipped = jnp.where(finite, 0, state.skipped + 1)
        made = optax.tree.get(opt_state, "ScaleByAdamState").count
        rate = jnp.asarray(schedule(state.step))
        metrics = Metrics(loss, grad_norm, rate, scale, skipped, state.step + 1 - made)
        scale = precision.adjust_scale(state.loss_scale, finite, dtype)
        return TrainState(state.step + 1, params, ema_params, opt_state, scale, skipped), metrics

    return update


def _make_loss_and_grads(
    graphdef: nnx.GraphDef, config: TrainConfig, dtype: jnp.dtype, placement: Placement, param_specs: Any
) -> Callable:
    """`loss_and_grads(params, (inputs, targets, soft), key, scale)`: the mean loss, and the gradients, computed of
    `scale` times it. With soft targets they are those of a mean of both losses; the loss is still that of `targets`."""
    n, share = placement.micro_batches, config.soft_targets

    def loss_fn(params, batch, key, scale):
        params = collectives.gather(params, param_specs, dtype)
        model = nnx.merge(graphdef, precision.cast(params, dtype))
        inputs, targets, soft = batch
        if soft is None:
            loss = model.loss(inputs, targets, key, config.remat)
            return loss * scale, loss
        logits = model(inputs, key)
        loss, soft_loss = cross_entropy(logits, targets).mean(), soft_cross_entropy(logits, soft).mean()
        return ((1 - share) * loss + share * soft_loss) * scale, loss

    gradients = jax.value_and_grad(_gather_again(loss_fn, placement, config.remat), has_aux=True)

    def loss_and_grads(params, batch, key, scale):
        """Of a batch (B, T), of which each device sees its own share (b, T)."""
        key = jax.random.fold_in(key, jax.lax.axis_index(ROWS))

        def add(total, part):
            (_, loss), grads = gradients(params, *part, scale)
            return jax.tree.map(jnp.add, total, (loss, grads)), None

        if n == 1:
            (_, loss), grads = gradients(params, batch, key, scale)
        else:  # one micro-batch after another
            parts = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch), jax.random.split(key, n)
            zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
            (loss, grads), _ = jax.lax.scan(add, zeros, parts)
        # The barrier: else each use of a gradient is compiled for its place among those that were sent.
        loss, grads = cpu_barrier(collectives.average((loss, grads), placement, (P(), param_specs)))
        return loss / n, jax.tree.map(lambda g: g / (n * scale), grads)

    in_specs = param_specs, P(ROWS), P(), P()
    return collectives.share_rows(loss_and_grads, placement, in_specs, (P(), param_specs))


def _gather_again(loss_fn: Callable, placement: Placement, remat: bool) -> Callable:
    """`loss_fn`, whose gradient gathers the weights of other devices again instead of keeping them.

    Inside a `jax.checkpoint`, what the model keeps with `remat` must be said once more.
    """
    if placement.mesh.shape[FSDP] == 1:
        return loss_fn
    if remat:
        return jax.checkpoint(loss_fn, policy=jax.checkpoint_policies.save_only_these_names(STREAM))
    return jax.checkpoint(loss_fn, policy=lambda *of, **parameters: not collectives.is_gathered(*of, **parameters))


def moving_average(ema_params: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The exponential moving average of the weights after one update more (Polyak and Juditsky 1992).

    Its decay is `(1 + step) / (10 + step)` at first, so that it soon forgets the untrained weights.
    """
    done = step.astype(jnp.float32)
    return optax.incremental_update(params, ema_params, 1 - jnp.minimum(decay, (1 + done) / (10 + done)))
