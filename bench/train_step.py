"""How fast is a training step, beside nanoGPT's and beside the machine's matrix products?

python bench/train_step.py --preset t4 --nanogpt ../nanoGPT --json out.json
"""

import sys
import time
from pathlib import Path

import race
import tyro

from jaxgpt import presets

HERE = Path(__file__)


def ours(preset: str, *changes: str):
    """Our training step, as train.py runs it, drawing its batches from a random text."""
    import jax
    import jax.numpy as jnp

    from jaxgpt.device import backend, precision, sharding
    from jaxgpt.training import loop as fit
    from jaxgpt.training import step as trainer

    backend.setup()
    values = {name: int(value) if value.isdigit() else value for name, value in (c.split("=") for c in changes)}
    config = presets.preset(preset, vocab_size=65, **values)
    dtype, _ = precision.choose(config.dtype, jax.devices()[0])
    tokens = jax.random.randint(jax.random.key(0), (1_003_854,), 0, 65).astype(jnp.uint16)
    mesh = trainer.make_mesh(config)
    train_steps = trainer.make_train_steps(config, dtype, mesh)
    everywhere = sharding.replicated(mesh)
    state = jax.jit(lambda: trainer.init_state(config, dtype), out_shardings=everywhere)()
    tokens = jax.device_put(tokens, everywhere)
    at_once = 1

    def run(n: int):
        """`n` steps as the training loop makes them: a few by a call, and a call's loss read while the next is on."""
        nonlocal state, at_once
        began, left, loss = time.perf_counter(), n, None
        while left:
            some = min(left, at_once, config.log_interval)
            before = loss
            state, (loss, *_) = train_steps(state, tokens, some)
            left -= some
            if before is not None:
                before.item()
        loss.item()
        at_once = max(1, int(fit.CALL_SECONDS * n / (time.perf_counter() - began)))

    return run


def flops(config) -> float:
    """Of one training step, as nanoGPT and PaLM (https://arxiv.org/abs/2204.02311, appendix B) count them: six for
    every weight of a matrix product and token, twelve for every pair of tokens and channel (masked pairs, too)."""
    m = config.model
    block = 12 * m.n_embd**2
    weights = m.n_layer * block + 65 * m.n_embd
    return (6 * weights + 12 * m.n_layer * m.n_embd * m.block_size) * config.batch_size * m.block_size


def main(preset: str = "t4", nanogpt: Path | None = None, rounds: int = race.ROUNDS, json: Path | None = None) -> None:
    """Races one training step.

    Args:
        preset: Whose size, batch and dropout.
        nanogpt: A clone of nanoGPT to race against (needs PyTorch).
        rounds: Turns of each contestant.
        json: File to write the figures to.
    """
    contestants = {"jaxgpt": [str(HERE), "--contestant", preset], "peak": [str(HERE.with_name("peak.py")), "numpy"]}
    if nanogpt is not None:
        peer = [str(HERE.with_name("nanogpt.py")), str(nanogpt), preset]
        contestants |= {"nanoGPT, eager": [*peer, "eager"], "nanoGPT, torch.compile": [*peer, "compiled"]}
        contestants["peak, PyTorch"] = [str(HERE.with_name("peak.py")), "torch"]
    results = race.race(contestants, rounds)

    from peak import FLOPS

    peak = max(FLOPS / r["median_seconds"] for name, r in results.items() if name.startswith("peak"))
    count = flops(presets.preset(preset))
    steps = {name: r for name, r in results.items() if not name.startswith("peak")}
    fastest_peer = min((r["median_seconds"] for name, r in steps.items() if name != "jaxgpt"), default=None)
    device = steps["jaxgpt"]["device"]  # None for the CPU, whose peak this is
    rows = []
    for name, r in steps.items():
        seconds, (middle, spread, peak_memory) = r["median_seconds"], race.figures(r, "ms")
        speed = f"{count / seconds / 1e9:,.0f} GF/s" + ("" if device else f", {count / seconds / peak:.0%}")
        rows.append((name, middle, spread, speed, peak_memory, f"{r['first_seconds']:.1f} s"))
    headings = (
        "training step",
        "median",
        "range (ms)",
        "speed" if device else f"of {peak / 1e9:,.0f} GF/s peak",
        "peak memory",
        "to the first",
    )
    ratio = None if fastest_peer is None else fastest_peer / steps["jaxgpt"]["median_seconds"]
    title = f"A training step of `{preset}`" + (f" on {device}" if device else "")
    if ratio is not None:
        title += f": {ratio:.2f} times as fast as the better nanoGPT"
    race.report(title, headings, rows, {"results": results, "peak_flops": peak, "flops": count, "ratio": ratio}, json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        race.serve(lambda: ours(*sys.argv[2:]))
    else:
        tyro.cli(main)
