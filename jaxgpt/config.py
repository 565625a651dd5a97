"""What a run is: a frozen dataclass for the model, another around it for the training.

A run is a function of its `TrainConfig`: the same config gives the same batches, the same
dropout and, on the same machine, the same weights to the last bit.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from jaxgpt.device import mesh as meshes
from jaxgpt.errors import UserError
from jaxgpt.fields import (
    Bounds,
    Count,
    CountOrZero,
    FieldInfo,
    Plain,
    Positive,
    PositiveOrZero,
    Share,
    Texts,
    bound_problems,
    describe,
    suggest,
    type_problems,
)

WEIGHTS = ("float32", "bfloat16", "float16")  # types that a model is sampled in


@dataclass(frozen=True)
class ModelConfig(Plain):
    """A GPT's shape. The defaults are GPT-2's choices at the size of nanoGPT's CPU recipe."""

    architecture: str = "gpt"
    """`gpt`, or a rung of the ladder, `bigram` to `layernorm`, where only the sizes below apply."""
    vocab_size: CountOrZero = 0
    """Number of different tokens: of those to learn, for `tokenizer` bpe; otherwise 0, as many as the tokenizer has."""
    block_size: Count = 64
    """Longest context, in tokens (T)."""
    n_layer: Annotated[int, Bounds(least=1, greatest=1000)] = 4
    """Number of blocks."""
    n_head: Count = 4
    """Attention heads a block; must divide `n_embd`."""
    n_embd: Count = 128
    """Width of the residual stream, in channels (C)."""
    dropout: Share = 0.0
    """Share of the attention weights and of each sub-block's outputs dropped while training."""
    embd_dropout: Share = 0.0
    """Share of the embeddings dropped while training. GPT-2 has one, the lecture none."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Between the two layers of the MLP: GPT-2's tanh-GELU, or the lecture's ReLU."""
    bias: bool = True
    """Whether linear layers and LayerNorms have a bias."""
    qkv_bias: bool = True
    """Whether queries, keys and values have one too, where `bias` is on. The lecture's have none."""
    tie_head: bool = True
    """Whether the output head shares the token embedding's matrix (https://arxiv.org/abs/1608.05859)."""
    embd_norm: bool = False
    """Whether the embeddings are RMS-normalised before the first block."""
    positions: Literal["learned", "rotary"] = "learned"
    """A learnt embedding of each position, or rotary embeddings (https://arxiv.org/abs/2104.09864)."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised (https://arxiv.org/abs/2010.04245)."""
    value_shift: bool = False
    """Whether half of each head's values are those of the token before (token shift, https://arxiv.org/abs/2305.13048)."""


