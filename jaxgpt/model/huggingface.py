"""GPT-2's weights in Hugging Face's format, read and written without PyTorch: config.json and model.safetensors.

GPT-2's matrices lie there as ours do, (in, out), under the same names; only an untied head is transposed. What a
`ModelConfig` leaves out (`bias`, `qkv_bias`) is zero there. What Hugging Face's `GPT2LMHeadModel` cannot hold (rotary
positions and the like) is written for the class in modeling_jaxgpt.py, which travels with the weights.

Shapes: C = n_embd channels, V the vocabulary.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxgpt import config as configs
from jaxgpt.config import ModelConfig
from jaxgpt.errors import UserError
from jaxgpt.fields import shown as value_shown
from jaxgpt.files import read_whole, reason, shown

WEIGHTS, INDEX, MODELING = "model.safetensors", "model.safetensors.index.json", "modeling_jaxgpt.py"
# Hugging Face's names of the tanh-GELU, and ReLU's; the first of each is the one that is written.
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "relu": "relu"}
# What a field of config.json must be for the model to be the one that is built here. Left out, it is.
REQUIRED = {
    "n_inner": (None,),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Ours, theirs, and what it is where config.json does not say.
SIZES = (
    ("vocab_size", ("vocab_size",), 50257),
    ("block_size", ("n_positions", "max_position_embeddings", "n_ctx"), 1024),
    ("n_layer", ("n_layer", "num_hidden_layers"), 12),
    ("n_head", ("n_head", "num_attention_heads"), 12),
    ("n_embd", ("n_embd", "hidden_size"), 768),
)
OURS = "jaxgpt"  # the key of config.json with the `ModelConfig`, and the model type of modeling_jaxgpt.py
FLOATS = ("F32", "F16", "BF16", "F64")  # types of weights
LARGEST_FOLD_ERROR = 1e-5  # of a logit

Tensors = dict[str, np.ndarray]


# Reading


def read(folder: str | Path) -> tuple[ModelConfig, Any]:
    """The model in `folder`: its config, and its weights as `build.params_of` gives them, numpy float32.

    The folder's config.json and model.safetensors, whole or in shards with an index, hold a GPT-2 of whatever size, or
    what `write` wrote. Dropout, which is a matter of training, is 0 unless `write` wrote the folder.

    Raises:
        UserError: for another model, a file that is missing or damaged, a tensor that is missing, of another shape,
            without a place in the model, or not of floating-point numbers.
    """
    folder = Path(folder).expanduser().absolute()
    path = folder / "config.json"
    values = _json(path)
    try:
        config = _config(values)
    except UserError as problem:
        raise UserError(f"{shown(path)}: {problem}") from problem
    tensors = _tensors(folder, config)
    if not config.bias or not config.qkv_bias:
        config = _with_biases_that_are_there(config, tensors)
    params: dict[Any, Any] = {}
    for name in _layout(config):
        *parents, last = _path(name)
        at = params
        for key in parents:
            at = at.setdefault(key, {})
        tensor = tensors.pop(name)
        at[last] = np.ascontiguousarray(tensor.T) if name == "lm_head.weight" else tensor
    return config, params


def _config(values: dict[str, Any]) -> ModelConfig:
    """Raises `UserError` for a model that cannot be built here."""
    ours = _ours(values) if OURS in values else None
    if values.get("model_type") == OURS and ours:
        return ours
    if values.get("model_type") != "gpt2":
        kind = value_shown(values.get("model_type"))
        raise UserError(f"it is a model of type {kind}, and only 'gpt2' can be read")
    sizes = {}
    for field, names, default in SIZES:
        sizes[field] = next((values[name] for name in names if name in values), default)
    width = sizes["n_embd"]
    required = REQUIRED | {"n_inner": (None, 4 * width if isinstance(width, int) else None)}
    for field, possible in required.items():
        if (value := values.get(field, possible[0])) not in possible:
            wanted = " or ".join(map(json.dumps, possible))
            raise UserError(f"its {field} is {value_shown(value)}, and can only be {wanted} here")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        exact = " (the exact one, while GPT-2 has its tanh approximation)" if activation == "gelu" else ""
        names = ", ".join(ACTIVATIONS)
        raise UserError(f"its activation_function is {value_shown(activation)}{exact}, and can only be {names} here")
    tied = values.get("tie_word_embeddings", True)
    # What config.json itself cannot say. The rest follows it, so that a model which others changed is what they made.
    kept = ("dropout", "embd_dropout", "bias", "qkv_bias")
    rest = {name: getattr(ours, name) for name in kept} if ours else {}
    return _validated({**sizes, "activation": ACTIVATIONS[activation], "tie_head": tied, **rest})


def _ours(values: dict[str, Any]) -> ModelConfig:
    config = _validated(values[OURS])
    if config.architecture != "gpt":
        raise UserError(f"its architecture is {value_shown(config.architecture)}, and can only be 'gpt' here")
    return config


def _validated(fields: dict[str, Any]) -> ModelConfig:
    config = configs.validate(configs.from_dict({"model": fields})).model
    if not config.vocab_size:
        raise UserError("its vocab_size is 0")
    return config


def _layout(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, in Hugging Face's words without "transformer.", of what `config` has."""
    C, V = config.n_embd, config.vocab_size

    def linear(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (n_in, n_out), f"{name}.bias": (n_out,)}

    def layer_norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (C,), f"{name}.bias": (C,)}

    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, C)}
    if config.positions == "learned":
        shapes["wpe.weight"] = (config.block_size, C)
    for block in (f"h.{i}" for i in range(config.n_layer)):
        shapes |= layer_norm(f"{block}.ln_1")
        shapes |= linear(f"{block}.attn.c_attn", C, 3 * C) | linear(f"{block}.attn.c_proj", C, C)
        shapes |= layer_norm(f"{block}.ln_2")
        shapes |= linear(f"{block}.mlp.c_fc", C, 4 * C) | linear(f"{block}.mlp.c_proj", 4 * C, C)
    shapes |= layer_norm("ln_f")
    if not config.tie_head:
        shapes |= {"lm_head.weight": (V, C), "lm_head.bias": (V,)}
    lacking = ("" if config.qkv_bias else ".c_attn.bias") if config.bias else ".bias"
    return {name: shape for name, shape in shapes.items() if not lacking or not name.endswith(lacking)}


