"""A run reads the same tokens from a text as from the token files that were made of it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.config import TrainConfig, override
from jaxgpt.data import batches, dataset
from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.dataset import Dataset, ForeignText
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.errors import UserError
from jaxgpt.prepare import prepare


def load(data, tokenizer: str = "char", vocab_size: int = 0, **changes) -> Dataset:
    return dataset.load(override(TrainConfig(data=data, tokenizer=tokenizer), vocab_size=vocab_size, **changes))


def message(*arguments, **changes) -> str:
    """The one line that `load` fails with."""
    with pytest.raises(UserError) as caught:
        load(*arguments, **changes)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def here(text, tmp_path, monkeypatch) -> Path:
    """The current folder, with a text and two documents."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(text)
    Path("b.jsonl").write_text("\n".join(json.dumps({"text": text[i::2]}) for i in range(2)))
    return tmp_path


# Texts


def test_characters_are_as_they_always_were(here, text):
    data = load("a.txt")
    tokens = CharTokenizer.train(text).encode(text)
    train, val = batches.split(tokens)
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.val, val)
    assert data.train.dtype == np.uint16
    assert data.sha256 == hashlib.sha256(tokens.tobytes()).hexdigest()  # older runs are known by it
    assert (data.remark, data.split) == (None, "the last 10 %")


def test_documents_are_separated(here, text):
    joined = "\n".join([text[0::2], text[1::2]])
    char, bpe = load("b.jsonl"), load("b.jsonl", "bpe", vocab_size=300)
    assert char.tokenizer.decode(np.concatenate([char.train, char.val])) == joined
    tokens = np.concatenate([bpe.train, bpe.val])
    assert (tokens == bpe.tokenizer.end_of_text).sum() == 1
    assert bpe.tokenizer.decode(tokens) == "<|endoftext|>".join([text[0::2], text[1::2]])
    assert bpe.tokenizer.vocab_size == 300


def test_a_tokenizer_that_is_given_is_used(here, text):
    bytes_ = BytesTokenizer()
    assert dataset.load(TrainConfig(data="a.txt"), bytes_).tokenizer is bytes_
    with pytest.raises(ForeignText, match="did not contain"):
        dataset.load(TrainConfig(data="a.txt"), CharTokenizer("abc"))


def test_progress_goes_from_nothing_to_all(here, text):
    told = []
    dataset.load(TrainConfig(data="a.txt", tokenizer="bytes"), progress=lambda *step: told.append(step))
    assert told[-1] == (len(text), len(text))


def test_mistakes_are_told(here):
    Path("b.jsonl").write_text('{"content": "x"}')
    assert "b.jsonl:1 has no field 'text'" in message("b.jsonl")
    assert load("b.jsonl", text_field="content").tokenizer.vocab_size == 1
    assert "`vocab_size` is 7, but" in message("a.txt", vocab_size=7)
    assert "no tokenizer of kind 'bpee': did you mean 'bpe'" in message("a.txt", "bpee")


# Token files


@pytest.fixture
def folder(here) -> Path:
    """Token files of b.jsonl."""
    prepare("b.jsonl", "tokens", "bpe", 300, quiet=True)
    return here / "tokens"


def test_token_files_hold_the_tokens_of_their_text_and_their_tokenizer(folder):
    text, files = load("b.jsonl", "bpe", 300), load("tokens")
    np.testing.assert_array_equal(np.asarray(files.train), text.train)
    np.testing.assert_array_equal(np.asarray(files.val), text.val)
    assert files.sha256 == text.sha256
    assert files.tokenizer == text.tokenizer
    assert load(("tokens",), "bpe").sha256 == text.sha256
    assert dataset.load(TrainConfig(data="tokens"), text.tokenizer).tokenizer is text.tokenizer


def test_another_share_for_validation_is_stated(here):
    prepare("a.txt", "tokens", "bytes", val_share=0.25, quiet=True)
    assert load("tokens").split == "the last 25 %"


def test_token_files_of_another_tokenizer_are_refused(folder, text):
    assert "tokens was prepared with the tokenizer bpe, not bytes: leave out `tokenizer`" in message("tokens", "bytes")
    for other in (BytesTokenizer(), BPETokenizer.train(text[::-1], 300), BPETokenizer.train(text, 290)):
        with pytest.raises(ForeignText, match="tokens was prepared with another tokenizer than that of the model"):
            dataset.load(TrainConfig(data="tokens"), other)


def test_a_folder_of_token_files_is_taken_whole_or_not(folder):
    shutil.copy("a.txt", "tokens/a.txt")
    assert load("tokens").tokenizer.kind == "bpe"
    Path("tokens/val.bin").unlink()
    assert load("tokens").tokenizer.kind == "char"  # a folder of texts


@pytest.fixture
def nano(here, text) -> Path:
    """Token files as nanoGPT leaves them: of bytes, with a pickle."""
    Path("nano").mkdir()
    tokens = BytesTokenizer().encode(text)
    tokens[:900].tofile("nano/train.bin")
    tokens[900:1000].tofile("nano/val.bin")
    Path("nano/meta.pkl").write_bytes(b"\x80\x04.")
    return here / "nano"


def test_nanogpts_token_files_are_taken_for_what_one_says_they_are(nano, text):
    data = load("nano", "bytes")
    assert data.tokenizer.decode(np.asarray(data.train)) == text[:900]
    assert (len(data.val), data.split) == (100, "val.bin")
    assert data.sha256 == load("nano", "bytes").sha256
    assert dataset.load(TrainConfig(data="nano"), BPETokenizer.train(text, 300)).tokenizer.kind == "bpe"
    for kind in ("char", "bpe"):
        assert "nano has token files, but no manifest.json that says what a token is" in message("nano", kind)


def test_nanogpts_token_files_of_another_vocabulary_are_noticed(nano):
    np.array([300] * 99, "<u2").tofile("nano/val.bin")
    assert "nano has the token 300, but the tokenizer bytes only 256" in message("nano", "bytes")
    Path("nano/train.bin").write_bytes(b"odd")
    assert "nano/train.bin has 3 bytes, which are no uint16 tokens" in message("nano", "bytes")
