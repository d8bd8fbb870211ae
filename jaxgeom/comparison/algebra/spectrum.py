"""Singular values of a matrix to float64 grade from its Gram matrix, with only the leading vectors, and when not to.

`WᵀW` (of the smaller side) is summed in float64 over blocks, brought to tridiagonal form once; all eigenvalues and the
leading k vectors come from there. The Gram matrix squares the condition: `σ_i` carries an absolute error of about
`eps·σ₁²/(2σ_i)`. Every spectrum states the sum of those errors, and where it is too large for the number that is wanted
the bidiagonal route takes over.
"""

import dataclasses

import numpy as np

from jaxgeom.comparison.algebra.matrix import Matrix

_EPS = 4e-16


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values and leading vectors of a matrix.

    Attributes:
        values: all singular values, descending `[min(m, n)]`.
        short: leading vectors of the smaller side `[min(m, n), k]`.
        long: leading vectors of the longer side `[max(m, n), k]`; empty when they were not asked for.
        error: bound on `‖δσ‖₂`, the error of the values together.
        is_exact: from the bidiagonal route.
    """

    values: np.ndarray
    short: np.ndarray
    long: np.ndarray
    error: float
    is_exact: bool

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(np.sqrt(self.values @ self.values))

    @property
    def errors(self) -> np.ndarray:
        """Error bound of each singular value."""
        return value_errors(self.values, self.is_exact)


def value_errors(values: np.ndarray, is_exact: bool) -> np.ndarray:
    """Error bound of each singular value: eps·σ₁ by the bidiagonal route.

    Eps·σ₁²/σ_i (at most √eps·σ₁) by the Gram matrix.
    """
    top = float(values[0]) if values.size else 0.0
    if is_exact or top == 0:
        return np.full(values.size, _EPS * top)
    return _EPS * top * top / np.maximum(values, np.sqrt(_EPS) * top)


def _from_values(values: np.ndarray, is_exact: bool) -> Spectrum:
    empty = np.empty((0, 0))
    return Spectrum(values, empty, empty, float(np.linalg.norm(value_errors(values, is_exact))), is_exact)


def values_only(matrix: Matrix) -> Spectrum:
    """All singular values by the Gram matrix."""
    return _from_values(np.sqrt(np.maximum(matrix.eigenvalues()[::-1], 0)), False)


def exact_values(matrix: Matrix) -> Spectrum:
    """All singular values by the bidiagonal route, for spectra whose small values matter."""
    return _from_values(matrix.bidiagonal_values(), True)


def decompose(matrix: Matrix, count: int, *, long: bool) -> Spectrum:
    """All singular values and `count` leading vectors.

    Where `σ_count` is so small that the Gram matrix cannot tell its vector from its neighbours', a full SVD is taken.

    Args:
        matrix: the matrix.
        count: number of leading vectors, at most min(m, n).
        long: whether vectors of the longer side are wanted too.
    """
    squares, short = matrix.eigenvectors(count)
    values = np.sqrt(np.maximum(squares[::-1], 0))
    if values[0] > 0 and values[count - 1] < 1e-4 * values[0]:
        return _by_svd(matrix, count)
    other = np.empty((matrix.long, 0))
    if long:
        other = matrix.times_short(short)
        other /= np.where(values[:count] > 0, values[:count], 1)
    return Spectrum(values, short, other, float(np.linalg.norm(value_errors(values, False))), False)


def _by_svd(matrix: Matrix, count: int) -> Spectrum:
    left, values, right = matrix.svd()
    short, long = (left, right.T) if matrix.is_wide else (right.T, left)
    error = float(np.linalg.norm(value_errors(values, True)))
    return Spectrum(values, np.asfortranarray(short[:, :count]), np.asfortranarray(long[:, :count]), error, True)
