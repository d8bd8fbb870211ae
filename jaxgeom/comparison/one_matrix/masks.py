"""The largest entries of an initial matrix or of its low-rank reconstruction, ties to the lower row-major index."""

from collections.abc import Callable

import numpy as np

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.one_matrix.scan import order_statistic

_BLOCK = 1 << 21


def magnitude_mask(matrix: np.ndarray, take: int) -> np.ndarray:
    """Flat mask `[out·in]` of the `take` largest `|matrix|`, float32 `[out, in]`."""
    return _largest(np.abs(matrix).reshape(-1), take)


def reconstruction_mask(left: np.ndarray, right: np.ndarray, take: int) -> np.ndarray:
    """Flat mask `[out·in]` of the `take` largest `|left·rightᵀ|`, decided in float64.

    Only the float32 magnitudes are held; entries that tie with the threshold there are told apart in float64.

    Args:
        left: float64 `[out, r]`.
        right: float64 `[in, r]`.
        take: number of entries.
    """
    rows, columns = left.shape[0], right.shape[0]
    magnitude = np.empty((rows, columns), np.float32)
    step = max(1, _BLOCK // columns)
    right_rows = np.ascontiguousarray(right)
    left_rows = np.ascontiguousarray(left)
    for start in range(0, rows, step):
        block = lapack.multiply(right_rows, np.ascontiguousarray(left_rows[start : start + step]).T).T
        np.abs(block, out=magnitude[start : start + step], casting="same_kind")

    def exact(places: np.ndarray) -> np.ndarray:
        return np.abs(np.einsum("ij,ij->i", left_rows[places // columns], right_rows[places % columns]))

    return _largest(magnitude.reshape(-1), take, exact)


def _largest(magnitude: np.ndarray, take: int, exact: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """Mask of the `take` largest magnitudes, float32 `[n]`.

    Args:
        magnitude: what is compared first.
        take: number of entries.
        exact: of flat places `[t]`, the float64 magnitudes that tell entries of one float32 magnitude apart.
    """
    if take <= 0:
        return np.zeros(magnitude.size, bool)
    threshold = order_statistic(magnitude, magnitude.size - take)
    mask = magnitude > threshold
    missing = take - int(np.count_nonzero(mask))
    tied = np.flatnonzero(magnitude == threshold)
    if exact is not None and missing < tied.size:
        tied = tied[np.argsort(-exact(tied), kind="stable")]
    mask[tied[:missing]] = True
    return mask
