"""What a run reads: the text that `data` names as tokens, split for training and validation."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.config import TrainConfig
from jaxgpt.data import batches, corpus, encoding, token_files
from jaxgpt.data.corpus import Piece
from jaxgpt.data.token_files import Tokens as Tokens
from jaxgpt.data.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer, train_tokenizer
from jaxgpt.errors import UserError
from jaxgpt.files import shown

Progress = Callable[[int, int], object]  # is told how much is done, and of how much


class Dataset(NamedTuple):
    """A tokenized text."""

    tokenizer: Tokenizer
    train: Tokens
    """The first 90 % of the tokens, (N,), in memory or in a file."""
    val: Tokens
    """The other 10 %."""
    sha256: str
    """Of all tokens, by which a run that goes on knows its text."""
    remark: str | None = None
    """What people should know of the text, in one line."""
    split: str = "the last 10 %"
    """Which tokens are for validation, for people."""


class ForeignText(UserError):
    """A text that is not of the tokenizer that it should be encoded with."""


def load(config: TrainConfig, tokenizer: Tokenizer | None = None, progress: Progress = lambda *_: None) -> Dataset:
    """The text that `config.data` names, tokenized, or the token files in the folder that it names.

    Documents are separated by the tokenizer's end-of-text, or by a line break where it has none.

    Args:
        config: its `data`, `text_field`, `tokenizer` and `vocab_size` are read.
        tokenizer: the one to use; None takes that of the token files, or trains one of the kind `config.tokenizer` on
            the text.
        progress: is called with the number of characters that are encoded, and of all.

    Raises:
        UserError: for data that cannot be read, and a tokenizer that cannot be made from it.
        ForeignText: for a text that `tokenizer` can't encode, or token files of another one.
    """
    data = corpus.absolute(config.data)
    if folder := token_files.folder_of(data):
        return _mapped(folder, config, tokenizer)
    pieces = list(corpus.pieces(data, config.text_field))
    tokenizer = tokenizer or train_tokenizer(config.tokenizer, encoding.joined(pieces), config.model.vocab_size)
    tokens = _encoded(pieces, tokenizer, progress)
    sha256 = hashlib.sha256(tokens.data).hexdigest()
    return Dataset(tokenizer, *batches.split(tokens), sha256, corpus.remark(data, pieces[0].text))


def _encoded(pieces: list[Piece], tokenizer: Tokenizer, progress: Progress) -> np.ndarray:
    parts, done, total = [], 0, sum(len(piece.text) for piece in pieces)
    try:
        for tokens, n_characters in encoding.encode(encoding.batches(pieces, tokenizer), tokenizer):
            parts.append(tokens)
            done += n_characters
            progress(done, total)
    except UserError as problem:
        raise ForeignText(str(problem)) from problem
    return np.concatenate(parts)


def _mapped(folder: Path, config: TrainConfig, tokenizer: Tokenizer | None) -> Dataset:
    manifest = token_files.read_manifest(folder)
    train, val = (token_files.open_split(folder, name, manifest) for name in (token_files.TRAIN, token_files.VAL))
    if manifest is None:
        tokenizer = tokenizer or _named(folder, config)
        sha256, greatest = token_files.fingerprint(train, val)
        if greatest >= tokenizer.vocab_size:
            raise ForeignText(
                f"{shown(folder)} has the token {greatest}, but the tokenizer {tokenizer.kind} only "
                f"{tokenizer.vocab_size:,}: choose the `tokenizer` that these files were made with"
            )
        return Dataset(tokenizer, train, val, sha256, split=token_files.VAL)
    theirs = load_tokenizer(folder / token_files.TOKENIZER)
    if tokenizer is None and config.tokenizer not in ("char", theirs.kind):
        raise UserError(
            f"{shown(folder)} was prepared with the tokenizer {theirs.kind}, not {config.tokenizer}: "
            "leave out `tokenizer`, or prepare the text with it"
        )
    if tokenizer is not None and not _same(tokenizer, theirs):
        raise ForeignText(f"{shown(folder)} was prepared with another tokenizer than that of the model")
    share = len(val) / (len(train) + len(val))
    return Dataset(tokenizer or theirs, train, val, manifest["sha256"], split=f"the last {100 * share:.2g} %")


def _named(folder: Path, config: TrainConfig) -> Tokenizer:
    """The tokenizer of a folder that does not have one: of a kind that is the same for every text."""
    if config.tokenizer not in ("bytes", "gpt2"):
        raise UserError(
            f"{shown(folder)} has token files, but no {token_files.MANIFEST} that says what a token is: "
            "set `tokenizer` to gpt2 if it is GPT-2's, or prepare the text anew (a meta.pkl is not read)"
        )
    return TOKENIZERS[config.tokenizer].train("")


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers have the same tokens; one may be called gpt2 and the other bpe."""
    if one.vocab_size != other.vocab_size:
        return False
    every = np.arange(one.vocab_size)
    return one.decode(every) == other.decode(every)
