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
"""Relative error of LAPACK's values in units of the largest: twice float64's rounding, 2.2e-16."""

LEADING = 1e-4
"""Directions whose value is this share of the largest are 1e-6 degrees off by the Gram matrix, a hundredth of what is
stated of angles, and ten times more for every third of the share: `experiments/benchmarks/algebra_thresholds.py`."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values and leading vectors of a matrix `[out, in]`, by its sides: see `Matrix`.

    Attributes:
        values: all singular values, descending `[min(out, in)]`.
        short: leading singular vectors of the short side `[min(out, in), k]`: right ones of a tall matrix.
        long: those of the long side `[max(out, in), k]`; empty when they were not asked for.
        error: bound on `‖δσ‖₂`, the error of all values together.
        is_exact: whether they are from the bidiagonal route, which does not square the condition.
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
    """Error bound of each singular value `[p]`.

    `eps·σ₁` by the bidiagonal route; `eps·σ₁²/σ_i`, at most `√eps·σ₁`, by the Gram matrix.

    Args:
        values: singular values, descending `[p]`.
        is_exact: whether they are from the bidiagonal route.
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

    Where `σ_count` is below `LEADING·σ₁` a full SVD is taken.

    Args:
        matrix: the matrix.
        count: number of leading vectors, at most min(out, in).
        long: whether vectors of the long side are wanted too.
    """
    squares, short = matrix.eigenvectors(count)
    values = np.sqrt(np.maximum(squares[::-1], 0))
    if values[0] > 0 and values[count - 1] < LEADING * values[0]:
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
