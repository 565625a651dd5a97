"""A model and its tokenizer as values that JSON has.

An array is {"shape": [...], "type": "float16", "data": "..."}: little-endian bytes in base64.
"""

import base64
from typing import Any

import jax
import numpy as np

from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.tokenizer import CharTokenizer, Tokenizer
from jaxgpt.data.tokenizer_json import GPT2_PATTERN, written
from jaxgpt.model import build


def array(values: Any, type: str) -> dict[str, Any]:
    """An array; `type` is "float16", "float32" or "uint8"."""
    values = np.asarray(values, np.dtype(type).newbyteorder("<"), order="C")
    return {"shape": list(values.shape), "type": type, "data": base64.b64encode(values.tobytes()).decode()}


def weights(model: Any) -> dict[str, Any]:
    """The model's weights in float16 by their names: "h.0.attn.c_attn.kernel"."""
    leaves = jax.tree.leaves_with_path(build.params_of(model))
    return {jax.tree_util.keystr(path, simple=True, separator="."): array(leaf, "float16") for path, leaf in leaves}


def tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a page needs to encode a text; of the kind "recorded" where it has no code for that."""
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "char", "characters": tokenizer.characters}
    if isinstance(tokenizer, BytesTokenizer):
        return {"kind": "bytes"}
    if isinstance(tokenizer, BPETokenizer) and tokenizer.pattern == GPT2_PATTERN:
        special = tokenizer.special
        names = [token.decode() if i in special else written(token) for i, token in enumerate(tokenizer.vocab)]
        return {
            "kind": "bpe",
            "merges": [[written(left), written(right)] for left, right in tokenizer.merges],
            "vocab": {name: i for i, name in enumerate(names)},
            "end_of_text": tokenizer.end_of_text,
        }
    return {"kind": "recorded"}


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """What to show for each token."""
    return [token_text(tokenizer, token) for token in range(tokenizer.vocab_size)]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What to show for a token; for bytes that are no whole characters, their values: "<0xE2>"."""
    if not isinstance(tokenizer, BPETokenizer | BytesTokenizer):
        return tokenizer.decode([token])
    content = tokenizer.vocab[token] if isinstance(tokenizer, BPETokenizer) else bytes([token])
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in content)
