"""GPT-2's weights in Hugging Face's format: what is written, what is read, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from models import MODERN, TOKENS, changed, logits_of, noise
from safetensors.numpy import load_file, save_file
from toy import assert_same

from jaxgpt import ModelConfig, UserError
from jaxgpt.model import build, huggingface

GPT2 = changed(dropout=0.1, embd_dropout=0.1)
CPU = changed(bias=False)
T4 = changed(activation="relu", qkv_bias=False, tie_head=False)
SPEEDRUN = changed(bias=False, **MODERN)
LOGITS = 1e-5

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder below the working one, with a GPT-2 that others made: it says nothing of jaxgpt."""
    monkeypatch.chdir(tmp_path)
    return written(Path("gpt2"), GPT2, foreign=True)


def written(path: Path, config: ModelConfig, foreign: bool = False) -> Path:
    path.mkdir()
    huggingface.write(path, config, noise(config))
    if foreign:
        change_config(path, jaxgpt=None)
    return path


def change_config(path: Path, **fields: Any) -> None:
    """Sets fields of config.json, or removes those that are None."""
    content = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps({name: x for name, x in content.items() if x is not None}))


def change_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors")


def in_shards(path: Path) -> None:
    """As transformers saves large models."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


# There and back


@pytest.mark.parametrize("config", [GPT2, CPU, SPEEDRUN, changed(tie_head=False, bias=False)], ids=str)
def test_what_is_written_and_read_again_is_the_same_model(config, tmp_path):
    huggingface.write(tmp_path, config, noise(config))
    read, params = huggingface.read(tmp_path)
    assert read == config
    assert_same(params, noise(config))


def test_twelve_blocks_stay_in_their_order(tmp_path):
    config = changed(n_layer=12)
    params = noise(config)
    for i, block in params["h"].items():
        block["ln_1"]["scale"] = jnp.full(16, float(i))
    huggingface.write(tmp_path, config, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert [tensors[f"transformer.h.{i}.ln_1.weight"][0] for i in range(12)] == list(range(12))
    model = build.merge(config, huggingface.read(tmp_path)[1])
    assert [block.ln_1.scale[0] for block in model.h] == list(range(12))


def test_a_bias_of_the_head_moves_into_the_layer_norm_before_it(tmp_path):
    assert huggingface.write(tmp_path, T4, noise(T4)) == "GPT2LMHeadModel"
    assert "lm_head.bias" not in load_file(tmp_path / "model.safetensors")
    read, params = huggingface.read(tmp_path)
    assert read == T4
    before = logits_of(build.merge(T4, noise(T4)))
    np.testing.assert_allclose(logits_of(build.merge(read, params)), before, rtol=0, atol=LOGITS)
    assert np.abs(noise(T4)["lm_head"]["bias"]).max() > 0.1


def test_a_bias_of_the_head_that_cannot_move_stays_in_a_class_of_our_own(tmp_path):
    config = changed(tie_head=False, vocab_size=40)  # more tokens than channels
    assert huggingface.write(tmp_path, config, noise(config)) == "AutoModelForCausalLM"
    assert_same(huggingface.read(tmp_path)[1], noise(config))
    assert (tmp_path / "modeling_jaxgpt.py").is_file()
    no_bias = noise(config)
    no_bias["lm_head"]["bias"] = jnp.zeros(40)
    (tmp_path / "zero").mkdir()
    assert huggingface.write(tmp_path / "zero", config, no_bias) == "GPT2LMHeadModel"


def test_the_head_bias_of_a_degenerate_head_is_not_lost(tmp_path):
    params = noise(T4)
    params["lm_head"]["kernel"] = jnp.ones((16, 11))
    assert huggingface.write(tmp_path, T4, params) == "AutoModelForCausalLM"
    assert_same(huggingface.read(tmp_path)[1], params)


def test_files_are_as_transformers_writes_them(tmp_path):
    huggingface.write(tmp_path, CPU, noise(CPU), end_of_text=10)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    tensors, params = load_file(tmp_path / "model.safetensors"), noise(CPU)
    assert len(tensors) == 28
    kernel = params["h"][1]["mlp"]["c_fc"]["kernel"]
    np.testing.assert_array_equal(tensors["transformer.h.1.mlp.c_fc.weight"], kernel)
    assert not tensors["transformer.h.1.mlp.c_fc.bias"].any()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert (config["n_positions"], config["activation_function"], config["eos_token_id"]) == (6, "gelu_new", 10)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 10
    assert not (tmp_path / "modeling_jaxgpt.py").exists()


def test_an_untied_head_is_transposed(tmp_path):
    huggingface.write(tmp_path, SPEEDRUN, noise(SPEEDRUN))
    head = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(head, noise(SPEEDRUN)["lm_head"]["kernel"].T)


def test_biases_that_others_have_trained_are_read(tmp_path):
    """An export of a model without biases has zeros, which transformers trains as any others."""
    huggingface.write(tmp_path, CPU, noise(CPU))
    bias = np.arange(16, dtype=np.float32)
    change_tensors(tmp_path, lambda tensors: tensors | {"transformer.h.0.ln_1.bias": bias})
    config, params = huggingface.read(tmp_path)
    assert config == changed()
    np.testing.assert_array_equal(params["h"][0]["ln_1"]["bias"], bias)
    assert jax.tree.structure(params) == jax.tree.structure(noise(config))


def test_a_rung_of_the_ladder_is_not_written(tmp_path):
    rung = changed(architecture="blocks")
    with pytest.raises(UserError, match="blocks is a rung of the ladder"):
        huggingface.write(tmp_path, rung, noise(rung))


# What others wrote


def same_model(folder: Path) -> None:
    config, params = huggingface.read(folder)
    assert config == changed()  # without dropout, which is a matter of training
    assert_same(params, noise())


def without_prefix(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_masks(tensors):
    mask = np.ones((1, 1, 6, 6), np.uint8)
    return tensors | {f"transformer.h.{i}.attn.{name}": mask for i in range(2) for name in ("bias", "masked_bias")}


def with_the_tied_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}


@pytest.mark.parametrize("change", [without_prefix, with_masks, with_the_tied_head])
def test_other_names_are_understood(change, folder):
    change_tensors(folder, change)
    same_model(folder)


def test_shards_are_read(folder):
    in_shards(folder)
    same_model(folder)


def test_the_other_names_of_the_sizes_are_understood(folder):
    names = {"n_positions": "max_position_embeddings", "n_layer": "num_hidden_layers", "n_embd": "hidden_size"}
    content = json.loads((folder / "config.json").read_text())
    change_config(folder, n_ctx=None, **{new: content[old] for old, new in names.items()}, **dict.fromkeys(names))
    same_model(folder)


def test_what_config_json_leaves_out_is_as_in_gpt2(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"c_attn.bias' has shape \[48\], and by config.json it is \[2304\]"):
        huggingface.read(folder)
    sizes = {"vocab_size": 11, "n_positions": 6, "n_layer": 2, "n_head": 2, "n_embd": 16}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    same_model(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_the_bytes_become_float32(dtype, folder):
    change_tensors(folder, lambda tensors: {name: x.astype(jnp.dtype(dtype)) for name, x in tensors.items()})
    read = huggingface.read(folder)[1]
    assert {x.dtype for x in jax.tree.leaves(read)} == {np.dtype("float32")}
    assert_same(read, jax.tree.map(lambda x: x.astype(dtype).astype("float32"), noise()))


def test_an_untied_head_of_others_gets_a_bias_of_zeros(folder):
    change_config(folder, tie_word_embeddings=False)
    head = np.random.default_rng(1).normal(size=(11, 16)).astype(np.float32)
    change_tensors(folder, lambda tensors: tensors | {"lm_head.weight": head})
    config, params = huggingface.read(folder)
    assert config == changed(tie_head=False)
    np.testing.assert_array_equal(params["lm_head"]["kernel"], head.T)
    assert not params["lm_head"]["bias"].any()
    assert logits_of(build.merge(config, params)).shape == (*TOKENS.shape, 11)


# What is refused


def replaced(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    return partial(change_tensors, change=lambda tensors: tensors | {name: np.asarray(change(tensors[name]))})


def lacking(tensors):
    return {name: x for name, x in tensors.items() if "h.1.mlp" not in name}


def cut(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-100])


def indexed(file: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        in_shards(path)
        index = {"weight_map": {"transformer.wte.weight": file}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def twice(path: Path) -> None:
    in_shards(path)
    shutil.copy(path / "model-00001-of-00002.safetensors", path / "more.safetensors")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["more"] = "more.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def fields(**values: Any) -> Callable[[Path], None]:
    return partial(change_config, **values)


RUNG = {"architecture": "bigram", "vocab_size": 11}
CONFIG, WEIGHTS = "gpt2/config.json: ", "gpt2/model.safetensors: the tensor "
WTE = "'transformer.wte.weight'"
WRONG = [
    (fields(model_type="llama"), f"{CONFIG}it is a model of type 'llama', and only 'gpt2' can be read"),
    (fields(model_type=None), f"{CONFIG}it is a model of type None, and only 'gpt2'"),
    (fields(model_type="jaxgpt"), f"{CONFIG}it is a model of type 'jaxgpt', and only 'gpt2'"),
    (fields(activation_function="gelu"), f"{CONFIG}its activation_function is 'gelu' (the exact one, while GPT-2 has"),
    (fields(activation_function=["relu"]), f"{CONFIG}its activation_function is ['relu'], and can only be gelu_new"),
    (fields(layer_norm_epsilon=1e-6), f"{CONFIG}its layer_norm_epsilon is 1e-06, and can only be 1e-05"),
    (
        fields(scale_attn_by_inverse_layer_idx=True),
        f"{CONFIG}its scale_attn_by_inverse_layer_idx is True",
    ),
    (fields(scale_attn_weights=False), f"{CONFIG}its scale_attn_weights is False, and can only be true here"),
    (fields(add_cross_attention=True), f"{CONFIG}its add_cross_attention is True, and can only be false here"),
    (fields(n_inner=100), f"{CONFIG}its n_inner is 100, and can only be null or 64 here"),
    (fields(n_embd="16"), f"{CONFIG}`n_embd` is a whole number, not '16'"),
    (fields(n_embd=[16]), f"{CONFIG}`n_embd` is a whole number, not (16,)"),
    (fields(n_head=3), f"{CONFIG}`n_head` (3) must divide `n_embd` (16)"),
    (fields(n_layer=0), f"{CONFIG}`n_layer` must be 1 or more, not 0"),
    (fields(vocab_size=0), f"{CONFIG}its vocab_size is 0"),
    (fields(tie_word_embeddings="no"), f"{CONFIG}`tie_head` is true or false, not 'no'"),
    (fields(jaxgpt=7), f"{CONFIG}a config is an object of fields"),
    (
        fields(jaxgpt={"architecture": "bigram", "vocab_size": 11}),
        f"{CONFIG}its architecture is 'bigram', and can only be 'gpt' here",
    ),
    (fields(n_layer=3), "gpt2: the weights lack the tensor 'h.2.ln_1.weight' and 11 more, by config.json"),
    (fields(n_layer=1), f"{WEIGHTS}'transformer.h.1.attn.c_attn.bias' has no place in the model of config.json"),
    (fields(tie_word_embeddings=False), "gpt2: the weights lack the tensor 'lm_head.weight', by config.json"),
    (lambda path: (path / "config.json").write_text("{"), "gpt2/config.json cannot be read: Expecting property name"),
    (lambda path: (path / "config.json").write_text("[" * 10**5), "gpt2/config.json cannot be read: maximum recursion"),
    (lambda path: (path / "config.json").write_text("[]"), "gpt2/config.json is no JSON object"),
    (lambda path: (path / "config.json").unlink(), "gpt2/config.json cannot be read: No such file"),
    (lambda path: (path / "model.safetensors").unlink(), "gpt2 has no model.safetensors"),
    (
        pickled,
        "gpt2 has its weights in pytorch_model.bin alone, a pickle, which is not read: convert it",
    ),
    (cut, "gpt2/model.safetensors cannot be read (Error while deserializing header"),
    (lambda path: (path / "model.safetensors").write_bytes(b""), "gpt2/model.safetensors cannot be read ("),
    (indexed("model-00003-of-00002.safetensors"), "gpt2/model-00003-of-00002.safetensors cannot be read (No such file"),
    (
        indexed("../gpt2/model.safetensors"),
        "gpt2/model.safetensors.index.json: '../gpt2/model.safetensors' is no",
    ),
    (indexed("/etc/hosts"), "gpt2/model.safetensors.index.json: '/etc/hosts' is no file of this folder"),
    (indexed(".."), "gpt2/model.safetensors.index.json: '..' is no file of this folder"),
    (indexed(3), "gpt2/model.safetensors.index.json: 3 is no file of this folder"),
    (twice, "gpt2/more.safetensors: the tensor 'transformer.h.0.attn.c_attn.bias' is twice"),
    (
        replaced("transformer.wte.weight", lambda x: x.T.copy()),
        f"{WEIGHTS}{WTE} has shape [16, 11], and by",
    ),
    (replaced("transformer.wte.weight", lambda x: x.astype(int)), f"{WEIGHTS}{WTE} is of type I64: weights are F32"),
    (partial(change_tensors, change=lacking), "gpt2: the weights lack the tensor 'h.1.mlp.c_fc.weight' and 3 more"),
    (
        partial(change_tensors, change=lambda tensors: tensors | {"score": np.zeros(2, np.float32)}),
        f"{WEIGHTS}'score' has no place in the model of config.json",
    ),
    (
        partial(change_tensors, change=lambda tensors: tensors | {"lm_head.weight": np.zeros((11, 16), np.float32)}),
        "gpt2: the tensor 'lm_head.weight' differs from 'wte.weight', and config.json says that they are one",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_cannot_be_read_is_one_line_that_names_it(spoil, said, folder):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        huggingface.read(folder)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
