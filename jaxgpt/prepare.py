"""The command `python -m jaxgpt.prepare`: makes token files of a text that outgrows memory.

It needs little memory, uses all cores, and can be stopped at any moment: the same call goes on, to the same bytes.
"""

import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

import jaxgpt
from jaxgpt.cli import flags
from jaxgpt.cli.command import program, run_command, say
from jaxgpt.cli.flags import Flag
from jaxgpt.data import corpus, encoding, token_files
from jaxgpt.data.corpus import Data, Piece
from jaxgpt.data.token_files import FORMAT, MANIFEST, TOKENIZER, TRAIN, VAL
from jaxgpt.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxgpt.data.vocabulary import token_type
from jaxgpt.errors import UserError
from jaxgpt.fields import Texts
from jaxgpt.files import quoted, read_whole, reason, shown, write_atomically
from jaxgpt.runs.progress import Progress
from jaxgpt.runs.report import Report, count

ABOUT = """usage: {program} --data PATH ... --to DIR [--tokenizer gpt2 ...]  or  {program} --verify DIR

Make token files of a text, from which a model trains without having it in memory. If it is stopped, the same command
goes on. The last tokens, a tenth of them, are for validation."""

FLAGS = {
    "prepare": [
        Flag("data", Texts, None, "The text: files, folders, patterns; .txt and .jsonl, packed (.gz, .zst) or not."),
        Flag("to", Path, None, "Folder to make for the token files."),
        Flag(
            "tokenizer",
            str,
            "gpt2",
            "What a token is: `gpt2`, GPT-2's byte pairs; `bpe`, byte pairs that are learnt from the text; `bytes`; "
            "or `char`, a character.",
        ),
        Flag("vocab_size", int, 0, "For `tokenizer` bpe: how many tokens to learn; 0 for 4,096 or so."),
        Flag("text_field", str, "text", "Of JSON lines: the field that has the text."),
        Flag("val_share", float, 0.1, "Share of the tokens, the last ones, that are for validation."),
        Flag("verify", Path, None, "Compare the files in a folder with the checksums of their manifest."),
        flags.HELP,
    ]
}
STATE, ALL = "progress.json", "tokens.part"  # while it works: how far it is, and all tokens so far
SAVE_EVERY = 8  # batches


class State(NamedTuple):
    """How far the work is."""

    job: dict[str, Any]
    """What is made of what."""
    batches: int = 0
    tokens: int = 0
    documents: int = 0
    """Of the whole text, when all of it is encoded."""
    characters: int = 0


