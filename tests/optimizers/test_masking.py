"""Masked training: frozen entries stay bitwise what they were, trained ones move as they would alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.optimizers import AdamWSettings, adamw, mask_gradients, masked_training, restore_frozen

SPECS = {"w": MatrixSpec(out=(1,), in_=(0,)), "whole": None}


def make():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5, 7)).astype(np.float32)
    w[0, :] = -0.0
    params = {"w": jnp.asarray(w), "whole": jnp.ones(3)}
    mask = rng.random((7, 5)) < 0.4  # [out, in], as the diagnostics give it
    mask[:, 0] = False
    return params, {"w": jnp.asarray(mask), "whole": None}


def steps(transform, params, after=lambda p: p, count=4):
    state = transform.init(params)

    @jax.jit
    def step(params, state, seed):
        gradients = jax.tree.map(lambda p: jax.random.normal(jax.random.key(seed), p.shape), params)
        updates, state = transform.update(gradients, state, params)
        return after(optax.apply_updates(params, updates)), state

    for seed in range(count):
        params, state = step(params, state, seed)
    return params


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_frozen_entries_do_not_change_a_bit():
    params, masks = make()
    optimizer = adamw(AdamWSettings(1e-2, weight_decay=0.1), 4)
    trained = np.asarray(masks["w"]).T
    found = steps(masked_training(optimizer, masks, specs=SPECS), params)
    np.testing.assert_array_equal(bits(found["w"])[~trained], bits(params["w"])[~trained])
    plain = steps(optimizer, params)
    np.testing.assert_allclose(np.asarray(found["w"])[trained], np.asarray(plain["w"])[trained], rtol=1e-6)
    np.testing.assert_allclose(found["whole"], plain["whole"], rtol=1e-6)


def test_masked_gradients_alone_let_weight_decay_through_and_restoring_mends_it():
    params, masks = make()
    chain = optax.chain(mask_gradients(masks, specs=SPECS), adamw(AdamWSettings(1e-2, weight_decay=0.1), 4))
    frozen = ~np.asarray(masks["w"]).T
    leaky = steps(chain, params)
    np.testing.assert_allclose(
        np.asarray(leaky["w"])[frozen], np.asarray(params["w"])[frozen] * (1 - 1e-3) ** 4, rtol=1e-5
    )
    restored = steps(chain, params, after=lambda p: restore_frozen(p, params, masks, specs=SPECS))
    np.testing.assert_array_equal(bits(restored["w"])[frozen], bits(params["w"])[frozen])
    direct = steps(masked_training(adamw(AdamWSettings(1e-2, weight_decay=0.1), 4), masks, specs=SPECS), params)
    np.testing.assert_allclose(restored["w"], direct["w"], rtol=1e-6)


def test_masks_in_the_leafs_layout_and_scalars_that_freeze_a_leaf():
    params, masks = make()
    transform = mask_gradients({"w": masks["w"].T, "whole": jnp.zeros((), bool)})
    updates, _ = transform.update(params, transform.init(params))
    np.testing.assert_array_equal(
        np.asarray(updates["w"]) != 0, np.asarray(masks["w"]).T & (np.asarray(params["w"]) != 0)
    )
    np.testing.assert_array_equal(updates["whole"], 0.0)


@pytest.mark.parametrize(
    ("mask", "says"),
    [(jnp.ones((5, 7)), "bool"), (jnp.ones((7, 5), bool), "does not fit"), (jnp.ones((2, 5, 7), bool), "does not fit")],
)
def test_refuses(mask, says):
    params, _ = make()
    with pytest.raises(ValueError, match=says):
        mask_gradients({"w": mask, "whole": None}).init(params)
