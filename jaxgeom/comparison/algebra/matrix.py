"""A matrix, or the difference of two, as the algebra reads it: in blocks, with products, Gram matrix, eigenvectors."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jaxgeom.comparison.algebra import lapack

_BLOCK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix `W` or a difference `W − scale·V`, for which float64 is never held whole: it comes in float64 blocks.

    Vectors and products are named by the sides of the matrix, since the Gram matrix is taken of the smaller one: the
    *short* side has min(out, in) entries (the inputs of a tall or square matrix, the outputs of a wide one), the *long*
    side max(out, in). What costs more than one pass over the entries is a method here, by LAPACK and BLAS on the host;
    `Float64Matrix` and `IntegerMatrix` do the same on an accelerator. What uses a matrix is written once for all three.

    Attributes:
        array: `W`, float32 `[out, in]`.
        minus: `V`, float32 `[out, in]`, subtracted in float64; None for a plain matrix.
        scale: factor on `minus`.
    """

    array: np.ndarray
    minus: np.ndarray | None = None
    scale: float = 1.0

    @property
    def is_wide(self) -> bool:
        """Whether the short side is that of the outputs: out < in."""
        return self.array.shape[0] < self.array.shape[1]

    @property
    def short(self) -> int:
        """Length of the short side, min(out, in)."""
        return min(self.array.shape)

    @property
    def long(self) -> int:
        """Length of the long side, max(out, in)."""
        return max(self.array.shape)

    def blocks(self, dtype: type = np.float64) -> "list[slice]":
        """Slices of the long side whose blocks, in `dtype`, fill about 16 MiB."""
        step = max(1, _BLOCK_BYTES // (self.short * np.dtype(dtype).itemsize))
        return [slice(start, min(start + step, self.long)) for start in range(0, self.long, step)]

    def block(self, where: slice, dtype: type = np.float64) -> np.ndarray:
        """One block as `[part of long, short]`; C-ordered for a tall matrix, Fortran-ordered for a wide one."""
        cut = (slice(None), where) if self.is_wide else (where, slice(None))
        part = self.array[cut]
        if self.minus is None:
            out = np.ascontiguousarray(part, dtype)
        elif dtype == np.float32 and self.scale == 1.0:
            out = np.subtract(part, self.minus[cut], order="C")
        else:
            out = np.array(part, dtype, order="C")
            out -= self.minus[cut] if self.scale == 1.0 else self.minus[cut] * np.float64(self.scale)
        return out.T if self.is_wide else out

    def gram(self, dtype: type = np.float64) -> np.ndarray:
        """Gram matrix `[short, short]`, upper triangle, Fortran-ordered: `WᵀW`, of a wide matrix `WWᵀ`."""
        gram = np.zeros((self.short, self.short), dtype, order="F")
        for where in self.blocks(dtype):
            lapack.add_gram(gram, self.block(where, dtype))
        return gram

    def dense(self) -> np.ndarray:
        """All of it at once, float64 `[out, in]`."""
        out = self.array.astype(np.float64)
        if self.minus is not None:
            out -= np.float64(self.scale) * self.minus.astype(np.float64)
        return out

    def times_short(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors over the short side `[short, k]`: `[long, k]`, in their dtype."""
        out = np.empty((self.long, vectors.shape[1]), vectors.dtype, order="F")
        for where in self.blocks():
            out[where] = lapack.multiply(self.block(where, vectors.dtype.type), vectors)
        return out

    def times_long(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors over the long side `[long, k]`: `[short, k]`, in their dtype."""
        out = np.zeros((self.short, vectors.shape[1]), vectors.dtype, order="F")
        for where in self.blocks():
            out += lapack.multiply(self.block(where, vectors.dtype.type).T, np.asfortranarray(vectors[where]))
        return out

    def multiply(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Product of two plain arrays `[m, p]` and `[p, n]` of one dtype, computed where this matrix is: `[m, n]`."""
        return lapack.multiply(left, right)

    def operator(self, upper: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function that multiplies vectors `[short]` or `[short, k]` by a symmetric float32 array.

        Args:
            upper: `[short, short]`, of which the upper triangle is read.
        """
        return functools.partial(lapack.symmetric_multiply, upper)

    def eigenvalues(self) -> np.ndarray:
        """All eigenvalues of the Gram matrix, ascending, float64 `[short]`."""
        diagonal, off, _ = lapack.tridiagonalize(self.gram())
        return lapack.tridiagonal_values(diagonal, off)

    def eigenvectors(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of the Gram matrix, ascending `[short]`; its leading vectors, leading first `[short, count]`."""
        reduced = self.gram()
        diagonal, off, tau = lapack.tridiagonalize(reduced)
        squares, vectors = lapack.tridiagonal_top_vectors(diagonal, off, count)
        squares = squares if squares.size == diagonal.size else lapack.tridiagonal_values(diagonal, off)
        return squares, lapack.back_transform(reduced, tau, np.asfortranarray(vectors[:, ::-1]))

    def bidiagonal_values(self) -> np.ndarray:
        """All singular values, descending `[short]`, by the bidiagonal route."""
        return lapack.singular_values(self.dense())

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left vectors `[out, r]`, singular values `[r]` and right vectors `[r, in]`, r = min(out, in)."""
        return np.linalg.svd(self.dense(), full_matrices=False)


MatrixMaker = Callable[..., Matrix]
"""What makes a `Matrix` of `(array, minus=None, scale=1.0)`: the class itself, whose algebra runs on the host, or
`functools.partial` of a subclass that holds it on one accelerator. What measures a matrix is given it and need not know
which."""
