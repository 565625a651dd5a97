"""Muon's updates are orthogonal, Optax's, and the same on any number of devices; the rest stays with AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.device import sharding
from jaxgpt.model import build
from jaxgpt.training import muon, optimizer

MODEL = ModelConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=16, tie_head=False)
CONFIG = TrainConfig(
    model=MODEL,
    optimizer="muon",
    schedule="constant",
    warmup_steps=0,
    weight_decay=0.0,
    learning_rate=0.1,
    grad_clip=0.0,
)


def noise(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def singular_values(x) -> np.ndarray:
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (64, 16)], ids="{0[0]} x {0[1]}".format)
def test_an_update_is_equally_strong_in_every_direction(shape):
    # Singular values from 1 down to 1/50, each in a direction of its own.
    left, _, right = np.linalg.svd(noise(*shape), full_matrices=False)
    matrix = left * np.geomspace(1, 0.02, 16) @ right
    update = muon.orthogonalize(jnp.asarray(matrix, jnp.float32))
    n_in, n_out = shape
    values = singular_values(update) / max(1, n_out / n_in) ** 0.5
    assert (values > 0.65).all() and (values < 1.25).all()
    # The directions are those of the matrix: without the change of lengths, nothing is left of the update.
    np.testing.assert_allclose(
        left.T @ np.asarray(update) @ right.T, np.diag(np.diag(left.T @ update @ right.T)), atol=1e-4
    )


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e6])
def test_an_update_does_not_depend_on_the_length_of_the_gradient(size):
    # 1e-12 squared is still a float32, and 1e6 squared no infinity.
    np.testing.assert_allclose(muon.orthogonalize(size * noise(16, 48)), muon.orthogonalize(noise(16, 48)), atol=1e-4)


def test_a_gradient_of_zeros_makes_no_update():
    np.testing.assert_array_equal(muon.orthogonalize(jnp.zeros((8, 4))), jnp.zeros((8, 4)))


@pytest.mark.parametrize("condition", [1e1, 1e5], ids="condition {:.0e}".format)
def test_matrices_are_made_orthogonal_as_by_optax(condition):
    tree = {"a": noise(16, 48), "b": [noise(16, 16, seed=i) * jnp.geomspace(1, 1 / condition, 16) for i in range(3)]}
    ours = muon.orthogonalize(tree)
    theirs = jax.tree.map(
        lambda x: optax.contrib.muon(-1.0).update(x, optax.contrib.muon(-1.0).init(x), x)[0], tree
    )  # a first update is the gradient, made orthogonal
    # Ours works on squares, which costs digits of the weakest directions.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours, theirs)


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_devices_that_share_the_work_get_what_one_would(devices):
    # Groups of two and of five matrices: neither is a multiple of all numbers of devices.
    tree = {"wide": noise(4, 12), "tall": noise(12, 4), "square": [noise(4, 4, seed=i) for i in range(5)]}
    mesh = sharding.place(jax.devices()[:devices]).mesh
    shared = jax.jit(lambda tree: muon.orthogonalize(tree, mesh))(tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), shared, muon.orthogonalize(tree))


def test_three_updates_follow_nesterovs_momentum():
    tx = muon.scale_by_muon(0.8)
    state, mean = tx.init(jnp.zeros((4, 6))), np.zeros((4, 6))
    for i in range(3):
        g = noise(4, 6, seed=i)
        update, state = tx.update(g, state)
        mean = 0.8 * mean + 0.2 * np.asarray(g)
        expected = muon.orthogonalize(jnp.asarray(0.8 * mean + 0.2 * np.asarray(g), jnp.float32))
        np.testing.assert_allclose(update, expected, atol=1e-4)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    labels = optimizer.param_labels(build.init_params(MODEL, 0))
    assert {labels["wte"]["embedding"], labels["wpe"]["embedding"], labels["lm_head"]["kernel"]} == {"adamw"}
    assert set(jax.tree.leaves(labels["ln_f"])) == {"adamw"}
    for block in labels["h"].values():
        kernels = {block["attn"][name]["kernel"] for name in ("c_attn", "c_proj")}
        kernels |= {block["mlp"][name]["kernel"] for name in ("c_fc", "c_proj")}
        assert kernels == {"muon"}
        assert {block["attn"]["c_proj"]["bias"], *jax.tree.leaves(block["ln_1"])} == {"adamw"}


def first_update(config: TrainConfig):
    """Fresh weights, and what a first update changes, where every gradient is noise."""
    params = build.init_params(config.model, 0)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    tx = optimizer.build(config)
    return params, jax.jit(tx.update)(grads, tx.init(params), params, finite=True)[0]


def test_each_optimiser_has_a_learning_rate_of_its_own():
    _, updates = first_update(override(CONFIG, muon_learning_rate=0.5))
    np.testing.assert_allclose(np.abs(updates["wte"]["embedding"]), 0.1, rtol=1e-4)  # Adam's first: the sign
    values = singular_values(updates["h"][0]["attn"]["c_proj"]["kernel"])
    assert values.max() < 0.5 * 1.25
    assert values.mean() > 0.5 * 0.65


def test_matrices_of_both_decay():
    params, decayed = first_update(override(CONFIG, muon_learning_rate=0.5, weight_decay=0.25))
    _, plain = first_update(override(CONFIG, muon_learning_rate=0.5))
    decay = jax.tree.map(lambda a, b: a - b, plain, decayed)
    kernel, embedding = params["h"][0]["mlp"]["c_fc"]["kernel"], params["wte"]["embedding"]
    np.testing.assert_allclose(decay["h"][0]["mlp"]["c_fc"]["kernel"], 0.5 * 0.25 * kernel, atol=1e-6)
    np.testing.assert_allclose(decay["wte"]["embedding"], 0.1 * 0.25 * embedding, atol=1e-6)
    np.testing.assert_array_equal(decay["ln_f"]["scale"], jnp.zeros(16))


def test_a_gradient_that_is_not_finite_leaves_the_moments_of_both():
    params = {"h": {0: noise(4, 6)}, "wte": noise(5, 4)}
    tx = optimizer.build(CONFIG)
    _, before = tx.update(params, tx.init(params), params, finite=jnp.bool_(True))
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    _, after = tx.update(bad, before, params, finite=jnp.bool_(False))
    for kind in ("MuonState", "ScaleByAdamState"):
        kept, now = (optax.tree.get(state, kind) for state in (before, after))
        assert any((leaf != 0).any() for leaf in jax.tree.leaves(kept))
        jax.tree.map(np.testing.assert_array_equal, now, kept)
