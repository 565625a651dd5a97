"""A model for llama.cpp, read back by the library `gguf`."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import TokenType
from models import MODERN, changed, noise

from jaxgpt import UserError
from jaxgpt.data import tokenizer_json
from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.tokenizer import CharTokenizer, Tokenizer
from jaxgpt.model import gguf as ours

CHARACTERS = CharTokenizer("\n !aeé日🙂")
CPU = changed(vocab_size=8, bias=False)


def written(path: Path, tokenizer: Tokenizer, config=CPU) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors."""
    tokenizer.save(path / "tokenizer.json")
    content = json.loads((path / "tokenizer.json").read_bytes())
    ours.write(path / "model.gguf", config, noise(config), content, tokenizer.end_of_text)
    reader = gguf.GGUFReader(path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}


def token(text: str) -> str:
    return tokenizer_json.written(text.encode())


def test_weights_are_turned_and_every_bias_is_there(tmp_path):
    config = changed(vocab_size=8, bias=False, n_layer=12)
    fields, tensors = written(tmp_path, CHARACTERS, config)
    assert len(tensors) == 2 + 12 * 12 + 2
    params = noise(config)
    for i, block in params["h"].items():
        np.testing.assert_array_equal(tensors[f"blk.{i}.attn_qkv.weight"], block["attn"]["c_attn"]["kernel"].T)
        np.testing.assert_array_equal(tensors[f"blk.{i}.attn_output.weight"], block["attn"]["c_proj"]["kernel"].T)
        np.testing.assert_array_equal(tensors[f"blk.{i}.ffn_up.weight"], block["mlp"]["c_fc"]["kernel"].T)
        np.testing.assert_array_equal(tensors[f"blk.{i}.ffn_down.weight"], block["mlp"]["c_proj"]["kernel"].T)
        np.testing.assert_array_equal(tensors[f"blk.{i}.ffn_norm.weight"], block["ln_2"]["scale"])
        assert not tensors[f"blk.{i}.attn_qkv.bias"].any()
    np.testing.assert_array_equal(tensors["position_embd.weight"], params["wpe"]["embedding"])
    np.testing.assert_array_equal(tensors["output_norm.weight"], params["ln_f"]["scale"])
    assert (fields["general.architecture"], fields["gpt2.block_count"], fields["gpt2.context_length"]) == (
        "gpt2",
        12,
        6,
    )
    assert (fields["gpt2.embedding_length"], fields["gpt2.feed_forward_length"]) == (16, 64)
    assert fields["gpt2.attention.head_count"] == 2
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_characters_become_byte_pairs_with_the_same_tokens(tmp_path):
    fields, _ = written(tmp_path, CHARACTERS)
    assert fields["tokenizer.ggml.tokens"][:8] == list(map(token, CHARACTERS.characters))
    assert fields["tokenizer.ggml.tokens"][:4] == ["Ċ", "Ġ", "!", "a"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert merged(token("a日é🙂"), fields["tokenizer.ggml.merges"]) == list(map(token, "a日é🙂"))


def merged(symbols: str, merges: list[str]) -> list[str]:
    """Byte pair encoding as it is defined, without its speed."""
    parts = list(symbols)
    for left, right in (merge.split(" ") for merge in merges):
        i = 0
        while i < len(parts) - 1:
            if parts[i : i + 2] == [left, right]:
                parts[i : i + 2] = [left + right]
            i += 1
    return parts


def test_a_token_to_stop_on_is_added_that_is_never_the_likeliest(tmp_path):
    fields, tensors = written(tmp_path, CHARACTERS)
    assert fields["tokenizer.ggml.tokens"][8:] == ["<|endoftext|>"]
    assert fields["tokenizer.ggml.token_type"] == [TokenType.NORMAL] * 8 + [TokenType.CONTROL]
    assert fields["tokenizer.ggml.eos_token_id"] == 8
    assert fields["tokenizer.ggml.add_bos_token"] is False
    logits = tensors["token_embd.weight"] @ np.random.default_rng(0).normal(size=(16, 1000))
    assert logits.argmax(0).max() < 8
    np.testing.assert_array_equal(tensors["token_embd.weight"][:8], noise(CPU)["wte"]["embedding"])


def test_bytes_stop_on_one_that_no_text_has(tmp_path):
    config = changed(vocab_size=256, tie_head=False, bias=False)
    fields, tensors = written(tmp_path, BytesTokenizer(), config)
    assert fields["tokenizer.ggml.tokens"] == [tokenizer_json.written(bytes([byte])) for byte in range(256)]
    assert fields["tokenizer.ggml.eos_token_id"] == 255
    assert len(fields["tokenizer.ggml.merges"]) == 1  # llama.cpp wants one
    assert merged("no merges", fields["tokenizer.ggml.merges"]) == list("no merges")
    np.testing.assert_array_equal(tensors["output.weight"], noise(config)["lm_head"]["kernel"].T)


def test_byte_pairs_keep_their_merges_and_their_end_of_text(tmp_path):
    bpe = BPETokenizer.train("the night is young and so are we the night the night", 262)
    fields, _ = written(tmp_path, bpe, changed(vocab_size=bpe.vocab_size))
    assert fields["tokenizer.ggml.tokens"][-1] == "<|endoftext|>"
    assert fields["tokenizer.ggml.eos_token_id"] == bpe.end_of_text == len(fields["tokenizer.ggml.tokens"]) - 1
    ids = [
        fields["tokenizer.ggml.tokens"].index(part) for part in merged(token("the"), fields["tokenizer.ggml.merges"])
    ]
    assert ids == bpe.encode("the").tolist()
    assert len(ids) < 3


def test_a_table_longer_than_the_vocabulary_is_filled_up(tmp_path):
    bpe = BPETokenizer.train("abab", 258)
    fields, _ = written(tmp_path, bpe, changed(vocab_size=bpe.vocab_size + 3))
    assert len(fields["tokenizer.ggml.tokens"]) == bpe.vocab_size + 3


def test_a_bias_of_the_head_is_folded(tmp_path):
    config = changed(vocab_size=8, tie_head=False)
    _, tensors = written(tmp_path, CHARACTERS, config)
    params = noise(config)
    x = np.random.default_rng(0).normal(size=16).astype(np.float32)
    before = (x + params["ln_f"]["bias"]) @ params["lm_head"]["kernel"] + params["lm_head"]["bias"]
    after = tensors["output.weight"][:8] @ (x + tensors["output_norm.bias"])
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "relu"}, "llama.cpp's gpt2 has no `activation` relu: train without, or export to huggingface"),
        (MODERN, "has no `positions` rotary, `embd_norm`, `qk_norm`, `value_shift`: train without"),
        ({"tie_head": False, "n_embd": 4}, "has no `bias` of an untied head: train without"),
        ({"architecture": "head"}, "head is a rung of the ladder"),
    ],
    ids=str,
)
def test_what_llama_cpp_cannot_hold_is_one_line(changes, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        written(tmp_path, CHARACTERS, changed(vocab_size=8, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


def test_a_tokenizer_that_llama_cpp_has_not_is_one_line(tmp_path):
    merges = ((b"a", b"b"),)
    vocab = (*(bytes([byte]) for byte in tokenizer_json.BYTES), b"ab")
    other = tokenizer_json.byte_level(tokenizer_json.ByteLevel(vocab, merges, (), r"\w+"))
    with pytest.raises(UserError, match=r"not one that llama\.cpp's gpt-2 does"):
        ours.write(tmp_path / "x", changed(vocab_size=257), noise(changed(vocab_size=257)), other, None)
