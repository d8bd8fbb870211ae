"""Singular values of a matrix to float64 grade from its Gram matrix, with only the leading vectors, and when not to.

`WᵀW` (of the smaller side) is summed in float64 over blocks, brought to tridiagonal form once; all eigenvalues and the
leading k vectors come from there. The Gram matrix squares the condition: `σ_i` carries an absolute error of about
`eps·σ₁²/(2σ_i)`. Every spectrum states the sum of those errors, and where it is too large for the number that is wanted
the bidiagonal route takes over.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jaxgeom.comparison import lapack

_EPS = 4e-16
_BLOCK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix or the difference of two, delivered in float64 blocks along its longer side.

    What costs more than one pass over the entries is a method here, by LAPACK and BLAS on the host; `Float64Matrix` and
    `IntegerMatrix` do the same on an accelerator. Whatever uses a matrix is written once for all of them.

    Attributes:
        array: float32 `[out, in]`.
        minus: float32 of the same shape that is subtracted after widening, None for a plain matrix.
        scale: factor on `minus`.
    """

    array: np.ndarray
    minus: np.ndarray | None = None
    scale: float = 1.0

    @property
    def is_wide(self) -> bool:
        """Whether the smaller side is the output side."""
        return self.array.shape[0] < self.array.shape[1]

    @property
    def short(self) -> int:
        """min(out, in)."""
        return min(self.array.shape)

    @property
    def long(self) -> int:
        """max(out, in)."""
        return max(self.array.shape)

    def blocks(self, dtype: type = np.float64) -> "list[slice]":
        """Slices of the longer side whose blocks fill about 16 MiB."""
        step = max(1, _BLOCK_BYTES // (self.short * np.dtype(dtype).itemsize))
        return [slice(start, min(start + step, self.long)) for start in range(0, self.long, step)]

    def block(self, where: slice, dtype: type = np.float64) -> np.ndarray:
        """One block as `[long part, short]`; C-ordered for a tall matrix, Fortran-ordered for a wide one."""
        cut = (slice(None), where) if self.is_wide else (where, slice(None))
        part = self.array[cut]
        if self.minus is None:
            out = np.ascontiguousarray(part, dtype)
        elif dtype == np.float32:
            out = np.subtract(part, self.minus[cut], order="C")
        else:
            out = np.array(part, dtype, order="C")
            out -= self.minus[cut] if self.scale == 1.0 else self.minus[cut] * np.float64(self.scale)
        return out.T if self.is_wide else out

    def gram(self, dtype: type = np.float64) -> np.ndarray:
        """Gram matrix of the smaller side, upper triangle, Fortran-ordered."""
        gram = np.zeros((self.short, self.short), dtype, order="F")
        for where in self.blocks(dtype):
            lapack.add_gram(gram, self.block(where, dtype))
        return gram

    def dense(self) -> np.ndarray:
        """All of it in float64, `[out, in]`."""
        out = self.array.astype(np.float64)
        if self.minus is not None:
            out -= np.float64(self.scale) * self.minus.astype(np.float64)
        return out

    def times_short(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors of the smaller side `[short, k]`: `[long, k]`."""
        out = np.empty((self.long, vectors.shape[1]), vectors.dtype, order="F")
        for where in self.blocks():
            out[where] = lapack.multiply(self.block(where, vectors.dtype.type), vectors)
        return out

    def times_long(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors of the longer side `[long, k]`: `[short, k]`."""
        out = np.zeros((self.short, vectors.shape[1]), vectors.dtype, order="F")
        for where in self.blocks():
            out += lapack.multiply(self.block(where, vectors.dtype.type).T, np.asfortranarray(vectors[where]))
        return out

    def multiply(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Product of two plain arrays of one dtype, where this matrix lives."""
        return lapack.multiply(left, right)

    def operator(self, upper: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Multiplication by a symmetric float32 array `[short, short]` given by its upper triangle, many times over."""
        return functools.partial(lapack.symmetric_multiply, upper)

    def eigenvalues(self) -> np.ndarray:
        """All eigenvalues of the Gram matrix, ascending, float64."""
        diagonal, off, _ = lapack.tridiagonalize(self.gram())
        return lapack.tridiagonal_values(diagonal, off)

    def eigenvectors(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """All eigenvalues of the Gram matrix, ascending, and the `count` leading vectors, leading first."""
        reduced = self.gram()
        diagonal, off, tau = lapack.tridiagonalize(reduced)
        squares, vectors = lapack.tridiagonal_top_vectors(diagonal, off, count)
        squares = squares if squares.size == diagonal.size else lapack.tridiagonal_values(diagonal, off)
        return squares, lapack.back_transform(reduced, tau, np.asfortranarray(vectors[:, ::-1]))

    def bidiagonal_values(self) -> np.ndarray:
        """All singular values, descending, by the bidiagonal route."""
        return lapack.singular_values(self.dense())

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left vectors `[out, r]`, singular values and right vectors `[r, in]`, r = min(out, in)."""
        return np.linalg.svd(self.dense(), full_matrices=False)


MatrixForm = Callable[..., Matrix]
"""Makes a matrix from `(array, minus=None, scale=1.0)` where its algebra is to run: `Matrix` itself on the host."""


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
