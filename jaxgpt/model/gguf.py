"""A model in one file for llama.cpp, by the library `gguf`: the weights in float32, and the tokenizer with them.

llama.cpp's `gpt2` wants matrices as (out, in) and every bias, has GELU alone, and no bias of the head. It knows
byte pairs and no characters: a character of several bytes is what byte pairs make of these.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import TokenType

from jaxgpt.config import ModelConfig
from jaxgpt.data import tokenizer_json
from jaxgpt.data.tokenizer_json import GPT2_PATTERN
from jaxgpt.errors import UserError
from jaxgpt.model import huggingface

# Hugging Face's names of GPT-2's parts, and llama.cpp's.
PARTS = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
}
END_OF_TEXT = "<|endoftext|>"
NEVER_IN_TEXT = b"\xff"  # a byte that UTF-8 does not use
NO_MERGES = ["no merges"]  # llama.cpp wants one at least; no text has a symbol "no", which would take a merge itself


class Vocabulary(NamedTuple):
    """What llama.cpp is told of a tokenizer."""

    tokens: list[str]
    merges: list[str]
    special: tuple[int, ...]
    """Tokens that no text encodes to."""
    end_of_text: int


def write(
    path: str | Path, config: ModelConfig, params: Any, tokenizer: dict[str, Any], end_of_text: int | None
) -> None:
    """Writes the model and its tokenizer to `path`.

    Args:
        path: of the file.
        config: of a `gpt` that llama.cpp's gpt2 can hold.
        params: its weights, as from `build.params_of`.
        tokenizer: the content of its tokenizer.json.
        end_of_text: the token on which llama.cpp stops. It cannot do without: where there is none, it is told of a byte
            that no text has, or of a token of its own, which is never the likeliest.

    Raises:
        UserError: for what llama.cpp can't hold, with what to train without.
    """
    tensors = huggingface.to_tensors(config, params)
    _check(config, huggingface.fold_head_bias(tensors))
    vocabulary = _vocabulary(tokenizer, end_of_text, config.vocab_size)
    if len(vocabulary.tokens) > config.vocab_size:
        # The score of the token of its own: the mean of all others, which is not the largest.
        for table in tensors.keys() & {"wte.weight", "lm_head.weight"}:
            tensors[table] = np.vstack([tensors[table], tensors[table].mean(0)])
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("jaxgpt")
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    types = [TokenType.NORMAL] * len(vocabulary.tokens)
    for token in vocabulary.special:
        types[token] = TokenType.CONTROL
    writer.add_token_types(types)
    writer.add_token_merges(vocabulary.merges or NO_MERGES)
    writer.add_bos_token_id(vocabulary.end_of_text)
    writer.add_eos_token_id(vocabulary.end_of_text)
    writer.add_add_bos_token(False)
    for name, tensor in tensors.items():
        is_matrix = name.startswith("h.") and tensor.ndim == 2
        writer.add_tensor(_name(name), np.ascontiguousarray(tensor.T) if is_matrix else tensor)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check(config: ModelConfig, head_fits: bool) -> None:
    """Raises `UserError` for a model that llama.cpp's gpt2 cannot hold."""
    without = {
        "`activation` relu": config.activation != "gelu",
        "`positions` rotary": config.positions != "learned",
        "`embd_norm`": config.embd_norm,
        "`qk_norm`": config.qk_norm,
        "`value_shift`": config.value_shift,
        "`bias` of an untied head": not head_fits,
    }
    if found := [name for name, is_there in without.items() if is_there]:
        raise UserError(f"llama.cpp's gpt2 has no {', '.join(found)}: train without, or export to huggingface")


def _name(name: str) -> str:
    """ "h.3.attn.c_attn.weight" is "blk.3.attn_qkv.weight"."""
    part, kind = name.rsplit(".", 1)
    if not part.startswith("h."):
        return f"{PARTS[part]}.{kind}"
    _, block, part = part.split(".", 2)
    return f"blk.{block}.{PARTS[part]}.{kind}"


def _vocabulary(tokenizer: dict[str, Any], end_of_text: int | None, vocab_size: int) -> Vocabulary:
    """Raises `UserError` for a tokenizer that llama.cpp has not."""
    characters, special = tokenizer_json.read_characters(tokenizer), ()
    if characters is not None:
        encoded = [character.encode() for character in characters]
        # First byte and second, both and the third, and so on; what no character is made of merges with nothing else.
        pairs = dict.fromkeys((char[:i], char[i : i + 1]) for i in (1, 2, 3) for char in encoded if len(char) > i)
        tokens, merges = [tokenizer_json.written(char) for char in encoded], list(pairs)
    else:
        bpe = tokenizer_json.read_byte_level(tokenizer)
        if bpe is None or (bpe.merges and bpe.pattern != GPT2_PATTERN):
            raise UserError("this tokenizer is not one that llama.cpp's gpt-2 does: export to huggingface")
        special, merges, encoded = bpe.special, list(bpe.merges), list(bpe.vocab)
        tokens = [char.decode() if i in special else tokenizer_json.written(char) for i, char in enumerate(encoded)]
    tokens += [f"<unused {i}>" for i in range(len(tokens), vocab_size)]  # as some pad their tables
    if end_of_text is None and NEVER_IN_TEXT in encoded:
        end_of_text = encoded.index(NEVER_IN_TEXT)
    elif end_of_text is None:
        end_of_text, special = len(tokens), (*special, len(tokens))
        tokens.append(END_OF_TEXT)
    lines = [f"{tokenizer_json.written(left)} {tokenizer_json.written(right)}" for left, right in merges]
    return Vocabulary(tokens, lines, special, end_of_text)
