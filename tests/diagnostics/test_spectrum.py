import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgeom import diagnostics as jd

from . import tolerances as tol
from .matrices import from_spectrum, gaussian


def hill_oracle(s: np.ndarray, k: int) -> float:
    return 1 / np.mean(np.log(s[: k - 1] / s[k - 1]))


SPECTRA = {
    "random": None,
    "low_rank": np.r_[3.0, 2.0, 1.0, np.zeros(21)],
    "clustered": np.r_[np.full(8, 2.0), np.full(8, 2.0 - 1e-4), np.full(8, 0.5)],
    "decaying": 1.5 ** -np.arange(24.0),
}


@jax.jit
def measure(delta: jax.Array) -> dict[str, jax.Array]:
    return {
        "norm": jd.frobenius_norm(delta),
        "sigma": jd.singular_values(delta),
        "stable": jd.stable_rank(delta),
        "krylov": jd.stable_rank(delta, method="krylov"),
        "participation": jd.participation_ratio(delta),
        "energy": jd.energy_share(delta, k=3),
        "entropy": jd.entropy_rank(delta),
        "hill": jd.hill_estimate(delta, k=10),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("name", SPECTRA)
def test_ranks_and_norms_against_float64_numpy(name, shape, dtype):
    spectrum = SPECTRA[name]
    exact = gaussian(shape) if spectrum is None else from_spectrum(*shape, spectrum)
    s = np.linalg.svd(exact, compute_uv=False)
    p = s[s > 1e-12] / s.sum()
    rtol = tol.RELATIVE[dtype]
    with jax.enable_x64(dtype == "float64"):
        value = measure(jnp.asarray(exact, dtype))
    assert value["stable"].dtype == dtype
    np.testing.assert_allclose(value["norm"], np.linalg.norm(exact), rtol=rtol)
    np.testing.assert_allclose(value["sigma"], s, atol=tol.SINGULAR_VALUE[dtype] * s[0])
    np.testing.assert_allclose(value["stable"], np.sum(s**2) / s[0] ** 2, rtol=rtol)
    if name != "random":  # its flat spectrum has a test of its own below
        np.testing.assert_allclose(value["krylov"], np.sum(s**2) / s[0] ** 2, rtol=rtol)
    np.testing.assert_allclose(value["participation"], np.sum(s**2) ** 2 / np.sum(s**4), rtol=rtol)
    np.testing.assert_allclose(value["energy"], np.sum(s[:3] ** 2) / np.sum(s**2), rtol=rtol)
    # The entropy sees every singular value, those at rounding level too.
    entropy_rtol = 50 * rtol if name == "low_rank" else rtol
    np.testing.assert_allclose(value["entropy"], np.exp(-np.sum(p * np.log(p))), rtol=entropy_rtol)
    if name == "low_rank":
        assert np.isnan(value["hill"])
    elif name != "clustered":  # logarithms of ratios within a cluster are differences of 5e-5
        np.testing.assert_allclose(value["hill"], hill_oracle(s, 10), rtol=rtol)


def test_zero_updates_are_nan_and_do_not_spoil_their_batch():
    batch = jnp.stack([jnp.zeros((6, 5)), jnp.asarray(gaussian((6, 5)), jnp.float32)])
    for fn in (
        jd.stable_rank,
        jd.entropy_rank,
        jd.participation_ratio,
        lambda d: jd.energy_share(d, k=2),
        lambda d: jd.hill_estimate(d, k=3),
    ):
        value = np.asarray(fn(batch))
        assert np.isnan(value[0]) and np.isfinite(value[1])
    gradient = jax.grad(lambda d: jd.stable_rank(d)[1])(batch)
    assert np.isfinite(np.asarray(gradient)).all()


def test_tiny_updates_keep_their_ranks():
    delta = gaussian((12, 9), scale=1.0)
    small = jnp.asarray(delta * 1e-25, jnp.float32)
    s = np.linalg.svd(delta, compute_uv=False)
    np.testing.assert_allclose(jd.stable_rank(small), np.sum(s**2) / s[0] ** 2, rtol=tol.RELATIVE["float32"])
    np.testing.assert_allclose(jd.participation_ratio(small), np.sum(s**2) ** 2 / np.sum(s**4), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-2, 1e-6])
