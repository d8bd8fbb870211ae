"""The dense algebra of one matrix on a device that has float64 units: everything, the eigenproblem included.

GPUs multiply float64 natively and their solver library decomposes a 4096 x 4096 Gram matrix in about the time in which
the host would copy it, so nothing but results leaves the device. XLA runs the same programs on its CPU devices, where
they are tested. Programs are compiled once per shape; on a GPU with deterministic kernels only, so that a second run
gives the same bits.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.comparison.algebra.device_matrix import DeviceMatrix, multiply, program


def _difference(array: jax.Array, minus: jax.Array | None, scale: jax.Array) -> jax.Array:
    wide = array.astype(jnp.float64)
    return wide if minus is None else wide - scale * minus.astype(jnp.float64)


def _gram(array: jax.Array, minus: jax.Array | None, scale: jax.Array) -> jax.Array:
    wide = _difference(array, minus, scale)
    return wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide


@program
def _gram_float32(array: jax.Array, minus: jax.Array | None, scale: jax.Array) -> jax.Array:
    return _gram(array, minus, scale).astype(jnp.float32)


@program
def _gram_float64(array: jax.Array, minus: jax.Array | None, scale: jax.Array) -> jax.Array:
    return _gram(array, minus, scale)


@program
def _eigenvalues(array: jax.Array, minus: jax.Array | None, scale: jax.Array) -> jax.Array:
    return jnp.linalg.eigvalsh(_gram(array, minus, scale), symmetrize_input=False)


@functools.partial(program, static_argnums=3)
def _eigenvectors(
    array: jax.Array, minus: jax.Array | None, scale: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    squares, vectors = jnp.linalg.eigh(_gram(array, minus, scale), symmetrize_input=False)
    return squares, vectors[:, ::-1][:, :count]


@functools.partial(program, static_argnums=3)
def _svd(array: jax.Array, minus: jax.Array | None, scale: jax.Array, vectors: bool) -> Any:
    # QR iteration on the bidiagonal form: the solver libraries' other method (Jacobi) promises less for small values.
    return jax.lax.linalg.svd(
        _difference(array, minus, scale),
        full_matrices=False,
        compute_uv=vectors,
        algorithm=jax.lax.linalg.SvdAlgorithm.QR,
    )


@functools.partial(program, static_argnums=4)
def _times(
    array: jax.Array, minus: jax.Array | None, scale: jax.Array, vectors: jax.Array, transposed: bool
) -> jax.Array:
    wide = _difference(array, minus, scale)
    return (wide.T if transposed else wide) @ vectors.astype(jnp.float64)


@dataclasses.dataclass(frozen=True)
class Float64Matrix(DeviceMatrix):
    """A matrix whose algebra runs in float64 on one JAX device."""

    @functools.cached_property
    def _placed(self) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        minus = None if self.minus is None else self.put(self.minus)
        return self.put(self.array), minus, self.put(np.float64(self.scale))

    def gram(self, dtype: type = np.float64) -> np.ndarray:
        """Gram matrix `[short, short]`, upper triangle, Fortran-ordered."""
        with jax.enable_x64(True):
            program = _gram_float32 if dtype == np.float32 else _gram_float64
            return np.asfortranarray(np.triu(np.asarray(program(*self._placed))))

    def times_short(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors over the short side `[short, k]`: `[long, k]`, summed in float64."""
        return self._times(vectors, self.is_wide)

    def times_long(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors over the long side `[long, k]`: `[short, k]`, summed in float64."""
        return self._times(vectors, not self.is_wide)

    def _times(self, vectors: np.ndarray, transposed: bool) -> np.ndarray:
        with jax.enable_x64(True):
            product = _times(*self._placed, self.put(vectors), transposed)
            return np.asfortranarray(np.asarray(product).astype(vectors.dtype))

    def multiply(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Product of two plain arrays `[m, p]` and `[p, n]` of one dtype."""
        with jax.enable_x64(True):
            return np.asfortranarray(np.asarray(multiply(self.put(left), self.put(right))))

    def eigenvalues(self) -> np.ndarray:
        """All eigenvalues of the Gram matrix, ascending `[short]`."""
        with jax.enable_x64(True):
            return _finite("eigenvalues", _eigenvalues(*self._placed))

    def eigenvectors(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of the Gram matrix, ascending `[short]`; its leading vectors, leading first `[short, count]`."""
        with jax.enable_x64(True):
            squares, vectors = _eigenvectors(*self._placed, count)
            return _finite("eigenvalues", squares), np.asfortranarray(np.asarray(vectors))

    def bidiagonal_values(self) -> np.ndarray:
        """All singular values, descending `[short]`, by the bidiagonal route."""
        with jax.enable_x64(True):
            return _finite("singular values", _svd(*self._placed, False))

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left vectors `[out, r]`, singular values `[r]` and right vectors `[r, in]`, r = min(out, in)."""
        with jax.enable_x64(True):
            left, values, right = _svd(*self._placed, True)
            return np.asarray(left), _finite("singular values", values), np.asarray(right)


def _finite(what: str, values: jax.Array) -> np.ndarray:
    """The values on the host; a device solver reports by NaN what LAPACK reports by its info."""
    found = np.asarray(values)
    if not np.isfinite(found).all():
        raise ArithmeticError(f"the device's solver did not converge: its {what} are not finite")
    return found
