"""Models by name: a config becomes a module, its weights go out and in again, and a new architecture is one line."""

import dataclasses
from typing import ClassVar, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import CONFIG, TOKENS, by_path, changed, logits_of, noise, noisy

from jaxgpt import sampling
from jaxgpt.config import ModelConfig
from jaxgpt.errors import UserError
from jaxgpt.model import build
from jaxgpt.model.build import ARCHITECTURES
from jaxgpt.model.protocol import check_tokens
from jaxgpt.sampler import Sampler


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_built_by_its_name(name):
    config = changed(architecture=name)
    model = jax.eval_shape(lambda: build.init_params(config, 0))
    assert isinstance(noisy(config), ARCHITECTURES[name])
    assert build.n_params(config) == sum(leaf.size for leaf in jax.tree.leaves(model))
    assert jax.tree.map(lambda p: p.shape, build.params_of(noisy(config))) == jax.tree.map(lambda p: p.shape, model)


def test_an_unknown_architecture_suggests_the_right_one():
    with pytest.raises(UserError, match="no `architecture` 'multihaed': did you mean 'multihead'"):
        build.build(changed(architecture="multihaed"), 0)


def test_the_seed_decides_the_weights():
    first, again, other = (build.init_params(changed(architecture="bigram"), seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["table"]["embedding"], again["table"]["embedding"])
    assert (first["table"]["embedding"] != other["table"]["embedding"]).any()


# Weights in and out of the modules


@pytest.fixture(params=[True, False], ids=["graph mode", "tree mode"])
def nnx_mode(request):
    before = flax.config.nnx_graph_mode
    flax.config.update("nnx_graph_mode", request.param)
    yield
    flax.config.update("nnx_graph_mode", before)


def test_modules_hold_parameters_and_nothing_else(nnx_mode):
    config = changed(dropout=0.1, embd_dropout=0.1)
    model = build.merge(config, noise(config))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert not nnx.to_pure_dict(rest)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 16 * (11 + 6 + 2 * (12 * 16 + 13) + 2)
    assert build.n_params(config) == 16 * (11 + 6 + 2 * (12 * 16 + 13) + 2)
    jax.eval_shape(lambda: (model(TOKENS, jax.random.key(0)), model.decode(TOKENS, model.empty_cache(2))))
    assert not nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])  # nor after a call


def test_weights_taken_out_and_put_back_are_the_same_model(nnx_mode):
    model = noisy()
    copy = build.merge(CONFIG, build.params_of(model))
    assert by_path(build.params_of(copy)).keys() == by_path(build.abstract_params(CONFIG)).keys()
    np.testing.assert_array_equal(logits_of(copy), logits_of(model))


def test_every_layer_keeps_its_place_beyond_the_tenth(nnx_mode):
    # By name, layer 10 comes before layer 2.
    config = changed(n_layer=12)
    params = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), build.abstract_params(config))
    for i in range(12):
        params["h"][i]["ln_1"]["scale"] += i
    model = build.merge(config, params)
    assert [block.ln_1.scale[0] for block in model.h] == list(range(12))
    back = build.params_of(model)["h"]
    assert [back[i]["ln_1"]["scale"][0] for i in range(12)] == list(range(12))


# A new architecture


class Read(NamedTuple):
    """A `DecodeCache` of nothing but how much has been read."""

    length: jax.Array

    def with_capacity(self, capacity: int) -> "Read":
        return self

    def repeated(self, n: int) -> "Read":
        return self


class Toy(nnx.Module):
    """A score for each pair of tokens, and one for each token at each position."""

    sizes: ClassVar = ()

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.pairs, self.places = (
            nnx.Param(jax.random.normal(rngs.params(), (n, config.vocab_size)))
            for n in (config.vocab_size, config.block_size)
        )

    def __call__(self, tokens, key=None):
        return self.scores(check_tokens(tokens, self.config), 0)

    def scores(self, tokens, start):
        return self.pairs[...][tokens] + self.places[...][start + jnp.arange(tokens.shape[1])]

    def empty_cache(self, batch_size, capacity=None):
        return Read(jnp.int32(0))

    def decode(self, tokens, cache, logits_at=None):
        logits = self.scores(tokens, cache.length)
        if logits_at is not None:
            logits = jax.lax.dynamic_slice_in_dim(logits, logits_at, 1, axis=1)
        return logits, Read(cache.length + tokens.shape[1])


def test_a_new_architecture_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "toy", Toy)
    config = dataclasses.replace(CONFIG, architecture="toy", block_size=20)
    assert build.n_params(config) == 11 * (11 + 20)
    model = build.merge(config, build.init_params(config, seed=1))
    text = [3, 1, 4]
    for _ in range(12):
        text.append(int(logits_of(model, np.array([text], np.int32))[0, -1].argmax()))
    written = sampling.generate(model, np.array(text[:3]), 12, sampler=Sampler(temperature=0), samples=2)
    assert written.tolist() == [text[3:]] * 2
