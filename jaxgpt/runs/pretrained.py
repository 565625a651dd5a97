"""Models that others trained: a folder in Hugging Face's format, or a name on its hub, becomes a `Run`."""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np

from jaxgpt.config import ModelConfig, TrainConfig
from jaxgpt.data.tokenizer import Decoder, Tokenizer, load_folder, train_tokenizer
from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown
from jaxgpt.model import build, huggingface
from jaxgpt.runs import run
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.run import Run

GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GPT2_TOKENS = 50257
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner and model
LONGEST_REASON = 200  # characters
# What is downloaded: repositories have the same weights in other formats, too.
FILES = [
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
]


def load_pretrained(name: str | os.PathLike[str] | None, which: str = "newest") -> Run:
    """What `init_from` names: a run's folder, by `run.load(name, which)`, or else what `from_huggingface` takes.
    None is the newest run below `runs/`.

    Raises:
        UserError: as those two.
    """
    if name is None:
        return run.load(None, which)
    folder = RunFolder(name)
    if folder.metrics.exists() or folder.checkpoints.exists() or not (folder.path.is_dir() or _on_hub(str(name))):
        return run.load(name, which)
    return from_huggingface(name)


def _on_hub(name: str) -> bool:
    """Whether a name that is no folder may be one of the hub's: runs/speedrum is the slip of someone who has runs/."""
    return name in GPT2 or (HUB_NAME.fullmatch(name) is not None and not os.path.isdir(os.path.dirname(name)))


def from_huggingface(name: str | os.PathLike[str]) -> Run:
    """A GPT-2 in Hugging Face's format, with its tokenizer; weights are float32 whatever they are stored in.

    Args:
        name: a folder with config.json and model.safetensors (or shards and their index); or "gpt2", "gpt2-medium",
            "gpt2-large", "gpt2-xl", or "owner/model", which come from the Hugging Face hub, and from its cache the next
            time. What is a folder here is not looked for there.

    Returns:
        A `Run` at step 0, whose `path` is the folder. Dropout is 0 where the folder is not an export of jaxgpt's. Of a
        padded vocabulary, the rows of tokens that the tokenizer does not have are left out.

    Raises:
        UserError: for a name that is neither, without a network, and for a folder that `huggingface.read` refuses.
    """
    folder = Path(os.path.abspath(os.path.expanduser(name)))
    source = str(folder)
    if not folder.is_dir():
        source, folder = str(name), _download(str(name), folder)
    model, params = huggingface.read(folder)
    tokenizer = _tokenizer(folder, model.vocab_size)
    model, params = _without_padding(model, params, tokenizer.vocab_size)
    config = TrainConfig(model=model, tokenizer=tokenizer.kind, init_from=source)
    params = jax.device_put(params, jax.local_devices()[0])
    return Run(folder, config, tokenizer, build.merge(model, params), 0)


def _without_padding(model: ModelConfig, params: Any, vocab_size: int) -> tuple[ModelConfig, Any]:
    """The model without what some add for speed: rows of its tables for tokens that the tokenizer does not have."""
    if vocab_size == model.vocab_size:
        return model, params
    params = params | {"wte": {"embedding": params["wte"]["embedding"][:vocab_size]}}
    if not model.tie_head:
        params |= {"lm_head": {name: weight[..., :vocab_size] for name, weight in params["lm_head"].items()}}
    return dataclasses.replace(model, vocab_size=vocab_size), params


def _download(name: str, folder: Path) -> Path:
    """The folder, in the hub's cache, of the model called `name`; `folder` is what is not here."""
    repository = f"openai-community/{name}" if name in GPT2 else name
    if not HUB_NAME.fullmatch(repository):
        raise UserError(f"there is no folder {shown(folder)}, and the hub's models are called owner/model, or gpt2")
    import huggingface_hub  # not before it is needed: it takes a while

    try:
        with _quiet("huggingface_hub"):
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=FILES))
    except Exception as problem:  # it raises its own, those of its HTTP client, and some of Python's
        raise UserError(f"there is no folder {shown(folder)}, and {_why(problem, repository)}") from problem


def _why(problem: Exception, repository: str) -> str:
    from huggingface_hub import errors

    if isinstance(problem, errors.RepositoryNotFoundError):
        return f"the Hugging Face hub has no {repository} that everybody may read"
    if isinstance(problem, ConnectionError | errors.LocalEntryNotFoundError):
        detail = reason(problem.__cause__) if isinstance(problem.__cause__, Exception) else "it is switched off"
        return f"the Hugging Face hub cannot be reached for {repository} ({detail[:LONGEST_REASON]})"
    return f"{repository} cannot be downloaded from the Hugging Face hub ({reason(problem)[:LONGEST_REASON]})"


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Warnings, as that one has no account, are kept back meanwhile."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The folder's own; without one GPT-2's, if the model has as many tokens; without that, one that says so."""
    tokenizer = load_folder(folder)
    if tokenizer is None and vocab_size == GPT2_TOKENS:
        try:
            return train_tokenizer("gpt2", "")
        except UserError as problem:
            return MissingTokenizer(vocab_size, str(problem))
    if tokenizer is None:
        return MissingTokenizer(vocab_size, f"{shown(folder)} has no tokenizer.json: put that of the model there")
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer in {shown(folder)} has {tokenizer.vocab_size} tokens, and the model {vocab_size}: "
            "one of them is of another model"
        )
    return tokenizer


@dataclass(frozen=True)
class MissingTokenizer:
    """A `Tokenizer` where there is none: the model can be used with tokens, and text raises `UserError`."""

    kind: ClassVar[str] = "missing"
    unit: ClassVar[str] = "token"

    vocab_size: int
    why: str

    @property
    def start(self) -> str:
        raise UserError(self.why)

    @property
    def end_of_text(self) -> None:
        return None

    @classmethod
    def train(cls, texts: Any, vocab_size: int = 0) -> Self:
        raise UserError("there is no tokenizer to train")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        raise UserError("there is no tokenizer to read")

    def encode(self, text: str) -> np.ndarray:
        raise UserError(self.why)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        raise UserError(self.why)

    def decoder(self) -> Decoder:
        raise UserError(self.why)

    def boundary(self, text: str) -> int:
        raise UserError(self.why)

    def save(self, path: str | Path) -> None:
        raise UserError(self.why)
