import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxgeom import diagnostics as jd

from . import tolerances as tol
from .matrices import from_spectrum, gaussian, orthogonal, planes_rotated


def rotated_pair(m: int, n: int, k: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """W0 and W+ whose top-k left subspaces meet at `angle` in every direction, whose right ones are equal."""
    sigma = np.r_[np.linspace(4.0, 3.0, k), np.linspace(1.0, 0.5, k)]
    u, v = orthogonal(m, 2 * k, 0), orthogonal(n, 2 * k, 1)
    return (u * sigma) @ v.T, (planes_rotated(u, angle) * sigma) @ v.T


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 1e-2, 5.0, 60.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_known_rotations_are_seen_on_the_left_and_nowhere_else(degrees, dtype):
    w0, w1 = rotated_pair(30, 20, 5, np.radians(degrees))
    with jax.enable_x64(dtype == "float64"):
        angles = jd.principal_angles(jnp.asarray(w0, dtype), jnp.asarray(w1, dtype), k=5)
        atol = tol.ANGLE[dtype]
        np.testing.assert_allclose(angles.left, np.full(5, np.radians(degrees)), atol=atol)
        np.testing.assert_allclose(angles.right, np.zeros(5), atol=atol)
        swapped = jd.principal_angles(jnp.asarray(w0.T, dtype), jnp.asarray(w1.T, dtype), k=5)
        np.testing.assert_allclose(swapped.right, np.full(5, np.radians(degrees)), atol=atol)


def test_known_angles_of_very_different_sizes_ascending():
    # scipy.linalg.subspace_angles pairs its branches wrongly when angles lie on both sides of 45°, so build them.
    exact = np.array([1e-12, 3e-7, 1e-5, 0.1, 0.9, 1.5])
    basis = orthogonal(20, 12, 0)
    u0, u1 = basis[:, :6], planes_rotated(basis, exact[::-1])[:, :6] @ orthogonal(6, 6, 1)
    np.testing.assert_allclose(jd.angles_from_bases(u0, u1), exact, atol=1e-14)  # numpy in, float64 out
    np.testing.assert_allclose(
        jd.angles_from_bases(jnp.asarray(u0, jnp.float32), jnp.asarray(u1, jnp.float32)), exact, atol=1e-5
    )


def test_random_angles_against_scipy():
    u0, u1 = orthogonal(40, 3, 0), orthogonal(40, 3, 1)  # all above 45°
    exact = np.sort(scipy.linalg.subspace_angles(u0, u1))
    np.testing.assert_allclose(jd.angles_from_bases(u0, u1), exact, atol=1e-12)


def test_angles_of_subspaces_that_fill_the_space():
    u0, u1 = orthogonal(4, 3, 0), orthogonal(4, 3, 1)
    cosine = np.linalg.svd(u0.T @ u1, compute_uv=False)[-1]
    np.testing.assert_allclose(jd.angles_from_bases(u0, u1), [0.0, 0.0, np.arccos(cosine)], atol=1e-12)
    np.testing.assert_allclose(jd.angles_from_bases(np.eye(3), orthogonal(3, 3, 2)), np.zeros(3), atol=1e-14)
    assert jd.capped_rank(512, (100, 300)) == 99 and jd.capped_rank(5, (1, 9)) == 1


@pytest.mark.parametrize("method", ["svd", "krylov"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_top_subspace_sides(method, shape):
    w = from_spectrum(*shape, 1.5 ** -np.arange(24.0))
    u, _, vt = np.linalg.svd(w, full_matrices=False)
    for side, basis in (("left", u[:, :4]), ("right", vt[:4].T)):
        top = jd.top_subspace(jnp.asarray(w, jnp.float32), k=4, side=side, method=method)
        assert top.shape == basis.shape
        np.testing.assert_allclose(np.abs(basis.T @ np.asarray(top)), np.eye(4), atol=1e-4)


def test_similarity_against_numpy_and_its_matrix():
    bases = np.stack([orthogonal(12, 3, s) for s in range(4)]).astype(np.float32)
    expected = [[np.sum((a.T @ b) ** 2) / 3 for b in bases] for a in bases]
    np.testing.assert_allclose(jd.similarity_matrix(bases, bases), expected, rtol=1e-5)
    np.testing.assert_allclose(jd.subspace_similarity(bases[0], bases[1]), expected[0][1], rtol=1e-5)


def test_projection_energy_against_numpy():
    w0, delta = gaussian((20, 15)), gaussian((20, 15), 1, 1e-4)
    u, _, vt = np.linalg.svd(w0)
    u, v = u[:, :3], vt[:3].T
    total = np.sum(delta**2)
    energy = jd.projection_energy(jnp.asarray(w0, jnp.float32), jnp.asarray(delta, jnp.float32), k=3)
    expected = [np.sum((u.T @ delta @ v) ** 2), np.sum((u.T @ delta) ** 2), np.sum((delta @ v) ** 2)]
    np.testing.assert_allclose(energy, np.array(expected) / total, rtol=1e-4)
    zero = jd.projection_energy(jnp.asarray(w0, jnp.float32), jnp.zeros((20, 15)), k=3)
    assert np.isnan(zero.joint) and np.isnan(zero.left) and np.isnan(zero.right)


def test_leakage_keeps_its_digits():
    v = orthogonal(15, 4, 0)
    inside = gaussian((20, 15), 1) @ v @ v.T
    outside = gaussian((20, 15), 2) @ (np.eye(15) - v @ v.T)
    delta = inside + 1e-4 * outside
    exact = 1e-8 * np.sum(outside**2) / np.sum(delta**2)
    np.testing.assert_allclose(
        jd.subspace_leakage(jnp.asarray(delta, jnp.float32), jnp.asarray(v, jnp.float32)), exact, rtol=5e-2
    )


def test_path_and_drift_measures():
    a, b = gaussian((8, 9), 1, 1.0), gaussian((8, 9), 2, 1.0)
    w = gaussian((8, 9), 0, 1.0)
    cos = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (w, w + a, w + a + b)]
        np.testing.assert_allclose(jd.path_cosine(*args), cos, rtol=1e-9)
        np.testing.assert_allclose(jd.orthogonal_share(jnp.asarray(a), jnp.asarray(b)), 1 - cos**2, rtol=1e-9)
        near = jd.orthogonal_share(jnp.asarray(a), jnp.asarray(a + 1e-7 * b))
        np.testing.assert_allclose(near, 1e-14 * np.sum(b**2) / np.sum(a**2) * (1 - cos**2), rtol=1e-5)
    steps, lr = 100, 1e-3
    walk = np.sign(gaussian((8, 9, steps))).sum(-1) * lr
    rms = np.sqrt(np.mean(walk**2))
    delta = jnp.asarray(walk, jnp.float32)
    np.testing.assert_allclose(jd.lr_diffusion_ratio(delta, learning_rate=lr, steps=steps), rms / (lr * 10), rtol=1e-5)
    straight = jnp.full((8, 9), lr * steps, jnp.float32)
    np.testing.assert_allclose(jd.lr_drift_ratio(straight, learning_rate=lr, steps=steps), 1.0, rtol=1e-5)
    assert np.isnan(jd.path_cosine(jnp.ones((2, 2)), jnp.ones((2, 2)), jnp.zeros((2, 2))))


def test_functional_distance_exact_and_k3():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 7)), rng.standard_normal((2, 6, 7))
    log_p = a - scipy.special.logsumexp(a, axis=-1, keepdims=True)
    log_q = b - scipy.special.logsumexp(b, axis=-1, keepdims=True)
    exact = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    mask = rng.random((2, 6)) < 0.5
    f32 = (a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(jd.token_forward_kl(*f32), exact, rtol=1e-5)
    np.testing.assert_allclose(jd.forward_kl(*f32, mask), exact[mask].mean(), rtol=1e-5)
    assert np.isnan(jd.forward_kl(*f32, np.zeros((2, 6), bool)))
    # The expectation of k3 under π0 is the exact KL: sum it over the vocabulary instead of sampling.
    k3 = [
        float(jd.forward_kl_k3(np.float32(log_p[0, 0, y : y + 1]), np.float32(log_q[0, 0, y : y + 1])))
        for y in range(7)
    ]
    np.testing.assert_allclose(np.dot(np.exp(log_p[0, 0]), k3), exact[0, 0], rtol=1e-5)
