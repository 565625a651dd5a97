"""The ladder and the GPT once more, in PyTorch, written apart from the library to be compared with it.

As in the lecture, every head has its own query, key and value, and looks at one sequence at a time in
the plainest way. `load(model, params)` gives such a model the weights of one of ours.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def unit(x):
    """Each vector at a mean square of 1."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)


def turned(x, base: int):
    """Rotary positions with complex numbers: channel i and i + D / 2 of (B, T, D) make one."""
    half = x.shape[-1] // 2
    speeds = torch.tensor([base ** (-i / half) for i in range(half)], dtype=torch.float32)
    angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), speeds)
    y = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([y.real, y.imag], dim=-1)


class Head(nn.Module):
    def __init__(self, n_embd: int, head_size: int, bias: bool = False, config=None):
        super().__init__()
        self.config = config  # of a GPT, whose heads can do more
        self.query = nn.Linear(n_embd, head_size, bias=bias)
        self.key = nn.Linear(n_embd, head_size, bias=bias)
        self.value = nn.Linear(n_embd, head_size, bias=bias)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        c = self.config
        if c is not None and c.qk_norm:
            q, k = unit(q), unit(k)
        if c is not None and c.positions == "rotary":
            q, k = turned(q, c.block_size), turned(k, c.block_size)
        if c is not None and c.value_shift:
            half = v.shape[-1] // 2
            before = torch.cat([torch.zeros_like(v[:, :1, half:]), v[:, :-1, half:]], dim=1)
            v = torch.cat([v[..., :half], before], dim=-1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal=1)
        return F.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v


class Heads(nn.Module):
    def __init__(self, n_embd: int, n_head: int, proj: bool = False, qkv_bias=False, bias=True, config=None):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // n_head, qkv_bias, config) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd, bias=bias) if proj else nn.Identity()

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class Norm(nn.Module):
    """LayerNorm spelled out."""

    def __init__(self, n_embd: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x):
        y = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return y * self.weight + (0 if self.bias is None else self.bias)


class Block(nn.Module):
    def __init__(self, n_embd, n_head, norm=True, qkv_bias=False, bias=True, activation="relu", config=None):
        super().__init__()
        self.attn = Heads(n_embd, n_head, proj=True, qkv_bias=qkv_bias, bias=bias, config=config)
        self.fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.act = nn.ReLU() if activation == "relu" else nn.GELU(approximate="tanh")
        self.out = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.ln_1 = Norm(n_embd, bias) if norm else nn.Identity()
        self.ln_2 = Norm(n_embd, bias) if norm else nn.Identity()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.out(self.act(self.fc(self.ln_2(x))))


class Bigram(nn.Module):
    def __init__(self, vocab_size: int):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens):
        return self.table(tokens)


class Transformer(nn.Module):
    """Embeddings, a body, a head: every rung but the first, and the GPT."""

    def __init__(self, config, body: list[nn.Module]):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
        self.embd_norm = config.embd_norm
        self.body = nn.Sequential(*body)
        tied = config.architecture == "gpt" and config.tie_head
        self.head = None if tied else nn.Linear(config.n_embd, config.vocab_size, bias=config.bias)

    def forward(self, tokens):
        x = self.wte(tokens)
        x = x if self.wpe is None else x + self.wpe(torch.arange(tokens.shape[1]))
        x = self.body(unit(x) if self.embd_norm else x)
        return x @ self.wte.weight.T if self.head is None else self.head(x)


