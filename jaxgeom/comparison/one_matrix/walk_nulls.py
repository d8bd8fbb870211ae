"""What a random walk with the observed steps gives: similarity to later subspaces, and distance covered."""

import functools
import math
import threading

import jax
import numpy as np

from jaxgeom.diagnostics.null_trajectory import disjoint_similarity_std, similarity_curve

_DRAWS = 12
_curve_lock = threading.Lock()


@functools.lru_cache(maxsize=64)
def _curve(rows: int, columns: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decorrelation, expected similarity, and standard deviation of one matrix's similarity about it.

    The variance is smoothed over neighbouring points, since a dozen draws tell it to about a fifth only, and holds the
    sampling error of the mean too. At full decorrelation it is known exactly.
    """
    curve = similarity_curve(jax.random.key(seed), shape=(rows, columns), k=k, draws=_DRAWS, size_limit=256)
    variance = np.square(np.asarray(curve.std, np.float64)) * (1 + 1 / _DRAWS)
    padded = np.pad(variance[1:], 1, mode="edge")
    variance[1:] = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    variance[0] = 0.0  # an update against itself
    variance[-1] = disjoint_similarity_std((rows, columns), k=k) ** 2
    return np.asarray(curve.decorrelation, np.float64), np.asarray(curve.mean, np.float64), np.sqrt(variance)


def random_walk_similarity(
    shape: tuple[int, int], k: int, seed: int, increments: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sim_K between the cumulative updates of independent increments: mean and standard deviation, `[t, t]` each.

    Args:
        shape: of the matrix.
        k: K.
        seed: of the sampled curve, one per shape.
        increments: norms of the increments between checkpoints `[t]`.

    Returns:
        NaN before any moved.
    """
    with _curve_lock:
        decorrelation, mean, deviation = _curve(*shape, k, seed)
    energy = np.cumsum(np.square(increments))
    early, late = np.minimum.outer(energy, energy), np.maximum.outer(energy, energy)
    share = np.where(early > 0, early / np.where(late > 0, late, 1), np.nan)
    apart = np.sqrt(np.clip(1 - share, 0, 1))
    return np.interp(apart, decorrelation, mean), np.interp(apart, decorrelation, deviation)


def walked_distance(increments: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """`√Σ‖increments‖²` up to each step, and the deviation of `‖ΔW_t‖` over it for independent isotropic increments.

    `‖ΔW‖² = Σa_i² + 2Σ_{i<j} a_i a_j c_ij` with cosines c_ij of variance `1/(mn)`, so that to first order the ratio is
    1 with variance `Σ_{i<j} a_i²a_j²/(mn·(Σa²)²)`; no deviation after a single increment.

    Args:
        increments: norms a_i of the increments `[t]`.
        entries: mn.
    """
    squares = np.square(increments)
    energy = np.cumsum(squares)
    pairs = (np.square(energy) - np.cumsum(np.square(squares))) / 2
    safe = np.where(energy > 0, energy, 1)
    return np.sqrt(energy), np.sqrt(np.maximum(pairs, 0) / entries) / safe


def cosine_deviation(entries: int) -> float:
    """Standard deviation of the cosine between two independent isotropic updates, `1/√(mn)`."""
    return 1 / math.sqrt(entries)
