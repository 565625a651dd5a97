"""One step of training and one evaluation, as pure functions: state in, state out.

Nothing here reads a file, prints, or keeps anything between calls; `fit.py` does that around it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgpt.config import ModelConfig, TrainConfig
from jaxgpt.data import batches
from jaxgpt.device import backend, precision, sharding
from jaxgpt.device.sharding import AXIS
from jaxgpt.model import ladder
from jaxgpt.model.gpt import GPT
from jaxgpt.training import optimizer


class TrainState(NamedTuple):
    """Everything that a step changes, and so everything that a checkpoint holds."""

    step: jax.Array  # () int32, updates done
    params: Any  # nested dict of float32 arrays
    average: Any  # running mean of `params`, or () where `ema_decay` is 0
    opt_state: Any  # optax's
    loss_scale: precision.LossScale
    skipped: jax.Array  # () int32, updates in a row left out for a gradient that was not finite

    @property
    def weights(self) -> Any:
        """What is evaluated, sampled from, and kept in the end: the running mean, where there is one."""
        return self.average or self.params


class Metrics(NamedTuple):
    """What a step tells of itself."""

    loss: jax.Array  # mean over the batch, in nats a token
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array
    loss_scale: jax.Array
    skipped: jax.Array  # updates in a row left out for a gradient that was not finite
    skipped_in_all: jax.Array  # since the first step


def build(config: ModelConfig, seed: int) -> nnx.Module:
    """A model with fresh weights: the GPT, or a rung of the ladder."""
    architecture = GPT if config.architecture == "gpt" else ladder.RUNGS[config.architecture]
    return architecture(config, nnx.Rngs(seed))


def params_of(model: nnx.Module):
    """The model's weights, as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_params(config: ModelConfig, seed: int):
    """Fresh weights, as a nested dict of arrays."""
    return params_of(build(config, seed))


def graph(config: ModelConfig) -> nnx.GraphDef:
    """The model without its weights: `nnx.merge(graph(config), params)` is the model."""
    return nnx.split(nnx.eval_shape(lambda: build(config, 0)))[0]


def n_params(config: ModelConfig) -> int:
    """How many weights the model has."""
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: init_params(config, 0))))


def make_mesh(config: TrainConfig) -> Mesh:
    """The devices that a run of `config` uses on this machine."""
    return sharding.mesh(config, n_params(config.model))


def init_state(config: TrainConfig, dtype: jnp.dtype) -> TrainState:
    """The state before the first step."""
    params = init_params(config.model, config.seed)
    opt_state = optimizer.build(config).init(params)
    average = jax.tree.map(jnp.copy, params) if config.ema_decay else ()
    return TrainState(jnp.int32(0), params, average, opt_state, precision.initial_scale(dtype), jnp.int32(0))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Each target's loss in nats: (B, T, V) and (B, T) to (B, T)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def make_train_step(config: TrainConfig, dtype: jnp.dtype, mesh: Mesh | None = None) -> Callable:
    """The jitted `train_step(state, tokens) -> (state, metrics)`.

    `tokens` (N,) is the whole training text, from which the step draws its own batch, to be shared among the
    devices of `mesh` (None: `make_mesh`). The state that is handed in is used up: its memory becomes the new state's.
    """
    mesh = mesh or make_mesh(config)
    return _jit(_train_step(config, dtype, mesh), mesh)


def make_train_steps(config: TrainConfig, dtype: jnp.dtype, mesh: Mesh | None = None) -> Callable:
    """The jitted `train_steps(state, tokens, n) -> (state, metrics of the last)`: `n` updates, one at least.

    One call from Python takes longer than a step of a small model; `n` may change without compiling anew.
    """
    mesh = mesh or make_mesh(config)
    train_step = _train_step(config, dtype, mesh)

    def train_steps(state: TrainState, tokens: jax.Array, n: jax.Array) -> tuple[TrainState, Metrics]:
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(train_step, state, tokens)[1])
        return jax.lax.fori_loop(0, n, lambda _, before: train_step(before[0], tokens), (state, none))

    return _jit(train_steps, mesh)


def compile_train_steps(config: TrainConfig, dtype: jnp.dtype, mesh: Mesh, tokens: jax.Array) -> Callable:
    """`make_train_steps`, compiled already, for the training text `tokens` (N,); its `n` is an int32."""
    state = jax.eval_shape(lambda: init_state(config, dtype))
    return make_train_steps(config, dtype, mesh).lower(state, tokens, jnp.int32(1)).compile()


def _jit(train: Callable, mesh: Mesh) -> Callable:
    """`train(state, ...)` compiled for the devices of `mesh`, all of which hold all that it takes and gives."""
    everywhere = sharding.replicated(mesh)
    options = backend.compiler_options(mesh.devices.flat[0].platform)
    return jax.jit(train, donate_argnums=0, in_shardings=everywhere, out_shardings=everywhere, compiler_options=options)


