"""LAPACK against NumPy, and what is refused before a pointer leaves Python."""

import numpy as np
import pytest

from jaxgeom.comparison.algebra import lapack

RNG = np.random.default_rng(0)


def symmetric(size: int, dtype: type = np.float64) -> np.ndarray:
    matrix = RNG.standard_normal((size, size)).astype(dtype)
    return np.asfortranarray(matrix + matrix.T)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_products_of_any_order(dtype, order):
    left, right = (RNG.standard_normal(shape).astype(dtype) for shape in ((7, 5), (5, 9)))
    wide = RNG.standard_normal((7, 10)).astype(dtype)
    left = wide[:, ::2] if order == "strided" else np.asarray(left, order=order)
    found = lapack.multiply(left, np.asarray(right, order="F"))
    np.testing.assert_allclose(found, left @ right, rtol=1e-5 if dtype == np.float32 else 1e-13, atol=1e-6)
    gram = np.zeros((5, 5), dtype, order="F")
    lapack.add_gram(gram, left)
    np.testing.assert_allclose(np.triu(gram), np.triu(left.T @ left), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 80])
def test_eigenvectors_of_every_route(size):
    matrix = symmetric(size)
    values, vectors = np.linalg.eigh(matrix)
    reduced = matrix.copy(order="F")
    diagonal, off, tau = lapack.tridiagonalize(reduced)
    np.testing.assert_allclose(lapack.tridiagonal_values(diagonal, off), values, atol=1e-12 * size)
    for route in (lapack.tridiagonal_top_vectors, lapack.tridiagonal_few_vectors):
        count = min(size, 3)
        found, small = route(diagonal, off, count)
        np.testing.assert_allclose(found[-count:], values[-count:], atol=1e-8)
        turned = lapack.back_transform(reduced, tau, small)
        np.testing.assert_allclose(np.abs(turned.T @ vectors[:, -count:]), np.eye(count), atol=1e-6)


def _read_only(matrix: np.ndarray) -> np.ndarray:
    matrix.flags.writeable = False
    return matrix


F4 = np.zeros((4, 4), order="F")
V4 = np.zeros(4)
REFUSED = {
    "gram of C order": (lambda: lapack.add_gram(np.zeros((4, 4)), np.zeros((6, 4))), "gram is not contig"),
    "gram of another size": (lambda: lapack.add_gram(F4.copy("F"), np.zeros((6, 5))), "gram has shape"),
    "rows of another dtype": (lambda: lapack.add_gram(F4.copy("F"), np.zeros((6, 4), np.float32)), "rows has dtype"),
    "gram that is read-only": (lambda: lapack.add_gram(_read_only(F4.copy("F")), np.zeros((6, 4))), "read-only"),
    "integers": (lambda: lapack.multiply(np.zeros((4, 4), int), F4), "left has dtype int64, not float32 or float64"),
    "mixed dtypes": (lambda: lapack.multiply(F4, F4.astype(np.float32)), "right has dtype float32, not float64"),
    "sizes that do not meet": (lambda: lapack.multiply(F4, np.zeros((5, 4))), r"right has shape \[5, 4\]"),
    "a vector": (lambda: lapack.multiply(F4, np.zeros((4, 4, 1))), r"right has shape \[4, 4, 1\], not \[4, any\]"),
    "swapped bytes": (lambda: lapack.tridiagonalize(F4.astype(">f8")), "matrix has dtype >f8"),
    "no square": (lambda: lapack.tridiagonalize(np.zeros((4, 5), order="F")), "matrix has shape"),
    "a cut-out": (lambda: lapack.tridiagonalize(np.zeros((8, 8), order="F")[:4, :4]), "Fortran order"),
    "float64 for float32": (lambda: lapack.symmetric_multiply(F4, V4), "upper has dtype float64"),
    "vectors too short": (
        lambda: lapack.symmetric_multiply(F4.astype(np.float32), V4[:3]), r"vectors has shape \[3\], not \[4\]",
    ),
    "off too short": (lambda: lapack.tridiagonal_values(V4, V4[:2]), "off has 2 entries, a diagonal of 4 needs 3"),
    "off of another dtype": (lambda: lapack.tridiagonal_values(V4, V4.astype(np.float32)), "off has dtype"),
    "a strided diagonal": (lambda: lapack.tridiagonal_values(np.zeros(8)[::2], V4), "not contiguous"),
    "float32 vectors": (
        lambda: lapack.tridiagonal_top_vectors(V4.astype(np.float32), V4.astype(np.float32), 1), "diagonal has dtype",
    ),
    "more vectors than there are": (lambda: lapack.tridiagonal_top_vectors(V4, V4, 5), "count = 5: of 4 vectors"),
    "no vectors": (lambda: lapack.tridiagonal_few_vectors(V4, V4, 0), "count = 0"),
    "tau of another size": (lambda: lapack.back_transform(F4, V4, F4), r"tau has shape \[4\], not \[3\]"),
    "vectors of another size": (
        lambda: lapack.back_transform(F4, V4[:3], np.zeros((5, 2))), r"vectors has shape \[5, 2\]",
    ),
    "a tensor": (lambda: lapack.singular_values(np.zeros((2, 3, 4))), "matrix has shape"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what):
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_sizes_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="2147483648 does not fit into the 32 bits"):
        lapack._int(2**31)
