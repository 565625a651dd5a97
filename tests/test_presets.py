"""The presets are recipes that can run, of the sizes they say."""

import pytest

from jaxgpt import PRESETS, UserError, config, preset
from jaxgpt.model import build
from jaxgpt.model.build import ARCHITECTURES


def test_an_unknown_preset_suggests_the_right_one():
    with pytest.raises(UserError, match="no preset 'cpuu': did you mean 'cpu'"):
        preset("cpuu")


def test_a_preset_unlike_any_other_lists_them_all():
    with pytest.raises(UserError) as error:
        preset("enormous")
    assert [name for name in PRESETS if name not in str(error.value)] == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_run_under_its_name(name):
    recipe = config.validate(preset(name, vocab_size=65))
    assert recipe.preset == name
    assert build.n_params(recipe.model) > 0


def test_every_architecture_has_a_preset():
    assert {recipe.model.architecture for recipe in PRESETS.values()} == set(ARCHITECTURES)


def test_a_preset_takes_changes_and_keeps_the_rest():
    changed = preset("t4", n_layer=2, max_steps=9)
    assert (changed.model.n_layer, changed.max_steps) == (2, 9)
    assert (changed.model.n_embd, changed.batch_size) == (384, 64)
    assert preset("t4").model.n_layer == 6


def test_an_unknown_field_suggests_the_right_one():
    with pytest.raises(UserError, match="'max_step': did you mean 'max_steps'"):
        preset("cpu", max_step=1)


@pytest.mark.parametrize("name, size", [("cpu", 804_096), ("t4", 10_788_929)], ids=["cpu", "t4"])
def test_a_preset_has_the_size_of_what_it_follows(name, size):
    """nanoGPT's recipe for a laptop, the lecture's last model."""
    assert build.n_params(preset(name, vocab_size=65).model) == size
