"""The presets are recipes that can run, of the sizes they say."""

import math

import jax
import pytest

from jaxgpt import PRESETS, UserError, config, preset
from jaxgpt.training import step as trainer


def parameters(name: str) -> int:
    model = preset(name, vocab_size=65).model
    return sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(lambda: trainer.init_params(model, 0))))


def test_an_unknown_preset_suggests_the_right_one():
    with pytest.raises(UserError, match="no preset 'cpuu': did you mean 'cpu'"):
        preset("cpuu")


def test_a_preset_unlike_any_other_lists_them_all():
    with pytest.raises(UserError) as error:
        preset("enormous")
    assert [name for name in PRESETS if name not in str(error.value)] == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_run_under_its_name(name):
    assert config.validate(preset(name, vocab_size=65)).preset == name


def test_a_preset_takes_changes_and_keeps_the_rest():
    changed = preset("t4", n_layer=2, max_steps=9)
    assert (changed.model.n_layer, changed.max_steps) == (2, 9)
    assert (changed.model.n_embd, changed.batch_size) == (384, 64)
    assert preset("t4").model.n_layer == 6


def test_an_unknown_field_suggests_the_right_one():
    with pytest.raises(UserError, match="'max_step': did you mean 'max_steps'"):
        preset("cpu", max_step=1)


def test_cpu_has_nanogpts_size():
    assert parameters("cpu") == 804_096


def test_t4_has_the_lectures_size():
    assert parameters("t4") == 10_788_929