def _full(config: ModelConfig) -> ModelConfig:
    """`config` with every bias, as the files have it."""
    return dataclasses.replace(config, bias=True, qkv_bias=True)


def _path(name: str) -> tuple[str | int, ...]:
    """Where our params have the tensor of that name: "h.3.attn.c_attn.weight" is ("h", 3, "attn", "c_attn", "kernel").

    The blocks' keys are numbers, as `nnx.List` has them: texts would be sorted with block 10 before block 2.
    """
    *parents, last = name.split(".")
    if last == "weight":
        last = "embedding" if parents[-1] in ("wte", "wpe") else "scale" if parents[-1].startswith("ln_") else "kernel"
    return (*(int(key) if key.isdecimal() else key for key in parents), last)


def _tensors(folder: Path, config: ModelConfig) -> Tensors:
    """All that the model of `config` needs, every bias included, in float32."""
    shapes = _layout(_full(config))
    found: Tensors = {}
    for file in _files(folder):
        for name, full_name, shape, load in _contents(file):
            try:
                if _is_buffer(name):
                    continue
                if name == "lm_head.weight" and config.tie_head:
                    found[name] = load()
                elif name not in shapes or name in found:
                    raise UserError("has no place in the model of config.json" if name not in shapes else "is twice")
                elif shape != shapes[name]:
                    raise UserError(f"has shape {list(shape)}, and by config.json it is {list(shapes[name])}")
                else:
                    found[name] = load()
            except UserError as problem:
                raise UserError(f"{shown(file)}: the tensor {value_shown(full_name)} {problem}") from problem
    if not config.tie_head:  # GPT2LMHeadModel's has none
        found.setdefault("lm_head.bias", np.zeros(config.vocab_size, np.float32))
    if missing := [name for name in shapes if name not in found]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{shown(folder)}: the weights lack the tensor {missing[0]!r}{more}, by config.json")
    head = found.pop("lm_head.weight") if config.tie_head and "lm_head.weight" in found else None
    if head is not None and not np.array_equal(head, found["wte.weight"]):
        raise UserError(
            f"{shown(folder)}: the tensor 'lm_head.weight' differs from 'wte.weight', and config.json says that "
            "they are one: set its tie_word_embeddings to false"
        )
    return found


def _is_buffer(name: str) -> bool:
    """The mask, which older versions of transformers saved."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _files(folder: Path) -> list[Path]:
    """The files of the weights. Raises `UserError` where there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX).get("weight_map")
        names = list(index.values()) if isinstance(index, dict) else [None]
        for name in names:
            if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
                raise UserError(f"{shown(folder / INDEX)}: {value_shown(name)} is no file of this folder")
        return [folder / name for name in sorted(set(names))]
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        raise UserError(
            f"{shown(folder)} has its weights in {pickles[0].name} alone, a pickle, which is not read: convert it by "
            "transformers' save_pretrained"
        )
    raise UserError(f"{shown(folder)} has no {WEIGHTS}")