class Counts:
    """What was read so far."""

    n_bytes = documents = characters = 0

    def read(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def watched(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self.characters += len(piece.text)
            self.documents += piece.last
            yield piece


def prepare(
    data: Data,
    to: str | PathLike[str],
    tokenizer: str = "gpt2",
    vocab_size: int = 0,
    text_field: str = "text",
    val_share: float = 0.1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Makes token files of a text, in the folder `to`; `data=to` trains on them.

    A folder that is begun is gone on with, if all arguments and texts are the same.

    Args:
        data: as in `corpus.pieces`, but nothing that can be read only once.
        to: a folder that is new, empty, or begun.
        tokenizer: the kind: "gpt2", "bpe", "bytes" or "char".
        vocab_size: for bpe, how many tokens to learn; 0 for its default.
        text_field: the field of JSON lines that has the text.
        val_share: share of the tokens, the last ones, that are for validation; the default is what is taken of a text
            that is trained on directly.
        quiet: print nothing.

    Returns:
        the manifest.

    Raises:
        UserError: for data that cannot be read, or a folder that is taken.
        OSError: when a file cannot be written.
    """
    folder = Path(os.path.abspath(os.path.expanduser(to)))
    data = corpus.absolute(data)
    if not 0 < val_share < 1:
        raise UserError(f"`val_share` must be above 0 and below 1, not {val_share}")
    job = _job(data, tokenizer, vocab_size, text_field, val_share)
    is_new = not os.path.lexists(folder)
    with Report(quiet) as report, _claimed(folder):
        state = _begun(folder, job)
        if state is None:
            manifest = token_files.read_manifest(folder)
            report.note(f"{shown(folder)} is prepared already")
            return manifest or {}
        try:
            used = _tokenizer(folder, job, data, report)
            if state.batches:
                report.note(f"going on after {count(state.tokens, used.unit)}")
            counts = Counts()
            pieces = counts.watched(corpus.pieces(data, text_field, counts.read))
            if not state.characters:
                batches = encoding.batches(pieces, used)
                state = _encode(folder, state, batches, used, counts, corpus.n_bytes(data), report)
        except UserError:
            _forget(folder, is_new)
            raise
        _split(folder, state, _dtype(used))
        return _finished(folder, state, used)


def verify(folder: str | PathLike[str]) -> dict[str, Any]:
    """Compares the files of a folder with its manifest, which is returned.

    Raises:
        UserError: for a file that is not what the manifest says, or a folder without one.
    """
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    manifest = token_files.read_manifest(folder)
    if manifest is None:
        raise UserError(f"{shown(folder)} has no {MANIFEST}: choose a folder that was prepared")
    for name in (TRAIN, VAL):
        path = token_files.open_split(folder, name, manifest).path
        if token_files.checksums(path)[0] != manifest["files"][name]["sha256"]:
            raise UserError(f"{shown(path)} is not what {MANIFEST} says: copy it again, or prepare the text anew")
    load_tokenizer(folder / TOKENIZER)
    return manifest


def _job(data: Data, tokenizer: str, vocab_size: int, text_field: str, val_share: float) -> dict[str, Any]:
    try:
        sources = corpus.sources(data)
    except OSError as problem:
        raise UserError(f"cannot read {shown(problem.filename)} ({reason(problem)})") from problem
    for name, _, _ in sources:
        if name in corpus.STDIN or Path(name).is_fifo():
            raise UserError(
                "a text from a pipe can be read only once: save it to a file first, packed (.gz, .zst) if it is large"
            )
    return {
        "sources": [dict(zip(("path", "bytes", "modified_ns"), source, strict=True)) for source in sources],
        "text_field": text_field,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "val_share": val_share,
    }


def _claimed(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as problem:
        raise UserError(f"{shown(folder)} is being prepared by another process: wait for its end") from problem
    except OSError as problem:
        raise UserError(f"{shown(folder)} cannot be made ({reason(problem)}): choose another `to`") from problem
    return lock


def _begun(folder: Path, job: dict[str, Any]) -> State | None:
    """How far the work in a folder is; None if it is done."""
    done, path = token_files.read_manifest(folder), folder / STATE
    if done is None and not path.exists() and any(file.name != ".lock" for file in folder.iterdir()):
        raise UserError(f"{shown(folder)} exists and is not overwritten: choose another `to`")
    try:
        state = State(done["job"]) if done else State(**json.loads(read_whole(path)))
        if not isinstance(state.job, dict) or not all(type(n) is int and n >= 0 for n in state[1:]):
            raise ValueError("not as it was written")
    except FileNotFoundError:
        state = State({})
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        raise UserError(f"{shown(folder)} has a damaged {path.name}: delete it, and begin anew") from problem
    if state.job == job:
        return None if done else state
    if done or state.batches:
        names = [f"`{name}`" for name in job if state.job.get(name) != job[name]]
        what = " and ".join(names).replace("`sources`", "texts")
        raise UserError(f"{shown(folder)} was begun with other {what}: choose another `to`, or delete it first")
    (folder / TOKENIZER).unlink(missing_ok=True)  # nothing is lost
    _save(folder, State(job))
    return State(job)


def _forget(folder: Path, is_new: bool) -> None:
    """Removes what was made of a text that cannot be prepared, unless a part of it is saved, and the folder if it is
    new."""
    if json.loads((folder / STATE).read_bytes())["batches"]:
        return
    with contextlib.suppress(OSError):  # what is left does no harm: it is begun anew
        for name in (ALL, TOKENIZER, STATE):
            (folder / name).unlink(missing_ok=True)
        if is_new:
            (folder / ".lock").unlink()
            folder.rmdir()


def _save(folder: Path, state: State) -> None:
    write_atomically(folder / STATE, json.dumps(state._asdict()).encode())


def _tokenizer(folder: Path, job: dict[str, Any], data: Data, report: Report) -> Tokenizer:
    path = folder / TOKENIZER
    if path.exists():
        return load_tokenizer(path)
    report.note(f"making the tokenizer, {job['tokenizer']}")
    texts = encoding.joined(corpus.pieces(data, job["text_field"]))
    tokenizer = train_tokenizer(job["tokenizer"], texts, job["vocab_size"])
    tokenizer.save(path)
    return tokenizer


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    """Of tokens in a file: uint16, or uint32 for more than 65,536 different ones."""
    return np.dtype(f"<u{np.dtype(token_type(tokenizer.vocab_size)).itemsize}")


def _encode(
    folder: Path,
    state: State,
    batches: Iterator[encoding.Batch],
    tokenizer: Tokenizer,
    counts: Counts,
    total: int,
    report: Report,
) -> State:
    """Writes the tokens of all batches but those that are written already."""
    dtype = _dtype(tokenizer)
    path = folder / ALL
    path.touch()
    for _ in itertools.islice(batches, state.batches):
        pass
    progress = Progress(report, "encoding", "MB", counts.n_bytes)
    with path.open("r+b") as file:
        file.truncate(state.tokens * dtype.itemsize)
        file.seek(0, os.SEEK_END)

        def saved(state: State) -> State:
            file.flush()
            os.fsync(file.fileno())
            _save(folder, state)
            return state

        for tokens, _ in encoding.encode(batches, tokenizer):
            file.write(tokens.astype(dtype, copy=False).data)
            state = state._replace(batches=state.batches + 1, tokens=state.tokens + len(tokens))
            if state.batches % SAVE_EVERY == 0:
                saved(state)
            progress(counts.n_bytes, total)
        return saved(state._replace(documents=counts.documents, characters=counts.characters))


def _split(folder: Path, state: State, dtype: np.dtype) -> None:
    """Makes two files of the one, in steps of which each can be done again."""
    path, train = folder / ALL, _n_train(state)
    if not path.exists():
        return
    if path.stat().st_size == state.tokens * dtype.itemsize:
        with path.open("rb") as source, (folder / f"{VAL}.part").open("wb") as target:
            source.seek(train * dtype.itemsize)
            shutil.copyfileobj(source, target, 2**20)
            target.flush()
            os.fsync(target.fileno())
        os.replace(folder / f"{VAL}.part", folder / VAL)
        os.truncate(path, train * dtype.itemsize)
    os.replace(path, folder / TRAIN)


def _n_train(state: State) -> int:
    return int((1 - state.job["val_share"]) * state.tokens)


def _finished(folder: Path, state: State, tokenizer: Tokenizer) -> dict[str, Any]:
    """The manifest, written when all else is."""
    train, val, of_all = token_files.checksums(folder / TRAIN, folder / VAL)
    n_train = _n_train(state)
    manifest = {
        "format": FORMAT,
        "jaxgpt": jaxgpt.__version__,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "dtype": _dtype(tokenizer).name,
        "documents": state.documents,
        "characters": state.characters,
        "files": {
            TRAIN: {"tokens": n_train, "sha256": train},
            VAL: {"tokens": state.tokens - n_train, "sha256": val},
        },
        "sha256": of_all,
        "job": state.job,
    }
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    (folder / STATE).unlink(missing_ok=True)
    return manifest


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code."""
    return run_command(_command, FLAGS, arguments)


def _command(given: dict[str, Any]) -> None:
    if given.pop("help", False):
        print(flags.page(ABOUT.format(program=program("prepare")), FLAGS))
        return
    folder = given.pop("verify", None)
    if folder is not None:
        _tell(verify(folder), folder)
        print("the files are what the manifest says")
        return
    for name in ("data", "to"):
        if name not in given:
            raise UserError(f"`{name}` is missing: --help explains it")
    to = given["to"]
    try:
        manifest = prepare(**given)
    except KeyboardInterrupt:
        say("stopped; the same command goes on\n", sys.stderr)
        raise
    _tell(manifest, to)
    print(f"\n    {program('train')} --data {quoted(to)}\n")


def _tell(manifest: dict[str, Any], folder: Path) -> None:
    train, val = (manifest["files"][name]["tokens"] for name in (TRAIN, VAL))
    texts = f"{count(manifest['documents'], 'document')}, {count(manifest['characters'], 'character')}"
    tokens = f"{manifest['tokenizer']}, {manifest['vocab_size']:,} different ones, {manifest['dtype']}"
    split = f"{train:,} to train on, {val:,} to validate (the last {100 * val / (train + val):.2g} %)"
    Report().banner({"text": texts, "tokens": f"{train + val:,} ({tokens}): {split}", "files": shown(folder)})


if __name__ == "__main__":
    sys.exit(main())
