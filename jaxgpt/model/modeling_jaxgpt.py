"""A GPT that jaxgpt trained, for transformers: jaxgpt/model/gpt.py once more, in PyTorch.

`jaxgpt.export` puts this file beside weights that GPT2LMHeadModel cannot hold; nothing in jaxgpt imports it.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

It keeps no keys and values from token to token, since the interface for that changes with each version of transformers:
`generate` reads the text again, of which there are `block_size` tokens at most.

Shapes: B sequences, T tokens, C channels, H heads of D channels, V the vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.pytorch_utils import Conv1D


class JaxGPTConfig(PretrainedConfig):
    """`jaxgpt` has the fields of jaxgpt's ModelConfig."""

    model_type = "jaxgpt"

    def __init__(self, jaxgpt=None, **rest):
        self.jaxgpt = dict(jaxgpt or {})
        self.hidden_size = self.jaxgpt.get("n_embd", 0)
        self.num_hidden_layers = self.jaxgpt.get("n_layer", 0)
        self.num_attention_heads = self.jaxgpt.get("n_head", 0)
        self.max_position_embeddings = self.jaxgpt.get("block_size", 0)
        super().__init__(**rest)


def rms_norm(x):
    """In float32, without a learnt scale."""
    return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotated(x, positions, base):
    """Rotary embeddings: x (B, T, H, D), positions (B, T)."""
    pairs = x.shape[-1] // 2
    frequencies = float(base) ** (-torch.arange(pairs, device=x.device, dtype=torch.float32) / pairs)
    angles = (positions[..., None].float() * frequencies)[:, :, None]  # (B, T, 1, D / 2)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def shifted(v):
    """Values (B, H, T, D) whose second half is that of the token before."""
    current, previous = v.chunk(2, dim=-1)
    return torch.cat([current, F.pad(previous, (0, 0, 1, 0))[:, :, :-1]], dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config["n_embd"]
        self.c_attn = Conv1D(3 * C, C)
        self.c_proj = Conv1D(C, C)

    def forward(self, x, positions, read, mask):
        c = self.config
        B, T, C = x.shape
        H, rate = c["n_head"], c["dropout"] if self.training else 0.0
        q, k, v = (part.view(B, T, H, C // H) for part in self.c_attn(x).split(C, dim=-1))
        if c["qk_norm"]:
            q, k = rms_norm(q), rms_norm(k)
        if c["positions"] == "rotary":
            q, k = (rotated(part, positions, c["block_size"]) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        if c["value_shift"]:
            v = shifted(v * read[:, None, :, None])  # the first token has none before it, nor padding
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), rate)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config["n_embd"]
        self.c_fc = Conv1D(4 * C, C)
        self.c_proj = Conv1D(C, 4 * C)

    def forward(self, x):
        hidden = self.c_fc(x)
        hidden = F.relu(hidden) if self.config["activation"] == "relu" else F.gelu(hidden, approximate="tanh")
        return F.dropout(self.c_proj(hidden), self.config["dropout"], self.training)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config["n_embd"]
        self.ln_1, self.attn = nn.LayerNorm(C), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(C), MLP(config)

    def forward(self, x, *rest):
        x = x + self.attn(self.ln_1(x), *rest)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config["n_embd"]
        self.wte = nn.Embedding(config["vocab_size"], C)
        if config["positions"] == "learned":
            self.wpe = nn.Embedding(config["block_size"], C)
        self.h = nn.ModuleList(Block(config) for _ in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(C)

    def forward(self, tokens, read):
        """tokens (B, T), read (B, T) with 0 for padding and 1 for the others, to (B, T, C)."""
        positions = (read.long().cumsum(-1) - 1).clamp(0)  # (B, T)
        ones = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
        mask = (ones.tril() & read.bool()[:, None]) | ones.tril().triu()  # padding sees itself: nothing would be NaN
        mask = mask[:, None]  # (B, 1, T, T)
        x = self.wte(tokens)
        x = x + self.wpe(positions) if self.config["positions"] == "learned" else x
        x = rms_norm(x) if self.config["embd_norm"] else x
        x = F.dropout(x, self.config["embd_dropout"], self.training)
        for block in self.h:
            x = block(x, positions, read.to(x.dtype), mask)
        return self.ln_f(x)


class JaxGPTForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = JaxGPTConfig
    base_model_prefix = "transformer"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        c = config.jaxgpt
        self.transformer = Transformer(c)
        if not c["tie_head"]:
            self.lm_head = nn.Linear(c["n_embd"], c["vocab_size"])
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        most = self.config.max_position_embeddings
        mask = None if attention_mask is None else attention_mask[:, -most:]
        return {"input_ids": input_ids[:, -most:], "attention_mask": mask}

    def forward(self, input_ids, attention_mask=None, labels=None, **_):
        """input_ids (B, T) to logits (B, T, V), and with labels (B, T), where -100 does not count, to the loss of every
        next token, too. attention_mask (B, T) is 0 for padding."""
        T, most = input_ids.shape[1], self.config.max_position_embeddings
        if most < T:
            raise ValueError(f"{T} tokens are more than the model's block_size of {most}")
        x = self.transformer(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        table = self.transformer.wte.weight
        logits = F.linear(x, table) if self.config.jaxgpt["tie_head"] else self.lm_head(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
