"""picodo (github.com/martin-marek/picodo) as a contestant, read from a clone of the user's own; nothing of it is kept
here.

    python bench/picodo.py PATH looped|unrolled PRESET [NAME=VALUE ...]

`looped` is what it does by itself: a loop over its layers, and on a CPU one device. `unrolled` is what its README calls
faster: no loop; and on a CPU it has a device for each core, as ours. Its model is of another kind: rotary positions,
normalised queries and keys, no dropout, and as many weights as ours within a few hundredths.
"""

import importlib
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import numpy as np
import optax
import race
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from recipe import recipe
from train_step import random_text

from jaxgpt.config import TrainConfig
from jaxgpt.device import backend


def training_step(path: str, unrolled: bool, config: TrainConfig):
    """Its training steps, as its train.py makes them: a batch to the devices, then forward, backward and AdamW."""
    if not (Path(path) / "model.py").is_file():
        raise SystemExit(f"{path} is no clone of picodo: it has no model.py")
    for name in ("wandb", "omegaconf", "tqdm", "tqdm.auto"):  # of its command line and its logging
        sys.modules[name] = MagicMock()
    sys.path.insert(0, path)
    model, train = (importlib.import_module(name) for name in ("model", "train"))

    if unrolled:
        jax.config.update("jax_num_cpu_devices", backend.cores())
    n, m = jax.device_count(), config.model
    jax.set_mesh(jax.make_mesh((n, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2))
    sizes = {"D": m.n_embd, "H": m.n_embd // m.n_head, "L": m.n_layer, "V": math.ceil(m.vocab_size / n) * n}
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    how = {"remat": False, "unroll": unrolled, "dp_shard": False, "activ_dtype": dtype}
    size = SimpleNamespace(T=m.block_size, **sizes, **how)
    weights = model.create_sharded_model(size, jax.random.key(config.seed))
    forward = partial(model.forward, size)
    rates = (0.0, config.learning_rate, config.warmup_steps, config.max_steps)
    schedule = optax.schedules.warmup_cosine_decay_schedule(*rates)
    tx = optax.adamw(schedule, config.beta1, config.beta2, weight_decay=config.weight_decay)
    state = tx.init(weights)
    tokens = random_text(m.vocab_size)
    windows = tokens[: len(tokens) // m.block_size * m.block_size].reshape(-1, m.block_size)
    draw = np.random.default_rng(0)

    def run(n: int):
        nonlocal weights, state
        for i in range(n):
            batch = windows[draw.integers(0, len(windows), config.batch_size)]
            batch = jax.device_put(batch, P("data", None))
            weights, state, loss = train.train_step(forward, tx, weights, state, batch)
            if i % config.log_interval == 0 or i == n - 1:
                loss.item()

    return run


if __name__ == "__main__":
    path, how, *more = sys.argv[1:]
    race.serve(lambda: training_step(path, how == "unrolled", recipe(*more)))
