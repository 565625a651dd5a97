"""How long until a model is good? `python train.py --preset speedrun` beside nanoGPT's recipe for a laptop; or, on a
GPU, `speedrun-t4` beside its config/train_shakespeare_char.py.

    python bench/time_to_loss.py --nanogpt ../nanoGPT --plot docs/speedrun.png

Seconds are those of the whole command, from the start of Python: importing, compiling (with an empty cache), evaluating
and writing samples count. Ours is timed a second time, when its programs are in the cache, as they are on a second day.
Every loss is one of the whole validation split, counted after the race: nanoGPT's of the checkpoints that its train.py
saved; ours of one more run with the same seed, which has the same weights at every step. Each round has another seed
of ours; nanoGPT has only its own. Neither is as quick as counting the text's n-grams, which is timed, too (without the
start of Python).
nanoGPT is read from a clone of your own, and needs PyTorch and requests.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import race
import tyro

from jaxgpt import presets
from jaxgpt.counting import Counts
from jaxgpt.data import batches, corpus
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs.folder import RunFolder

HERE = Path(__file__)
RECIPES = {  # by PyTorch's device: our preset, and what it is raced against
    "cuda": ("speedrun-t4", "config/train_shakespeare_char.py", ["config/train_shakespeare_char.py"]),
    "cpu": (
        "speedrun",
        "its README's recipe for a CPU",
        [  # "I only have a macbook", in nanoGPT's README
            *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
            *("--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"),
            *("--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
        ],
    ),
}

ORDER = 7  # of the n-grams that are counted: the best of tiny Shakespeare's
Curve = list[tuple[float, float]]  # seconds, loss of the whole validation split


def run_nanogpt(clone: Path, text: Path, folder: Path, recipe: list[str]) -> tuple[Curve, float]:
    """Its curve, and the seconds until it has finished."""
    work = folder / "nanogpt"
    shutil.copytree(clone, work, ignore=shutil.ignore_patterns(".git", "out*", "*.bin", "*.pkl"))
    shutil.copy(text, work / "data/shakespeare_char/input.txt")
    subprocess.run([sys.executable, "data/shakespeare_char/prepare.py"], cwd=work, check=True, stdout=sys.stderr)
    began = time.perf_counter()
    command = [sys.executable, "-u", "train.py", *recipe]
    saved: list[tuple[float, Path]] = []
    evaluated, saving = 0.0, False
    with subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step "):
                evaluated = time.perf_counter() - began
            elif line.startswith("saving checkpoint"):
                saving = True
            elif line.startswith("iter ") and saving:  # the line after it: the file is complete
                saving = False
                saved.append((evaluated, work / f"{len(saved)}.pt"))
                shutil.copy(work / "out-shakespeare-char/ckpt.pt", saved[-1][1])
    if process.returncode:
        raise SystemExit("nanoGPT's train.py failed; its own words are above")
    seconds = time.perf_counter() - began
    return [(t, whole_loss(work, path, text.read_text("utf-8"))) for t, path in saved], seconds


def whole_loss(clone: Path, checkpoint: Path, text: str) -> float:
    """Loss of a nanoGPT checkpoint over the validation split, in the windows in which ours is counted."""
    import nanogpt
    import torch

    saved = torch.load(checkpoint, weights_only=True, map_location=nanogpt.DEVICE)
    module = nanogpt.load(str(clone))
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    model.eval().to(nanogpt.DEVICE)
    validation = batches.split(CharTokenizer.train(text).encode(text))[1]
    tokens = torch.from_numpy(validation.astype("int64")).to(nanogpt.DEVICE)
    T = saved["model_args"]["block_size"]
    total = count = 0
    with torch.no_grad():
        for start, skip in zip(*batches.fixed_windows(len(tokens), T), strict=True):
            logits, _ = model(tokens[None, start : start + T], tokens[None, start + 1 : start + T + 1])
            losses = torch.nn.functional.cross_entropy(
                logits[0, skip:], tokens[start + 1 + skip : start + T + 1], reduction="none"
            )
            total, count = total + losses.sum().item(), count + len(losses)
    return total / count


def run_ours(text: Path, folder: Path, preset: str, seed: int) -> dict[str, Any]:
    """Our curve and the seconds until we have finished, with nothing compiled before, and with all of it."""
    environment = race.environment(folder / "home")
    command = [sys.executable, str(HERE.parents[1] / "train.py"), "--data", str(text), "--preset", preset]
    command.append(f"--seed={seed}")
    first, first_end = timed([*command, "--out", str(folder / "first")], folder / "first", environment)
    second, second_end = timed([*command, "--out", str(folder / "second")], folder / "second", environment)
    print("once more, to count the losses ...", file=sys.stderr)
    validation = batches.split(text.read_text("utf-8"))[1]  # a token is a character
    recipe = presets.preset(preset)
    windows, _ = batches.fixed_windows(len(validation), recipe.model.block_size)
    counting = [f"--eval-interval={recipe.log_interval}", f"--eval-windows={len(windows)}", "--sample-tokens=0"]
    counted = folder / "counted"
    subprocess.run([*command, *counting, "--out", str(counted)], stdout=subprocess.DEVNULL, env=environment, check=True)
    losses = {row["step"]: row["val_loss"] for row in RunFolder(counted).rows() if "val_loss" in row}
    cold, cached = ([(times[step], loss) for step, loss in losses.items()] for times in (first, second))
    return {"ours": cold, "ours_end": first_end, "cached": cached, "cached_end": second_end}


def timed(command: list[str], run: Path, environment: dict[str, str]) -> tuple[dict[int, float], float]:
    """The seconds until each step of a run has its row, and until the command has finished."""
    times: dict[int, float] = {}
    began, known = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as process:
        while process.poll() is None:
            time.sleep(0.05)
            size = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
            if size != known:  # reading is work for the cores that train
                known, now = size, time.perf_counter() - began
                for row in RunFolder(run).rows():
                    times.setdefault(row["step"], now)
    if process.returncode:
        raise SystemExit("train.py failed; its own words are above")
    return times, time.perf_counter() - began


def count(text: str) -> tuple[float, float]:
    """The seconds that counting takes, and its loss over the validation split."""
    tokenizer = CharTokenizer.train(text)
    train, validation = batches.split(tokenizer.encode(text))
    began = time.perf_counter()
    counts = Counts(train, ORDER, tokenizer.vocab_size)
    return time.perf_counter() - began, counts.losses(validation).mean().item()


def first_below(curve: Curve, loss: float) -> float | None:
    """Seconds of the first point at `loss` or better."""
    return next((seconds for seconds, value in curve if value <= loss), None)


def plot(path: Path, curves: dict[str, Curve], target: float, counted: tuple[float, float], title: str) -> None:
    """Both curves in one picture, and what counting reaches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, curve), color in zip(curves.items(), ("#d95f02", "#08519c"), strict=True):
        axes.plot(*zip(*curve, strict=True), color=color, marker="o", markersize=3, label=name)
    axes.axhline(target, color="#888888", linestyle=":", linewidth=1)
    seconds, loss = counted
    axes.axhline(loss, color="#666666", linestyle="--", linewidth=1, label=f"counting {ORDER}-grams, {seconds:.1f} s")
    axes.set(title=title, xlabel="seconds since the command was started", ylabel="loss over the validation split")
    axes.set(xlim=(0, None), ylim=(None, 2.6))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")


