"""The models once more, in NumPy and float64, one sequence and one head at a time, written apart from the library to be
compared with it."""

import math
from typing import Any

import numpy as np

from jaxgpt.config import ModelConfig


def gpt(c: ModelConfig, p: Any, tokens: np.ndarray) -> np.ndarray:
    """The logits (T, V) of one sequence (T,), by the GPT with the weights `p`."""
    x = p["wte"]["embedding"][tokens]
    if c.positions == "learned":
        x = x + p["wpe"]["embedding"][: len(tokens)]
    if c.embd_norm:
        x = unit(x)
    for i in range(c.n_layer):
        block = p["h"][i]
        x = x + linear(block["attn"]["c_proj"], attention(c, linear(block["attn"]["c_attn"], norm(block["ln_1"], x))))
        hidden = linear(block["mlp"]["c_fc"], norm(block["ln_2"], x))
        x = x + linear(block["mlp"]["c_proj"], gelu(hidden) if c.activation == "gelu" else np.maximum(hidden, 0))
    x = norm(p["ln_f"], x)
    return x @ p["wte"]["embedding"].T if c.tie_head else linear(p["lm_head"], x)


def rung(c: ModelConfig, p: Any, tokens: np.ndarray) -> np.ndarray:
    """The logits (T, V) of one sequence (T,), by a rung of the ladder with the weights `p`."""
    if c.architecture == "bigram":
        return p["table"]["embedding"][tokens]
    x = p["wte"]["embedding"][tokens] + p["wpe"]["embedding"][: len(tokens)]
    if c.architecture in ("blocks", "layernorm"):
        for i in range(c.n_layer):
            block = p["h"][i]
            heads = separate_heads(c, block["attn"], norm(block.get("ln_1"), x))
            x = x + linear(block["attn"]["proj"], heads)
            hidden = np.maximum(linear(block["c_fc"], norm(block.get("ln_2"), x)), 0)
            x = x + linear(block["c_proj"], hidden)
        x = norm(p.get("ln_f"), x)
    else:
        x = separate_heads(c, p["attn"], x)
    if c.architecture == "feedforward":
        x = np.maximum(linear(p["think"], x), 0)
    return linear(p["lm_head"], x)


def separate_heads(c: ModelConfig, p: Any, x: np.ndarray) -> np.ndarray:
    """Attention of a rung, whose queries, keys and values have matrices of their own: (T, C) to (T, C)."""
    return attention(c, np.concatenate([linear(p[name], x) for name in ("query", "key", "value")], axis=1))


def attention(c: ModelConfig, qkv: np.ndarray) -> np.ndarray:
    """(T, 3 C) to (T, C), the heads side by side."""
    n_head = 1 if c.architecture == "head" else c.n_head
    q, k, v = (np.split(part, n_head, axis=1) for part in np.split(qkv, 3, axis=1))
    return np.concatenate([head(c, *parts) for parts in zip(q, k, v, strict=True)], axis=1)


def head(c: ModelConfig, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One head, (T, D) each: a token's average of the values up to its own."""
    T, D = q.shape
    if c.qk_norm:
        q, k = unit(q), unit(k)
    if c.positions == "rotary":
        q, k = (rotated(x, c.block_size) for x in (q, k))
    if c.value_shift:
        v = np.array([[*v[t, : D // 2], *(v[t - 1, D // 2 :] if t else np.zeros(D // 2))] for t in range(T)])
    y = np.zeros((T, D))
    for t in range(T):
        weights = np.exp(k[: t + 1] @ q[t] / math.sqrt(D))
        y[t] = weights / weights.sum() @ v[: t + 1]
    return y


def rotated(x: np.ndarray, base: int) -> np.ndarray:
    """Channels i and i + D / 2 as one complex number, turned by position times base^(-2 i / D)."""
    half = x.shape[1] // 2
    angles = np.outer(np.arange(len(x)), [base ** (-i / half) for i in range(half)])
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def norm(p: Any, x: np.ndarray) -> np.ndarray:
    """LayerNorm; nothing where a rung has none."""
    if p is None:
        return x
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * p["scale"] + p.get("bias", 0)


def linear(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
