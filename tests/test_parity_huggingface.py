"""Import against transformers: random GPT2LMHeadModels that it saves give the same logits here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import logits_of
from transformers import GPT2Config, GPT2LMHeadModel

import jaxgpt
from jaxgpt.model import build, huggingface
from jaxgpt.runs.pretrained import from_huggingface

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

LOGITS = 1e-4
SHAPES = {
    "small": {},
    "twelve blocks": {"n_layer": 12},
    "untied": {"tie_word_embeddings": False},
    "relu": {"activation_function": "relu"},
    "the other name of GELU": {"activation_function": "gelu_pytorch_tanh"},
    "one head": {"n_head": 1, "n_positions": 20},
    "upcast": {"reorder_and_upcast_attn": True},
    "wide inside": {"n_inner": 192},
}


def model(**changes: object) -> GPT2LMHeadModel:
    """A GPT-2 far from its quiet start: every weight and bias is noise."""
    torch.manual_seed(0)
    shape = {"vocab_size": 101, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4} | changes
    made = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0.5 if p.ndim == 1 else 0.0, 0.2)
    return made


def assert_same_logits(folder: Path, reference: GPT2LMHeadModel) -> None:
    tokens = np.random.default_rng(0).integers(0, 101, (2, reference.config.n_positions))
    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens)).logits.numpy()
    ours = logits_of(from_huggingface(folder).model, tokens)
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_what_transformers_saves_gives_the_same_logits_here(changes, tmp_path):
    reference = model(**changes)
    reference.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, reference)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_give_the_same_logits(tied, tmp_path):
    reference = model(n_layer=11, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(tmp_path, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_the_bytes_give_the_same_logits(dtype, tmp_path):
    model().to(dtype).save_pretrained(tmp_path, max_shard_size="100KB")
    assert_same_logits(tmp_path, GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval())


def test_the_body_alone_gives_the_same_logits(tmp_path):
    """GPT2Model's tensors have no "transformer." before their names."""
    reference = model()
    reference.transformer.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, reference)


def test_four_fields_of_config_json_are_enough(tmp_path):
    reference = model(n_head=12)
    reference.save_pretrained(tmp_path)
    fields = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: content[name] for name in fields}))
    assert_same_logits(tmp_path, reference)


def test_a_model_that_transformers_trained_further_comes_back_trained(tmp_path):
    """Biases that jaxgpt wrote as zeros are its biases now."""
    config = jaxgpt.ModelConfig(vocab_size=101, block_size=64, n_layer=2, n_head=4, n_embd=48, bias=False)
    huggingface.write(tmp_path, config, build.init_params(config, 0))
    reference = GPT2LMHeadModel.from_pretrained(tmp_path)
    sgd = torch.optim.SGD(reference.parameters(), 0.1)
    tokens = torch.arange(60)[None]
    reference(tokens, labels=tokens).loss.backward()
    sgd.step()
    reference.resize_token_embeddings(102)
    reference.eval().save_pretrained(tmp_path)
    assert_same_logits(tmp_path, reference)
    expected = dataclasses.replace(config, bias=True, vocab_size=102)
    assert from_huggingface(tmp_path).config.model == expected
