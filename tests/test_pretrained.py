"""A folder in Hugging Face's format, or a name on its hub, becomes a run."""

import logging
import shutil
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import errors
from models import TOKENS, changed, logits_of, noise, noisy

import jaxgpt
from jaxgpt import UserError
from jaxgpt.data import gpt2_vocabulary
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.model import huggingface
from jaxgpt.runs import pretrained

CHARACTERS = CharTokenizer("abcdefghijk")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """gpt2/ below the working folder: the noisy model, and a tokenizer of its eleven characters."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small"
    path.mkdir()
    huggingface.write(path, changed(), noise())
    CHARACTERS.save(path / "tokenizer.json")
    return path


@pytest.fixture
def hub(folder, monkeypatch) -> list[str]:
    """What is asked of a hub that has that folder under every name."""
    asked = []

    def download(name, *, allow_patterns):
        asked.append(name)
        assert "model.safetensors" in allow_patterns and not any("bin" in pattern for pattern in allow_patterns)
        logging.getLogger("huggingface_hub").warning("you have no account")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_folder_becomes_a_run_with_its_tokenizer(folder):
    run = pretrained.from_huggingface("small")
    assert (run.path, run.step, run.tokenizer) == (folder, 0, CHARACTERS)
    assert run.config.model == changed()
    assert (run.config.tokenizer, run.config.init_from) == ("char", str(folder))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run.model))
    np.testing.assert_array_equal(logits_of(run.model), logits_of(noisy()))
    assert len(run.generate("abc", tokens=20)) == 23


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_no_token_uses_are_left_out(tied, tmp_path):
    config = changed(vocab_size=16, tie_head=tied)
    huggingface.write(tmp_path, config, noise(config))
    CHARACTERS.save(tmp_path / "tokenizer.json")
    run = pretrained.from_huggingface(tmp_path)
    assert run.config.model == changed(tie_head=tied)
    (tmp_path / "tokenizer.json").unlink()
    padded = pretrained.from_huggingface(tmp_path)
    np.testing.assert_allclose(logits_of(run.model), logits_of(padded.model)[..., :11], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "repository"),
    [("gpt2", "openai-community/gpt2"), ("gpt2-xl", "openai-community/gpt2-xl"), ("some/model", "some/model")],
)
def test_a_name_comes_from_the_hub_without_noise(name, repository, hub, folder, caplog):
    run = pretrained.from_huggingface(name)
    assert hub == [repository]
    assert (run.path, run.config.init_from) == (folder, name)
    assert not caplog.records
    logging.getLogger("huggingface_hub").warning("heard again")
    assert len(caplog.records) == 1


def test_a_folder_goes_before_the_hub(folder, hub):
    shutil.copytree(folder, "gpt2")
    assert pretrained.from_huggingface("gpt2").path == folder.with_name("gpt2")
    assert hub == []


def offline() -> Exception:
    problem = errors.LocalEntryNotFoundError("An error happened\nwhile trying to locate the files on the Hub")
    problem.__cause__ = OSError("Name or service not known")
    return problem


UNREACHED = "the Hugging Face hub cannot be reached for openai-community/gpt2"
FAILED = "openai-community/gpt2 cannot be downloaded from the Hugging Face hub"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (offline(), f"{UNREACHED} (Name or service not known)"),
        (errors.OfflineModeIsEnabled("x"), f"{UNREACHED} (it is switched off)"),
        (TimeoutError("read\ntimed out"), f"{FAILED} (read timed out)"),
        (RuntimeError("x" * 9999), f"{FAILED} ({'x' * 200})"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_without_a_network_there_is_one_line(problem, said, folder, monkeypatch):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        pretrained.from_huggingface("gpt2")
    assert str(caught.value) == f"there is no folder gpt2, and {said}"


def test_what_can_be_no_name_of_the_hub_is_not_looked_for(hub):
    for name in ("gtp2", "runs/cpu/old", "owner/two words"):
        with pytest.raises(UserError, match=f"there is no folder {name}, and the hub's models are called owner/model"):
            pretrained.from_huggingface(name)
    assert hub == []


# Tokenizers


def test_without_a_tokenizer_the_model_still_works_and_text_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    run = pretrained.from_huggingface(folder)
    np.testing.assert_array_equal(logits_of(run.model, TOKENS), logits_of(noisy(), TOKENS))
    for use in (lambda: run.generate("abc"), lambda: run.tokenizer.decode([1]), run.tokenizer.decoder):
        with pytest.raises(UserError, match=r"small has no tokenizer\.json: put that of the model there"):
            use()


def of_50257_tokens(folder: Path) -> None:
    config = changed(vocab_size=50257)
    huggingface.write(folder, config, noise(config))
    (folder / "tokenizer.json").unlink()


def test_a_model_with_as_many_tokens_as_gpt2_gets_its_tokenizer(folder, monkeypatch):
    of_50257_tokens(folder)
    monkeypatch.setattr(pretrained, "train_tokenizer", lambda kind, text: f"the tokenizer {kind}" and CHARACTERS)
    assert pretrained.from_huggingface(folder).tokenizer == CHARACTERS


def test_where_gpt2s_vocabulary_cannot_be_had_text_says_why(folder, monkeypatch):
    of_50257_tokens(folder)

    def fail():
        raise UserError("no network for the vocabulary")

    monkeypatch.setattr(gpt2_vocabulary, "load", fail)
    run = pretrained.from_huggingface(folder)
    with pytest.raises(UserError, match="no network for the vocabulary"):
        run.tokenizer.encode("a")


def test_a_tokenizer_of_another_model_is_refused(folder):
    CharTokenizer("abcdefghijklm").save(folder / "tokenizer.json")
    with pytest.raises(UserError, match="the tokenizer in small has 13 tokens, and the model 11"):
        pretrained.from_huggingface(folder)


def test_a_damaged_tokenizer_is_one_line(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"small/tokenizer\.json") as caught:
        pretrained.from_huggingface(folder)
    assert "\n" not in str(caught.value)


# A run, or a folder of Hugging Face's


def test_what_init_from_names_may_be_a_run_of_ones_own(whole, folder, hub):
    assert pretrained.load_pretrained(whole.path).step == whole.step
    assert pretrained.load_pretrained(whole.path, "best").path == whole.path
    assert pretrained.load_pretrained(folder).step == 0
    assert hub == []
    assert pretrained.load_pretrained("gpt2").step == 0


def test_a_run_without_a_checkpoint_is_told_as_one(copy):
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        pretrained.load_pretrained(copy)


def test_a_folder_that_is_neither_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config\.json cannot be read: No such file"):
        pretrained.load_pretrained(tmp_path)


def test_import_from_python():
    assert jaxgpt.Run is pretrained.Run
