"""What is each trick of the training step worth? Races the step against itself without one of them at a time.

    python bench/without.py --preset t4 --json out.json

On a CPU. What is left out here is in jaxgpt/model/{ops,attention}.py, device/{sharding,backend}.py,
training/optimizer.py and cli/process.py, each with the reason why it is there.
"""

import os
import sys
from pathlib import Path

import race
import train_step
import tyro

from jaxgpt import presets

HERE = Path(__file__)


def one_device():
    from jaxgpt.device import backend

    backend.cores = lambda: 1


def plain_xla():
    os.environ["JAXGPT_PLAIN_XLA"] = "1"


def memory_given_back():
    from jaxgpt.cli import process

    process._keep_freed_memory = lambda: None


def plain_matmul():
    import jax.numpy as jnp

    from jaxgpt.model import gpt

    gpt.matmul = lambda x, w, dtype: jnp.matmul(x, w, preferred_element_type=dtype)


def plain_attention():
    import jax
    import jax.numpy as jnp

    from jaxgpt.model import gpt, ops

    def attention(q, k, v, rate, key):
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        return jnp.einsum("bhts,bshd->bthd", ops.dropout(weights, rate, key), v)

    gpt.causal_attention = attention


def plain_layer_norm():
    import jax
    import jax.numpy as jnp

    from jaxgpt.model import gpt

    def layer_norm(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale
        return y if bias is None else y + bias

    gpt.layer_norm = layer_norm


def random_bits_by_jax():
    import jax

    from jaxgpt.model import ops

    ops.random_bits = lambda key, shape: jax.random.bits(key, shape)


def optax_adam():
    import optax

    from jaxgpt.training import optimizer

    optimizer.scale_by_adam = lambda b1, b2: optax.with_extra_args_support(optax.scale_by_adam(b1, b2))


def whole_share():
    from jaxgpt.device import sharding

    sharding._micro_batches = lambda rows, block_size, most_tokens: 1


TRICKS = {
    "a device for every core": one_device,
    "micro-batches near the cache": whole_share,
    "barriers that XLA's CPU compiler keeps": plain_xla,
    "products with a gradient of their own": plain_matmul,
    "attention in chunks, with a gradient of its own": plain_attention,
    "LayerNorm with a gradient of its own": plain_layer_norm,
    "dropout by hashing": random_bits_by_jax,
    "Adam's moments computed once": optax_adam,
    "freed memory kept": memory_given_back,
}


def contestant(preset: str, trick: str):
    """The step of `preset` without the trick of that name; with all of them for the empty name."""
    if trick:
        TRICKS[trick]()
    return train_step.ours(preset)


def main(preset: str = "cpu", rounds: int = 5, json: Path | None = None) -> None:
    """Races the step against itself without each trick.

    Args:
        preset: Whose size, batch and dropout.
        rounds: Turns of each.
        json: File to write the figures to.
    """
    names = ["", *(name for name in TRICKS if "dropout" not in name or presets.preset(preset).model.dropout)]
    contestants = {name or "all of it": [str(HERE), "--contestant", preset, name] for name in names}
    results = race.race(contestants, rounds)
    whole = results["all of it"]["median_seconds"]
    rows = []
    for name, r in results.items():
        middle, spread, peak_memory = race.figures(r, "ms")
        called = name if name == "all of it" else f"without {name}"
        times = f"{r['median_seconds'] / whole:.2f}"
        rows.append((called, middle, spread, times, peak_memory, f"{r['first_seconds']:.1f} s"))
    headings = (
        f"a training step of `{preset}`",
        "median",
        "range (ms)",
        "times as long",
        "peak memory",
        "to the first",
    )
    race.report("What each trick is worth", headings, rows, results, json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        race.serve(lambda: contestant(*sys.argv[2:]))
    else:
        tyro.cli(main)
