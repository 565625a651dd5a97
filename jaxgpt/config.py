"""What a run is: a frozen dataclass for the model, another around it for the training.

A run is a function of its `TrainConfig`: the same config gives the same batches, the same
dropout and, on the same machine, the same weights to the last bit.
"""

import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxgpt.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """A GPT's shape. The defaults are GPT-2's choices at the size of nanoGPT's CPU recipe."""

    architecture: Literal["gpt", "bigram", "head", "multihead", "feedforward", "blocks", "layernorm"] = "gpt"
    """The GPT of model.py, or a rung of ladder/, where only the sizes below apply."""
    vocab_size: int = 0
    """Number of different tokens; 0 means as many as the run's tokenizer has."""
    block_size: int = 64
    """Longest context, in tokens (T)."""
    n_layer: int = 4
    """Number of blocks."""
    n_head: int = 4
    """Attention heads a block; must divide n_embd."""
    n_embd: int = 128
    """Width of the residual stream, in channels (C)."""
    dropout: float = 0.0
    """Share of attention weights and of each sub-block's outputs dropped while training, 0 to below 1."""
    embd_dropout: float = 0.0
    """Share of the embeddings dropped while training, 0 to below 1. GPT-2 has one, the lecture none."""
    activation: Literal["gelu", "relu"] = "gelu"
    """What stands between the two layers of the MLP: GPT-2's tanh-GELU, or the lecture's ReLU."""
    bias: bool = True
    """Whether linear layers and LayerNorms have a bias."""
    qkv_bias: bool = True
    """Whether queries, keys and values have one too, where `bias` is on. The lecture's have none."""
    tie_head: bool = True
    """Whether the output head shares the token embedding's matrix (https://arxiv.org/abs/1608.05859)."""
    embd_norm: bool = False
    """Whether the embeddings are brought to one length before the first block sees them."""
    positions: Literal["learned", "rotary"] = "learned"
    """A learnt vector for each place, or queries and keys turned by it (https://arxiv.org/abs/2104.09864)."""
    qk_norm: bool = False
    """Whether queries and keys are brought to one length before they are compared (https://arxiv.org/abs/2010.04245)."""
    value_shift: bool = False
    """Whether half of each head's values are those of the token before (token shift, https://arxiv.org/abs/2305.13048)."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run: data, model, optimiser, and what is looked at on the way."""

    preset: str = "custom"
    """The recipe to start from; it names the run's folder. Left out: the best one for this machine."""
    data: str = "tinyshakespeare"
    """`tinyshakespeare`, or the path of a UTF-8 text file or of a folder of .txt files."""
    seed: int = 1337
    """Decides the initial weights, the batches and the dropout; 0 or more."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the matrix products; weights and optimiser stay float32. `auto` picks what the device is good at."""

    model: ModelConfig = field(default_factory=ModelConfig)

    max_steps: int = 2000
    """Number of updates of the weights."""
    batch_size: int = 12
    """Sequences an update."""
    micro_batches: int = 0
    """Parts that a device cuts its share of a batch into and works through one by one: the same update with less
    memory. 0 chooses by the device: what stays near a CPU's cache, one part on a GPU."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the others."""
    learning_rate: float = 1e-3
    """Peak step size of AdamW."""
    muon_learning_rate: float = 0.03
    """Peak step size of Muon, as a share of a matrix with singular values of 1; it follows the same schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: a cosine down to `min_learning_rate` at `max_steps`; no change up to `decay_start`, then a
    line down to it; or no change at all."""
    min_learning_rate: float = 1e-4
    """Where AdamW's step size ends; Muon's ends at the same share of its peak."""
    decay_start: float = 0.3
    """Share of `max_steps` after which the line goes down, 0 to below 1."""
    warmup_steps: int = 100
    """Updates over which the step size climbs linearly to its peak."""
    muon_momentum: float = 0.95
    """Muon: memory of the gradient's running mean, 0 to below 1."""
    beta1: float = 0.9
    """AdamW: memory of the gradient's running mean, 0 to below 1."""
    beta2: float = 0.99
    """AdamW: memory of the squared gradient's running mean, 0 to below 1."""
    weight_decay: float = 0.1
    """Decay of matrices, a share of their step size an update; biases and norms have none."""
    grad_clip: float = 1.0
    """Longest gradient, as the norm over all weights; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Memory of the weights' running mean, 0 to below 1. Above 0, that mean is what is evaluated, sampled and kept:
    it is better than the weights themselves as long as the step size is large."""

    eval_interval: int = 250
    """Updates between evaluations, each with a checkpoint and a sample."""
    eval_windows: int = 256
    """Windows of `block_size` tokens, of each split, that an evaluation reads; always the same ones."""
    log_interval: int = 10
    """Updates between rows of metrics.jsonl."""
    sample_tokens: int = 200
    """Length of the sample shown at each evaluation, in tokens; 0 for none."""


