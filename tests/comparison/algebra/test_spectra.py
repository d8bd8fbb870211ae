"""Spectra and leading directions against NumPy's SVD."""

import numpy as np
import pytest

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.krylov import leading_directions, leading_square
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import decompose, exact_values, values_only

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


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_scaled_difference_is_one_in_both_precisions(shape):
    w, v = np.random.default_rng(4).standard_normal((2, *shape)).astype(np.float32)
    dense = w.astype(np.float64) - 0.3 * v.astype(np.float64)
    wanted = dense @ dense.T if shape[0] < shape[1] else dense.T @ dense
    for dtype, rtol in ((np.float32, 1e-5), (np.float64, 1e-13)):
        gram = Matrix(w, v, 0.3).gram(dtype)
        assert gram.dtype == dtype
        np.testing.assert_allclose(np.triu(gram), np.triu(wanted), rtol=rtol, atol=rtol)
