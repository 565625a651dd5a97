"""The mean loss over windows of a text, without dropout."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxgpt.config import TrainConfig
from jaxgpt.data import batches
from jaxgpt.device import precision
from jaxgpt.device.sharding import AXIS, Placement
from jaxgpt.model import build
from jaxgpt.training.step import cross_entropy

Evaluate = Callable[[Any, np.ndarray, np.ndarray, np.ndarray], float]


def make_evaluate(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Evaluate:
    """`evaluate(params, tokens, starts, skips) -> mean loss` in nats a token.

    `tokens` (N,) is a text on the host, possibly mapped from a file; `starts` and `skips` (W,) are as those of
    `batches.fixed_windows`. One program, of `eval_windows` windows, serves for any number of them.
    """
    B, T = config.batch_size, config.model.block_size
    rows = -(-config.eval_windows // B)
    total_loss = make_total_loss(config, dtype, placement)

    def evaluate(params: Any, tokens: np.ndarray, starts: np.ndarray, skips: np.ndarray) -> float:
        loss = count = 0
        for first in range(0, len(starts), rows * B):
            part = slice(first, first + rows * B)
            missing = rows * B - len(starts[part])
            windows = batches.windows(tokens, np.pad(starts[part], (0, missing)), T).reshape(rows, B, T + 1)
            skipped = np.pad(skips[part], (0, missing), constant_values=T).reshape(rows, B)
            windows, skipped = jax.device_put((windows, skipped), placement.rows_of_batches)
            loss += total_loss(params, windows, skipped).item()
            count += (T - skips[part]).sum()
        return float(loss / count)

    return evaluate


def make_total_loss(config: TrainConfig, dtype: jnp.dtype, placement: Placement) -> Callable:
    """The jitted `total_loss(params, windows, skips)`: the sum of the losses of windows (N, B, T + 1), without the
    first `skips` (N, B) of each; batch by batch."""
    graphdef = build.graph(config.model)
    T = config.model.block_size
    specs = (P(), P(None, AXIS), P(None, AXIS))

    @jax.jit
    @partial(jax.shard_map, mesh=placement.mesh, in_specs=specs, out_specs=P(), check_vma=False)
    def total_loss(params, windows, skips):
        params = precision.cast(params, dtype)

        def add(total, batch):
            windows, skips = batch
            inputs, targets = batches.inputs_and_targets(windows)
            losses = cross_entropy(nnx.merge(graphdef, params)(inputs), targets)
            return total + jnp.where(jnp.arange(T) >= skips[:, None], losses, 0).sum(), None

        total, _ = jax.lax.scan(add, jnp.float32(0), (windows, skips))
        return jax.lax.psum(total, AXIS)

    return total_loss