def test_nss_against_numpy_down_to_a_millionth(size):
    w0, g = gaussian((40, 24)), gaussian((40, 24), 1)
    w1 = w0 + size * g
    s0, s1 = np.linalg.svd(w0, compute_uv=False), np.linalg.svd(w1, compute_uv=False)
    exact = np.linalg.norm(s1 - s0) / np.linalg.norm(s0)
    assert jd.nss_from_singular_values(s0, s1) == pytest.approx(exact, rel=1e-12)  # numpy in, float64 out
    with jax.enable_x64(True):
        value = jd.normalized_spectral_shift(jnp.asarray(w0), jnp.asarray(w1))
        np.testing.assert_allclose(value, exact, rtol=1e-7)


def test_helpers_keep_numpy_float64_and_agree_with_jax():
    s = np.linalg.svd(gaussian((30, 20)), compute_uv=False)
    for fn in (
        jd.stable_rank_from_singular_values,
        jd.entropy_rank_from_singular_values,
        jd.participation_ratio_from_singular_values,
        lambda x: jd.energy_share_from_singular_values(x, k=4),
        lambda x: jd.hill_from_singular_values(x, k=5, shape=(30, 20)),
        lambda x: jd.spectral_gap(x, k=3),
    ):
        assert np.asarray(fn(s)).dtype == np.float64
        np.testing.assert_allclose(fn(jnp.asarray(s, jnp.float32)), fn(s), rtol=1e-4)


def test_decay_only_update():
    w0 = gaussian((20, 30)).astype(np.float32)
    with jax.enable_x64(True):
        w0 = jnp.asarray(w0, jnp.float64)
        w1 = (1 - 3e-4) * w0
        assert float(jd.decay_component(w0, w1)) == pytest.approx(-3e-4, rel=1e-9)
        assert float(jd.normalized_spectral_shift(w0, w1)) == pytest.approx(3e-4, rel=1e-9)
        # W+ − c·W0 = (1 − 3e-4 + 3e-4) W0
        assert float(jd.nss_without_decay(w0, w1)) < 1e-13
        assert float(jd.principal_angles(w0, w1, k=5).left.max()) < 1e-9


@jax.jit
def ranks(delta: jax.Array) -> tuple[jax.Array, ...]:
    return jd.stable_rank(delta), jd.participation_ratio(delta), jd.entropy_rank(delta)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(1, 1), (2, 9), (10, 3), (7, 7)]), st.integers(0, 2**31))
def test_bounds_hold_on_random_shapes(shape, seed):
    delta = jnp.asarray(gaussian(shape, seed), jnp.float32)
    rank = min(shape)
    for value in ranks(delta):
        assert 1 - 1e-5 <= float(value) <= rank * (1 + 1e-5)


def test_krylov_on_a_flat_spectrum_is_within_its_stated_bound():
    delta = gaussian((160, 128))
    s = np.linalg.svd(delta, compute_uv=False)
    value = float(jd.operator_norm(jnp.asarray(delta, jnp.float32), method="krylov"))
    assert s[0] * (1 - tol.KRYLOV_NORM) <= value <= s[0] * (1 + 1e-6)


def test_krylov_residual_bounds_the_error():
    delta = gaussian((90, 120))
    s = np.linalg.svd(delta, compute_uv=False)
    with jax.enable_x64(True):
        top = jd.krylov_top_singular(jnp.asarray(delta), k=4, iterations=3)
        error = np.abs(np.asarray(top.values)[:, None] - s).min(axis=1)
        assert (error <= np.asarray(top.residual) + 1e-14).all()
        assert (np.asarray(top.values) <= s[:4] * (1 + 1e-12)).all()
        np.testing.assert_allclose(top.right.T @ top.right, np.eye(4), atol=1e-12)


def test_bad_arguments_are_named():
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="method is 'qr'"):
        jd.stable_rank(x, method="qr")
    with pytest.raises(ValueError, match="k is 9"):
        jd.hill_estimate(x, k=9)
    with pytest.raises(ValueError, match="k is 5"):
        jd.top_subspace(x, k=5)
    with pytest.raises(ValueError, match="side is 'up'"):
        jd.top_subspace(x, k=1, side="up")
    assert jd.default_hill_k((4, 3)) == 3 and jd.default_hill_k((400, 300)) == 30
