"""Export against transformers: every preset's model has the same logits there, and writes the same text."""

import os

# Before transformers is imported: it copies modelling files into a folder of the user's.
import tempfile

os.environ.setdefault("HF_MODULES_CACHE", os.path.join(tempfile.gettempdir(), "jaxgpt-tests", "modules"))

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import logits_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import jaxgpt
from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.model import build
from jaxgpt.presets import PRESETS
from jaxgpt.runs.export import export
from jaxgpt.runs.pretrained import from_huggingface
from jaxgpt.runs.run import Run

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

LOGITS = 1e-4
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak , speak. It's 42 'é日🙂'!\n"
SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 256}  # 200 tokens beside a prompt
CHARACTERS, BYTES, BPE = CharTokenizer.train(TEXT), BytesTokenizer(), BPETokenizer.train(TEXT * 2, 300)
PARITY = {
    "cpu": ({}, CHARACTERS),
    "t4": ({}, CHARACTERS),
    "speedrun": ({}, CHARACTERS),
    "speedrun-t4": ({}, BPE),
    "cpu bpe": ({}, BPE),
    "cpu bytes": ({"bias": True}, BYTES),
    "t4 bytes": ({}, BYTES),  # whose head has a bias that no LayerNorm can take
    "speedrun tied": ({"tie_head": True, "bias": True, "positions": "learned"}, CHARACTERS),
    "cpu twelve": ({"n_layer": 12}, CHARACTERS),
}


def made(path: Path, name: str) -> Run:
    """A run with a preset's model, all of whose weights are noise; that of positions is large, for a varied text."""
    changes, tokenizer = PARITY[name]
    preset = PRESETS[name.split(" ")[0]]
    config = jaxgpt.override(preset, **SMALL | changes, vocab_size=tokenizer.vocab_size)
    rng = np.random.default_rng(1)

    def noise(path: Any, p: jax.ShapeDtypeStruct) -> jax.Array:
        mean, std = float(path[-1].key == "scale"), 0.6 if path[0].key == "wpe" else 0.15
        return jnp.asarray(rng.normal(mean, std, p.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(noise, build.abstract_params(config.model))
    return Run(path, config, tokenizer, build.merge(config.model, params), 10)


def load(to: Path) -> tuple[Any, Any]:
    """The model and the tokenizer, as the model card says."""
    if (to / "modeling_jaxgpt.py").exists():
        trusted: Any = {"trust_remote_code": True}
        model = AutoModelForCausalLM.from_pretrained(to, **trusted)
        return model.eval(), AutoTokenizer.from_pretrained(to, **trusted)
    return GPT2LMHeadModel.from_pretrained(to).eval(), AutoTokenizer.from_pretrained(to)


@pytest.mark.parametrize("name", PARITY)
def test_an_export_has_the_same_logits_and_writes_the_same_text_in_transformers(name, tmp_path):
    run = made(tmp_path, name)
    to = export(run, tmp_path / name.replace(" ", "-"))
    model, tokenizer = load(to)
    plain = name.startswith(("cpu", "t4")) and name != "t4 bytes"
    assert isinstance(model, GPT2LMHeadModel) == plain

    ids = run.tokenizer.encode(TEXT).tolist()
    assert tokenizer(TEXT)["input_ids"] == ids
    assert tokenizer.decode(ids) == TEXT

    tokens = np.random.default_rng(0).integers(0, run.tokenizer.vocab_size, (2, 256))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = logits_of(run.model, tokens)
    assert ours.std() > 1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=LOGITS)

    again = from_huggingface(to)
    assert again.config.model == run.config.model
    np.testing.assert_allclose(logits_of(again.model, tokens), ours, rtol=0, atol=1e-5)

    assert_same_text(run, model, tokenizer)


def assert_same_text(run: Run, model, tokenizer) -> None:
    """200 tokens, always the likeliest; or fewer, where the model ends its text."""
    prompt = torch.tensor(run.tokenizer.encode(TEXT[:15]))[None].long()
    with torch.no_grad():
        seen = torch.ones_like(prompt)  # all of it: no token is padding
        theirs = model.generate(prompt, attention_mask=seen, max_new_tokens=200, do_sample=False)[0]
    new = theirs[prompt.shape[1] :].tolist()
    end = run.tokenizer.end_of_text
    assert len(new) == 200 or new[-1] == end
    text = tokenizer.decode(new[:-1] if new[-1] == end else new)
    assert len(set(new)) > 9
    assert run.generate(TEXT[:15], tokens=200, temperature=0) == TEXT[:15] + text


def test_padding_on_the_left_does_not_show(tmp_path):
    run = made(tmp_path, "speedrun")
    model, _ = load(export(run, tmp_path / "out"))
    ids = torch.tensor(run.tokenizer.encode(TEXT[:40]))[None].long()
    padded, mask = (torch.cat([fill.new_zeros(1, 7), fill], 1) for fill in (ids, torch.ones_like(ids)))
    with torch.no_grad():
        alone, beside = model(ids).logits, model(padded, attention_mask=mask).logits[:, 7:]
        torch.testing.assert_close(beside, alone, rtol=0, atol=LOGITS)
        loss = model(ids, labels=ids).loss
    expected = torch.nn.functional.cross_entropy(alone[0, :-1], ids[0, 1:])
    torch.testing.assert_close(loss, expected)


def test_text_goes_on_where_the_block_is_full(tmp_path):
    run = made(tmp_path, "speedrun")
    short = dataclasses.replace(run.config.model, block_size=16)
    run = Run(tmp_path, run.config, run.tokenizer, build.merge(short, build.params_of(run.model)), 0)
    run.config = jaxgpt.override(run.config, block_size=16)
    model, _ = load(export(run, tmp_path / "out"))
    text = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=50, do_sample=False)
    assert text.shape == (1, 53)
    with pytest.raises(ValueError, match="17 tokens are more than the model's block_size of 16"):
        model(torch.ones(1, 17, dtype=torch.long))
