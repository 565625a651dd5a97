"""A toy run for the tests of training: a text with something to learn, a model of one block, programs compiled once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.data import batches
from jaxgpt.device import sharding
from jaxgpt.device.sharding import Placement
from jaxgpt.training import feed, step
from jaxgpt.training.step import Metrics, TrainState

F32, F16 = jnp.dtype("float32"), jnp.dtype("float16")
# Without a bias of the keys: its gradient is nothing but rounding, of which Adam makes full steps.
MODEL = ModelConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=16, qkv_bias=False)
CONFIG = TrainConfig(model=MODEL, seed=1, batch_size=4, max_steps=30, warmup_steps=2, learning_rate=1e-2)
TABLE = override(CONFIG, architecture="bigram")  # for what no model makes a difference to: it is compiled quickly
TEXT = (np.cumsum(np.random.default_rng(0).choice([1, 3], 500)) % 13).astype(np.uint16)  # (500,)
KEY = jax.random.key(0)


@cache
def placement(n_devices: int = 1, micro_batches: int = 1, fsdp: int = 1, tensor: int = 1) -> Placement:
    return sharding.place(jax.devices()[:n_devices], micro_batches, fsdp, tensor)


def batch(first: int = 0, rows: int = 4) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets (rows, 8) of windows that begin at `first` and every 11 tokens after it."""
    return batches.inputs_and_targets(jnp.asarray(batches.windows(TEXT, first + 11 * np.arange(rows), 8)))


def init_state(config: TrainConfig = CONFIG, dtype=F32, on: Placement | None = None) -> TrainState:
    state = step.init_state(config, dtype)
    return jax.device_put(state, (on or placement()).shardings(state))


@cache
def update(config: TrainConfig = CONFIG, dtype=F32, on: Placement | None = None) -> step.Update:
    """The update, compiled; it leaves the state that it is given as it is."""
    return jax.jit(step.make_update(config, dtype, on or placement()))


@cache
def loop(config: TrainConfig, dtype=F32, on: Placement | None = None):
    """`feed.device_loop`."""
    return feed.device_loop(config, dtype, on or placement())


def run(config: TrainConfig, steps: int, dtype=F32, on: Placement | None = None) -> tuple[TrainState, list[Metrics]]:
    """The state after so many updates from the start, and the metrics of each."""
    state, metrics = init_state(config, dtype, on), []
    for _ in range(steps):
        state, last = loop(config, dtype, on)(state, feed.Text(TEXT), np.int32(1))
        metrics.append(last)
    return state, metrics


@contextmanager
def compilations(caplog) -> Iterator[list[str]]:
    """What JAX compiles inside, as it tells of it."""
    found = []
    caplog.clear()
    with jax.log_compiles():
        yield found
    found += [record.getMessage() for record in caplog.records if "XLA compilation" in record.getMessage()]


def assert_same(one: Any, other: Any) -> None:
    """Two trees hold the same numbers bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_near(one: Any, other: Any, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


def differ(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
