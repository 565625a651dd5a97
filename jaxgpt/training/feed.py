"""Updates one after another, each with its own batch: from a text on the device, or from a text on the host.

`train_steps(state, step, n) -> (state, metrics of the last)` makes `n` updates, one at least, from the `step` that the
state has (and the host knows without asking the device). It uses up the state that is handed in: its memory becomes the
new state's. One call for several updates, since a call from Python takes longer than a step of a small model.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxgpt.config import TrainConfig
from jaxgpt.counting import HeldOut
from jaxgpt.data import batches
from jaxgpt.data.token_files import Tokens
from jaxgpt.device import backend, memory, sharding
from jaxgpt.device.sharding import Placement
from jaxgpt.threads import in_thread
from jaxgpt.training.step import Metrics, TrainState, abstract_state, make_update, shardings

DEVICE_TEXT_BYTES = 2**30  # of a text that every device can hold a copy of


class TrainSteps(NamedTuple):
    """`train_steps(state, step, n)`, and the memory that it needs."""

    run: Callable[[TrainState, int, int], tuple[TrainState, Metrics]]
    need: memory.Need

    def __call__(self, state: TrainState, step: int, n: int) -> tuple[TrainState, Metrics]:
        return self.run(state, step, n)


class Text(NamedTuple):
    """A training text on the devices, each of which holds all of it."""

    tokens: jax.Array
    """(N,)"""
    rows: Any = None
    """With soft targets: (N,) the row of `soft` for each token."""
    soft: Any = None
    """With soft targets: (R, V) distributions of the next token, see `HeldOut`."""
    starts: Any = None
    """Without replacement: (M, B) where the windows of a block of M steps begin, see `batches.shuffled_starts`."""


def compile_train_steps(config: TrainConfig, dtype: jnp.dtype, placement: Placement, tokens: Tokens) -> TrainSteps:
    """`train_steps` for the training text `tokens` (N,), compiled. The text goes to the devices if it fits, or has soft
    targets."""
    copies = placement.mesh.size if placement.platform == "cpu" else 1  # whose devices share one memory
    fits = tokens.nbytes * copies <= DEVICE_TEXT_BYTES and len(tokens) <= batches.INT32
    if fits or config.soft_targets:
        return from_device(config, dtype, placement, np.asarray(tokens))
    return from_host(config, dtype, placement, tokens)


def from_device(config: TrainConfig, dtype: jnp.dtype, placement: Placement, tokens: np.ndarray) -> TrainSteps:
    """Every device holds the text, and takes the batch from it; `n` may change without compiling anew."""
    put = partial(sharding.put, sharding=placement.replicated)
    text, table = Text(put(tokens)), None
    if config.soft_targets:
        counts = HeldOut(tokens, config.model.vocab_size)
        table = in_thread(counts.table)  # is counted while the program is compiled
        soft = jax.ShapeDtypeStruct(counts.shape, np.float32, sharding=placement.replicated)
        text = text._replace(rows=put(counts.rows), soft=soft)
    starts = lru_cache(maxsize=1)(partial(_starts, config, len(tokens), placement))
    state, text = abstract_state(config, dtype, placement), text._replace(starts=starts(0))
    program = device_loop(config, dtype, placement).lower(state, text, np.int32(1)).compile()
    if table is not None:
        text = text._replace(soft=put(table.result()))

    def train_steps(state: TrainState, step: int, n: int) -> tuple[TrainState, Metrics]:
        metrics: Any = None
        while n > 0:  # a block at a time
            block, past = divmod(step, batches.STEPS_AT_ONCE)
            some = min(n, batches.STEPS_AT_ONCE - past)
            state, metrics = program(state, text._replace(starts=starts(block)), np.int32(some))
            step, n = step + some, n - some
        return state, metrics

    return TrainSteps(train_steps, memory.of_program(program, placement))


def _starts(config: TrainConfig, n_tokens: int, placement: Placement, block: int) -> Any:
    """`Text.starts` of a block of steps."""
    if config.replacement:
        return None  # the device draws them
    B, T = config.batch_size, config.model.block_size
    starts = batches.shuffled_starts(config.seed, block, n_tokens - T, B, T)
    return sharding.put(starts.astype(np.int32), placement.replicated)


def device_loop(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Any:
    """The jitted `loop(state, text, n)`, `text` the training text on the devices and `n` the number of updates."""
    update = make_update(config, dtype, placement)
    B, T = config.batch_size, config.model.block_size

    @jax.jit  # traced once for both its uses
    def train_step(state: TrainState, text: Text) -> tuple[TrainState, Metrics]:
        batch_key, dropout_key = batches.step_keys(config.seed, state.step)
        if text.starts is None:
            starts = batches.random_starts(batch_key, text.tokens.shape[0] - T, B)
        else:
            starts = text.starts[state.step % batches.STEPS_AT_ONCE]
        inputs, targets = batches.inputs_and_targets(batches.windows(text.tokens, starts, T))
        soft = None
        if text.rows is not None:
            _, rows = batches.inputs_and_targets(batches.windows(text.rows, starts, T))
            soft = text.soft[rows]  # (B, T, V)
        return update(state, inputs, targets, dropout_key, soft)

    def loop(state: TrainState, text: Text, n: jax.Array) -> tuple[TrainState, Metrics]:
        metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(train_step, state, text)[1])
        return jax.lax.fori_loop(0, n, lambda _, before: train_step(before[0], text), (state, metrics))

    return _jit(loop, config, dtype, placement, placement.replicated, placement.replicated)


def from_host(config: TrainConfig, dtype: jnp.dtype, placement: Placement, tokens: Tokens) -> TrainSteps:
    """The host draws the same batches and sends one after another, the next while the device works on one."""
    B, T = config.batch_size, config.model.block_size
    state = abstract_state(config, dtype, placement)
    windows = jax.ShapeDtypeStruct((B, T + 1), tokens.dtype, sharding=placement.batch)
    program = host_step(config, dtype, placement).lower(state, windows).compile()

    def train_steps(state: TrainState, step: int, n: int) -> tuple[TrainState, Metrics]:
        metrics: Any = None
        for i in range(step, step + n):
            read = partial(batches.host_batch, config.seed, i, tokens, B, T, config.replacement)
            state, metrics = program(state, sharding.put_rows(read, (B, T + 1), placement.batch))
        return state, metrics

    return TrainSteps(train_steps, memory.of_program(program, placement))


def host_step(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Any:
    """The jitted `step(state, windows)`, `windows` (B, T + 1) the batch of the next update."""
    update = make_update(config, dtype, placement)

    def step(state: TrainState, windows: jax.Array) -> tuple[TrainState, Metrics]:
        _, dropout_key = batches.step_keys(config.seed, state.step)
        return update(state, *batches.inputs_and_targets(windows), dropout_key)

    return _jit(step, config, dtype, placement, placement.batch)


def _jit(function: Callable, config: TrainConfig, dtype: jnp.dtype, placement: Placement, *others: Sharding) -> Any:
    """`function(state, ...)` compiled for the devices of `placement`; the old state's memory is used for the new.

    Args:
        others: how the arguments after the state lie on the devices.
    """
    state = shardings(config, dtype, placement)
    return jax.jit(
        function,
        donate_argnums=0,
        in_shardings=(state, *others),
        out_shardings=(state, placement.replicated),
        compiler_options=backend.compiler_options(placement.platform),
    )
