"""Recipes by name. `preset("cpu")` is a config; `preset("cpu", max_steps=500)` one with a change."""

from typing import Any

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.errors import UserError
from jaxgpt.fields import suggest


def _rung(architecture: str, max_steps: int) -> TrainConfig:
    """A rung of the ladder, trained as in the lecture: AdamW as PyTorch has it, a constant learning rate."""
    return TrainConfig(
        preset=architecture,
        model=ModelConfig(architecture=architecture, block_size=8, n_layer=3, n_head=4, n_embd=32),
        batch_size=32,
        max_steps=max_steps,
        learning_rate=1e-3,
        schedule="constant",
        warmup_steps=0,
        beta2=0.999,
        weight_decay=0.01,
        grad_clip=0.0,
        eval_interval=500,
        eval_windows=2000,
        log_interval=50,
    )


def _speedrun(preset: str, **changes: Any) -> TrainConfig:
    """What the speedruns of 2024 to 2026 found and what paid here: see docs/speedrun.md."""
    model = ModelConfig(bias=False, tie_head=False, embd_norm=True, positions="rotary", qk_norm=True, value_shift=True)
    recipe = TrainConfig(
        preset=preset,
        model=model,
        batch_size=32,
        optimizer="muon",
        schedule="linear",
        min_learning_rate=0.0,
        warmup_steps=0,
        beta1=0.8,
        beta2=0.95,
        weight_decay=0.0,
        grad_clip=0.0,
    )
    return override(recipe, **changes)


def _speedrun_t4(preset: str, max_steps: int) -> TrainConfig:
    """That recipe at the size of the lecture's last model."""
    return _speedrun(
        preset,
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        activation="relu",  # as measured: GELU pays at the smaller size, and was not tried at this one
        dropout=0.2,
        max_steps=max_steps,
        learning_rate=4e-3,
        muon_learning_rate=0.02,
        muon_momentum=0.95,
        soft_targets=0.5,
        eval_interval=100,
    )


def _gpt2(preset: str, n_layer: int, n_head: int, n_embd: int, learning_rate: float, **changes: Any) -> TrainConfig:
    """nanoGPT's recipe for GPT-2, half a million tokens an update; the learning rates of the larger ones are those of
    GPT-3 at these sizes (Brown et al. 2020, https://arxiv.org/abs/2005.14165, table 2.1)."""
    recipe = TrainConfig(
        preset=preset,
        tokenizer="gpt2",
        model=ModelConfig(block_size=1024, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=False),
        max_steps=600_000,
        batch_size=480,
        learning_rate=learning_rate,
        min_learning_rate=learning_rate / 10,
        warmup_steps=2000,
        beta2=0.95,
        eval_interval=1000,
        eval_windows=2400,
    )
    return override(recipe, **changes)


PRESETS = {
    # nanoGPT's recipe for a laptop: val loss 1.88 by its README, on 20 random batches.
    "cpu": TrainConfig(
        preset="cpu",
        model=ModelConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False),
        batch_size=12,
        max_steps=2000,
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        warmup_steps=100,
        beta2=0.99,
        weight_decay=0.1,
        grad_clip=1.0,
    ),
    # The lecture's last model, 10.8 M parameters: val loss 1.49 after an hour on a T4.
    "t4": TrainConfig(
        preset="t4",
        model=ModelConfig(
            block_size=256,
            n_layer=6,
            n_head=6,
            n_embd=384,
            dropout=0.2,
            activation="relu",
            qkv_bias=False,
            tie_head=False,
        ),
        batch_size=64,
        max_steps=5000,
        learning_rate=3e-4,
        schedule="constant",
        warmup_steps=0,
        beta2=0.999,
        weight_decay=0.01,
        grad_clip=0.0,
        eval_interval=500,
    ),
    # At the size of `cpu`, for a minute of a laptop.
    "speedrun": _speedrun(
        "speedrun",
        block_size=64,
        n_layer=4,
        n_head=4,
        n_embd=128,
        batch_size=24,
        max_steps=400,
        learning_rate=5e-3,
        muon_learning_rate=0.06,
        muon_momentum=0.85,
        ema_decay=0.95,
        replacement=False,
        soft_targets=0.5,
        decay_start=0.0,
        eval_interval=100,
        log_interval=5,
    ),
    # At the size of `t4`, on a tenth of its 82 million characters; and on a fifth, for the best loss that is expected.
    "speedrun-t4": _speedrun_t4("speedrun-t4", max_steps=1000),
    "t4-best": _speedrun_t4("t4-best", max_steps=2000),
    # GPT-2's sizes, for a large text: docs/scaling.md says which machine fits which.
    "gpt2": _gpt2("gpt2", 12, 12, 768, 6e-4),
    "gpt2-medium": _gpt2("gpt2-medium", 24, 16, 1024, 3e-4, remat=True),
    "gpt2-large": _gpt2("gpt2-large", 36, 20, 1280, 2.5e-4, remat=True, mesh="fsdp=-1"),
    "gpt2-xl": _gpt2("gpt2-xl", 48, 25, 1600, 2e-4, remat=True, mesh="fsdp=-1"),
    # The ladder below it, with the losses that docs/ladder.md compares.
    "bigram": _rung("bigram", 10_000),
    "head": _rung("head", 5_000),
    "multihead": _rung("multihead", 5_000),
    "feedforward": _rung("feedforward", 5_000),
    "blocks": _rung("blocks", 5_000),
    "layernorm": _rung("layernorm", 5_000),
}


def preset(name: str, **changes: Any) -> TrainConfig:
    """The recipe called `name`, with fields changed: `preset("cpu", max_steps=500, n_layer=2)`.

    Raises:
        UserError: for a preset or a field that does not exist.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {suggest(name, PRESETS)}")
    return override(PRESETS[name], **changes)
