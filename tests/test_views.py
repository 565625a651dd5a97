"""A look inside is a look at what the model does: the same attention, the same stream, the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import MODERN, TOKENS, changed, logits_of, noise, noisy

from jaxgpt import UserError
from jaxgpt.model import build, views
from jaxgpt.model.attention import causal_attention, causal_weights, token_shift

LAYERS = {"bigram": 0, "head": 1, "multihead": 1, "feedforward": 1, "blocks": 2, "layernorm": 2}
CONFIGS = {
    "gpt": changed(),
    "modern": changed(**MODERN),
    **{rung: changed(architecture=rung) for rung in LAYERS},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_can_be_looked_into(name):
    config = CONFIGS[name]
    look = views.look(noisy(config), TOKENS)
    (B, T), L, C = TOKENS.shape, LAYERS.get(name, 2), config.vocab_size if name == "bigram" else config.n_embd
    H = 1 if name == "head" else 2
    assert look.attention.shape == (L, B, H, T, T)
    assert look.streams.shape == (L + 1, B, T, C)
    np.testing.assert_allclose(look.logits, logits_of(noisy(config)), atol=1e-5)
    np.testing.assert_allclose(look.attention.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.triu(look.attention, 1), 0)
    lens = views.logit_lens(noisy(config), TOKENS)
    assert lens.shape == (L + 1, B, T, config.vocab_size)
    np.testing.assert_allclose(lens[-1], look.logits, atol=1e-5)


def test_weights_are_those_by_which_attention_averages():
    q, k = (jax.random.normal(jax.random.key(i), (2, 6, 3, 4)) for i in range(2))
    which = jnp.broadcast_to(jnp.eye(6)[None, :, None], (2, 6, 3, 6))  # of an average of these, each is a weight
    np.testing.assert_allclose(causal_weights(q, k).swapaxes(1, 2), causal_attention(q, k, which), atol=1e-6)


@pytest.mark.parametrize("name", ["gpt", "modern"])
def test_attention_passes_on_what_it_looks_at(name):
    """The weights of a layer, times its values, is what it adds."""
    model = noisy(CONFIGS[name])
    look, block = views.look(model, TOKENS), model.h[1]
    x = block.ln_1(look.streams[1])
    _, _, v = block.attn.heads(x)
    v = token_shift(v) if model.config.value_shift else v
    average = np.einsum("bhts,bshd->bthd", look.attention[1], v).reshape(x.shape)
    np.testing.assert_allclose(block.attn.c_proj(jnp.asarray(average)), block.attn(x)[0], atol=1e-4)


def test_a_rung_averages_by_its_weights():
    model = noisy(CONFIGS["multihead"])
    look = views.look(model, TOKENS)
    _, _, v = model.attn.heads(look.streams[0])  # (B, H, T, D)
    average = np.einsum("bhts,bhsd->bthd", look.attention[0], v)
    np.testing.assert_allclose(average.reshape(look.streams[1].shape), look.streams[1], atol=1e-4)


def test_the_lens_reads_the_embeddings_as_a_model_whose_blocks_add_nothing():
    params = noise()
    lens = views.logit_lens(build.merge(CONFIGS["gpt"], params), TOKENS)
    for block in params["h"].values():
        for part in ("attn", "mlp"):
            block[part]["c_proj"] = jax.tree.map(jnp.zeros_like, block[part]["c_proj"])
    np.testing.assert_allclose(lens[0], logits_of(build.merge(CONFIGS["gpt"], params)), atol=1e-5)
    assert not np.allclose(lens[0], lens[1], atol=0.1)


def test_more_tokens_than_the_model_can_read_are_refused():
    for view in (views.look, views.logit_lens):
        with pytest.raises(UserError, match="7 tokens are more than the model's block_size of 6"):
            view(noisy(), np.zeros((1, 7), np.int32))
