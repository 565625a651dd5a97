"""A run is a folder that a person can read: config, tokenizer, metrics, the plot, the checkpoints.

runs/cpu/config.json  tokenizer.json  metrics.jsonl  loss.png  checkpoints/
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxgpt.device import backend
from jaxgpt import config, sampling
from jaxgpt.training import step as trainer
from jaxgpt.config import TrainConfig
from jaxgpt.errors import UserError
from jaxgpt.model.gpt import GPT
from jaxgpt.data.tokenizer import CharTokenizer

RUNS = Path("runs")


@dataclass
class Run:
    """A trained model with all that belongs to it. From `jaxgpt.train`, `jaxgpt.resume` or `jaxgpt.load`."""

    path: Path
    config: TrainConfig
    tokenizer: CharTokenizer
    model: GPT
    step: int
    """Updates that the weights have seen."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.path)

    def stream(
        self,
        prompt: str | None = None,
        tokens: int = 500,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        samples: int = 1,
    ) -> Iterator[list[str]]:
        """Continues `prompt` and yields the new text piece by piece, one string for each of `samples`.

        Args:
            prompt: what to continue; None is the tokenizer's `start`, a line break where the text has them.
            tokens: how many to write; more than `block_size` is fine.
            temperature, top_k, top_p, min_p: see `sampling.Sampler`.
            seed: the same seed gives the same text.
            samples: continuations to write side by side; sample i does not depend on their number.

        Raises:
            UserError: for a prompt that is empty or has a character the tokenizer lacks, or an
                impossible number.
        """
        sampler = sampling.Sampler(temperature, top_k, top_p, min_p).check()
        prompt = self.tokenizer.start if prompt is None else prompt
        if not prompt:
            raise UserError("the prompt is empty: leave it out to start from a line break")
        if tokens < 1 or samples < 1:
            raise UserError(f"tokens and samples must be 1 or more, not {tokens} and {samples}")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed must be from 0 to 2**32 - 1, not {seed}")
        ids = self.tokenizer.encode(prompt)
        pieces = sampling.stream(self.model, ids, tokens, seed, sampler, samples)
        return ([self.tokenizer.decode(row) for row in piece] for piece in pieces)

    def generate(self, prompt: str | None = None, tokens: int = 500, **how: Any) -> str:
        """`prompt` and its continuation as one string; `how` as in `stream`."""
        return self.samples(prompt, tokens, **how, samples=1)[0]

    def samples(self, prompt: str | None = None, tokens: int = 500, *, samples: int = 3, **how: Any) -> list[str]:
        """Several continuations side by side, each with the prompt before it; `how` as in `stream`."""
        pieces = zip(*self.stream(prompt, tokens, samples=samples, **how), strict=True)
        return [(prompt or "") + "".join(texts) for texts in pieces]


def load(path: str | Path | None = None, which: str = "newest") -> Run:
    """Reads a run's folder.

    Args:
        path: the folder; None takes the newest below `runs/`.
        which: "newest" for the last checkpoint, "best" for the one with the least validation loss.

    Raises:
        UserError: for a folder that is not a run, one without a checkpoint, a damaged one.
    """
    from jaxgpt.runs.checkpoints import Checkpoints

    backend.setup()
    if which not in ("newest", "best"):
        raise UserError(f"the checkpoint is 'newest' or 'best', not {which!r}")
    path = newest() if path is None else Path(path)
    train_config, tokenizer = read(path)
    like = jax.eval_shape(lambda: trainer.init_params(train_config.model, 0))
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} has no checkpoint yet: train for longer, or choose another run")
    with Checkpoints(path / "checkpoints") as checkpoints:
        params, step = checkpoints.restore_params(like, which)
    model = nnx.merge(trainer.graph(train_config.model), params)
    return Run(path, train_config, tokenizer, model, step)


def read(path: Path) -> tuple[TrainConfig, CharTokenizer]:
    """The config and the tokenizer of the run in `path`."""
    if not (path / "config.json").is_file():
        others = ", ".join(str(p) for p in sorted(_runs())) or "none yet; python train.py makes one"
        raise UserError(f"{path} is not a run: it has no config.json (runs here: {others})")
    try:
        train_config = config.validate(config.from_dict(json.loads((path / "config.json").read_text("utf-8"))))
    except (UserError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} is damaged: {error}") from error
    return train_config, CharTokenizer.load(path / "tokenizer.json")


def create(path: Path | None, train_config: TrainConfig, tokenizer: CharTokenizer) -> Path:
    """Makes the folder of a new run; without a `path`, `runs/PRESET`, or -2, -3 ... where that is taken."""
    if path is None:
        path = free_name(train_config.preset)
    elif path.exists():
        raise UserError(f"{path} exists and is not overwritten: choose another --out, or --resume it")
    path.mkdir(parents=True)
    write_config(path, train_config)
    tokenizer.save(path / "tokenizer.json")
    (path / "metrics.jsonl").touch()
    return path


def free_name(name: str) -> Path:
    """`runs/NAME`, or `runs/NAME-2` and so on where that is taken."""
    path, n = RUNS / name, 2
    while path.exists():
        path, n = RUNS / f"{name}-{n}", n + 1
    return path


def write_config(path: Path, train_config: TrainConfig) -> None:
    (path / "config.json").write_text(json.dumps(config.to_dict(train_config), indent=2) + "\n", "utf-8")


def newest(preset: str | None = None) -> Path:
    """The folder below `runs/` that was trained last, of any preset or of one."""
    found = [path for path in _runs() if preset is None or read(path)[0].preset == preset]
    if not found:
        of = "" if preset is None else f" of preset {preset!r}"
        raise UserError(f"there is no run{of} in {RUNS}/ yet: python train.py makes one")
    return max(found, key=lambda path: (path / "metrics.jsonl").stat().st_mtime)


def _runs() -> list[Path]:
    return [p.parent for p in RUNS.glob("*/config.json") if (p.parent / "metrics.jsonl").is_file()]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none from a line on that was cut off or damaged."""
    rows: list[dict[str, Any]] = []
    if not (path / "metrics.jsonl").is_file():
        return rows
    for line in (path / "metrics.jsonl").read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
            rows.append({"step": row["step"]} | row)
        except (ValueError, TypeError, KeyError):
            break
    return rows
