"""Training that starts from weights: a recipe for it, and what it takes over from the run that has them."""

import os
from os import PathLike
from typing import Any

from jaxgpt import config as configs
from jaxgpt.config import MODEL_FIELDS, TrainConfig, override
from jaxgpt.errors import UserError
from jaxgpt.files import shown
from jaxgpt.model.build import params_of
from jaxgpt.runs.pretrained import load_pretrained
from jaxgpt.runs.run import Run

MAY_DIFFER = {"block_size", "dropout", "embd_dropout"}  # of the model, from the one that the weights are of

# For GPT-2, as nanoGPT's finetune_shakespeare: 20 small steps, about twice through tiny Shakespeare.
GPT2_RECIPE = TrainConfig(
    batch_size=32,
    max_steps=20,
    learning_rate=3e-5,
    min_learning_rate=0.0,
    schedule="constant",
    warmup_steps=0,
    beta2=0.95,
    weight_decay=0.1,
    grad_clip=1.0,
    eval_interval=5,
    eval_windows=64,
    log_interval=1,
)


def finetune(source: str | PathLike[str] | Run, **changes: Any) -> TrainConfig:
    """A recipe to train on from weights that are there: `jaxgpt.train(jaxgpt.finetune("gpt2", data="my.txt"))`.

    The model and the tokenizer are the source's. For weights in Hugging Face's format the rest is nanoGPT's recipe for
    GPT-2 on tiny Shakespeare; for a run of one's own it is that run's recipe with a tenth of its learning rates.

    Args:
        source: a run, a run's folder, a folder in Hugging Face's format, or a name such as "gpt2".
        changes: fields of the config. Of the model, `block_size` may become smaller, if its positions are learnt, and
            dropout may change.

    Raises:
        UserError: for weights that cannot be read, and fields that do not exist.
    """
    return override(recipe(source if isinstance(source, Run) else load_pretrained(source)), **changes)


def recipe(source: Run, training: TrainConfig | None = None) -> TrainConfig:
    """The recipe of `finetune` for a source; with `training`, that one, for the source's model and tokenizer."""
    init_from = source.config.init_from if source.step == 0 else os.fspath(source.path)
    own = {"init_from": init_from, "tokenizer": source.config.tokenizer}
    model = {name: getattr(source.config.model, name) for name in MODEL_FIELDS}
    if training is not None:
        return override(training, **own | model)
    if source.step == 0:
        return override(GPT2_RECIPE, preset="finetune", **own | model)
    was = source.config
    rates = ("learning_rate", "min_learning_rate", "muon_learning_rate")
    return override(was, preset="finetune", **own, **{name: getattr(was, name) / 10 for name in rates})


def starting_params(config: TrainConfig, source: Run) -> Any:
    """The source's weights, for a run that has the same model and tokenizer but for what may differ: a shorter block
    takes the first of the learnt positions.

    Raises:
        UserError: for another model or tokenizer.
    """
    theirs, ours = configs.flat(source.config), configs.flat(config)
    name = shown(source.config.init_from or source.path)
    fixed = [*sorted(MODEL_FIELDS - MAY_DIFFER), "tokenizer"]
    if differ := [f"`{field}` is {theirs[field]!r}" for field in fixed if theirs[field] != ours[field]]:
        raise UserError(f"in {name}, whose weights are to start from, {', '.join(differ)}: leave that as it is")
    params = params_of(source.model)
    given, most = config.model.block_size, source.config.model.block_size
    if given == most:
        return params
    if config.model.positions == "rotary":
        raise UserError(f"in {name} `block_size` is {most}, on which rotary positions depend: leave that as it is")
    if given > most:
        raise UserError(f"{name} has {most} positions: `block_size` can't be more")
    return params | {"wpe": {"embedding": params["wpe"]["embedding"][:given]}}
