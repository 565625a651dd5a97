"""Muon's updates are orthogonal, Optax's, and the same on any number of devices; the rest stays with AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.config import ModelConfig, TrainConfig
from jaxgpt.device import sharding
from jaxgpt.training import muon, optimizer
from jaxgpt.training import step as trainer

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
    update = muon.orthogonal(jnp.asarray(matrix, jnp.float32))
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
    np.testing.assert_allclose(muon.orthogonal(size * noise(16, 48)), muon.orthogonal(noise(16, 48)), atol=1e-4)


def test_a_gradient_of_zeros_makes_no_update():
    np.testing.assert_array_equal(muon.orthogonal(jnp.zeros((8, 4))), jnp.zeros((8, 4)))


@pytest.mark.parametrize("condition", [1e1, 1e5], ids="condition {:.0e}".format)
def test_matrices_are_made_orthogonal_as_by_optax(condition):
    tree = {"a": noise(16, 48), "b": [noise(16, 16, seed=i) * jnp.geomspace(1, 1 / condition, 16) for i in range(3)]}
    ours = muon.orthogonal(tree)
    theirs = jax.tree.map(
        lambda x: optax.contrib.muon(-1.0).update(x, optax.contrib.muon(-1.0).init(x), x)[0], tree
    )  # a first update is the gradient, made orthogonal
    # Ours works on squares, which costs digits of the weakest directions.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours, theirs)


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_devices_that_share_the_work_get_what_one_would(devices):
    # Groups of two and of five matrices: neither is a multiple of all numbers of devices.
    tree = {"wide": noise(4, 12), "tall": noise(12, 4), "square": [noise(4, 4, seed=i) for i in range(5)]}
    mesh = sharding.over(jax.devices()[:devices])
    shared = jax.jit(lambda tree: muon.orthogonal(tree, mesh))(tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), shared, muon.orthogonal(tree))


def test_three_updates_follow_nesterovs_momentum():
    tx = muon.scale_by_muon(0.8)
    state, mean = tx.init(jnp.zeros((4, 6))), np.zeros((4, 6))
    for i in range(3):
        g = noise(4, 6, seed=i)
        update, state = tx.update(g, state)
        mean = 0.8 * mean + 0.2 * np.asarray(g)
        expected = muon.orthogonal(jnp.asarray(0.8 * mean + 0.2 * np.asarray(g), jnp.float32))
        np.testing.assert_allclose(update, expected, atol=1e-4)


def test_a_gradient_that_is_not_finite_leaves_the_momentum():
    tx = muon.scale_by_muon(0.8)
    _, state = tx.update(noise(4, 4), tx.init(jnp.zeros((4, 4))))
    _, after = tx.update(jnp.full((4, 4), jnp.nan), state, finite=jnp.bool_(False))
    np.testing.assert_array_equal(after.mu, state.mu)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    owners = optimizer.owners(trainer.init_params(MODEL, 0))
    assert {owners["wte"]["embedding"], owners["wpe"]["embedding"], owners["lm_head"]["kernel"]} == {"adamw"}
    assert set(jax.tree.leaves(owners["ln_f"])) == {"adamw"}
    for block in owners["h"].values():
        kernels = {block["attn"][name]["kernel"] for name in ("c_attn", "c_proj")}
        kernels |= {block["mlp"][name]["kernel"] for name in ("c_fc", "c_proj")}
        assert kernels == {"muon"}
        assert {block["attn"]["c_proj"]["bias"], *jax.tree.leaves(block["ln_1"])} == {"adamw"}


def change_of(config: TrainConfig):
    """What a first update of all weights changes, where every gradient is noise."""
    params = trainer.init_params(config.model, 0)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    tx = optimizer.build(config)
    return params, tx.update(grads, tx.init(params), params, finite=True)[0]


def test_each_optimiser_has_a_step_size_of_its_own():
    config = TrainConfig(**{**vars(CONFIG), "muon_learning_rate": 0.5})
    _, updates = change_of(config)
    np.testing.assert_allclose(np.abs(updates["wte"]["embedding"]), 0.1, rtol=1e-4)  # Adam's first: the sign
    values = singular_values(updates["h"][0]["attn"]["c_proj"]["kernel"])
    assert values.max() < 0.5 * 1.25
    assert values.mean() > 0.5 * 0.65


def test_matrices_of_both_decay():
    config = TrainConfig(**{**vars(CONFIG), "muon_learning_rate": 0.5, "weight_decay": 0.25})
    params, decayed = change_of(config)
    _, plain = change_of(TrainConfig(**{**vars(CONFIG), "muon_learning_rate": 0.5}))
    decay = jax.tree.map(lambda a, b: a - b, plain, decayed)
    kernel, embedding = params["h"][0]["mlp"]["c_fc"]["kernel"], params["wte"]["embedding"]
    np.testing.assert_allclose(decay["h"][0]["mlp"]["c_fc"]["kernel"], 0.5 * 0.25 * kernel, atol=1e-6)
    np.testing.assert_allclose(decay["wte"]["embedding"], 0.1 * 0.25 * embedding, atol=1e-6)
    np.testing.assert_array_equal(decay["ln_f"]["scale"], jnp.zeros(16))


def test_an_update_that_is_not_finite_leaves_weights_and_moments_of_both(monkeypatch):
    text = jnp.asarray(np.random.default_rng(0).integers(0, 13, 200), jnp.uint16)
    mesh = sharding.over(jax.devices()[:1])
    step = trainer.make_train_step(CONFIG, jnp.dtype("float32"), mesh)
    state, _ = step(trainer.init_state(CONFIG, jnp.dtype("float32")), text)
    before = jax.tree.map(np.array, state)
    monkeypatch.setattr(trainer, "cross_entropy", lambda logits, targets: logits[..., 0] * jnp.nan)
    state, metrics = trainer.make_train_step(CONFIG, jnp.dtype("float32"), mesh)(state, text)
    assert metrics.skipped == metrics.skipped_in_all == 1
    for kind in ("MuonState", "ScaleByAdamState"):
        kept, now = (optax.tree.get(s.opt_state, kind) for s in (before, state))
        assert jax.tree.leaves(kept)
        jax.tree.map(np.testing.assert_array_equal, now, kept)
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
