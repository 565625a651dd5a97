"""Training on from weights: the recipe, what comes with the weights, and what cannot be changed."""

import jax
import numpy as np
import pytest
from runs_compared import leaves

import jaxgpt
from jaxgpt import UserError, override
from jaxgpt.cli import train as command
from jaxgpt.model import build
from jaxgpt.runs.export import export
from jaxgpt.training import finetune, step
from jaxgpt.training.finetune import GPT2_RECIPE, starting_params

QUICK = {"max_steps": 2, "eval_interval": 2, "batch_size": 2, "log_interval": 1, "sample_tokens": 0}


@pytest.fixture(scope="module")
def gpt2(whole, tmp_path_factory):
    """A folder in Hugging Face's format, with a tokenizer."""
    return export(whole, tmp_path_factory.mktemp("huggingface") / "gpt2")


@pytest.fixture
def rotary(whole):
    """A run of a model with rotary positions."""
    config = override(whole.config, positions="rotary")
    return jaxgpt.Run(whole.path, config, whole.tokenizer, build.build(config.model, 0), 5)


def test_gpt2s_recipe_is_nanogpts_and_the_model_is_the_folders(gpt2, whole):
    config = jaxgpt.finetune(gpt2, data="my.txt", dropout=0.1)
    assert override(config, **jaxgpt.config.flat(GPT2_RECIPE) | {"dropout": 0.1}).max_steps == 20
    assert (config.learning_rate, config.schedule, config.batch_size) == (3e-5, "constant", 32)
    assert config.init_from == str(gpt2) and config.data == "my.txt" and config.preset == "finetune"
    assert config.model == override(whole.config, dropout=0.1).model


def test_a_run_goes_on_with_its_own_recipe_at_a_tenth_of_its_rates(whole):
    config = jaxgpt.finetune(whole.path)
    assert config.learning_rate == pytest.approx(whole.config.learning_rate / 10)
    assert (
        override(
            config,
            preset="cpu",
            init_from="",
            **{
                name: getattr(whole.config, name)
                for name in ("learning_rate", "min_learning_rate", "muon_learning_rate")
            },
        )
        == whole.config
    )


@pytest.mark.parametrize(("kind", "devices"), [("run", 1), ("folder", 1), ("run", 2)])
def test_the_loss_before_the_first_step_is_that_of_the_weights(kind, devices, whole, gpt2, tmp_path):
    source = whole.path if kind == "run" else gpt2
    changes = QUICK | {"batch_size": 8 * devices, "eval_windows": 1000, "embd_dropout": 0.0}
    config = jaxgpt.finetune(source, data=whole.config.data, **changes)
    assert step.placement(config).mesh.size == devices
    run = jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    assert run.metrics[0]["val_loss"] == pytest.approx(whole.evaluate().loss, abs=1e-5)
    assert run.metrics[-1]["val_loss"] != run.metrics[0]["val_loss"]
    again = jaxgpt.load(run.path)
    assert again.tokenizer == whole.tokenizer and again.config.init_from == str(source)


def test_a_shorter_block_takes_the_first_positions(whole):
    params = starting_params(override(jaxgpt.finetune(whole), block_size=8), whole)
    np.testing.assert_array_equal(params["wpe"]["embedding"], whole.model.wpe.embedding[...][:8])
    assert whole.model.wpe.embedding[...].shape[0] == 16
    short = build.merge(override(whole.config, block_size=8).model, params)
    tokens = whole.tokenizer.encode("the nigh")[None]
    np.testing.assert_allclose(short(tokens), whole.model(tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 2}, r"`n_layer` is 1: leave that as it is"),
        ({"n_embd": 32, "bias": True}, r"`bias` is False, `n_embd` is 16"),
        ({"block_size": 32}, r"has 16 positions: `block_size` can't be more"),
        ({"tokenizer": "bytes"}, r"`tokenizer` is 'char'"),
    ],
)
def test_another_model_or_tokenizer_than_the_weights_have_is_refused(whole, changes, message):
    with pytest.raises(UserError, match=message):
        starting_params(jaxgpt.finetune(whole, **changes), whole)


def test_rotary_positions_keep_their_block(rotary):
    with pytest.raises(UserError, match="on which rotary positions depend"):
        starting_params(override(finetune.recipe(rotary), block_size=8), rotary)


def test_a_text_that_the_sources_tokenizer_lacks_is_refused_and_leaves_nothing(whole, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Ω" * 1000, "utf-8")
    with pytest.raises(UserError, match="did not contain 'Ω'"):
        jaxgpt.train(jaxgpt.finetune(whole.path, data=text), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_starts_from(gpt2, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(gpt2.parent)
    quick = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert command.main(["--from", "gpt2", "--data", whole.config.data, *quick, "--out", str(tmp_path / "run")]) == 0
    assert "from  the weights of gpt2\n" in capsys.readouterr().out
    assert jaxgpt.load(tmp_path / "run").config.init_from == str(gpt2)


def test_the_command_takes_the_training_of_a_preset(whole, tmp_path):
    arguments = ["--preset", "speedrun", "--from", str(whole.path), "--out", str(tmp_path / "run"), "--data"]
    quick = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert command.main([*arguments, whole.config.data, *quick]) == 0
    run = jaxgpt.load(tmp_path / "run")
    assert run.config.optimizer == "muon" and run.config.model == whole.config.model


def test_the_command_names_the_flags_that_cannot_change(whole, capsys):
    assert command.main(["--from", str(whole.path), "--n-layer", "3", "--bias"]) == 2
    assert "--bias is False, --n-layer is 1: leave that as it is" in capsys.readouterr().err
    assert command.main(["--from", "no/such/thing/here"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_sources_weights_stay_what_they_are(whole, tmp_path):
    before = jax.tree.map(np.array, leaves(whole))
    jaxgpt.train(jaxgpt.finetune(whole, **QUICK), out=tmp_path / "run", quiet=True, source=whole)
    jax.tree.map(np.testing.assert_array_equal, leaves(whole), before)
