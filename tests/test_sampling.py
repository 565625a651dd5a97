"""Text is drawn as asked for, and as a model would write it that reads its whole window every time."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt import sampling
from jaxgpt.config import ModelConfig
from jaxgpt.device import sharding
from jaxgpt.errors import UserError
from jaxgpt.model.ops import row_matmul
from jaxgpt.sampling import Sampler
from jaxgpt.training import step as trainer

V = 11
PROMPT = np.array([3, 1, 4])
GREEDY = Sampler(temperature=0)


@cache
def model_of(block_size: int, architecture: str = "gpt", noise: float = 1.0):
    """A small model whose weights are noise; without noise, one that finds all tokens equally likely."""
    sizes = {"vocab_size": V, "block_size": block_size, "n_layer": 2, "n_head": 2, "n_embd": 8}
    config = ModelConfig(architecture, **sizes, bias=False, tie_head=False)  # so that greedy text varies, too
    shapes = jax.eval_shape(lambda: trainer.init_params(config, 0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, noise, p.shape), p.dtype), shapes)
    return nnx.merge(trainer.graph(config), params)


# The sampler


def test_every_value_that_makes_no_sense_is_named_at_once():
    with pytest.raises(UserError) as caught:
        Sampler(temperature=-1.0, top_k=-2, top_p=0.0, min_p=1.5).check()
    for name, value in {"temperature": -1.0, "top_k": -2, "top_p": 0.0, "min_p": 1.5}.items():
        assert any(part.startswith(name) and part.endswith(f"not {value}") for part in str(caught.value).split("; "))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": float("nan")},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampler(**wrong).check()


@pytest.mark.parametrize("extreme", [Sampler(), Sampler(0, 0, 1, 0), Sampler(5, 10**6, 1e-9, 1)], ids=str)
def test_extremes_that_make_sense_are_taken(extreme):
    assert extreme.check() == extreme


ODDS = jnp.array([0.15, 0.5, 0.1, 0.25])


@pytest.mark.parametrize(
    "sampler, allowed",
    [
        (Sampler(), {0, 1, 2, 3}),
        (Sampler(top_k=1), {1}),
        (Sampler(top_k=2), {1, 3}),
        (Sampler(top_k=4), {0, 1, 2, 3}),
        (Sampler(top_k=99), {0, 1, 2, 3}),
        (Sampler(top_p=0.01), {1}),
        (Sampler(top_p=0.49), {1}),
        (Sampler(top_p=0.51), {1, 3}),  # the one that crosses is kept
        (Sampler(top_p=0.74), {1, 3}),
        (Sampler(top_p=0.76), {0, 1, 3}),
        (Sampler(top_p=0.95), {0, 1, 2, 3}),
        (Sampler(min_p=0.19), {0, 1, 2, 3}),
        (Sampler(min_p=0.21), {0, 1, 3}),
        (Sampler(min_p=0.4), {1, 3}),
        (Sampler(min_p=0.6), {1}),
        (Sampler(min_p=1.0), {1}),
        (Sampler(top_k=3, top_p=0.54), {1}),  # of the three, the first has 0.56
        (Sampler(top_k=2, min_p=0.29), {1, 3}),
        (Sampler(top_p=0.76, min_p=0.4), {1, 3}),
    ],
    ids=str,
)
def test_the_tokens_that_may_be_drawn_are_those_worked_out_by_hand(sampler, allowed):
    logits = jnp.log(ODDS) + 3
    kept = sampler.filter(logits)
    assert {i for i in range(4) if kept[i] > -jnp.inf} == allowed
    assert all(kept[i] == logits[i] for i in allowed)


def test_temperature_zero_takes_the_likeliest():
    assert GREEDY.draw(jnp.log(ODDS), jax.random.key(0)) == 1


def draws(sampler: Sampler) -> np.ndarray:
    """How often each token comes, of 4000."""
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens = jax.vmap(partial(sampler.draw, jnp.log(ODDS)))(keys)
    return np.bincount(tokens, minlength=4) / 4000


def test_tokens_come_as_often_as_they_are_likely():
    np.testing.assert_allclose(draws(Sampler()), ODDS, atol=0.03)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    expected = ODDS ** (1 / temperature)
    np.testing.assert_allclose(draws(Sampler(temperature)), expected / expected.sum(), atol=0.03)


def test_what_may_be_drawn_is_decided_at_the_temperature_asked_for():
    # At 0.5 the odds are 0.07, 0.72, 0.03, 0.18: the second alone has 0.7. At 1 it would take two.
    assert draws(Sampler(0.5, top_p=0.7))[1] == 1
    assert draws(Sampler(1.0, top_p=0.7))[1] < 0.75


# The cache changes nothing


@partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, window):
    return nnx.merge(graphdef, params)(window)


def uncached(model, prompt, tokens: int, sampler: Sampler, key) -> list[int]:
    """The same text by a model without a cache, that reads its window anew for every token.

    The window rule: tokens are written in pieces. The window is as much of the prompt as leaves room
    for a piece in `block_size`, and grows with what is written; when there is no room for another
    piece, it is cut to its last `block_size / 2` tokens, and grows again.
    """
    S = model.config.block_size
    piece = max(1, min(sampling.CHUNK, S // 2))
    text, seen = list(prompt), min(len(prompt), max(1, S - piece))
    for i in range(tokens):
        if i % piece == 0 and seen + piece > S:
            seen = max(1, S // 2)
        window = jnp.zeros((1, S), jnp.int32).at[0, :seen].set(jnp.array(text[-seen:]))
        logits = _logits(*nnx.split(model), window)[0, seen - 1]
        text.append(int(sampler.draw(logits, jax.random.fold_in(key, i))))
        seen += 1
    return text[len(prompt) :]


SAMPLERS = {"greedy": GREEDY, "sampled": Sampler(1.5, top_k=7, top_p=0.95, min_p=0.01)}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 20])
def test_writing_with_the_cache_is_writing_without_it(block_size, sampler):
    model, key = model_of(block_size), jax.random.fold_in(jax.random.key(5), 0)
    tokens = 2 * block_size + 13  # the cache is full more than once
    with_cache = sampling.generate(model, PROMPT, tokens, seed=5, sampler=sampler)
    assert with_cache.shape == (1, tokens)
    assert with_cache[0].tolist() == uncached(model, PROMPT, tokens, sampler, key)
    if sampler is not GREEDY:  # a fresh model's likeliest token hardly changes
        assert len(set(with_cache[0].tolist())) > 2


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_a_prompt_of_any_length_is_continued_as_without_the_cache(length):
    prompt = np.random.default_rng(1).integers(0, V, length)
    key = jax.random.fold_in(jax.random.key(0), 0)
    written = sampling.generate(model_of(8), prompt, 11, sampler=Sampler())[0]
    assert written.tolist() == uncached(model_of(8), prompt, 11, Sampler(), key)


@pytest.mark.parametrize("architecture", ["bigram", "head", "layernorm"])
def test_a_rung_of_the_ladder_writes_as_without_the_cache(architecture):
    model, key = model_of(8, architecture), jax.random.fold_in(jax.random.key(0), 0)
    written = sampling.generate(model, PROMPT, 21)[0]
    assert written.tolist() == uncached(model, PROMPT, 21, Sampler(), key)


# Seeds


def write(tokens: int = 20, seed: int = 0, samples: int = 1, **how) -> list[list[int]]:
    return sampling.generate(model_of(8), PROMPT, tokens, seed=seed, samples=samples, **how).tolist()


def test_the_same_seed_writes_the_same_text():
    assert write(seed=1) == write(seed=1)


def test_another_seed_writes_another_text():
    assert write(seed=1) != write(seed=2)


def test_a_sample_does_not_depend_on_how_many_are_drawn_beside_it():
    three, one = write(samples=3), write(samples=1)
    assert three[0] == one[0]
    assert len({tuple(text) for text in three}) == 3


@pytest.mark.parametrize("shorter", [1, 3, 4, 5, 19])
def test_a_longer_text_begins_with_the_shorter_one(shorter):
    assert write(20)[0][:shorter] == write(shorter)[0]


def test_a_model_that_knows_nothing_draws_all_tokens_alike():
    # With one key for all tokens it would repeat one; with one for all samples they would be the same.
    texts = sampling.generate(model_of(8, noise=0.0), PROMPT, 1000, samples=4)
    assert len({text.tobytes() for text in texts}) == 4
    shares = np.bincount(texts.ravel(), minlength=V) / texts.size
    assert shares.shape == (V,)  # no token outside the vocabulary
    np.testing.assert_allclose(shares, 1 / V, atol=0.02)
    same_as_before = (texts[:, 1:] == texts[:, :-1]).mean()
    assert same_as_before == pytest.approx(1 / V, abs=0.02)


@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), Sampler(100.0)], ids=[*SAMPLERS, "hot"])
def test_every_token_written_is_in_the_vocabulary(sampler):
    tokens = np.array(write(100, sampler=sampler))
    assert tokens.shape == (1, 100)
    assert ((tokens >= 0) & (tokens < V)).all()


# Pieces


def test_the_text_comes_in_pieces_that_make_up_the_whole():
    pieces = list(sampling.stream(model_of(20), PROMPT, 19, samples=2))
    assert [piece.shape for piece in pieces] == [(2, 8), (2, 8), (2, 3)]
    whole = sampling.generate(model_of(20), PROMPT, 19, samples=2)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def programs() -> tuple[int, int, int]:
    """How many have been compiled to read, to write and to enlarge a cache."""
    return tuple(f._cache_size() for f in (sampling._read, sampling._write, sampling._grow))


def test_any_number_of_texts_compiles_a_few_programs():
    model = model_of(100)
    sampler = Sampler(0.123)  # nobody else's, so its programs are not there yet
    before = programs()
    sampling.generate(model, np.arange(5), 230, sampler=sampler, samples=5)
    first = programs()
    sampling.generate(model, np.arange(9), 210, seed=1, sampler=sampler, samples=5)
    assert programs() == first
    # Reads one prompt and five half windows, both in 64 places; writes in 64 and 100.
    assert tuple(np.subtract(first, before)) == (2, 2, 1)


# The cache is as large as the text


@pytest.mark.parametrize("tokens, places", [(1, 64), (32, 64), (33, 64), (64, 64), (65, 100), (100, 100)])
def test_a_cache_has_few_places_for_a_short_text(tokens, places):
    assert sampling._places(tokens, 100) == places


@pytest.mark.parametrize("architecture", ["gpt", "head"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_text_whose_cache_grows_is_written_as_without_a_cache(architecture, samples):
    model = model_of(70, architecture)
    written = sampling.generate(model, PROMPT, 130, seed=2, samples=samples)
    for i in range(samples):
        key = jax.random.fold_in(jax.random.key(2), i)
        assert written[i].tolist() == uncached(model, PROMPT, 130, Sampler(), key)


@pytest.mark.parametrize("architecture", ["gpt", "layernorm"])
def test_the_logits_of_one_token_are_those_among_all(architecture):
    model, tokens = model_of(8, architecture), jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

    @jax.jit
    def both():
        _, cache = model.decode(tokens[:, :2], model.empty_cache(2, 6))
        return model.decode(tokens[:, 2:], cache)[0], model.decode(tokens[:, 2:], cache, jnp.int32(1))[0]

    every, one = both()
    assert one.shape == (2, 1, V)
    np.testing.assert_allclose(one, every[:, 1:2], atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt", "head"])
def test_copies_of_a_larger_cache_are_read_as_the_cache_itself(architecture):
    model, tokens = model_of(8, architecture), jnp.array([[3, 1, 4]])

    @jax.jit
    def both():
        _, cache = model.decode(tokens, model.empty_cache(1, 4))
        copies = cache.resized(7).repeated(2)
        return model.decode(tokens[:, :1], cache)[0], model.decode(jnp.tile(tokens[:, :1], (2, 1)), copies)[0]

    itself, copies = both()
    np.testing.assert_allclose(copies, jnp.tile(itself, (2, 1, 1)), atol=1e-5)


@pytest.mark.parametrize("width", [6, 7], ids=["even", "odd"])
def test_the_product_of_a_single_row_is_that_row_of_the_product(width):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 1, width)).astype(np.float32), rng.normal(size=(width, 5)).astype(np.float32)
    np.testing.assert_allclose(row_matmul(jnp.asarray(x), jnp.asarray(w), jnp.float32), x @ w, atol=1e-5)


@pytest.mark.parametrize("samples, cores", [(1, 1), (8, 1), (16, 2), (24, 3), (34, 2), (64, 4)])
def test_many_texts_are_shared_among_the_cores(samples, cores):
    assert sharding.sampling_mesh(samples).size == cores


@pytest.mark.parametrize("architecture", ["gpt", "head"])
def test_a_text_is_the_same_on_whichever_core_it_is_written(architecture):
    model = model_of(8, architecture)
    on_two_cores, on_one = (sampling.generate(model, PROMPT, 20, samples=samples) for samples in (16, 15))
    np.testing.assert_array_equal(on_two_cores[:15], on_one)
    assert len({tuple(text) for text in on_two_cores.tolist()}) > 8  # some rungs are so sure that texts coincide
