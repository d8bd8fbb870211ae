"""Isotropic and norm-matched nulls against sampling, and the z's that they give over draws from the null itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom import diagnostics as jd
from jaxgeom.comparison.algebra import lapack

from . import tolerances as tol
from .matrices import as_bf16, from_spectrum, gaussian


def angles_between(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.arcsin(np.clip(np.linalg.svd(v - u @ (u.T @ v), compute_uv=False), 0, 1))


def sample_norm_matched(w: np.ndarray, norm: float, k: int, draws: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    rows = []
    for _ in range(draws):
        g = rng.standard_normal(w.shape)
        moved = w + g * norm / np.linalg.norm(g)
        u1, s1, vt1 = np.linalg.svd(moved, full_matrices=False)
        c = ((moved - w) * w).sum() / (w * w).sum()
        left, right = angles_between(u[:, :k], u1[:, :k]), angles_between(vt[:k].T, vt1[:k].T)
        rows.append(
            [
                np.linalg.norm(s1 - s) / np.linalg.norm(s),
                np.linalg.norm(np.linalg.svd(moved - c * w, compute_uv=False) - s) / np.linalg.norm(s),
                left.mean(),
                left.max(),
                right.mean(),
                right.max(),
                np.sum(np.sin(left) ** 2),
                np.sum(np.sin(right) ** 2),
            ]
        )
    return dict(zip("nss without lm lx rm rx le re".split(), np.array(rows).T, strict=True))


def close(null, values, rtol):
    error = tol.SIGMAS * values.std(ddof=1) / np.sqrt(len(values))
    assert abs(float(null) - values.mean()) < error + rtol * values.mean(), (float(null), values.mean(), error)


@pytest.mark.parametrize("shape", [(40, 40), (64, 32), (32, 64)])
@pytest.mark.parametrize("relative", [1e-4, 1e-2])
def test_norm_matched_null_against_sampling(shape, relative):
    k = 8
    # A real gap at k = 8, so that the first order holds at both sizes.
    sigma = np.r_[np.linspace(6.0, 4.0, k), np.linspace(3.0, 0.5, 32 - k)]
    if min(shape) == 40:
        sigma = np.r_[sigma, np.linspace(0.45, 0.1, 8)]
    w = from_spectrum(*shape, sigma)
    s = np.linalg.svd(w, compute_uv=False)
    norm = relative * np.linalg.norm(w)
    values = sample_norm_matched(w, norm, k, 40)
    shift = jd.norm_matched_shift(s, norm, shape=shape)
    close(shift.plain.mean, values["nss"], tol.NSS_NULL)
    close(shift.without_decay.mean, values["without"], tol.NSS_NULL)
    assert shift.holds
    energy = jd.norm_matched_sine_energy(s, norm, k=k, shape=shape)
    close(energy.left, values["le"], tol.ANGLE_NULL)
    close(energy.right, values["re"], tol.ANGLE_NULL)
    draws = jd.rotation_draws(np.random.default_rng(0), shape=shape, k=k, draws=10)
    angles = jd.norm_matched_angles(s, np.float64(norm), draws, k=k, shape=shape)
    assert not angles.large
    for null, name in ((angles.left_mean, "lm"), (angles.left_max, "lx"), (angles.right_mean, "rm"), (angles[3], "rx")):
        close(null.mean, values[name], tol.ANGLE_NULL)
        assert float(null.std) == pytest.approx(values[name].std(ddof=1), rel=0.45)


@pytest.mark.parametrize("relative", [1e-3, 0.03, 0.1, 0.3])
def test_shift_null_on_gaussian_weights_small_and_large(relative):
    w = gaussian((96, 64), scale=1.0)
    s = np.linalg.svd(w, compute_uv=False)
    norm = relative * np.linalg.norm(w)
    values = sample_norm_matched(w, norm, 4, 30)["nss"]
    null = jd.norm_matched_shift(s, norm, shape=w.shape).plain
    close(null.mean, values, tol.NSS_NULL)
    if relative < 0.02:  # the first-order form of science.md
        assert float(null.mean) == pytest.approx(relative / np.sqrt(96), rel=0.02)
        assert float(null.std) == pytest.approx(values.std(ddof=1), rel=0.5)


def test_shift_null_is_undefined_where_the_update_is_too_large_and_zero_where_there_is_none():
    s = np.linspace(2.0, 1.0, 12)
    assert np.isnan(jd.norm_matched_shift(s, 100.0, shape=(12, 20)).plain.mean)
    still = jd.norm_matched_shift(s, 0.0, shape=(12, 20))
    assert still.plain == (0.0, 0.0) and still.without_decay == (0.0, 0.0)
    assert np.isnan(jd.norm_matched_shift(np.zeros(3), 1.0, shape=(3, 3)).plain.mean)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (1, 7)])
@pytest.mark.parametrize("relative", [1e-3, 0.3])
def test_angle_null_is_one_function_of_its_draws_in_numpy_and_under_jit(shape, relative):
    w = gaussian(shape)
    s, k = np.linalg.svd(w, compute_uv=False), jd.capped_rank(4, shape)
    norm = np.float64(relative * np.linalg.norm(w))
    draws = jd.rotation_draws(np.random.default_rng(3), shape=shape, k=k, draws=3, noise=True)
    null = jd.norm_matched_angles(s, norm, draws, k=k, shape=shape)
    with jax.enable_x64(True):
        traced = jax.jit(lambda s, n, d: jd.norm_matched_angles(s, n, d, k=k, shape=shape))(
            jnp.asarray(s), jnp.asarray(norm), jax.tree.map(jnp.asarray, draws)
        )
    assert bool(traced.large) == bool(null.large) == (relative > 0.1)
    np.testing.assert_allclose(np.array(traced[:4]), np.array(null[:4]), rtol=1e-9)
    drawn = jd.rotation_draws(jax.random.key(0), shape=shape, k=k, draws=3)
    assert jax.tree.map(jnp.shape, drawn[:3]) == tuple(np.shape(x) for x in draws[:3])


def test_bad_draws_are_named():
    with pytest.raises(ValueError, match="k is 5"):
        jd.rotation_draws(jax.random.key(0), shape=(4, 4), k=5)
    with pytest.raises(ValueError, match="draws is 1"):
        jd.rotation_draws(jax.random.key(0), shape=(4, 4), k=2, draws=1)


def test_projection_null_is_exact():
    mean, std = jd.norm_matched_projection((12, 9), k=3)
    np.testing.assert_allclose(mean, [9 / 108, 3 / 12, 3 / 9], rtol=1e-6)
    g = np.random.default_rng(0).standard_normal((4000, 12, 9)) ** 2
    total = g.sum((1, 2))
    sampled = [g[:, :3, :3].sum((1, 2)) / total, g[:, :3].sum((1, 2)) / total, g[:, :, :3].sum((1, 2)) / total]
    np.testing.assert_allclose(mean, [x.mean() for x in sampled], rtol=0.02)
    np.testing.assert_allclose(std, [x.std() for x in sampled], rtol=0.06)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_projections_of_sparse_updates_spread_as_their_kurtosis_says(share):
    shape, k, rng, z = (20, 12), 3, np.random.default_rng(1), []
    mean = jd.norm_matched_projection(shape, k=k)[0]
    for _ in range(1500):
        delta = rng.standard_normal(shape) * (rng.random(shape) < share)
        u, v = (np.linalg.qr(rng.standard_normal((side, k)))[0] for side in shape)
        square = (delta**2).sum()
        kurtosis = jd.kurtosis_from_sums(delta.size, square, (delta**4).sum())
        std = jd.norm_matched_projection(shape, k=k, kurtosis=kurtosis)[1]
        found = [np.sum(one**2) / square for one in (u.T @ delta @ v, u.T @ delta, delta @ v)]
        z.append((np.array(found) - mean) / std)
    assert np.all(np.abs(np.mean(z, 0)) < tol.SIGMAS / np.sqrt(len(z))), np.mean(z, 0)
    np.testing.assert_allclose(np.std(z, 0), 1.0, atol=0.08)
    assert np.mean(np.abs(z) > 3) < 0.015


def test_the_participation_ratio_of_normal_entries_has_exact_moments():
    shape, rng = (130, 110), np.random.default_rng(0)
    draws = [rng.standard_normal(shape) for _ in range(150)]
    values = [np.sum(g**2) ** 2 / np.sum((g.T @ g) ** 2) for g in draws]
    null = jd.isotropic_moments("participation_ratio", shape)
    assert abs(null.mean - np.mean(values)) < tol.SIGMAS * np.std(values) / np.sqrt(len(values))
    assert null.std == pytest.approx(np.std(values), rel=0.2)


def test_ranks_of_updates_that_few_entries_carry_have_no_z_and_of_very_few_no_null():
    shape, names = (400, 100), ("stable_rank", "entropy_rank", "participation_ratio", "hill", "energy_top")

    def found(b):
        return [jd.isotropic_moments(name, shape, kurtosis=np.float64(3 + 200 * b), k=12) for name in names]

    assert all(np.isfinite(one.std) for one in found(0.14))
    assert all(np.isfinite(one.mean) and np.isnan(one.std) for one in found(0.16))
    assert all(np.isnan(one.mean) and np.isnan(one.std) for one in found(0.51))
    row = jd.isotropic_moments("stable_rank", (1, 9), kurtosis=np.float64(9.0), k=None)  # its one value is its norm
    assert row.mean == pytest.approx(1) and row.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("spectrum", ["gaussian", "power", "clustered"])
def test_angle_nulls_of_many_directions_in_single_precision(spectrum):
    """From k = 64 on, unless one pair of directions hides the others."""
    shape, k = (200, 160), 80
    sigma = {
        "gaussian": np.linalg.svd(gaussian(shape), compute_uv=False),
        "power": np.arange(1.0, 161.0) ** -0.8,
        "clustered": np.r_[np.linspace(2, 1, 80), np.linspace(1 - 1e-9, 0.1, 80)],
    }[spectrum]
    norm = np.float64(1e-5 * np.linalg.norm(sigma))
    draws = jd.rotation_draws(np.random.default_rng(0), shape=shape, k=k)
    fast = jd.norm_matched_angles(sigma, norm, draws, k=k, shape=shape, single=lapack.symmetric_values)
    exact = jd.norm_matched_angles(sigma, norm, draws, k=k, shape=shape)
    np.testing.assert_allclose(np.array(fast[:4]), np.array(exact[:4]), rtol=1e-4)
    assert np.array_equal(fast[0], exact[0]) == (spectrum == "clustered")


def test_isotropic_spectrum_and_stable_rank_against_sampling():
    for shape in ((96, 96), (64, 128)):
        samples = [np.linalg.svd(gaussian(shape, seed, 1.0), compute_uv=False) for seed in range(12)]
        spectrum = jd.isotropic_spectrum(shape)
        mean = np.mean(samples, axis=0)
        np.testing.assert_allclose(spectrum[1:], mean[1:], atol=0.02 * mean[0])
        assert spectrum[0] == pytest.approx(mean[0], rel=0.02)
        stable = np.mean([np.sum(s**2) / s[0] ** 2 for s in samples])
        assert jd.isotropic_stable_rank(shape) == pytest.approx(stable, rel=0.04)
        entropy = np.mean([float(jd.entropy_rank_from_singular_values(s)) for s in samples])
        assert float(jd.entropy_rank_from_singular_values(spectrum)) == pytest.approx(entropy, rel=0.02)


RANKS = ("stable_rank", "entropy_rank", "participation_ratio", "hill", "energy_top_6")


@pytest.mark.parametrize(("shape", "draws"), [((24, 16), 250), ((150, 110), 40)])
@pytest.mark.parametrize("relative", [None, 2e-3])
def test_ranks_of_isotropic_noise_have_standard_z(shape, draws, relative):
    """As stored in float32, and as the difference of two bfloat16 matrices, whose entries are sparse and unequal."""
    rng, z = np.random.default_rng(11), []
    for _ in range(draws):
        delta = rng.standard_normal(shape) * 0.02
        if relative:
            w = as_bf16(rng.standard_normal(shape) * 0.02)
            delta = as_bf16(w + relative * delta) - w
        kurtosis = jd.kurtosis_from_sums(delta.size, (delta**2).sum(), (delta**4).sum())
        values = np.linalg.svd(delta, compute_uv=False)
        found = jd.update_statistics(values, shape=shape, kurtosis=kurtosis, subspace_k=6)
        z.append([found[f"{key}_z"] for key in RANKS])
    z = np.array(z)
    assert np.all(np.abs(z.mean(0)) < 0.5), dict(zip(RANKS, z.mean(0), strict=True))
    assert np.all((z.std(0) > 0.7) & (z.std(0) < 1.3)), dict(zip(RANKS, z.std(0), strict=True))
    assert np.mean(np.abs(z) > 3) <= 0.01


def test_shifts_and_angles_of_isotropic_noise_have_standard_z():
    shape, k, rng, z = (24, 16), 7, np.random.default_rng(5), []
    for draw in range(200):
        w = as_bf16(rng.standard_normal(shape) * 0.02)
        end = as_bf16(w + (1e-2 if draw % 2 else 2e-3) * 0.02 * rng.standard_normal(shape))
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        u1, s1, vt1 = np.linalg.svd(end, full_matrices=False)
        norm, decay = np.linalg.norm(end - w), ((end - w) * w).sum() / (w * w).sum()
        shift = jd.norm_matched_shift(s, norm, shape=shape)
        rest = np.linalg.svd(end - decay * w, compute_uv=False)
        found = jd.shift_statistics(s, s1, shift)
        found |= jd.shift_statistics(s, rest, shift, key="nss_without_decay", decay=0.0)
        left, right = jd.angles_from_bases(u[:, :k], u1[:, :k]), jd.angles_from_bases(vt[:k].T, vt1[:k].T)
        draws = jd.rotation_draws(rng, shape=shape, k=k)
        numbers, flags = jd.angle_statistics(left, right, s, s1, norm=norm, decay=decay, draws=draws, k=k, shape=shape)
        assert not flags.open
        found |= numbers
        z.append([value for key, value in found.items() if key.endswith("_z")])
    z = np.array(z)
    assert np.nanmean(np.abs(z[np.isfinite(z)]) > 3) <= 0.015 and np.isfinite(z).mean() > 0.97
    assert np.all(np.abs(np.nanmean(z, 0)) < 0.3) and np.all(np.abs(np.nanstd(z, 0) - 1) < 0.25), np.nanstd(z, 0)


def test_flags_say_why_angles_are_undefined():
    sigma = np.array([3.0, 2.0, 2.0, 1.0])
    flags = jd.angle_flags(sigma, sigma, norm=0.1, decay=0.0, k=2)
    assert flags.open and not flags.crossed
    flags = jd.angle_flags(np.array([3.0, 2.0, 1.9, 1.0]), np.array([3.0, 2.2, 1.9, 1.0]), norm=0.1, decay=0.0, k=2)
    assert flags.crossed and not flags.blurred and not flags.open and flags.near == 2
    shrunk = jd.angle_flags(np.array([3.0, 2.0, 1.9]), 0.5 * np.array([3.0, 2.0, 1.9]), norm=2.0, decay=-0.5, k=2)
    assert shrunk.moved == 0 and not shrunk.crossed


def test_sampled_updates_keep_what_they_promise():
    delta = gaussian((2, 20, 30), 3) * np.exp(gaussian((2, 20, 1), 4, 1.0)) * np.exp(gaussian((2, 1, 30), 5, 1.0))
    x, key = jnp.asarray(delta, jnp.float32), jax.random.key(0)
    norm = np.linalg.norm(delta, axis=(1, 2))
    np.testing.assert_allclose(np.linalg.norm(jd.norm_matched_update(key, x), axis=(1, 2)), norm, rtol=1e-5)
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
