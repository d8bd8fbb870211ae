import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom import diagnostics as jd

from . import tolerances as tol
from .matrices import as_bf16, from_spectrum, gaussian


def sample_norm_matched(w: np.ndarray, norm: float, k: int, draws: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    rows = []
    for _ in range(draws):
        g = rng.standard_normal(w.shape)
        u1, s1, vt1 = np.linalg.svd(w + g * norm / np.linalg.norm(g), full_matrices=False)
        left = np.arcsin(np.clip(np.linalg.svd(u1[:, :k] - u[:, :k] @ (u[:, :k].T @ u1[:, :k]))[1], 0, 1))
        v, v1 = vt[:k].T, vt1[:k].T
        right = np.arcsin(np.clip(np.linalg.svd(v1 - v @ (v.T @ v1))[1], 0, 1))
        rows.append(
            [
                np.linalg.norm(s1 - s) / np.linalg.norm(s),
                left.mean(),
                left.max(),
                right.mean(),
                right.max(),
                np.sum(np.sin(left) ** 2),
                np.sum(np.sin(right) ** 2),
            ]
        )
    return dict(zip("nss lm lx rm rx le re".split(), np.array(rows).T, strict=True))


def close(null, values, rtol):
    error = tol.SIGMAS * values.std(ddof=1) / np.sqrt(len(values))
    assert abs(float(null) - values.mean()) < error + rtol * values.mean(), (float(null), values.mean(), error)


@pytest.mark.parametrize("shape", [(40, 40), (64, 32), (32, 64)])
@pytest.mark.parametrize("relative", [1e-4, 1e-2])
def test_norm_matched_null_against_sampling(shape, relative):
    k = 8
    # A real gap at k = 8, so that the first order holds at both sizes.
    sigma = np.r_[np.linspace(6.0, 4.0, k), np.linspace(3.0, 0.5, 32 - k)]
    w = (
        from_spectrum(*shape, sigma)
        if min(shape) == 32
        else from_spectrum(*shape, np.r_[sigma, np.linspace(0.45, 0.1, 8)])
    )
    s = np.linalg.svd(w, compute_uv=False)
    norm = relative * np.linalg.norm(w)
    values = sample_norm_matched(w, norm, k, 40)
    spectrum = jnp.asarray(s, jnp.float32)
    close(jd.norm_matched_nss(spectrum, jnp.float32(norm), shape=shape).mean, values["nss"], tol.NSS_NULL)
    energy = jd.norm_matched_sine_energy(spectrum, jnp.float32(norm), k=k, shape=shape)
    close(energy.left, values["le"], tol.ANGLE_NULL)
    close(energy.right, values["re"], tol.ANGLE_NULL)
    angles = jd.norm_matched_angles(jax.random.key(0), spectrum, jnp.float32(norm), k=k, shape=shape, draws=40)
    assert bool(angles.first_order)
    close(angles.left_mean.mean, values["lm"], tol.ANGLE_NULL)
    close(angles.left_max.mean, values["lx"], tol.ANGLE_NULL)
    close(angles.right_mean.mean, values["rm"], tol.ANGLE_NULL)
    close(angles.right_max.mean, values["rx"], tol.ANGLE_NULL)


@pytest.mark.parametrize("relative", [1e-3, 0.03, 0.1, 0.3])
def test_nss_null_on_gaussian_weights_small_and_large(relative):
    w = gaussian((96, 64), scale=1.0)
    s = np.linalg.svd(w, compute_uv=False)
    norm = relative * np.linalg.norm(w)
    values = sample_norm_matched(w, norm, 4, 30)["nss"]
    null = jd.norm_matched_nss(jnp.asarray(s, jnp.float32), jnp.float32(norm), shape=w.shape)
    close(null.mean, values, tol.NSS_NULL if relative < 0.02 else tol.NSS_NULL_LARGE)
    if relative < 0.02:  # the first-order form of science.md
        assert float(null.mean) == pytest.approx(relative / np.sqrt(96), rel=0.02)
        assert float(null.std) == pytest.approx(values.std(ddof=1), rel=0.5)


def test_first_order_flag_falls_where_the_gap_is_small():
    sigma = jnp.asarray(np.r_[2.0, 1.0, 1.0 - 1e-6, 0.5], jnp.float32)
    for k, expected in ((1, True), (2, False)):
        null = jd.norm_matched_angles(jax.random.key(0), sigma, jnp.float32(1e-2), k=k, shape=(4, 4), draws=2)
        assert bool(null.first_order) is expected
    with pytest.raises(ValueError, match="k is 4"):
        jd.norm_matched_angles(jax.random.key(0), sigma, jnp.float32(1e-2), k=4, shape=(4, 4))


def test_projection_null_is_exact():
    mean, std = jd.norm_matched_projection((12, 9), k=3)
    np.testing.assert_allclose(mean, [9 / 108, 3 / 12, 3 / 9], rtol=1e-6)
    g = np.random.default_rng(0).standard_normal((4000, 12, 9)) ** 2
    total = g.sum((1, 2))
    sampled = [g[:, :3, :3].sum((1, 2)) / total, g[:, :3].sum((1, 2)) / total, g[:, :, :3].sum((1, 2)) / total]
    np.testing.assert_allclose(mean, [x.mean() for x in sampled], rtol=0.02)
    np.testing.assert_allclose(std, [x.std() for x in sampled], rtol=0.06)


def test_isotropic_spectrum_and_stable_rank_against_sampling():
    for shape in ((96, 96), (64, 128)):
        samples = [np.linalg.svd(gaussian(shape, seed, 1.0), compute_uv=False) for seed in range(12)]
        spectrum = np.asarray(jd.isotropic_spectrum(shape))
        mean = np.mean(samples, axis=0)
        np.testing.assert_allclose(spectrum[1:], mean[1:], atol=0.02 * mean[0])
        assert spectrum[0] == pytest.approx(mean[0], rel=0.02)
        stable = np.mean([np.sum(s**2) / s[0] ** 2 for s in samples])
        assert jd.isotropic_stable_rank(shape) == pytest.approx(stable, rel=0.04)
        entropy = np.mean([float(jd.entropy_rank_from_singular_values(s)) for s in samples])
        assert float(jd.entropy_rank_from_singular_values(spectrum)) == pytest.approx(entropy, rel=0.02)


def test_sampled_updates_keep_what_they_promise():
    delta = gaussian((2, 20, 30), 3) * np.exp(gaussian((2, 20, 1), 4, 1.0)) * np.exp(gaussian((2, 1, 30), 5, 1.0))
    x, key = jnp.asarray(delta, jnp.float32), jax.random.key(0)
    norm = np.linalg.norm(delta, axis=(1, 2))
    np.testing.assert_allclose(np.linalg.norm(jd.norm_matched_update(key, x), axis=(1, 2)), norm, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(jd.scale_profile_update(key, x), axis=(1, 2)), norm, rtol=1e-5)
    profile = np.asarray(jd.scale_profile(x))
    for axis in (1, 2):
        np.testing.assert_allclose((profile**2).mean(axis), (delta**2).mean(axis), rtol=1e-4)
    permuted = np.asarray(jd.permuted_update(key, x))
    np.testing.assert_array_equal(np.sort(permuted.reshape(2, -1)), np.sort(np.asarray(x).reshape(2, -1)))
    assert (permuted != np.asarray(x)).mean() > 0.9
    assert not np.array_equal(np.argsort(permuted[0].ravel()), np.argsort(permuted[1].ravel()))


def test_precision_null_is_the_bf16_view_of_a_straight_path():
    w0, direction = gaussian((30, 40)).astype(np.float32), gaussian((30, 40), 1)
    update = jd.rounded_update(w0, direction.astype(np.float32), 0.01)
    moved = np.float32(w0 + np.float32(0.01 / np.linalg.norm(direction)) * direction.astype(np.float32))
    expected = as_bf16(moved) - as_bf16(w0)
    assert np.mean(np.asarray(update) != expected) < 0.01  # an ulp of the sum can fall on the other side


def test_sampled_null_moments():
    null = jd.sampled_null(jax.random.key(0), lambda key: {"x": jax.random.normal(key, (3,))}, draws=500)
    np.testing.assert_allclose(null.mean["x"], 0.0, atol=0.25)
    np.testing.assert_allclose(null.std["x"], 1.0, atol=0.2)
    assert np.isnan(jd.sampled_null(jax.random.key(0), jax.random.normal, draws=1).std)
