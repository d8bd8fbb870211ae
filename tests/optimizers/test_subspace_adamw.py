"""Adam in the coordinates of a subspace: equal to float64 numpy, confined, small, and equal when sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.optimizers import AdamWSettings, adamw, subspace_adamw, subspace_coordinates

LAYERS, OUT, IN, K = 2, 10, 16, 3
SPECS = {"w": MatrixSpec(out=(2,), in_=(1,), batch=(0,)), "free": None}
OPTIONS = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.1}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(LAYERS, IN, OUT)), "free": rng.normal(size=(5,))}


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def make_bases(side):
    rows = IN if side == "right" else OUT
    basis = np.linalg.qr(np.random.default_rng(9).normal(size=(LAYERS, rows, K)))[0]
    return {"w": basis, "free": None}


def train(transform, steps=6, gradients=draw):
    params = single(draw(0))
    state = transform.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, single(gradients(index + 1)))
    return params, state


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_float64_and_is_confined(side):
    bases = make_bases(side)
    params, state = train(subspace_adamw(single(bases), **OPTIONS, side=side, specs=SPECS))

    w, free, basis = draw(0)["w"].swapaxes(1, 2), draw(0)["free"], bases["w"]
    start, moments = w.copy(), {"w": [0.0, 0.0], "free": [0.0, 0.0]}

    def into(x):
        return x @ basis if side == "right" else basis.swapaxes(1, 2) @ x

    for n in range(1, 7):
        gradient = draw(n)
        steps = {}
        for name, g in (("w", into(gradient["w"].swapaxes(1, 2))), ("free", gradient["free"])):
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
            moments[name] = [m, v]
            steps[name] = (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.98**n)) + 1e-8)
        change = steps["w"] + 0.1 * into(w)
        w = w - 1e-2 * (change @ basis.swapaxes(1, 2) if side == "right" else basis @ change)
        free = free - 1e-2 * (steps["free"] + 0.1 * free)
    np.testing.assert_allclose(params["w"].swapaxes(1, 2), w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(params["free"], free, rtol=1e-5, atol=1e-6)

    delta = np.asarray(params["w"], np.float64).swapaxes(1, 2) - np.asarray(start, np.float32)
    inside = into(delta) @ basis.swapaxes(1, 2) if side == "right" else basis @ into(delta)
    # Nothing is left outside but the rounding of W + u at W's own scale, six times.
    assert np.abs(delta - inside).max() < 6 * 2.0**-24 * np.abs(start).max()
    assert (np.linalg.norm(delta - inside) / np.linalg.norm(delta)) ** 2 < 1e-9

    moment = state.inner[0].mu["w"]
    assert moment.shape == ((LAYERS, OUT, K) if side == "right" else (LAYERS, K, IN))


def test_with_a_whole_basis_of_unit_vectors_it_is_adamw():
    bases = {"w": jnp.broadcast_to(jnp.eye(IN), (LAYERS, IN, IN)), "free": None}
    ours, _ = train(subspace_adamw(bases, **OPTIONS, specs=SPECS))
    plain, _ = train(adamw(AdamWSettings(**OPTIONS), 6))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_may_come_in_coordinates():
    bases = single(make_bases("right"))
    whole, _ = train(subspace_adamw(bases, **OPTIONS, specs=SPECS))

    def coordinates(seed):
        return subspace_coordinates(single(draw(seed)), bases, specs=SPECS)

    assert coordinates(1)["w"].shape == (LAYERS, OUT, K)
    small, _ = train(
        subspace_adamw(bases, **OPTIONS, specs=SPECS, gradients_in_coordinates=True), gradients=coordinates
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_schedule_and_decay_mask():
    bases = single(make_bases("right"))
    options = OPTIONS | {"learning_rate": lambda count: 0.5 * (count + 1)}
    transform = subspace_adamw(bases, **options, specs=SPECS, decay_mask={"w": True, "free": False})
    params = single(draw(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    first, state = transform.update(zeros, transform.init(params), params)
    second, _ = transform.update(zeros, state, params)
    np.testing.assert_array_equal(first["free"], 0.0)
    basis = make_bases("right")["w"]
    decayed = (draw(0)["w"].swapaxes(1, 2) @ basis @ basis.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(first["w"], -0.05 * decayed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second["w"], -0.1 * decayed, rtol=1e-4, atol=1e-5)


def test_sharded_over_eight_devices_it_is_the_same():
    bases, params, gradient = single(make_bases("right")), single(draw(0)), single(draw(1))
    transform = subspace_adamw(bases, **OPTIONS, specs=SPECS)
    expected, _ = jax.jit(transform.update)(gradient, transform.init(params), params)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto))
    places = {"w": NamedSharding(mesh, P(None, "fsdp", "tensor")), "free": NamedSharding(mesh, P())}
    params, gradient = jax.device_put(params, places), jax.device_put(gradient, places)
    state = jax.device_put(transform.init(params), NamedSharding(mesh, P()))
    found, _ = jax.jit(transform.update)(gradient, state, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_refuses():
    bases = single(make_bases("right"))
    transform = subspace_adamw(bases, **OPTIONS, specs=SPECS)
    params = single(draw(0))
    with pytest.raises(ValueError, match="parameters"):
        transform.update(params, transform.init(params))
    with pytest.raises(ValueError, match=r"\['w'\]"):
        subspace_adamw(bases, **OPTIONS, side="left", specs=SPECS).init(params)
