"""A trained model with all that belongs to it, and how it is loaded from its folder."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config as configs
from jaxgpt import evaluation, fields, sampling
from jaxgpt.config import WEIGHTS, TrainConfig
from jaxgpt.data import dataset
from jaxgpt.data.corpus import Data
from jaxgpt.data.token_files import TokenFile
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.device import precision, sharding
from jaxgpt.errors import UserError
from jaxgpt.evaluation import Score
from jaxgpt.fields import suggest
from jaxgpt.files import shown
from jaxgpt.model import build, views
from jaxgpt.model.protocol import LanguageModel
from jaxgpt.runs.checkpoints import Checkpoints
from jaxgpt.runs.completion import Completion, Writing
from jaxgpt.runs.folder import RunFolder, newest
from jaxgpt.sampler import Sampler
from jaxgpt.sampling import Drawn

if TYPE_CHECKING:
    from jaxgpt.pages.page import Page

MOST_SAMPLES = 2**16  # of a prompt, that are written side by side
FORMAT = 2  # of the checkpoints that are written; training/items.py has the older ones
MAY_CHANGE = ("max_steps", "data", "mesh", "micro_batches", "remat")  # of a config, when a run goes on


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
        return list(RunFolder(self.path).rows())

    def stream(
        self,
        prompt: str | None = None,
        tokens: int = 500,
        *,
        seed: int = 0,
        samples: int = 1,
        stop: str | Sequence[str] = (),
        **sampler: Any,
    ) -> Iterator[list[str]]:
        """Continues `prompt` and yields the new text piece by piece, one string for each of `samples`.

        A text stops at the tokenizer's `end_of_text` and before a stop text, neither of which is shown.

        Args:
            prompt: what to continue; None is the tokenizer's `start`, a line break where the text has them.
            tokens: how many to draw; more than `block_size` is fine.
            seed: the same seed gives the same text.
            samples: continuations to draw side by side; sample i does not depend on their number.
            stop: one or several texts to stop before.
            sampler: `temperature`, `top_k`, `top_p`, `min_p`: see `sampler.Sampler`. None switches one off.

        Raises:
            UserError: for a prompt that is empty or that the tokenizer cannot encode, or an impossible number.
        """
        return self._write([prompt], tokens, seed, samples, stop, sampler)[1]

    def completions(
        self,
        prompts: str | Sequence[str | None] | None = None,
        tokens: int = 500,
        *,
        seed: int = 0,
        samples: int = 1,
        stop: str | Sequence[str] = (),
        **sampler: Any,
    ) -> list[Completion]:
        """Continues one or several prompts of any lengths side by side; each text is the one that it would be alone.

        Args:
            prompts, tokens, seed, stop, sampler: as in `stream`.
            samples: continuations of each prompt.

        Returns:
            The samples of the first prompt, then those of the second, and so on, with log-probabilities.

        Raises:
            UserError: as `stream`, and for no prompts at all.
        """
        several = [prompts] if prompts is None or isinstance(prompts, str) else list(prompts)
        writings, pieces = self._write(several, tokens, seed, samples, stop, sampler, logprobs=True)
        for _ in pieces:  # to their end
            pass
        return [
            writing.completion(self.tokenizer.start if prompt is None else prompt)
            for j, prompt in enumerate(several)
            for writing in writings[j :: len(several)]
        ]

    @overload
    def generate(self, prompt: str | None = None, tokens: int = 500, **how: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], tokens: int = 500, **how: Any) -> list[str]: ...

    def generate(self, prompt: str | Sequence[str] | None = None, tokens: int = 500, **how: Any) -> str | list[str]:
        """`prompt` and its continuation as one string, or one string for each of several prompts; `how` as in
        `stream`."""
        if how.pop("samples", 1) != 1:
            raise UserError("generate writes one text a prompt: call run.samples(...) for several")
        if prompt is None or isinstance(prompt, str):
            return self.samples(prompt, tokens, samples=1, **how)[0]
        return [one.prompt + one.text for one in self.completions(prompt, tokens, **how)]

    def samples(self, prompt: str | None = None, tokens: int = 500, *, samples: int = 3, **how: Any) -> list[str]:
        """Several continuations side by side, each with the prompt before it; `how` as in `stream`."""
        pieces = zip(*self.stream(prompt, tokens, samples=samples, **how), strict=True)
        return [(prompt or "") + "".join(texts) for texts in pieces]

    def _write(
        self,
        prompts: Sequence[str | None],
        tokens: int,
        seed: int,
        samples: int,
        stop: str | Sequence[str],
        sampler: dict[str, Any],
        logprobs: bool = False,
    ) -> tuple[list[Writing], Iterator[list[str]]]:
        """The texts, and the pieces in which they are written; text i * R + j is sample i of R prompts' j-th."""
        how, stop = _sampler(sampler), _stops(stop)
        _check_whole("tokens", tokens, 1, fields.INT32)
        _check_whole("samples", samples, 1, MOST_SAMPLES)
        _check_whole("seed", seed, 0, 2**32 - 1)
        if not prompts:
            raise UserError("there are no prompts: give one at least, or None to start from a line break")
        ids = [self._encoded(prompt) for prompt in prompts]
        drawn = sampling.stream(self.model, ids, int(tokens), int(seed), how, int(samples), logprobs)
        writings = [Writing(self.tokenizer, stop) for _ in range(int(samples) * len(prompts))]
        return writings, _pieces(writings, drawn)

    def _encoded(self, prompt: str | None) -> np.ndarray:
        prompt = self.tokenizer.start if prompt is None else prompt
        if not isinstance(prompt, str):
            raise UserError(f"the `prompt` is a text, not {fields.shown(prompt)}")
        if not prompt:
            raise UserError("the `prompt` is empty: leave it out to start from a line break")
        return self.tokenizer.encode(prompt)

    def losses(self, text: str) -> np.ndarray:
        """Where a text is surprising: the loss of every token but the first, in nats.

        Returns:
            (T - 1,) float32 for the T tokens of `text`; each is predicted from those before it in its window of
            `block_size`.

        Raises:
            UserError: for a text of fewer than two tokens, and one that the tokenizer cannot encode.
        """
        tokens = self.tokenizer.encode(text)
        _check_long_enough(tokens)
        params = build.params_of(self.model)
        return np.concatenate([*evaluation.token_losses(self.config.model, params, tokens, self._dtype())])

    def attention(self, text: str) -> np.ndarray:
        """Who looks at whom: the attention weights in every head, as `plots.attention` draws them.

        Returns:
            (L, H, T, T) float32 for the T tokens of `text`, at most `block_size`: row t has how much token t takes from
            each token up to itself, and sums to 1. A `bigram` looks at nothing: its L is 0. The rungs below `blocks`
            have one layer.

        Raises:
            UserError: for a text that is empty or too long, and one that the tokenizer cannot encode.
        """
        return np.asarray(views.look(self.model, self._one_window(text)).attention[:, 0])

    def logit_lens(self, text: str) -> np.ndarray:
        """When the model knows: what the head would predict if the blocks ended earlier. `plots.logit_lens` draws it.

        Returns:
            (L + 1, T, V) float32 logits for the T tokens of `text`, at most `block_size`: from the embeddings alone,
            then after each block; the last are the model's own. The stream goes through the last norm, where there is
            one, and the head (nostalgebraist 2020, "interpreting GPT: the logit lens"). Of rungs without a residual
            stream, it is what comes before and after their one layer.

        Raises:
            UserError: as `attention`.
        """
        return np.asarray(views.logit_lens(self.model, self._one_window(text))[:, 0])

    def _one_window(self, text: str) -> np.ndarray:
        """(1, T)."""
        if not text:
            raise UserError("the text is empty: there is nothing to look at")
        return self.tokenizer.encode(text)[None]

    def inside(self, prompt: str | None = None) -> "Page":
        """A page to look into the model with: its predictions, its attention, its losses, what it has learnt, and how.

        A notebook shows it; `inside().save("inside.html")` writes one file, which any browser opens without a network.
        A model of up to a million parameters runs in the page itself, on any text that is typed there; of a larger one
        it shows what was recorded of `prompt`.

        Args:
            prompt: the text that is looked at first, of which the last `block_size` tokens are shown, or fewer of a
                large model; None takes some of the validation text.

        Raises:
            UserError: for a prompt that is empty or that the tokenizer cannot encode.
        """
        from jaxgpt.pages.page import Page  # it knows what a run is

        return Page.of(self, prompt)

    def evaluate(
        self,
        data: Data | None = None,
        *,
        text_field: str = "text",
        each: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> Score:
        """How well the model predicts a text.

        Args:
            data: where the text is, as in a `TrainConfig`; None is the run's own. Of that, and of token files, only the
                validation split is read.
            text_field: of JSON lines, the field with the text.
            each: is given the tokens (n,) that were predicted and their losses (n,), piece by piece.

        Raises:
            UserError: for data that cannot be read or encoded, and for a text of fewer than two tokens.
        """
        given = self.config.data if data is None else data
        config = configs.override(self.config, data=given, text_field=text_field)
        loaded = dataset.load(config, self.tokenizer)
        only_val = data is None or isinstance(loaded.val, TokenFile)
        tokens = loaded.val if only_val else np.concatenate([loaded.train, loaded.val])
        _check_long_enough(tokens)
        params = build.params_of(self.model)
        return evaluation.score(self.config.model, params, tokens, self.tokenizer, self._dtype(), each)

    def _dtype(self) -> jnp.dtype:
        """Of the matrix products, as in training."""
        return precision.choose(self.config.dtype, jax.local_devices()[0])[0]

    def cast(self, weights: str) -> "Run":
        """The same run with the matrices of its model in another type; vectors stay float32.

        Args:
            weights: "float32", "bfloat16" or "float16". The smaller two halve what a token reads: faster on a GPU, not
                on a CPU.

        Raises:
            UserError: for another type.
        """
        _check_weights(weights)
        params = precision.cast(build.params_of(self.model), jnp.dtype(weights))
        return dataclasses.replace(self, model=build.merge(self.config.model, params))


def _pieces(writings: list[Writing], drawn: Iterator[Drawn]) -> Iterator[list[str]]:
    """The pieces of all texts, until each has stopped or no more tokens come."""
    for tokens, logprobs in drawn:
        yield [writing.add(tokens[i], None if logprobs is None else logprobs[i]) for i, writing in enumerate(writings)]
        if all(writing.stopped for writing in writings):
            return
    rest = [writing.end() for writing in writings]
    if any(rest):
        yield rest


def _sampler(fields: dict[str, Any]) -> Sampler:
    if unknown := [name for name in fields if name not in Sampler._fields]:
        names = ("prompt", "tokens", "seed", "samples", "stop", *Sampler._fields)
        raise UserError("; ".join(f"sampling has no {suggest(name, names)}" for name in unknown))
    return Sampler(**{name: value for name, value in fields.items() if value is not None}).check()


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise UserError(f"`stop` is a text of a character at least, or several, not {fields.shown(stop)}")
    return stops


def _check_long_enough(tokens: Any) -> None:
    if len(tokens) < 2:
        raise UserError("a text of two tokens is the least that a prediction can be judged by")


def _check_weights(weights: str) -> None:
    if weights not in WEIGHTS:
        raise UserError(f"`weights` is one of {', '.join(WEIGHTS)}, not {fields.shown(weights)}")


def _check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"`{name}` must be a whole number, {bounds}, not {value!r}")