def main(
    clone: Annotated[Path, tyro.conf.arg(name="nanogpt")],
    data: str = "tinyshakespeare",
    preset: str | None = None,
    target: float | None = None,
    rounds: int = 1,
    picture: Annotated[Path | None, tyro.conf.arg(name="plot")] = None,
    figures: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Trains both, one after the other.

    Args:
        clone: A clone of nanoGPT.
        data: `tinyshakespeare`, or a text file.
        preset: Whose recipe to race; by default `speedrun-t4` where PyTorch finds a GPU, `speedrun` elsewhere.
        target: The loss to reach; by default nanoGPT's best.
        rounds: How often, each with another seed of ours; the medians count.
        picture: Picture to draw of the first round.
        figures: File to write the figures to.
    """
    from nanogpt import DEVICE

    usual, whose, recipe = RECIPES[DEVICE]
    preset = preset or usual
    races = []
    for i in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder, text = Path(name), Path(name) / "text.txt"
            text.write_text(corpus.load(data), "utf-8")
            print("nanoGPT ...", file=sys.stderr)
            theirs, their_end = run_nanogpt(clone, text, folder, recipe)
            print(f"{preset} ...", file=sys.stderr)
            mine = run_ours(text, folder, preset, presets.preset(preset).seed + i)
        races.append({"nanogpt": theirs, "nanogpt_end": their_end} | mine)
        print(f"round {i + 1}: {summary(races[-1], target)}", file=sys.stderr)
    counted = count(corpus.load(data))
    found = [summary(r, target) for r in races]
    middle = {name: race.median([f[name] for f in found]) for name in found[0]}
    table = [(name, f"{middle[name]:.3f}", *(f"{f[name]:.3f}" for f in found)) for name in middle]
    headings = ("", "median", *(f"round {i + 1}" for i in range(rounds)))
    title = f"`{preset}` reaches {middle['target loss']:.3f} {middle['ratio']:.1f} times as fast as nanoGPT its best, "
    more = {"figures": found, "races": races, "counted": counted}
    race.report(title + f"on {Path(data).name}", headings, table, more, figures)
    print(f"Counting {ORDER}-grams: a loss of {counted[1]:.4f} after {counted[0]:.2f} s.")
    if picture is not None:
        curves = {f"nanoGPT, {whose}": races[0]["nanogpt"], f"python train.py --preset {preset}": races[0]["ours"]}
        plot(picture, curves, found[0]["target loss"], counted, race.machine()["processor"])


def summary(r: dict[str, Any], target: float | None) -> dict[str, float]:
    """What is said of one race."""
    best_seconds, best = min(r["nanogpt"], key=lambda point: point[1])
    target = best if target is None else target
    reached, cached = (first_below(r[name], target) or float("inf") for name in ("ours", "cached"))
    in_their_time = [loss for seconds, loss in r["ours"] if seconds <= r["nanogpt_end"]]
    return {
        "target loss": target,
        "nanoGPT's best loss": best,
        "nanoGPT's seconds to its best": best_seconds,
        "nanoGPT's seconds in all": r["nanogpt_end"],
        "our seconds to the target": reached,
        "our seconds to nanoGPT's best": first_below(r["ours"], best) or float("inf"),
        "our loss at the end": r["ours"][-1][1],
        "our seconds in all": r["ours_end"],
        "our loss when nanoGPT has finished": in_their_time[-1],
        "ratio": best_seconds / reached,
        "our seconds to the target, programs cached": cached,
        "our seconds in all, programs cached": r["cached_end"],
        "ratio, programs cached": best_seconds / cached,
    }


if __name__ == "__main__":
    tyro.cli(main)
