"""Projection of gradients and updates against float64 numpy, on Flax layouts and stacked layers; leakage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.optimizers import leakage, project_gradients, project_updates, random_bases, tree_leakage

LAYERS, IN, HEADS, HEAD_DIM, K = 2, 12, 3, 4, 3
SPECS = {
    "q": MatrixSpec(out=(2, 3), in_=(1,), batch=(0,)),
    "o": MatrixSpec(out=(3,), in_=(1, 2), batch=(0,)),
    "mlp": MatrixSpec(out=(2,), in_=(1,), batch=(0,)),
    "scale": None,
}
SHAPES = {
    "q": (LAYERS, IN, HEADS, HEAD_DIM),
    "o": (LAYERS, HEADS, HEAD_DIM, IN),
    "mlp": (LAYERS, IN, 10),
    "scale": (LAYERS, IN),
}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def as_numpy_matrix(name, leaf):
    leaf = np.asarray(leaf, np.float64)
    if name == "q":
        return leaf.reshape(LAYERS, IN, -1).swapaxes(1, 2)
    if name == "o":
        return leaf.reshape(LAYERS, -1, IN).swapaxes(1, 2)
    return leaf.swapaxes(1, 2)


def orthonormal(rows, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(LAYERS, rows, K)))[0]


def bases_for(side):
    rows = {"q": (HEADS * HEAD_DIM, IN), "o": (IN, HEADS * HEAD_DIM)}
    found = {
        name: jnp.asarray(orthonormal(sides[1] if side == "right" else sides[0], i), jnp.float32)
        for i, (name, sides) in enumerate(rows.items())
    }
    return found | {"mlp": None, "scale": None}


def run(transform, steps=5, specs=SPECS):
    params = start = tree(0)
    state = transform.init(params)

    @jax.jit
    def step(params, state, gradients):
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, tree(index + 1))
    return jax.tree.map(jnp.subtract, params, start)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("project", [project_gradients, project_updates])
def test_equals_float64(side, project):
    bases, gradients = bases_for(side), tree(5)
    transform = project(bases, side, specs=SPECS)
    found, _ = jax.jit(transform.update)(gradients, transform.init(tree(0)))
    for name in ("q", "o"):
        basis, matrix = np.asarray(bases[name], np.float64), as_numpy_matrix(name, gradients[name])
        projector = basis @ basis.swapaxes(1, 2)
        expected = matrix @ projector if side == "right" else projector @ matrix
        np.testing.assert_allclose(as_numpy_matrix(name, found[name]), expected, rtol=1e-5, atol=1e-6)
    for name in ("mlp", "scale"):
        np.testing.assert_array_equal(found[name], gradients[name])


def test_leaves_without_specs_are_out_by_in():
    gradient, basis = jax.random.normal(jax.random.key(0), (6, 9)), jnp.eye(9)[:, :2]
    transform = project_gradients({"w": basis, "b": None})
    updates = {"w": gradient, "b": jnp.ones(3)}
    found, _ = transform.update(updates, transform.init(updates))
    np.testing.assert_array_equal(found["w"][:, :2], gradient[:, :2])
    np.testing.assert_array_equal(found["w"][:, 2:], 0.0)


def adamw(**options):
    # Optax mixes int and float; only this test's own use of it needs the laxer rule.
    with_decay = {"learning_rate": 1e-2, "b2": 0.95, "weight_decay": 0.1} | options
    inner = optax.adamw(**with_decay)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def test_projected_gradients_leak_through_adam_and_through_weight_decay():
    bases = bases_for("right")
    for optimizer in (adamw(weight_decay=0.0), adamw(learning_rate=1e-2, eps=1e8, weight_decay=0.1)):
        delta = run(optax.chain(project_gradients(bases, specs=SPECS), optimizer))
        leak = tree_leakage(delta, bases, specs=SPECS)
        assert leak["mlp"] is None and leak["scale"] is None
        assert float(jnp.min(leak["q"])) > 0.01 and float(jnp.min(leak["o"])) > 0.01
    # Without elementwise scaling and decay there is no leak.
    delta = run(optax.chain(project_gradients(bases, specs=SPECS), optax.sgd(1e-2)))
    assert float(jnp.max(tree_leakage(delta, bases, specs=SPECS)["q"])) < 1e-9


@pytest.mark.parametrize("side", ["right", "left"])
def test_projected_updates_are_confined(side):
    bases = bases_for(side)
    delta = run(optax.chain(adamw(), project_updates(bases, side, specs=SPECS)))
    leak = tree_leakage(delta, bases, specs=SPECS, side=side)
    # ΔW is read back from W after rounding at W's scale: (2^-24 · |W| / |ΔW|)² ≈ 1e-11 here.
    assert float(jnp.max(leak["q"])) < 1e-9 and float(jnp.max(leak["o"])) < 1e-9


def test_leakage_equals_float64_also_where_squares_underflow():
    rng = np.random.default_rng(0)
    delta, basis = rng.normal(size=(4, 6, 9)), np.linalg.qr(rng.normal(size=(4, 9, 3)))[0]
    outside = delta - delta @ basis @ basis.swapaxes(1, 2)
    expected = (outside**2).sum((1, 2)) / (delta**2).sum((1, 2))
    for scale in (1.0, 1e-30, 1e25):
        found = jax.jit(leakage)(jnp.asarray(delta * scale, jnp.float32), jnp.asarray(basis, jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    left = jax.jit(leakage, static_argnames="side")(
        jnp.asarray(delta.swapaxes(1, 2), jnp.float32), jnp.asarray(basis, jnp.float32), side="left"
    )
    np.testing.assert_allclose(left, expected, rtol=1e-5)
    assert bool(jnp.isnan(leakage(jnp.zeros((6, 9)), jnp.asarray(basis[0], jnp.float32))))


def test_an_isotropic_update_leaks_its_closed_form():
    basis = random_bases(jax.random.key(1), jnp.zeros((64, 8)))
    np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-5)
    found = leakage(jax.random.normal(jax.random.key(0), (500, 64)), basis)
    np.testing.assert_allclose(found, 1 - 8 / 64, atol=0.01)


def test_random_bases_are_orthonormal_distinct_and_keep_none():
    found = random_bases(jax.random.key(0), bases_for("right"))
    assert found["mlp"] is None and found["q"].shape == (LAYERS, IN, K)
    np.testing.assert_allclose(found["q"].mT @ found["q"], np.broadcast_to(np.eye(K), (LAYERS, K, K)), atol=1e-5)
    assert float(jnp.abs(found["q"] - found["o"]).max()) > 0.1


def test_donating_the_state_leaves_the_bases():
    bases = {"w": jnp.eye(4)[:, :2]}
    transform = project_gradients(bases)
    state = transform.init({"w": jnp.ones((3, 4))})
    jax.jit(lambda s, g: transform.update(g, s), donate_argnums=0)(state, {"w": jnp.ones((3, 4))})
    assert float(bases["w"].sum()) == 2.0


@pytest.mark.parametrize(
    ("bases", "side", "says"),
    [
        ({"w": jnp.zeros((3, 2)), "b": None}, "right", r"\['w'\].*4, K"),
        ({"w": jnp.zeros((4, 2)), "b": None}, "left", r"\['w'\].*3, K"),
        ({"w": jnp.zeros((4, 5)), "b": None}, "right", "K ≤ 4"),
        ({"w": None, "b": jnp.zeros((2, 1))}, "right", r"\['b'\].*no matrix"),
        ({"w": jnp.zeros((4, 2))}, "right", "structure"),
    ],
)
def test_refuses(bases, side, says):
    with pytest.raises(ValueError, match=says):
        project_gradients(bases, side).init({"w": jnp.zeros((3, 4)), "b": jnp.zeros(2)})
