"""Any Optax optimizer within a subspace: equal to float64 numpy, confined, frozen where asked, small where promised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.optimizers import confined, with_standard_promotion

OUT, IN, K, STEPS = 10, 16, 3, 200
SPECS = {"w": MatrixSpec(out=(1,), in_=(0,)), "free": None}
INNER = {
    "sgd": lambda: optax.sgd(1e-3, momentum=0.9),
    "adam": lambda: optax.adam(1e-3),
    "lion": lambda: optax.lion(1e-3, weight_decay=0.1),
    "muon": lambda: optax.contrib.muon(1e-3, weight_decay=0.1),
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(IN, OUT)).astype(np.float32), "free": rng.normal(size=5).astype(np.float32)}


def basis_of(side):
    rows = IN if side == "right" else OUT
    return np.linalg.qr(np.random.default_rng(9).normal(size=(rows, K)))[0].astype(np.float32)


def train(transform, *, steps=STEPS, start=None):
    params = jax.tree.map(jnp.asarray, draw(0))
    state = transform.init(params)

    @jax.jit
    def step(params, state, gradient, start):
        updates, state = transform.update(gradient, state, params, start=start)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, draw(index + 1), start)
    return jax.tree.map(np.asarray, params), state


def energy_outside(params, side):
    delta = params["w"].T.astype(np.float64) - draw(0)["w"].T
    basis = np.linalg.qr(basis_of(side).astype(np.float64))[0]
    outside = delta - (delta @ basis @ basis.T if side == "right" else basis @ basis.T @ delta)
    return np.sum(outside**2) / np.sum(delta**2)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("form", ["updates", "coordinates"])
@pytest.mark.parametrize("inner", INNER)
def test_nothing_leaves_the_subspace(inner, form, side):
    transform = confined(INNER[inner](), {"w": basis_of(side), "free": None}, form, side=side, specs=SPECS)
    params, _ = train(transform, start=draw(0))
    relative = np.linalg.norm(params["w"] - draw(0)["w"]) / np.linalg.norm(draw(0)["w"])
    # One rounding of W to float32, 2⁻²⁴ at the most of each entry, whatever the number of steps.
    assert energy_outside(params, side) < (2.0**-24 / relative) ** 2
    assert np.abs(params["free"] - draw(0)["free"]).max() > 1e-3


@pytest.mark.parametrize("form", ["updates", "coordinates"])
def test_without_the_start_roundings_add_up(form):
    transform = confined(INNER["adam"](), {"w": basis_of("right"), "free": None}, form, specs=SPECS)
    at_once, adding_up = train(transform, start=draw(0))[0], train(transform)[0]
    np.testing.assert_allclose(at_once["w"], adding_up["w"], atol=STEPS * 2.0**-24 * 4)
    assert energy_outside(adding_up, "right") > 20 * energy_outside(at_once, "right")


@pytest.mark.parametrize("inner", INNER)
def test_projected_gradients_leak_where_the_optimizer_is_no_linear_map_of_them(inner):
    transform = confined(INNER[inner](), {"w": basis_of("right"), "free": None}, "gradients", specs=SPECS)
    share = energy_outside(train(transform)[0], "right")
    assert share < 1e-9 if inner == "sgd" else 1e-3 < share < 1.0


def test_coordinates_equal_the_optimizer_on_the_coordinates_alone():
    """The inner optimizer run in float64 on `W V`, by itself; W then follows by its definition."""
    basis = basis_of("right")
    found, state = train(
        confined(INNER["lion"](), {"w": basis, "free": None}, "coordinates", specs=SPECS), start=draw(0)
    )
    assert jax.tree.map(jnp.shape, state.inner[0].mu) == {"w": (OUT, K), "free": (5,)}
    wide = basis.astype(np.float64)
    c, moment = draw(0)["w"].T @ wide, np.zeros((OUT, K))
    first = c.copy()
    for index in range(STEPS):
        gradient = draw(index + 1)["w"].T @ wide
        step = np.sign(0.9 * moment + 0.1 * gradient) + 0.1 * c
        moment, c = 0.99 * moment + 0.01 * gradient, c - 1e-3 * step
    np.testing.assert_allclose(found["w"].T, draw(0)["w"].T + (c - first) @ wide.T, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_muon_takes_stacked_coordinates_where_it_is_told_the_axes(side):
    """Every layer's step is that of Muon on this layer's coordinates alone; untold, the steps are Adam's."""
    rng, stack = np.random.default_rng(3), 3
    params, gradient = (jnp.asarray(rng.normal(size=(stack, OUT, IN)), jnp.float32) for _ in range(2))
    rows = IN if side == "right" else OUT
    basis = jnp.asarray(np.linalg.qr(rng.normal(size=(stack, rows, K)))[0], jnp.float32)
    axes = optax.contrib.MuonDimensionNumbers(-1, -2)

    def muon(told):
        return with_standard_promotion(optax.contrib.muon(1e-2, muon_weight_dimension_numbers=told))

    def step(inner):
        transform = confined(inner, {"w": basis}, "coordinates", side=side)
        state = transform.init({"w": params})
        return np.asarray(transform.update({"w": gradient}, state, {"w": params})[0]["w"])

    def coordinates(matrix, own):
        return matrix @ own if side == "right" else own.T @ matrix

    expected = []
    for layer, own in enumerate(basis):
        at = {"c": coordinates(params[layer], own)}
        inner = muon({"c": axes})
        moved = np.asarray(inner.update({"c": coordinates(gradient[layer], own)}, inner.init(at), at)[0]["c"])
        expected.append(moved @ own.T if side == "right" else own @ moved)
    np.testing.assert_allclose(step(muon({"w": axes})), expected, atol=1e-6)
    assert np.abs(step(muon(None)) - expected).max() > 1e-3


@pytest.mark.parametrize("form", ["gradients", "updates", "coordinates"])
def test_frozen_leaves_stay_bitwise_and_have_no_state(form):
    transform = confined(optax.adamw(1e-2), {"w": basis_of("right"), "free": None}, form, specs=SPECS, others="frozen")
    start = draw(0) | {"free": np.float32([-0.0, 0.0, 1.0, 1e-30, -3.0])}
    state = transform.init(start)
    updates, _ = jax.jit(transform.update)(draw(1), state, start)
    moved = optax.apply_updates(start, updates)
    np.testing.assert_array_equal(np.asarray(moved["free"]).view(np.uint32), start["free"].view(np.uint32))
    assert np.any(moved["w"] != start["w"])
    assert len(jax.tree.leaves(state.inner[0].mu)) == 1


def test_columns_of_zeros_add_nothing():
    padded = np.concatenate([basis_of("right"), np.zeros((IN, 2), np.float32)], axis=1)
    one, two = (
        train(confined(INNER["adam"](), {"w": basis, "free": None}, "coordinates", specs=SPECS), steps=5)[0]
        for basis in (basis_of("right"), padded)
    )
    np.testing.assert_allclose(one["w"], two["w"], atol=1e-6)


def test_refuses():
    bases = {"w": basis_of("right"), "free": None}
    with pytest.raises(ValueError, match=r"\['w'\]"):
        confined(optax.sgd(1.0), bases, "updates", side="left", specs=SPECS).init(draw(0))
    transform = confined(optax.sgd(1.0), bases, "updates", specs=SPECS)
    with pytest.raises(ValueError, match="parameters"):
        transform.update(draw(0), transform.init(draw(0)))
