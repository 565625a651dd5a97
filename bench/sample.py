"""How fast is text drawn, beside nanoGPT's `generate` and Hugging Face's?

python bench/sample.py --preset t4 --tokens 500 --samples 1 --nanogpt ../nanoGPT --huggingface --json out.json
python bench/sample.py --preset cpu --changes n_layer=12 n_head=12 n_embd=768 block_size=1024 vocab_size=50257 \
    --tokens 200 --huggingface
"""

import sys
from pathlib import Path

import race
import tyro
from recipe import recipe

from jaxgpt.model import build

HERE = Path(__file__)


def ours(preset: str, tokens: str, samples: str, *changes: str):
    """Our `generate`, as sample.py and `Run.samples` call it, from a prompt of one token; random weights."""
    import jax
    import numpy as np

    import jaxgpt
    from jaxgpt import sampling

    jaxgpt.setup()
    config = recipe(preset, *changes).model
    model = build.merge(config, jax.jit(lambda: build.init_params(config, 0))())
    prompt = np.zeros(1, np.int32)

    def run():
        text = sampling.generate(model, prompt, int(tokens), samples=int(samples))
        assert text.shape == (int(samples), int(tokens))

    return run


def main(
    preset: str = "t4",
    changes: tuple[str, ...] = (),
    tokens: int = 500,
    samples: int = 1,
    nanogpt: Path | None = None,
    huggingface: bool = False,
    rounds: int = race.ROUNDS,
    json: Path | None = None,
) -> None:
    """Races the drawing of text: all at the same size, from one token, with random weights; by default of 65 tokens.

    On a CPU, beside them, how long it takes to read all weights from memory once a token: a floor for one text.

    Args:
        preset: Whose size.
        changes: Fields of it that are to be others: NAME=VALUE.
        tokens: How many to draw for each sample.
        samples: Texts side by side.
        nanogpt: A clone of nanoGPT to race against (needs PyTorch). It reads its window anew for each token.
        huggingface: Race against GPT2LMHeadModel with its cache (needs transformers). It cannot slide its window:
            it gets a longer one, as long as the text.
        rounds: Turns of each contestant.
        json: File to write the figures to.
    """
    wanted = [preset, str(tokens), str(samples), *changes]
    contestants = {"jaxgpt": [str(HERE), "--contestant", *wanted]}
    count = str(build.n_params(recipe(preset, *changes).model))
    contestants["reading the weights"] = [str(HERE.with_name("peak.py")), "weights", count, str(tokens)]
    if nanogpt is not None:
        contestants["nanoGPT"] = [str(HERE.with_name("nanogpt.py")), str(nanogpt), "sample", *wanted]
    if huggingface:
        contestants["Hugging Face GPT-2"] = [str(HERE.with_name("huggingface.py")), *wanted]
    results = race.race(contestants, rounds)
    if results["jaxgpt"]["device"]:  # it was the memory of the CPU that was read
        del results["reading the weights"]

    fastest = results["jaxgpt"]["median_seconds"]
    rows = []
    for name, r in results.items():
        seconds, (middle, spread, peak_memory) = r["median_seconds"], race.figures(r, "s")
        rows.append(
            (name, middle, spread, f"{tokens * samples / seconds:,.0f}", peak_memory, f"{seconds / fastest:.2f}")
        )
    headings = (f"{tokens} tokens x {samples}", "median", "range (s)", "tokens/s", "peak memory", "time / ours")
    ratios = {
        name: r["median_seconds"] / fastest
        for name, r in results.items()
        if name not in ("jaxgpt", "reading the weights")
    }
    size = " ".join([preset, *changes])
    title = f"{tokens} tokens of {samples} {'text' if samples == 1 else 'texts'} at the size of `{size}`"
    title += f" on {results['jaxgpt']['device']}" if results["jaxgpt"]["device"] else ""
    race.report(title, headings, rows, {"results": results, "ratios": ratios}, json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        race.serve(lambda: race.one_by_one(ours(*sys.argv[2:])))
    else:
        tyro.cli(main)