def build(c) -> nn.Module:
    """The model that `c`, a `jaxgpt.ModelConfig`, describes."""
    if c.architecture == "bigram":
        return Bigram(c.vocab_size)
    if c.architecture == "gpt":
        qkv_bias = c.bias and c.qkv_bias
        blocks = [Block(c.n_embd, c.n_head, True, qkv_bias, c.bias, c.activation, c) for _ in range(c.n_layer)]
        return Transformer(c, [*blocks, Norm(c.n_embd, c.bias)])
    body = {
        "head": lambda: [Heads(c.n_embd, 1)],
        "multihead": lambda: [Heads(c.n_embd, c.n_head)],
        "feedforward": lambda: [Heads(c.n_embd, c.n_head), nn.Linear(c.n_embd, c.n_embd), nn.ReLU()],
        "blocks": lambda: [Block(c.n_embd, c.n_head, norm=False) for _ in range(c.n_layer)],
        "layernorm": lambda: [*(Block(c.n_embd, c.n_head) for _ in range(c.n_layer)), Norm(c.n_embd)],
    }
    return Transformer(c, body[c.architecture]())


def load(model: nn.Module, params) -> None:
    """Gives `model` the weights of ours; `params` is a nested dict of arrays, gradients for one."""
    for tensor, array in _pairs(model, params):
        tensor.data.copy_(torch.from_numpy(np.array(array)))


def gradients(model: nn.Module, params) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of PyTorch's gradient and ours, where `params` holds our gradients."""
    return [(tensor.grad.numpy(), np.asarray(array)) for tensor, array in _pairs(model, params)]


def weights(model: nn.Module, params) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of PyTorch's weight and ours."""
    return [(tensor.detach().numpy(), np.asarray(array)) for tensor, array in _pairs(model, params)]


def _pairs(model, params):
    """Every tensor of `model` with the array of ours that belongs there, in PyTorch's layout."""
    if isinstance(model, Bigram):
        yield model.table.weight, params["table"]["embedding"]
        return
    yield model.wte.weight, params["wte"]["embedding"]
    if model.wpe is not None:
        yield model.wpe.weight, params["wpe"]["embedding"]
    if model.head is not None:
        yield from _linear(model.head, params["lm_head"])
    n_block = 0
    for part in model.body:
        if isinstance(part, Heads):
            yield from _heads(part, params["attn"])
        elif isinstance(part, nn.Linear):
            yield from _linear(part, params["think"])
        elif isinstance(part, Norm):
            yield from _norm(part, params["ln_f"])
        elif isinstance(part, Block):
            yield from _block(part, params["h"][n_block])
            n_block += 1


def _block(block, params):
    mlp = params.get("mlp", params)
    yield from _heads(block.attn, params["attn"])
    yield from _linear(block.fc, mlp["c_fc"])
    yield from _linear(block.out, mlp["c_proj"])
    for norm, name in ((block.ln_1, "ln_1"), (block.ln_2, "ln_2")):
        if isinstance(norm, Norm):
            yield from _norm(norm, params[name])


def _heads(heads, params):
    if "c_attn" in params:  # the GPT computes queries, keys and values of all heads in one product
        parts = [np.split(np.asarray(params["c_attn"]["kernel"]), 3, axis=1)]
        if "bias" in params["c_attn"]:
            parts.append(np.split(np.asarray(params["c_attn"]["bias"]), 3))
        qkv = [dict(zip(("kernel", "bias"), part, strict=False)) for part in zip(*parts, strict=True)]
    else:
        qkv = [params[name] for name in ("query", "key", "value")]
    for i, head in enumerate(heads.heads):
        for layer, whole in zip((head.query, head.key, head.value), qkv, strict=True):
            size = layer.out_features
            own = {name: np.asarray(value)[..., i * size : (i + 1) * size] for name, value in whole.items()}
            yield from _linear(layer, own)
    if isinstance(heads.proj, nn.Linear):
        yield from _linear(heads.proj, params.get("c_proj", params.get("proj")))


def _linear(layer, params):
    yield layer.weight, np.asarray(params["kernel"]).T
    if layer.bias is not None:
        yield layer.bias, params["bias"]


def _norm(norm, params):
    yield norm.weight, params["scale"]
    if norm.bias is not None:
        yield norm.bias, params["bias"]
