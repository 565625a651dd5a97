"""A config says all that is wrong with it, survives a file, and explains each of its fields."""

import json
import math
from dataclasses import fields

import pytest

from jaxgpt import config
from jaxgpt.config import ModelConfig, TrainConfig, from_dict, override, to_dict, validate
from jaxgpt.errors import UserError

FIELDS = [f.name for f in (*fields(TrainConfig), *fields(ModelConfig)) if f.name != "model"]


def complaint(function, *arguments, **changes) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **changes)
    return str(error.value)


@pytest.mark.parametrize("field", [name for name, info in config.fields().items() if info.type in (int, float)])
def test_every_number_has_bounds(field):
    # Far outside; also far on the other side, where there is a bound: not for rates, decays and norms, say.
    message = complaint(validate, override(TrainConfig(min_learning_rate=0.0), **{field: -(10**12)}))
    assert message.startswith(f"`{field}` must be ")
    assert message.count("`must be`") <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 3}, ["`n_head` (3)", "`n_embd` (128)"]),
        ({"micro_batches": 5}, ["`micro_batches` (5)", "`batch_size` (12)"]),
        ({"min_learning_rate": 1.0}, ["`min_learning_rate` (1.0)", "`learning_rate` (0.001)"]),
        ({"n_embd": 36, "positions": "rotary"}, ["`positions` rotary", "9 wide"]),
        ({"n_embd": 36, "value_shift": True}, ["`value_shift`", "9 wide"]),
        ({"warmup_steps": 10**12}, ["`warmup_steps`", "at most 2,147,483,647"]),
        ({"n_layer": 100_000}, ["`n_layer`", "at most 1,000"]),
        ({"seed": 2**32}, ["`seed`", "at most 4,294,967,295"]),
        ({"learning_rate": 10**400}, ["`learning_rate`", "a finite number"]),
        ({"activation": "swish"}, ["`activation`", "gelu, relu", "'swish'"]),
        ({"schedule": None}, ["`schedule`", "None"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_named_with_its_field(changes, said):
    message = complaint(validate, override(TrainConfig(), **changes))
    assert [words for words in said if words not in message] == []
    assert ";" not in message  # nothing else is wrong


def test_all_problems_are_listed_at_once():
    values = complaint(validate, override(TrainConfig(), max_steps=0, n_head=3, micro_batches=5, beta2=2.0)).split("; ")
    assert {problem.split()[0] for problem in values} == {"`max_steps`", "`n_head`", "`micro_batches`", "`beta2`"}
    types = complaint(validate, override(TrainConfig(), n_embd="wide", seed=0.5, tie_head="yes")).split("; ")
    assert {problem.split()[0] for problem in types} == {"`n_embd`", "`seed`", "`tie_head`"}
    assert "`model` is a ModelConfig" in complaint(validate, TrainConfig(model=3))


def test_a_config_that_can_run_is_returned():
    edge = {"seed": 2**32 - 1, "dropout": 0.0, "warmup_steps": 0, "grad_clip": 0.0, "weight_decay": 0, "max_steps": 1}
    for able in (TrainConfig(), override(TrainConfig(), **edge)):
        assert validate(able) is able
    validate(override(TrainConfig(), schedule="constant", min_learning_rate=1.0))  # the cosine's end is not used


def test_a_config_comes_back_from_json():
    changes = {"n_layer": 7, "bias": False, "dropout": 0.25, "schedule": "constant", "seed": 3}
    for data in ("täxt", ("a.txt", "b.txt")):
        changed = override(TrainConfig(), data=data, **changes)
        assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed


def test_fields_that_a_file_lacks_have_their_defaults():
    assert from_dict({"max_steps": 5, "model": {"n_layer": 2}}) == override(TrainConfig(), max_steps=5, n_layer=2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lerning_rate": 1e-3}, "learning_rate"),
        ({"model": {"n_layers": 2}}, "n_layer"),
        ({"max_steps": "many"}, "max_steps"),
        ({"model": {"tie_head": "yes"}}, "tie_head"),
        ({"model": 3}, "object"),
        ([], "object"),
        (None, "object"),
    ],
    ids=str,
)
def test_what_is_no_config_is_refused(values, said):
    assert said in complaint(from_dict, values)


def test_model_fields_are_overridden_like_the_others():
    changed = override(TrainConfig(), n_layer=2, max_steps=7)
    assert (changed.model.n_layer, changed.max_steps) == (2, 7)
    assert TrainConfig().model.n_layer != 2  # the original is left alone


def test_every_unknown_field_suggests_the_right_one_or_lists_them_all():
    message = complaint(override, TrainConfig(), lerning_rate=1.0, n_heads=2)
    assert "'lerning_rate': did you mean 'learning_rate'?" in message
    assert "'n_heads': did you mean 'n_head'?" in message
    everything = complaint(override, TrainConfig(), zzz=1)
    assert [name for name in FIELDS if name not in everything] == []


def test_every_field_is_described():
    infos = config.fields()
    assert sorted(infos) == sorted(FIELDS)
    assert [name for name, info in infos.items() if len(info.help.split()) < 3] == []
    defaults = config.flat(TrainConfig())
    assert all(info.default == defaults[name] for name, info in infos.items())
    assert not any(isinstance(info.default, float) and math.isnan(info.default) for info in infos.values())
