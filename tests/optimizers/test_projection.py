"""Projection of gradients and updates against float64 numpy, on Flax layouts and stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.optimizers import project_gradients, project_updates

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


def shares_outside(delta, bases, side="right"):
    """Share of each layer's energy outside the subspace, `[LAYERS]` per projected leaf, in float64."""
    shares = {}
    for name in ("q", "o"):
        matrix, basis = as_numpy_matrix(name, delta[name]), np.asarray(bases[name], np.float64)
        projector = basis @ basis.swapaxes(1, 2)
        outside = matrix - (matrix @ projector if side == "right" else projector @ matrix)
        shares[name] = (outside**2).sum((1, 2)) / (matrix**2).sum((1, 2))
    return shares


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
        leak = shares_outside(delta, bases)
        assert leak["q"].min() > 0.01 and leak["o"].min() > 0.01
    # Without elementwise scaling and decay there is no leak.
    delta = run(optax.chain(project_gradients(bases, specs=SPECS), optax.sgd(1e-2)))
    assert shares_outside(delta, bases)["q"].max() < 1e-9


@pytest.mark.parametrize("side", ["right", "left"])
def test_projected_updates_are_confined(side):
    bases = bases_for(side)
    delta = run(optax.chain(adamw(), project_updates(bases, side, specs=SPECS)))
    leak = shares_outside(delta, bases, side)
    # ΔW is read back from W after rounding at W's scale: (2^-24 · |W| / |ΔW|)² ≈ 1e-11 here.
    assert leak["q"].max() < 1e-9 and leak["o"].max() < 1e-9


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