def _train_step(config: TrainConfig, dtype: jnp.dtype, mesh: Mesh) -> Callable:
    """`train_step(state, tokens) -> (state, metrics)`, not compiled yet."""
    graphdef = graph(config.model)
    tx = optimizer.build(config, mesh)
    schedule = optimizer.learning_rate(config)
    n = sharding.micro_batches(config, mesh)

    def loss_fn(params, x, y, key, scale):
        model = nnx.merge(graphdef, precision.cast(params, dtype))
        loss = cross_entropy(model(x, key), y).mean()
        return loss * scale, loss

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(AXIS), P(AXIS), P(), P()), out_specs=P(), check_vma=False)
    def loss_and_grads(params, x, y, key, scale):
        """Mean loss and gradients over a batch (B, T), of which each device sees its own share (b, T)."""
        key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        gradients = jax.value_and_grad(loss_fn, has_aux=True)

        def add(total, part):
            (_, loss), grads = gradients(params, *part, scale)
            return jax.tree.map(jnp.add, total, (loss, grads)), None

        if n == 1:
            (_, loss), grads = gradients(params, x, y, key, scale)
            mean = loss, grads
        else:  # one micro-batch after another
            parts = (x.reshape(n, -1, x.shape[1]), y.reshape(n, -1, y.shape[1]), jax.random.split(key, n))
            zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
            total, _ = jax.lax.scan(add, zeros, parts)
            mean = jax.tree.map(lambda t: t / n, total)
        return sharding.average(mean, mesh)

    def train_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch_key, dropout_key = jax.random.split(key)
        x, y = batches.random_windows(batch_key, tokens, config.batch_size, config.model.block_size)
        scale = state.loss_scale.factor
        loss, grads = loss_and_grads(state.params, x, y, dropout_key, scale)
        grads = jax.tree.map(lambda g: g / scale, grads)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)

        updates, opt_state = tx.update(grads, state.opt_state, state.params, finite=finite)
        # A gradient that is not finite must not reach the weights: such an update is left out.
        params = jax.tree.map(lambda p, u: jnp.where(finite, p + u, p), state.params, updates)
        average = running_mean(state.average, params, config.ema_decay, state.step) if config.ema_decay else ()
        skipped = jnp.where(finite, 0, state.skipped + 1)
        made = optax.tree.get(opt_state, "ScaleByAdamState").count
        metrics = Metrics(loss, grad_norm, schedule(state.step), scale, skipped, state.step + 1 - made)
        scale = precision.adjust_scale(state.loss_scale, finite, dtype)
        return TrainState(state.step + 1, params, average, opt_state, scale, skipped), metrics

    return train_step


def running_mean(average, params, decay: float, step: jax.Array):
    """The mean of the weights with those of one update more: Polyak and Juditsky 1992, with a memory that fades.

    It is short at first, about a tenth of the `step` updates so far, so that it soon forgets the untrained weights.
    """
    return optax.incremental_update(params, average, 1 - jnp.minimum(decay, (1 + step) / (10 + step)))


def make_evaluate(config: TrainConfig, dtype: jnp.dtype, mesh: Mesh | None = None) -> Callable:
    """The jitted `evaluate(params, tokens, starts, skips) -> mean loss` over windows of a text.

    `starts` and `skips` are those of `batches.fixed_windows`. Dropout is off.
    """
    mesh = mesh or make_mesh(config)
    graphdef = graph(config.model)
    block_size = config.model.block_size

    rows = P(None, AXIS)  # (W / B, B): each device takes its share of every row

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), rows, rows), out_specs=P(), check_vma=False)
    def evaluate(params, tokens, starts, skips):
        model_params = precision.cast(params, dtype)

        def add(total, part):
            starts, skips = part
            x, y = batches.windows(tokens, starts, block_size)
            counts = jnp.arange(block_size) >= skips[:, None]  # (B, T)
            losses = cross_entropy(nnx.merge(graphdef, model_params)(x), y)
            return (total[0] + (losses * counts).sum(), total[1] + counts.sum()), None

        total, _ = jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), (starts, skips))
        loss, count = jax.lax.psum(total, AXIS)
        return loss / count

    return evaluate


def eval_windows(config: TrainConfig, n_tokens: int, count: int | None = None) -> tuple[jax.Array, jax.Array]:
    """`batches.fixed_windows` in rows of the batch size, (W / B, B); what fills the last row does not count."""
    block_size, rows = config.model.block_size, config.batch_size
    starts, skips = batches.fixed_windows(n_tokens, block_size, count)
    missing = -len(starts) % rows
    starts = jnp.pad(jnp.asarray(starts), (0, missing))
    skips = jnp.pad(jnp.asarray(skips), (0, missing), constant_values=block_size)
    return starts.reshape(-1, rows), skips.reshape(-1, rows)
