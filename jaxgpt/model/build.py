"""Models by name: from a `ModelConfig` to a module, to its parameters, and back.

Elsewhere a model is two things: `graph(config)`, its structure, which is static, and `params`, a nested dict of arrays.
"""

from functools import cache
from typing import Any

import jax
from flax import nnx

from jaxgpt.config import ModelConfig
from jaxgpt.errors import UserError
from jaxgpt.fields import suggest
from jaxgpt.model.gpt import GPT
from jaxgpt.model.ladder import RUNGS

# A new architecture is a file with a `LanguageModel` (protocol.py), and a line here.
ARCHITECTURES: dict[str, type[nnx.Module]] = {"gpt": GPT, **RUNGS}


def architecture(config: ModelConfig) -> Any:
    """The class of the model.

    Raises:
        UserError: for a name that is no architecture.
    """
    if config.architecture not in ARCHITECTURES:
        raise UserError(f"no `architecture` {suggest(config.architecture, ARCHITECTURES)}")
    return ARCHITECTURES[config.architecture]


def build(config: ModelConfig, seed: int) -> Any:
    """A `LanguageModel` with fresh weights."""
    return architecture(config)(config, nnx.Rngs(seed))


def params_of(model: Any) -> Any:
    """The model's weights, as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_params(config: ModelConfig, seed: int) -> Any:
    """Fresh weights, as a nested dict of arrays."""
    return params_of(build(config, seed))


@cache  # to trace the initialisation takes a while, and nothing about it changes
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, Any]:
    """The model's structure, and its weights' shapes and types."""
    model = nnx.eval_shape(lambda: build(config, 0))
    return nnx.split(model)[0], params_of(model)


def graph(config: ModelConfig) -> nnx.GraphDef:
    """The model without its weights."""
    return _abstract(config)[0]


def merge(config: ModelConfig, params: Any) -> Any:
    """The `LanguageModel` that `config` describes, with these weights."""
    return nnx.merge(graph(config), params)


def abstract_params(config: ModelConfig) -> Any:
    """The weights' shapes and types, as `jax.ShapeDtypeStruct`s."""
    return _abstract(config)[1]


def n_params(config: ModelConfig) -> int:
    """How many weights the model has."""
    return sum(x.size for x in jax.tree.leaves(abstract_params(config)))
