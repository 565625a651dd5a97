"""How fast is Muon's part of an update, beside Optax's?

python bench/muon.py --preset speedrun
"""

import sys
from pathlib import Path

import race
import tyro

HERE = Path(__file__)


def contestant(name: str, preset: str):
    """Updates for the matrices of the blocks of `preset`, from random gradients, on all devices."""
    import jax
    import optax

    import jaxgpt
    from jaxgpt.device import backend
    from jaxgpt.model import build
    from jaxgpt.training import muon, step

    jaxgpt.setup()
    config = jaxgpt.preset(preset, vocab_size=65)
    placement = step.placement(config)
    tx = muon.scale_by_muon(config.muon_momentum, placement.mesh) if name == "jaxgpt" else optax.contrib.muon(-1.0)

    def start():
        blocks = build.init_params(config.model, 0)["h"]
        matrices = {i: x for i, x in enumerate(jax.tree.leaves(blocks)) if x.ndim == 2}
        return matrices, tx.init(matrices)

    everywhere = placement.replicated
    grads, state = jax.jit(start, out_shardings=everywhere)()
    options = backend.compiler_options(placement.platform)
    update = jax.jit(tx.update, in_shardings=everywhere, out_shardings=everywhere, compiler_options=options)
    return race.one_by_one(lambda: jax.block_until_ready(update(grads, state, grads)))


def main(preset: str = "speedrun", rounds: int = race.ROUNDS, json: Path | None = None) -> None:
    """Races one update of the momentum and its matrices made orthogonal.

    Args:
        preset: Whose matrices.
        rounds: Turns of each contestant.
        json: File to write the figures to.
    """
    names = ("jaxgpt", "optax.contrib")
    results = race.race({name: [str(HERE), "--contestant", name, preset] for name in names}, rounds)
    rows = [(name, *race.figures(r, "ms"), f"{r['first_seconds']:.1f} s") for name, r in results.items()]
    headings = ("Muon", "median", "range (ms)", "peak memory", "to the first")
    race.report(f"Muon's part of an update of `{preset}`", headings, rows, results, json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        race.serve(lambda: contestant(*sys.argv[2:]))
    else:
        tyro.cli(main)