@dataclass(frozen=True)
class TrainConfig(Plain):
    """One training run: data, model, optimiser, evaluation."""

    preset: str = "custom"
    """The recipe to start from; it names the run's folder. Left out: the best one for this machine."""
    init_from: str = ""
    """Weights to start from: a run's folder, a folder in Hugging Face's format, or `gpt2`, `gpt2-medium`, `gpt2-large`,
    `gpt2-xl`, which are downloaded. The model's shape and the tokenizer come with them. Left out: fresh weights."""
    data: Texts = "tinyshakespeare"
    """`tinyshakespeare`, or where the text is: a UTF-8 file, JSON lines (.jsonl), either packed (.gz, .zst) or not, a
    folder of .txt files, a pattern such as `*.txt`, several of these, `-` for standard input, or a folder of token
    files that `prepare` wrote, or nanoGPT."""
    text_field: str = "text"
    """Of JSON lines: the field that has the text."""
    tokenizer: str = "char"
    """What a token is: `char`, a character of the text; `bytes`; `gpt2`, GPT-2's byte pairs; or `bpe`, byte pairs
    that are learnt from the text, `vocab_size` of them."""
    seed: Annotated[int, Bounds(least=0, greatest=2**32 - 1)] = 1337
    """Decides the initial weights, the batches and the dropout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the matrix products; weights and optimiser stay float32. `auto` picks what the device is good at."""

    model: ModelConfig = field(default_factory=ModelConfig)

    max_steps: Count = 2000
    """Number of updates of the weights."""
    batch_size: Count = 12
    """Sequences an update."""
    replacement: bool = True
    """Whether windows are drawn with replacement, as in nanoGPT. Without, each pass over the text has every window
    once, in another order."""
    soft_targets: Share = 0.0
    """Share of the loss that is against what n-grams of the rest of the text predict, instead of against the next token
    alone (soft targets, https://arxiv.org/abs/1503.02531). For characters and bytes: elsewhere they are left out, and
    a line says so."""
    micro_batches: CountOrZero = 0
    """Parts that a device cuts its share of a batch into and works through one by one: the same update with less
    memory. 0 chooses by the device: what stays near a CPU's cache, or what fills a GPU."""
    remat: bool = False
    """Whether only the residual stream is kept for the gradient, and all else computed again: a third more time, for
    much less memory (https://arxiv.org/abs/1604.06174). It changes no result."""
    mesh: str = ""
    """The devices that train, and what they share: as data=4,fsdp=2, with the axes data, rows of the batch; fsdp, rows
    and weights; tensor, heads and channels. -1 is as many as there are. Left out: all in data parallel, as far
    as they get equal shares of a batch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the others."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: Positive = 0.03
    """Peak learning rate of Muon, whose updates have singular values near 1; it follows the same schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: a cosine down to `min_learning_rate` at `max_steps`; constant up to `decay_start`, then a
    line down to it; or constant throughout."""
    min_learning_rate: PositiveOrZero = 1e-4
    """Where AdamW's learning rate ends; Muon's ends at the same share of its peak."""
    decay_start: Share = 0.3
    """Share of `max_steps` after which the linear schedule decays."""
    warmup_steps: CountOrZero = 100
    """Updates over which the learning rate rises linearly to its peak."""
    muon_momentum: Share = 0.95
    """Muon: decay of the gradient's moving average."""
    beta1: Share = 0.9
    """AdamW: decay of the gradient's moving average."""
    beta2: Share = 0.99
    """AdamW: decay of the squared gradient's moving average."""
    weight_decay: PositiveOrZero = 0.1
    """Decoupled weight decay of matrices, times the learning rate; biases and norms have none."""
    grad_clip: PositiveOrZero = 1.0
    """Greatest norm of the gradient, over all weights; 0 switches clipping off."""
    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights. Above 0, the average is what is evaluated, sampled and
    kept: it is better than the weights themselves as long as the learning rate is large."""

    eval_interval: Count = 250
    """Updates between evaluations, each with a checkpoint and a sample."""
    eval_windows: Count = 256
    """Windows of `block_size` tokens, of each split, that an evaluation reads; always the same ones."""
    log_interval: Count = 10
    """Updates between rows of metrics.jsonl."""
    sample_tokens: CountOrZero = 200
    """Length of the sample shown at each evaluation, in tokens; 0 for none."""


MODEL_FIELDS = {f.name for f in dataclasses.fields(ModelConfig)}
TRAIN_FIELDS = {f.name for f in dataclasses.fields(TrainConfig)} - {"model"}


def override(config: TrainConfig, **changes: Any) -> TrainConfig:
    """`config` with fields changed; the model's are named like the others: `override(c, n_layer=2)`.

    Raises:
        UserError: for a field that does not exist.
    """
    unknown = [name for name in changes if name not in fields()]
    if unknown:
        raise UserError("; ".join(f"no field {suggest(name, fields())}" for name in unknown))
    model = {name: value for name, value in changes.items() if name in MODEL_FIELDS}
    train = {name: value for name, value in changes.items() if name in TRAIN_FIELDS}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model), **train)


def flat(config: TrainConfig) -> dict[str, Any]:
    """All fields and their values, the model's among the others."""
    values = {**vars(config), **vars(config.model)}
    del values["model"]
    return values


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """As nested plain values, for config.json."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`; raises `UserError` for fields that do not exist or have a wrong type."""
    if not isinstance(values, dict) or not isinstance(values.get("model", {}), dict):
        raise UserError("a config is an object of fields, with an object 'model' in it")
    merged = {**values, **values.get("model", {})}
    merged.pop("model", None)
    config = override(TrainConfig(), **merged)
    _raise(_type_problems(config))
    return config


@cache
def fields() -> dict[str, FieldInfo]:
    """Every field by name, as the command line shows them: the run's, the model's, the training's."""
    train, model = describe(TrainConfig), describe(ModelConfig)
    names = list(train)
    before, after = names[: names.index("model")], names[names.index("model") + 1 :]
    return {name: train[name] for name in before} | model | {name: train[name] for name in after}


def validate(config: TrainConfig) -> TrainConfig:
    """Returns `config` if it can be run; otherwise raises `UserError` with every problem at once."""
    _raise(_type_problems(config))
    _raise(bound_problems(config) + bound_problems(config.model) + _contradictions(config))
    return config


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError("; ".join(problems))


def _type_problems(config: TrainConfig) -> list[str]:
    return type_problems(config) + (type_problems(config.model) if isinstance(config.model, ModelConfig) else [])


def _contradictions(config: TrainConfig) -> list[str]:
    """Values that are possible, but not together."""
    c, m = config, config.model
    problems = []
    try:
        meshes.parse(c.mesh)
    except UserError as problem:
        problems.append(str(problem))
    if m.n_head > 0 and m.n_embd % m.n_head:
        problems.append(f"`n_head` ({m.n_head}) must divide `n_embd` ({m.n_embd})")
    elif m.n_head > 0 and m.n_embd // m.n_head % 2:
        halving = {"`positions` rotary": m.positions == "rotary", "`value_shift`": m.value_shift}
        width = f"a head is {m.n_embd // m.n_head} wide (`n_embd` / `n_head`)"
        problems += [f"{name} needs an even width, but {width}" for name, on in halving.items() if on]
    if c.micro_batches > 0 and c.batch_size % c.micro_batches:
        problems.append(f"`micro_batches` ({c.micro_batches}) must divide `batch_size` ({c.batch_size})")
    if c.schedule != "constant" and c.min_learning_rate > c.learning_rate:
        least, peak = c.min_learning_rate, c.learning_rate
        problems.append(f"`min_learning_rate` ({least}) must not be above `learning_rate` ({peak})")
    return problems
