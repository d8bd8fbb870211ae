"""Spectra, angles and null expansions against NumPy's SVD and against sampling."""

import numpy as np
import pytest

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.krylov import leading_directions, leading_square
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import decompose, exact_values, values_only
from jaxgeom.comparison.one_matrix.norm_nulls import projection_null, rotation_draws, rotation_square_null, shift_null
from jaxgeom.comparison.one_matrix.shape_nulls import spectral_null, stable_rank_null

SHAPES = [(90, 40), (40, 90), (64, 64), (5, 3), (1, 7), (200, 150)]


@pytest.mark.parametrize("shape", SHAPES)
def test_gram_spectrum_equals_svd(shape):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    matrix = Matrix(a, b, 0.3)
    dense = a.astype(np.float64) - 0.3 * b.astype(np.float64)
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    for k in {1, max(1, s.size // 8), s.size}:
        spectrum = decompose(matrix, k, long=True)
        np.testing.assert_allclose(spectrum.values, s, atol=1e-12 * s[0])
        left, right = (spectrum.short, spectrum.long) if matrix.is_wide else (spectrum.long, spectrum.short)
        np.testing.assert_allclose(
            (left * spectrum.values[:k]) @ right.T, (u[:, :k] * s[:k]) @ vt[:k], atol=1e-9 * s[0]
        )
    np.testing.assert_allclose(values_only(matrix).values, s, atol=1e-11 * s[0])
    np.testing.assert_allclose(exact_values(matrix).values, s, atol=1e-13 * s[0])
    np.testing.assert_allclose(matrix.dense(), dense, rtol=1e-15)


def test_stated_error_bounds_the_real_one():
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((60, 60)))[0] for _ in range(2))
    w = ((u * np.logspace(0, -12, 60)) @ v).astype(np.float32)
    truth = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    spectrum = values_only(Matrix(w))
    assert np.linalg.norm(spectrum.values - truth) <= spectrum.error * 3
    assert decompose(Matrix(w), 50, long=True).is_exact


@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_krylov_agrees_with_svd(shape):
    rng = np.random.default_rng(2)
    w = (rng.standard_normal(shape) * np.linspace(0.2, 3, shape[1])).astype(np.float32)
    u, s, vt = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    assert leading_square(Matrix(w)) == pytest.approx(s[0] ** 2, rel=1e-6)
    short, long, values = leading_directions(Matrix(w), 4)
    np.testing.assert_allclose(values, s[:4], rtol=1e-4)
    right = long if shape[0] < shape[1] else short
    assert np.linalg.norm(right.T @ vt[:4].T) ** 2 / 4 > 0.999


def test_leading_square_of_entries_whose_squares_vanish_in_float32():
    w = np.full((3, 4), 1e-30, np.float32)
    assert leading_square(Matrix(w)) == pytest.approx(12e-60, rel=1e-5)


def test_products_in_every_memory_order():
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.float64):
        a, b = rng.standard_normal((6, 4)).astype(dtype), rng.standard_normal((4, 5)).astype(dtype)
        for x in (a, np.asfortranarray(a)):
            for y in (b, np.asfortranarray(b)):
                np.testing.assert_allclose(lapack.multiply(x, y), a @ b, rtol=1e-5)
    for rows in (a, np.asfortranarray(a), np.repeat(a, 2, 0)[::2]):
        gram = np.zeros((4, 4), order="F")
        lapack.add_gram(gram, rows)
        np.testing.assert_allclose(np.triu(gram), np.triu(a.T @ a), rtol=1e-13)


@pytest.mark.parametrize("relative", [1e-5, 1e-2, 0.03])
@pytest.mark.parametrize("shape", [(150, 150), (200, 100)])
def test_shift_and_rotation_nulls_equal_sampling(shape, relative):
    rng = np.random.default_rng(4)
    w = rng.standard_normal(shape) * 0.02
    scale = relative * np.linalg.norm(w) / np.sqrt(w.size)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    k = 30
    shifts, left, right = [], [], []
    for _ in range(6):
        x, t, yt = np.linalg.svd(w + scale * rng.standard_normal(shape), full_matrices=False)
        shifts.append(np.linalg.norm(t - s) / np.linalg.norm(s))
        for into, one, other in ((left, u[:, :k], x[:, :k]), (right, vt[:k].T, yt[:k].T)):
            into.append(np.arcsin(np.clip(np.linalg.svd(other - one @ (one.T @ other), compute_uv=False), 0, 1)).mean())
    expected, deviation, holds = shift_null(s, *shape, scale)
    assert holds and np.mean(shifts) == pytest.approx(expected, rel=0.05, abs=3 * deviation)
    smaller = min(shape)
    draws = rotation_draws(s, k, (shape[0] - smaller, shape[1] - smaller), scale, 6, rng)
    assert draws[0].mean() == pytest.approx(np.mean(left), rel=0.1)
    assert draws[1].mean() == pytest.approx(np.mean(right), rel=0.1)


def test_first_order_rotation_equals_its_draws_when_the_gap_is_wide():
    s = np.concatenate([np.linspace(4, 3, 20), np.linspace(1, 0.5, 60)])
    closed = rotation_square_null(s, 20, 40, 1e-4)
    draws = rotation_draws(s, 20, (40, 0), 1e-4, 40, np.random.default_rng(0))
    assert (np.sin(draws[0]) ** 2).sum(1).mean() == pytest.approx(closed, rel=0.02)


def test_shape_nulls_equal_sampling():
    rng = np.random.default_rng(5)

    def participation(values: np.ndarray, _: int) -> float:
        return float((values**2).sum() ** 2 / (values**4).sum())

    shape = (280, 220)
    spectra = [np.linalg.svd(rng.standard_normal(shape), compute_uv=False) for _ in range(10)]
    expected, deviation = spectral_null(*shape, participation, lambda p: p)
    values = [participation(s, 0) for s in spectra]
    assert np.mean(values) == pytest.approx(expected, abs=4 * deviation) and np.std(values) < 4 * deviation
    expected, deviation = stable_rank_null(*shape)
    assert np.mean([(s**2).sum() / s[0] ** 2 for s in spectra]) == pytest.approx(expected, abs=3 * deviation)


def test_projection_null_is_the_beta_distribution():
    rng = np.random.default_rng(6)
    g = rng.standard_normal((400, 12, 9))
    energy = (g**2).sum((1, 2))
    for left, right, part in ((3, 2, g[:, :3, :2]), (3, None, g[:, :3]), (None, 2, g[:, :, :2])):
        share = (part**2).sum((1, 2)) / energy
        mean, deviation = projection_null(12, 9, left, right)
        assert share.mean() == pytest.approx(mean, abs=4 * deviation / 20) and share.std() == pytest.approx(
            deviation, rel=0.15
        )