def _contents(file: Path) -> Iterator[tuple[str, str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Of each tensor: its name without "transformer.", its name, its shape, and how to load it, as float32."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118, it is no dict
                shape = tuple(opened.get_slice(name).get_shape())
                yield name.removeprefix("transformer."), name, shape, partial(_float32, opened, name)
    except (OSError, safetensors.SafetensorError) as problem:
        raise UserError(f"{shown(file)} cannot be read ({reason(problem)}): copy or download it again") from problem


def _float32(opened: Any, name: str) -> np.ndarray:
    kind = opened.get_slice(name).get_dtype()
    if kind not in FLOATS:
        raise UserError(f"is of type {kind}: weights are {', '.join(FLOATS)}")
    return opened.get_tensor(name).astype(np.float32, copy=False)


def _with_biases_that_are_there(config: ModelConfig, tensors: Tensors) -> ModelConfig:
    """`config`, or with biases, where somebody has trained the zeros that `write` wrote for none."""
    full = _full(config)
    absent = [name for name in _layout(full) if name not in _layout(config)]
    if any(tensors[name].any() for name in absent):
        return full
    for name in absent:
        del tensors[name]
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{shown(path)} cannot be read: {reason(problem)}") from problem
    if not isinstance(content, dict):
        raise UserError(f"{shown(path)} is no JSON object")
    return content


# Writing


def write(folder: str | Path, config: ModelConfig, params: Any, end_of_text: int | None = None) -> str:
    """Writes the model into `folder`: config.json, generation_config.json, model.safetensors, and modeling_jaxgpt.py
    where it needs that.

    Args:
        folder: is there.
        config: of a `gpt`.
        params: its weights, as from `build.params_of`.
        end_of_text: the token on which `transformers` stops to write, if there is one.

    Returns:
        The class of transformers that loads it: "GPT2LMHeadModel", or "AutoModelForCausalLM" with trust_remote_code.

    Raises:
        UserError: for a rung of the ladder.
    """
    folder = Path(folder).expanduser().absolute()
    tensors = to_tensors(config, params)
    plain = fits_gpt2(config) and fold_head_bias(tensors)
    named = {name if name.startswith("lm_head.") else f"transformer.{name}": x for name, x in tensors.items()}
    safetensors.numpy.save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    _write_json(folder / "generation_config.json", {} if end_of_text is None else special)
    described = _gpt2_json(config) if plain else _modeling_json(config)
    _write_json(folder / "config.json", described | special | {OURS: dataclasses.asdict(config)})
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # which the library keeps to its owner
    if not plain:
        shutil.copyfile(Path(__file__).with_name(MODELING), folder / MODELING)
    return "GPT2LMHeadModel" if plain else "AutoModelForCausalLM"


def to_tensors(config: ModelConfig, params: Any) -> Tensors:
    """The weights by Hugging Face's names without "transformer.", float32, with zeros for the biases that `config` has
    not. Raises `UserError` for a rung of the ladder."""
    if config.architecture != "gpt":
        raise UserError(f"{config.architecture} is a rung of the ladder, which only jaxgpt has: export a gpt")
    tensors, ours = {}, _layout(config)
    for name, shape in _layout(_full(config)).items():
        if name in ours:
            leaf = params
            for key in _path(name):
                leaf = leaf[key]
            tensor = np.asarray(leaf, np.float32)
            tensors[name] = np.ascontiguousarray(tensor.T if name == "lm_head.weight" else tensor)
        else:
            tensors[name] = np.zeros(shape, np.float32)
    return tensors


def fits_gpt2(config: ModelConfig) -> bool:
    """Whether GPT-2 has all the parts of this model, but for a bias of the head."""
    return config.positions == "learned" and not (config.embd_norm or config.qk_norm or config.value_shift)


def fold_head_bias(tensors: Tensors) -> bool:
    """Moves the bias of an untied head, which GPT-2's has not, into that of the LayerNorm before it, and says whether
    that is exact; if not, nothing is changed.

    The head W (V, C) adds W b to the logits for the LayerNorm's bias b. A change d with W d = bias does what the
    bias did, and there is one where no character's row of W depends on the others': V <= C.
    """
    if "lm_head.bias" not in tensors:
        return True
    weight, bias, before = tensors["lm_head.weight"], tensors["lm_head.bias"], tensors["ln_f.bias"]
    if bias.any():
        if len(weight) > weight.shape[1]:
            return False
        change = np.linalg.lstsq(weight.astype(np.float64), bias.astype(np.float64))[0]
        after = (before + change).astype(np.float32)
        error = np.abs(weight @ after - (weight @ before + bias)).max()  # in float32, as it will be computed
        if not error <= LARGEST_FOLD_ERROR:
            return False
        tensors["ln_f.bias"] = after
    del tensors["lm_head.bias"]
    return True


def _gpt2_json(config: ModelConfig) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs[0]: getattr(config, ours) for ours, theirs, _ in SIZES},
        "n_ctx": config.block_size,  # its name for other programs
        "activation_function": activation,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embd_dropout,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tie_head,
        "dtype": "float32",
        "torch_dtype": "float32",  # its name before transformers 5
    }


def _modeling_json(config: ModelConfig) -> dict[str, Any]:
    module = MODELING.removesuffix(".py")
    return {
        "architectures": ["JaxGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.JaxGPTConfig",
            "AutoModelForCausalLM": f"{module}.JaxGPTForCausalLM",
        },
        "model_type": OURS,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,  # a tied head has no tensor of its own
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