MODEL_FIELDS = {f.name for f in dataclasses.fields(ModelConfig)}
TRAIN_FIELDS = {f.name for f in dataclasses.fields(TrainConfig)} - {"model"}


def override(config: TrainConfig, **changes: Any) -> TrainConfig:
    """`config` with fields changed; the model's are named like the others: `override(c, n_layer=2)`.

    Raises:
        UserError: for a field that does not exist.
    """
    unknown = [name for name in changes if name not in MODEL_FIELDS | TRAIN_FIELDS]
    if unknown:
        raise UserError("; ".join(f"no field {suggest(n, MODEL_FIELDS | TRAIN_FIELDS)}" for n in unknown))
    model = {name: value for name, value in changes.items() if name in MODEL_FIELDS}
    train = {name: value for name, value in changes.items() if name in TRAIN_FIELDS}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model), **train)


def suggest(name: str, names: typing.Iterable[str]) -> str:
    """`'lerning_rate': did you mean 'learning_rate'?`, for messages."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"{name!r}: did you mean {close[0]!r}?" if close else f"{name!r} (there are {', '.join(sorted(names))})"


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """As nested plain values, for config.json."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`; raises `UserError` for fields that do not exist or have a wrong type."""
    if not isinstance(values, dict) or not isinstance(values.get("model", {}), dict):
        raise UserError("a config is an object of fields, with an object 'model' in it")
    flat = {**values, **values.get("model", {})}
    flat.pop("model", None)
    config = override(TrainConfig(), **flat)
    if problems := _type_problems(config):
        raise UserError("; ".join(problems))
    return config


def validate(config: TrainConfig) -> TrainConfig:
    """Returns `config` if it can be run; otherwise raises `UserError` with every problem at once."""
    problems = _type_problems(config) or _value_problems(config)
    if problems:
        raise UserError("; ".join(problems))
    return config


def _type_problems(config: TrainConfig) -> list[str]:
    problems = []
    for part in (config, config.model):
        for f in dataclasses.fields(part):
            value, kind = getattr(part, f.name), f.type
            if typing.get_origin(kind) is Literal:
                allowed = typing.get_args(kind)
                if value not in allowed:
                    problems.append(f"{f.name} is one of {', '.join(allowed)}, not {value!r}")
            elif kind is float:
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    problems.append(f"{f.name} is a finite number, not {value!r}")
            elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                words = {int: "a whole number", bool: "true or false", str: "a text", ModelConfig: "a ModelConfig"}
                problems.append(f"{f.name} is {words[kind]}, not {value!r}")
    return problems


def _value_problems(config: TrainConfig) -> list[str]:
    c, m = config, config.model
    positive = {
        **{name: getattr(m, name) for name in ("block_size", "n_layer", "n_head", "n_embd")},
        **{name: getattr(c, name) for name in ("max_steps", "batch_size", "learning_rate", "muon_learning_rate")},
        **{name: getattr(c, name) for name in ("eval_interval", "eval_windows", "log_interval")},
    }
    not_negative = {
        "vocab_size": m.vocab_size,
        **{name: getattr(c, name) for name in ("seed", "micro_batches", "min_learning_rate", "warmup_steps")},
        **{name: getattr(c, name) for name in ("weight_decay", "grad_clip", "sample_tokens")},
    }
    shares = {"dropout": m.dropout, "embd_dropout": m.embd_dropout, "decay_start": c.decay_start}
    shares |= {"beta1": c.beta1, "beta2": c.beta2, "muon_momentum": c.muon_momentum, "ema_decay": c.ema_decay}
    problems = [f"{name} must be above 0, not {value}" for name, value in positive.items() if value <= 0]
    problems += [f"{name} must be 0 or more, not {value}" for name, value in not_negative.items() if value < 0]
    problems += [f"{n} must be 0 or more and below 1, not {v}" for n, v in shares.items() if not 0 <= v < 1]
    if m.n_head > 0 and m.n_embd % m.n_head:
        problems.append(f"n_head ({m.n_head}) must divide n_embd ({m.n_embd})")
    elif m.n_head > 0 and m.n_embd // m.n_head % 2:
        halving = {"positions rotary": m.positions == "rotary", "value_shift": m.value_shift}
        width = f"a head is {m.n_embd // m.n_head} wide (n_embd / n_head)"
        problems += [f"{name} needs an even width, but {width}" for name, on in halving.items() if on]
    if c.micro_batches > 0 and c.batch_size % c.micro_batches:
        problems.append(f"micro_batches ({c.micro_batches}) must divide batch_size ({c.batch_size})")
    if c.seed >= 2**32:
        problems.append(f"seed must be below 2**32, not {c.seed}")
    if c.schedule != "constant" and c.min_learning_rate > c.learning_rate:
        problems.append(
            f"min_learning_rate ({c.min_learning_rate}) must not be above learning_rate ({c.learning_rate})"
        )
    return problems
