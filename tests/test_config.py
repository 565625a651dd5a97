"""A config says what is wrong with it, survives a file, and explains each of its fields."""

import json
import re
from dataclasses import fields

import pytest

from jaxgpt.cli import train as cli
from jaxgpt.config import ModelConfig, TrainConfig, from_dict, override, to_dict, validate
from jaxgpt.errors import UserError

FIELDS = [f.name for f in (*fields(TrainConfig), *fields(ModelConfig)) if f.name != "model"]


def complaint(function, *arguments, **changes) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **changes)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 0),
        ("n_layer", 0),
        ("n_head", 0),
        ("n_head", 3),
        ("n_embd", -128),
        ("vocab_size", -1),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("embd_dropout", 1.5),
        ("max_steps", 0),
        ("batch_size", 0),
        ("micro_batches", -1),
        ("micro_batches", 5),
        ("learning_rate", 0.0),
        ("min_learning_rate", -1e-4),
        ("min_learning_rate", 1.0),
        ("warmup_steps", -1),
        ("muon_learning_rate", 0.0),
        ("muon_momentum", 1.0),
        ("ema_decay", 1.0),
        ("decay_start", 1.0),
        ("decay_start", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.5),
        ("weight_decay", -0.1),
        ("grad_clip", -1.0),
        ("eval_interval", 0),
        ("eval_windows", 0),
        ("log_interval", 0),
        ("sample_tokens", -1),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_an_impossible_value_is_named_with_its_field(field, value):
    message = complaint(validate, override(TrainConfig(min_learning_rate=0.0), **{field: value}))
    assert field in message
    assert str(value) in message
    assert ";" not in message  # nothing else is wrong


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", "4"),
        ("n_layer", 4.0),
        ("n_layer", True),
        ("learning_rate", "fast"),
        ("learning_rate", float("nan")),
        ("grad_clip", float("inf")),
        ("weight_decay", False),
        ("bias", 1),
        ("data", 7),
        ("dtype", "int8"),
        ("schedule", None),
        ("activation", "swish"),
        ("architecture", "rnn"),
    ],
)
def test_a_value_of_a_wrong_kind_is_named_with_its_field(field, value):
    message = complaint(validate, override(TrainConfig(), **{field: value}))
    assert message.startswith(field)
    assert repr(value) in message
    assert ";" not in message


def test_all_impossible_values_are_listed_at_once():
    config = override(TrainConfig(), max_steps=0, n_head=3, micro_batches=5, beta2=2.0)
    problems = complaint(validate, config).split("; ")
    assert {problem.split()[0] for problem in problems} == {"max_steps", "n_head", "micro_batches", "beta2"}
    assert len(problems) == 4


def test_all_wrong_kinds_are_listed_at_once():
    problems = complaint(validate, override(TrainConfig(), n_embd="wide", seed=0.5, tie_head="yes")).split("; ")
    assert {problem.split()[0] for problem in problems} == {"n_embd", "seed", "tie_head"}


def test_a_config_that_can_run_is_returned():
    config = TrainConfig()
    assert validate(config) is config


def test_values_at_the_edge_can_run():
    edge = {"seed": 2**32 - 1, "dropout": 0.0, "warmup_steps": 0, "grad_clip": 0.0, "weight_decay": 0, "max_steps": 1}
    validate(override(TrainConfig(), **edge))
    validate(override(TrainConfig(), schedule="constant", min_learning_rate=1.0))  # the cosine's end is not used


def test_a_config_comes_back_from_json():
    config = override(TrainConfig(), n_layer=7, bias=False, dropout=0.25, data="täxt", schedule="constant", seed=3)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


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
)
def test_what_is_no_config_is_refused(values, said):
    assert said in complaint(from_dict, values)


def test_model_fields_are_overridden_like_the_others():
    config = override(TrainConfig(), n_layer=2, max_steps=7)
    assert (config.model.n_layer, config.max_steps) == (2, 7)
    assert TrainConfig().model.n_layer != 2  # the original is left alone


def test_every_unknown_field_suggests_the_right_one():
    message = complaint(override, TrainConfig(), lerning_rate=1.0, n_heads=2)
    assert "'lerning_rate': did you mean 'learning_rate'?" in message
    assert "'n_heads': did you mean 'n_head'?" in message


def test_a_field_unlike_any_other_lists_them_all():
    message = complaint(override, TrainConfig(), zzz=1)
    assert [name for name in FIELDS if name not in message] == []


def test_help_describes_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.train(["--preset", "t4", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    bare = []
    for name in [*FIELDS, "out", "resume"]:
        entry = re.search(rf"^\W+ --{name.replace('_', '-')}\b(.*?)\(default:", shown, re.DOTALL | re.MULTILINE)
        if entry is None or len(re.findall(r"\w+", entry[1])) < 4:  # its type, and then some words
            bare.append(name)
    assert bare == []
    assert re.search(r"--max-steps INT[^(]*\(default:\W+5000\)", shown)  # the preset's


@pytest.mark.parametrize(
    "option", [{"positions": "rotary"}, {"value_shift": True}], ids=lambda option: next(iter(option))
)
def test_halves_need_heads_of_an_even_width(option):
    message = complaint(validate, override(TrainConfig(), n_embd=36, n_head=4, **option))
    assert "9" in message
    assert next(iter(option)) in message
