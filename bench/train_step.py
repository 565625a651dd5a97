"""How fast is a training step, beside nanoGPT's and picodo's and, on a CPU, beside the machine's matrix products?

python bench/train_step.py --preset t4 --nanogpt ../nanoGPT --picodo ../picodo --json out.json
python bench/train_step.py --preset cpu --changes n_layer=12 n_head=12 n_embd=768 block_size=1024 batch_size=8

"To the first" is how long it takes from the start of Python to the end of the first step, with nothing compiled before.
"""

import sys
import time
from pathlib import Path

import numpy as np
import race
import tyro
from recipe import VOCABULARY, recipe

HERE = Path(__file__)


def ours(preset: str, *changes: str):
    """Our training step, as train.py runs it, drawing its batches from a random text."""
    import jax

    import jaxgpt
    from jaxgpt.device import precision
    from jaxgpt.training import feed, step
    from jaxgpt.training.pacer import CALL_SECONDS

    jaxgpt.setup()
    config = recipe(preset, *changes)
    placement = step.placement(config)
    dtype, _ = precision.choose(config.dtype, placement.mesh.devices.flat[0])
    train_steps = feed.compile_train_steps(config, dtype, placement, random_text(config.model.vocab_size))
    shardings = step.shardings(config, dtype, placement)
    state = jax.jit(lambda: step.init_state(config, dtype), out_shardings=shardings)()
    done, steps_per_call = 0, 1

    def run(n: int):
        """`n` steps as the training loop makes them: a few by a call, and a call's loss read while the next is on."""
        nonlocal state, done, steps_per_call
        began, end, metrics = time.perf_counter(), done + n, None
        while done < end:
            some = min(end - done, steps_per_call, config.log_interval)
            before = metrics
            state, metrics = train_steps(state, done, some)
            done += some
            if before is not None:
                before.loss.item()
        metrics.loss.item()
        steps_per_call = max(1, int(CALL_SECONDS * n / (time.perf_counter() - began)))

    return run


def random_text(vocab_size: int = VOCABULARY) -> np.ndarray:
    """As long as the training text of tiny Shakespeare, and by default with as many different tokens: (N,)."""
    return np.random.default_rng(0).integers(0, vocab_size, 1_003_854, np.uint16)


def flops(config) -> float:
    """Of one training step, as nanoGPT and PaLM (https://arxiv.org/abs/2204.02311, appendix B) count them: six for
    every weight of a matrix product and token, twelve for every pair of tokens and channel (masked pairs, too)."""
    m = config.model
    block = 12 * m.n_embd**2
    weights = m.n_layer * block + (m.vocab_size or VOCABULARY) * m.n_embd
    return (6 * weights + 12 * m.n_layer * m.n_embd * m.block_size) * config.batch_size * m.block_size


def main(
    preset: str = "t4",
    changes: tuple[str, ...] = (),
    nanogpt: Path | None = None,
    picodo: Path | None = None,
    rounds: int = race.ROUNDS,
    json: Path | None = None,
) -> None:
    """Races one training step.

    Args:
        preset: Whose size, batch and dropout.
        changes: Fields of it that are to be others: NAME=VALUE.
        nanogpt: A clone of nanoGPT to race against (needs PyTorch).
        picodo: A clone of picodo to race against.
        rounds: Turns of each contestant.
        json: File to write the figures to.
    """
    wanted = [preset, *changes]
    contestants = {"jaxgpt": [str(HERE), "--contestant", *wanted], "peak": [str(HERE.with_name("peak.py")), "numpy"]}
    if nanogpt is not None:
        for name, how in (("nanoGPT, eager", "eager"), ("nanoGPT, torch.compile", "compiled")):
            contestants[name] = [str(HERE.with_name("nanogpt.py")), str(nanogpt), how, *wanted]
        contestants["peak, PyTorch"] = [str(HERE.with_name("peak.py")), "torch"]
    if picodo is not None:
        for how in ("looped", "unrolled"):
            contestants[f"picodo, {how}"] = [str(HERE.with_name("picodo.py")), str(picodo), how, *wanted]
    results = race.race(contestants, rounds)

    from peak import FLOPS

    peak = max(FLOPS / r["median_seconds"] for name, r in results.items() if name.startswith("peak"))
    count = flops(recipe(*wanted))
    steps = {name: r for name, r in results.items() if not name.startswith("peak")}
    fastest_peer = min((r["median_seconds"] for name, r in steps.items() if name.startswith("nanoGPT")), default=None)
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
    title = f"A training step of `{' '.join(wanted)}`" + (f" on {device}" if device else "")
    if ratio is not None:
        title += f": {ratio:.2f} times as fast as the better nanoGPT"
    race.report(title, headings, rows, {"results": results, "peak_flops": peak, "flops": count, "ratio": ratio}, json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        race.serve(lambda: ours(*sys.argv[2:]))
    else:
        tyro.cli(main)
