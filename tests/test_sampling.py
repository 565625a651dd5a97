"""Text is drawn as asked for, and as a model would write it that reads its whole window every time."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import logits_of, noisy

from jaxgpt import sampling
from jaxgpt.config import ModelConfig
from jaxgpt.device import sharding
from jaxgpt.errors import UserError
from jaxgpt.sampler import Sampler

V = 11
PROMPT = np.array([3, 1, 4])
PLAIN, GREEDY = Sampler(), Sampler(temperature=0)
SAMPLED = Sampler(1.5, top_k=7, top_p=0.95, min_p=0.01)


def model_of(block_size: int, architecture: str = "gpt", n_layer: int = 1, noise: float = 1.0) -> Any:
    """A small model whose weights are noise; without noise, one that finds all tokens equally likely."""
    sizes = {"vocab_size": V, "block_size": block_size, "n_layer": n_layer, "n_head": 2, "n_embd": 8}
    # An untied head, so that greedy text varies, too.
    return noisy(ModelConfig(architecture, **sizes, bias=False, tie_head=False), noise)


# The sampler


def test_every_value_that_makes_no_sense_is_named_at_once():
    with pytest.raises(UserError) as caught:
        Sampler(temperature=-1.0, top_k=-2, top_p=0.0, min_p=1.5).check()
    for name, value in {"temperature": -1.0, "top_k": -2, "top_p": 0.0, "min_p": 1.5}.items():
        assert any(f"`{name}`" in part and part.endswith(f"not {value}") for part in str(caught.value).split("; "))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"temperature": "1"},
        {"temperature": 1j},
        {"top_k": 2.5},
        {"top_k": float("nan")},
        {"top_k": [3]},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_p": None},
        {"min_p": -0.1},
        {"min_p": float("nan")},
        {"min_p": True},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError) as caught:
        Sampler(**wrong).check()
    assert f"`{name}`" in str(caught.value)
    assert str(caught.value).endswith(f"not {value!r}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extreme",
    [Sampler(), Sampler(0, 0, 1, 0), Sampler(5, 10**6, 1e-9, 1), Sampler(np.float32(0.5), np.int64(3), np.float64(1))],
    ids=str,
)
def test_extremes_that_make_sense_and_numpys_numbers_are_taken(extreme):
    assert extreme.check() == extreme


PROBS = np.array([0.15, 0.5, 0.1, 0.25])


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
    logits = np.log(PROBS, dtype=np.float32) + 3
    kept = np.asarray(sampler.filter(jnp.asarray(logits)))
    assert {i for i in range(4) if kept[i] > -jnp.inf} == allowed
    assert all(kept[i] == logits[i] for i in allowed)


def test_temperature_zero_takes_the_likeliest():
    assert GREEDY.draw(jnp.log(PROBS), 0.99) == 1


def test_a_token_is_the_one_in_whose_share_the_number_falls():
    ends = np.cumsum(PROBS)
    for token, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        for uniform in (start + 1e-6, (start + end) / 2, end - 1e-6):
            assert Sampler().draw(jnp.log(PROBS), uniform) == token


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-23])
def test_a_token_that_may_not_be_drawn_never_is_not_even_at_the_ends(uniform):
    logits = jnp.asarray([-1e30, 0, 1, 0.5, -1e30])
    assert Sampler(top_k=1).draw(logits, uniform) == 2
    assert Sampler().draw(logits, uniform) in (1, 3)


@cache
def draws(sampler: Sampler) -> np.ndarray:
    """How often each token comes, of 4000."""
    numbers = jax.vmap(partial(sampling.uniform, jnp.uint32([7, 9])))(jnp.arange(4000))
    tokens = jax.jit(jax.vmap(partial(sampler.draw, jnp.log(PROBS))))(numbers)
    return np.bincount(tokens, minlength=4) / 4000


def test_tokens_come_as_often_as_they_are_likely():
    np.testing.assert_allclose(draws(Sampler()), PROBS, atol=0.03)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    expected = PROBS ** (1 / temperature)
    np.testing.assert_allclose(draws(Sampler(temperature)), expected / expected.sum(), atol=0.03)


def test_what_may_be_drawn_is_decided_at_the_temperature_asked_for():
    # At 0.5 the probabilities are 0.07, 0.72, 0.03, 0.18: the second alone has 0.7. At 1 it would take two.
    assert draws(Sampler(0.5, top_p=0.7))[1] == 1
    assert draws(Sampler(1.0, top_p=0.7))[1] < 0.75


# The cache changes nothing


_draw = jax.jit(Sampler.draw, static_argnums=0)


def uncached(model: Any, prompt, tokens: int, sampler: Sampler = PLAIN, seed: int = 0, sample: int = 0) -> list[int]:
    """The same text by a model without a cache, that reads its window anew for every token.

    The window rule: tokens are written in pieces. The window is as much of the prompt as leaves room
    for a piece in `block_size`, and grows with what is written; when there is no room for another
    piece, it is cut to its last `block_size / 2` tokens, and grows again.
    """
    S = model.config.block_size
    piece = max(1, min(sampling.CHUNK, S // 2))
    key = jax.random.fold_in(jax.random.key(seed), sample)
    words = jax.random.bits(key, (2,), jnp.uint32)
    text, seen = list(prompt), min(len(prompt), max(1, S - piece))
    for i in range(tokens):
        if i % piece == 0 and seen + piece > S:
            seen = max(1, S // 2)
        window = np.zeros((1, S), np.int32)
        window[0, :seen] = text[-seen:]
        logits = logits_of(model, window)[0, seen - 1]
        text.append(int(_draw(sampler, logits, sampling.uniform(words, jnp.int32(i)))))
        seen += 1
    return text[len(prompt) :]


@pytest.mark.parametrize(
    "block_size, sampler",
    [(1, PLAIN), (2, PLAIN), (3, PLAIN), (8, SAMPLED), (20, GREEDY)],
    ids=["1", "2", "3", "8", "20"],
)
def test_writing_with_the_cache_is_writing_without_it(block_size, sampler):
    model = model_of(block_size)
    tokens = 2 * block_size + 13  # the cache is full more than once
    with_cache = sampling.generate(model, PROMPT, tokens, seed=5, sampler=sampler)
    assert with_cache.shape == (1, tokens)
    assert with_cache[0].tolist() == uncached(model, PROMPT, tokens, sampler, seed=5)
    assert len(set(with_cache[0].tolist())) > 2


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_a_prompt_of_any_length_is_continued_as_without_the_cache(length):
    prompt = np.random.default_rng(1).integers(0, V, length)
    assert sampling.generate(model_of(8), prompt, 11)[0].tolist() == uncached(model_of(8), prompt, 11)


@pytest.mark.parametrize("architecture", ["bigram", "head", "layernorm"])
def test_a_rung_of_the_ladder_writes_as_without_the_cache(architecture):
    model = model_of(8, architecture)
    assert sampling.generate(model, PROMPT, 21)[0].tolist() == uncached(model, PROMPT, 21)


# Seeds and samples


def write(tokens: int = 20, seed: int = 0) -> list[int]:
    return sampling.generate(model_of(8), PROMPT, tokens, seed=seed)[0].tolist()


def test_the_same_seed_writes_the_same_text_and_another_one_another():
    assert write(seed=1) == write(seed=1)
    assert write(seed=1) != write(seed=2)


@pytest.mark.parametrize("shorter", [1, 3, 4, 5, 19])
def test_a_longer_text_begins_with_the_shorter_one(shorter):
    assert write(20)[:shorter] == write(shorter)


@pytest.mark.parametrize("samples, cores", [(1, 1), (8, 1), (16, 2), (24, 3), (34, 2), (64, 4)])
def test_many_texts_are_shared_among_the_cores(samples, cores):
    assert sharding.for_sampling(samples).mesh.size == cores


@pytest.mark.parametrize("architecture", ["gpt", "head"])
def test_a_text_does_not_depend_on_those_beside_it_nor_on_the_core_that_writes_it(architecture):
    one, three, on_two_cores = (sampling.generate(model_of(8, architecture), PROMPT, 20, samples=n) for n in (1, 3, 16))
    np.testing.assert_array_equal(one, three[:1])
    np.testing.assert_array_equal(three, on_two_cores[:3])
    assert len({text.tobytes() for text in on_two_cores}) > 8  # some rungs are so sure that texts coincide


def test_a_model_that_knows_nothing_draws_all_tokens_alike():
    # With one key for all tokens it would repeat one; with one for all samples they would be the same.
    texts = sampling.generate(model_of(8, "bigram", noise=0.0), PROMPT, 1000, samples=4)
    assert len({text.tobytes() for text in texts}) == 4
    shares = np.bincount(texts.ravel(), minlength=V) / texts.size
    assert shares.shape == (V,)  # no token outside the vocabulary
    np.testing.assert_allclose(shares, 1 / V, atol=0.02)
    same_as_before = (texts[:, 1:] == texts[:, :-1]).mean()
    assert same_as_before == pytest.approx(1 / V, abs=0.02)


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED, Sampler(100.0)], ids=["greedy", "sampled", "hot"])
def test_every_token_written_is_in_the_vocabulary(sampler):
    tokens = sampling.generate(model_of(8, "bigram"), PROMPT, 100, sampler=sampler)
    assert tokens.shape == (1, 100)
    assert ((tokens >= 0) & (tokens < V)).all()


# Several prompts


PROMPTS = [np.random.default_rng(2).integers(0, V, length) for length in (1, 5, 3, 30)]


@pytest.mark.parametrize(
    "block_size, architecture, sampler",
    [(1, "gpt", PLAIN), (3, "gpt", PLAIN), (8, "head", SAMPLED), (20, "gpt", GREEDY)],
    ids=["1", "3", "8", "20"],
)
def test_prompts_of_different_lengths_are_continued_as_each_alone_without_a_cache(block_size, architecture, sampler):
    model = model_of(block_size, architecture)
    tokens = 2 * block_size + 13  # each cache is full more than once, at moments of its own
    texts = sampling.generate(model, PROMPTS, tokens, seed=5, sampler=sampler, samples=2)
    assert texts.shape == (8, tokens)
    for i, text in enumerate(texts):
        sample, j = divmod(i, 4)
        assert text.tolist() == uncached(model, PROMPTS[j], tokens, sampler, seed=5, sample=sample)


@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[-1:] for prompt in PROMPTS]], ids=["different", "equal"])
@pytest.mark.parametrize("samples", [1, 4])  # one device, and two
def test_a_prompt_is_continued_alike_whatever_is_beside_it(prompts, samples):
    model = model_of(20)
    texts = sampling.generate(model, prompts, 30, samples=samples)
    for j, prompt in enumerate(prompts):
        np.testing.assert_array_equal(texts[j :: len(prompts)], sampling.generate(model, prompt, 30, samples=samples))


def test_prompts_of_any_lengths_compile_the_same_programs():
    model = model_of(100)
    written = sampling.generate(model, [PROMPT, PROMPT[:1]], 130)
    compiled = [sampling._prefill_some, sampling._decode_each, sampling._extend_each]
    before = [program._cache_size() for program in compiled]
    sampling.generate(model, [np.arange(9), np.arange(7)], 140, seed=1)
    assert [program._cache_size() for program in compiled] == before
    assert written.shape == (2, 130)


# Log-probabilities


@pytest.mark.parametrize("prompts", [[PROMPT], PROMPTS], ids=["one", "several"])
@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_log_probabilities_are_the_models_own(sampler, prompts):
    model = model_of(20)
    (piece,) = sampling.stream(model, prompts, 5, sampler=sampler, logprobs=True)
    assert piece.logprobs.dtype == np.float32
    for prompt, tokens, logprobs in zip(prompts, *piece, strict=True):
        text = [*prompt[-12:], *tokens]  # of a long prompt the model sees all but a chunk of its block
        window = np.zeros((1, 20), np.int32)
        window[0, : len(text)] = text
        known = jax.nn.log_softmax(logits_of(model, window)[0])
        expected = [known[len(text) - 6 + i, token] for i, token in enumerate(tokens)]
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_log_probabilities_change_no_text_and_come_when_asked_for():
    model = model_of(20)
    with_them = list(sampling.stream(model, PROMPT, 30, logprobs=True))
    assert [piece.logprobs.shape for piece in with_them] == [piece.tokens.shape for piece in with_them]
    written = np.concatenate([piece.tokens for piece in with_them], axis=1)
    np.testing.assert_array_equal(written, sampling.generate(model, PROMPT, 30))
    assert {piece.logprobs for piece in sampling.stream(model, PROMPT, 30)} == {None}


# Pieces, programs, and a cache as large as the text


def test_the_text_comes_in_pieces_that_make_up_the_whole():
    model = model_of(20, "head")
    pieces = list(sampling.stream(model, PROMPT, 19, samples=2))
    assert [piece.tokens.shape for piece in pieces] == [(2, 8), (2, 8), (2, 3)]
    written = np.concatenate([piece.tokens for piece in pieces], axis=1)
    np.testing.assert_array_equal(written, sampling.generate(model, PROMPT, 19, samples=2))


def programs() -> tuple[int, int, int]:
    """How many have been compiled to read, to write and to enlarge a cache."""
    return tuple(f._cache_size() for f in (sampling._prefill, sampling._decode, sampling._extend))


def test_any_number_of_texts_compiles_a_few_programs():
    model = model_of(100, "head")
    sampler = Sampler(0.123)  # nobody else's, so its programs are not there yet
    before = programs()
    sampling.generate(model, np.arange(5), 230, sampler=sampler, samples=5)
    first = programs()
    sampling.generate(model, np.arange(9), 210, seed=1, sampler=sampler, samples=5)
    assert programs() == first
    # Reads one prompt and five half windows, both in a capacity of 64; writes in 64 and 100.
    assert tuple(np.subtract(first, before)) == (2, 2, 1)


@pytest.mark.parametrize("tokens, capacity", [(1, 64), (32, 64), (33, 64), (64, 64), (65, 100), (100, 100)])
def test_a_cache_is_small_for_a_short_text(tokens, capacity):
    assert sampling._capacity(tokens, 100) == capacity


@pytest.mark.parametrize("architecture, samples", [("gpt", 2), ("head", 1)])
def test_a_text_whose_cache_grows_is_written_as_without_a_cache(architecture, samples):
    model = model_of(70, architecture, n_layer=2)
    written = sampling.generate(model, PROMPT, 85, seed=2, samples=samples)
    for i in range(samples):
        assert written[i].tolist() == uncached(model, PROMPT, 85, seed=2, sample=i)


def test_texts_of_different_lengths_whose_caches_grow_are_written_as_without_a_cache():
    model = model_of(70)
    prompts = [PROMPT, np.arange(20) % V]
    texts = sampling.generate(model, prompts, 60)
    assert [text.tolist() for text in texts] == [uncached(model, prompt, 60) for prompt in prompts]