def load(path: str | PathLike[str] | None = None, which: str = "newest", weights: str = "float32") -> Run:
    """Reads a run's folder, onto one device.

    Args:
        path: the folder; None takes the newest below `runs/`.
        which: "newest" for the last checkpoint, "best" for the one with the least validation loss.
        weights: the type of the model's matrices, as in `Run.cast`.

    Raises:
        UserError: for a folder that is not a run, one without a checkpoint, a damaged one.
    """
    if which not in ("newest", "best"):
        raise UserError(f"the checkpoint is 'newest' or 'best', not {which!r}")
    _check_weights(weights)
    folder = newest() if path is None else RunFolder(path)
    config, tokenizer = folder.read()
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        step, params = checkpoints.read(which, lambda step: (step, _read_params(checkpoints, step, folder, config)))
    return Run(folder.path, config, tokenizer, build.merge(config.model, params), step).cast(weights)


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
    if not folder.unchanged(folder.tokenizer, progress.get("files")):
        raise UserError(
            f"{shown(folder.tokenizer)} is not as it was when the checkpoint was saved: take it from a copy"
        )
    if "config" not in progress:  # format 1
        return
    before, now = configs.flat(configs.from_dict(progress["config"])), configs.flat(config)
    changed = [name for name in now if now[name] != before[name] and name not in MAY_CHANGE]
    if changed:
        was = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise UserError(f"{shown(folder.config)} was changed since the checkpoint: {was}; change it back")
