"""Matrices that the tests of the diagnostics share, and float64 numpy oracles."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

BF16 = ml_dtypes.bfloat16


def gaussian(shape: tuple[int, ...], seed: int = 0, scale: float = 0.02) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) * scale


def orthogonal(n: int, k: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


def from_spectrum(m: int, n: int, sigma: np.ndarray, seed: int = 0) -> np.ndarray:
    r = len(sigma)
    return (orthogonal(m, r, seed) * sigma) @ orthogonal(n, r, seed + 1).T


def planes_rotated(basis: np.ndarray, angle: float | np.ndarray) -> np.ndarray:
    """Every pair (column i, column i + k) of an orthogonal matrix [n, 2k] turned by its angle."""
    k = basis.shape[1] // 2
    a, b = basis[:, :k], basis[:, k:]
    return np.concatenate([np.cos(angle) * a + np.sin(angle) * b, np.cos(angle) * b - np.sin(angle) * a], axis=1)


def as_bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to the bfloat16 grid by ml_dtypes, widened to float64."""
    return x.astype(np.float32).astype(BF16).astype(np.float64)


def numpy_changed(a: np.ndarray, b: np.ndarray, eta: float) -> np.ndarray:
    a, b = as_bf16(a), as_bf16(b)
    return np.abs(a - b) > eta * np.maximum(np.abs(a), np.abs(b))


def numpy_mask(magnitude: np.ndarray, fraction: float, largest: bool) -> np.ndarray:
    """Exactly ⌊α·n + ½⌋ entries by a stable sort: ties to the lower row-major index."""
    flat = np.abs(magnitude.astype(np.float64)).ravel()
    count = int(np.floor(fraction * flat.size + 0.5))
    order = np.argsort(-flat if largest else flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[:count]] = True
    return mask.reshape(magnitude.shape)


@st.composite
def weights(draw):
    """A small matrix of one of the dtypes, with ties, zeros and subnormal-free values of very different sizes.

    Shapes come from a short list, because every new one costs a compilation.
    """
    rows, columns = draw(st.sampled_from([(1, 1), (1, 9), (7, 1), (5, 12), (11, 6)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "ties", "zeros", "scales"]))
    x = rng.standard_normal((rows, columns)) * 0.02
    if kind == "ties":
        x = np.round(x * 100) / 128
    if kind == "zeros":
        x = x * (rng.random((rows, columns)) < 0.5)
    if kind == "scales":
        x = x * 10.0 ** rng.integers(-6, 4, (rows, columns))
    return jnp.asarray(x, dtype=draw(st.sampled_from([jnp.bfloat16, jnp.float16, jnp.float32])))


def numpy64(x) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.float32) if x.dtype != jnp.float64 else x).astype(np.float64)
