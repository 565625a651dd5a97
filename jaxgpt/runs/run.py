"""A trained model with all that belongs to it, and how it is loaded from its folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt import config as configs
from jaxgpt import sampling
from jaxgpt.config import TrainConfig
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.device import sharding
from jaxgpt.errors import UserError
from jaxgpt.fields import suggest
from jaxgpt.files import shown
from jaxgpt.model import build
from jaxgpt.model.protocol import LanguageModel
from jaxgpt.runs.checkpoints import Checkpoints
from jaxgpt.runs.folder import RunFolder, newest

FORMAT = 2  # of the checkpoints that are written; training/items.py has the older ones
MAY_CHANGE = ("max_steps", "data")  # of a run's config, between two stretches of training


@dataclass(repr=False)
class Run:
    """A trained model with all that belongs to it. From `jaxgpt.train`, `jaxgpt.resume` or `jaxgpt.load`."""

    path: Path
    config: TrainConfig
    tokenizer: Tokenizer
    model: LanguageModel
    step: int
    """Updates that the weights have seen."""

    def __repr__(self) -> str:
        size = build.n_params(self.config.model)
        return f"<Run {shown(self.path)}: {self.config.model.architecture}, {size:,} parameters, step {self.step}>"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return RunFolder(self.path).rows()

    def stream(
        self, prompt: str | None = None, tokens: int = 500, *, seed: int = 0, samples: int = 1, **sampler: Any
    ) -> Iterator[list[str]]:
        """Continues `prompt` and yields the new text piece by piece, one string for each of `samples`.

        Args:
            prompt: what to continue; None is the tokenizer's `start`, a line break where the text has them.
            tokens: how many to draw; more than `block_size` is fine.
            seed: the same seed gives the same text.
            samples: continuations to draw side by side; sample i does not depend on their number.
            sampler: `temperature`, `top_k`, `top_p`, `min_p`: see `sampling.Sampler`. None switches one off.

        Raises:
            UserError: for a prompt that is empty or that the tokenizer cannot encode, or an impossible number.
        """
        how = _sampler(sampler)
        prompt = self.tokenizer.start if prompt is None else prompt
        if not prompt:
            raise UserError("the `prompt` is empty: leave it out to start from a line break")
        _check_whole("tokens", tokens, 1)
        _check_whole("samples", samples, 1)
        _check_whole("seed", seed, 0, 2**32 - 1)
        ids = self.tokenizer.encode(prompt)
        return self._decoded(sampling.stream(self.model, ids, int(tokens), int(seed), how, int(samples)), int(samples))

    def _decoded(self, pieces: Iterator[np.ndarray], samples: int) -> Iterator[list[str]]:
        decoders = [self.tokenizer.decoder() for _ in range(samples)]
        for piece in pieces:
            yield [decoder.decode(row) for decoder, row in zip(decoders, piece, strict=True)]
        rest = [decoder.flush() for decoder in decoders]
        if any(rest):
            yield rest

    def generate(self, prompt: str | None = None, tokens: int = 500, **how: Any) -> str:
        """`prompt` and its continuation as one string; `how` as in `stream`."""
        if how.pop("samples", 1) != 1:
            raise UserError("generate writes one text: call run.samples(...) for several")
        return self.samples(prompt, tokens, samples=1, **how)[0]

    def samples(self, prompt: str | None = None, tokens: int = 500, *, samples: int = 3, **how: Any) -> list[str]:
        """Several continuations side by side, each with the prompt before it; `how` as in `stream`."""
        pieces = zip(*self.stream(prompt, tokens, samples=samples, **how), strict=True)
        return [(prompt or "") + "".join(texts) for texts in pieces]


def _sampler(fields: dict[str, Any]) -> sampling.Sampler:
    if unknown := [name for name in fields if name not in sampling.Sampler._fields]:
        names = ("prompt", "tokens", "seed", "samples", *sampling.Sampler._fields)
        raise UserError("; ".join(f"sampling has no {suggest(name, names)}" for name in unknown))
    return sampling.Sampler(**{name: value for name, value in fields.items() if value is not None}).check()


def _check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"`{name}` must be a whole number, {bounds}, not {value!r}")


def load(path: str | PathLike[str] | None = None, which: str = "newest") -> Run:
    """Reads a run's folder, onto one device.

    Args:
        path: the folder; None takes the newest below `runs/`.
        which: "newest" for the last checkpoint, "best" for the one with the least validation loss.

    Raises:
        UserError: for a folder that is not a run, one without a checkpoint, a damaged one.
    """
    if which not in ("newest", "best"):
        raise UserError(f"the checkpoint is 'newest' or 'best', not {which!r}")
    folder = newest() if path is None else RunFolder(path)
    config, tokenizer = folder.read()
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        step, params = checkpoints.read(which, lambda step: (step, _read_params(checkpoints, step, folder, config)))
    return Run(folder.path, config, tokenizer, build.merge(config.model, params), step)


def _read_params(checkpoints: Checkpoints, step: int, folder: RunFolder, config: TrainConfig) -> Any:
    """The weights that a run is sampled from."""
    progress = checkpoints.progress(step)
    check_unchanged(folder, config, progress)
    item = progress.get("eval_item", "params")
    like = sharding.place(jax.local_devices()[:1]).abstract(build.abstract_params(config.model))
    return checkpoints.restore(step, {item: like})[item]


def check_unchanged(folder: RunFolder, config: TrainConfig, progress: dict[str, Any]) -> None:
    """Raises `UserError` if the checkpoint with this `progress` was trained with another config than `config`, or is of
    a format that this version does not know."""
    if progress.get("format", 1) not in range(1, FORMAT + 1):
        raise UserError(f"{folder} was saved by a newer version of jaxgpt: update this one")
    if "config" not in progress:  # format 1
        return
    before, now = configs.flat(configs.from_dict(progress["config"])), configs.flat(config)
    changed = [name for name in now if now[name] != before[name] and name not in MAY_CHANGE]
    if changed:
        was = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise UserError(f"{shown(folder.config)} was changed since the checkpoint: {was}; change it back")
