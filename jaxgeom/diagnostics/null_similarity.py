"""Similarity of the leading right subspaces of two Gaussian matrices of given correlation: its mean and its deviation.

The mean has a closed form. Noise of correlation ρ carries the k-th orthogonal polynomial of the spectrum of AᵀA
(Marchenko and Pastur) over with the factor `ρ^{2k}`, to leading order in the size; with the squared singular values at
`1 + c + 2√c·cos φ`, c = n/m, those polynomials are `(sin (k+1)φ + √c·sin kφ)/sin φ`. So with a_k the integral of the
k-th over the share q = K/n of leading values, `E Sim_K = Σ_k ρ^{2k}·a_k²/q`: q for independent matrices, 1 at ρ = 1.
Against sampled pairs it is within a fifth of a deviation from 5 × 3 to 1024 × 512.

The deviation, over K, is a function of the mean alone wherever subspaces are well mixed, and of K besides where they
hardly turned. It is sampled at a reduced size and read at the same mean.
"""

import functools
import math
import threading
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from ._namespace import as_real, namespace
from .moments import NullMoments

GRID, _FINE = 13, 193
"""Points at which pairs are sampled, and of the curve."""

_TERMS, _NODES = 512, 2048
"""Polynomials, and points of the integrals over them: what is left out changes a similarity by less than 2e-3."""

_FEWEST = 8
"""K that a reduced sample has at least (or the real one, where that is smaller)."""

_ENTRIES = 1 << 16
"""Entries of a sampled matrix up to which more draws than the least are taken."""


class SimilarityCurve(NamedTuple):
    """Sim_K of the right top-K subspaces of two isotropic updates, by their correlation ρ; float64 NumPy.

    Attributes:
      decorrelation: `√(1 − ρ²)`, ascending from 0 to 1, `[193]`.
      mean: expected similarity there, from 1 down to K/n.
      std: standard deviation of one pair's similarity about that mean.
    """

    decorrelation: np.ndarray
    mean: np.ndarray
    std: np.ndarray


_lock = threading.Lock()


def expected_similarity(shape: tuple[int, ...], decorrelation: np.ndarray, *, k: int) -> np.ndarray:
    """Mean of Sim_K of two isotropic updates of correlation ρ.

    Args:
      shape: `[..., m, n]`.
      decorrelation: `√(1 − ρ²)`, float64 NumPy `[points]`.
      k: K, at most min(m, n).

    Returns:
      `[points]`, from 1 at no decorrelation to K/n.

    Reference:
      Bun, Bouchaud and Potters, *Overlaps between eigenvectors of correlated random matrices*, 2018; Cabanal-Duvillard,
      *Fluctuations de la loi empirique de grandes matrices aléatoires*, 2001.

    >>> expected_similarity((48, 32), np.array([0.0, 1.0]), k=4)
    array([1.   , 0.125])
    """
    rows, columns = shape[-2:]
    ratio, share = columns / rows, min(1.0, k / columns)
    if share == 1:
        return np.ones(decorrelation.shape)
    angle = (np.arange(1 << 15) + 0.5) * (np.pi / (1 << 15))
    below = np.cumsum(_density(angle, ratio)) / (1 << 15) * np.pi
    end = np.interp(share, np.r_[0.0, below], np.r_[0.0, angle + np.pi / (1 << 16)])
    angle = (np.arange(_NODES) + 0.5) * (end / _NODES)
    weight = _density(angle, ratio) * (end / _NODES)
    order = np.arange(_TERMS + 1)
    sines = np.sin(order[:, None] * angle) @ (weight / np.sin(angle))
    parts = np.square(sines[1:] + math.sqrt(ratio) * sines[:-1])
    parts *= share**2 / parts[0]  # the first is the share itself
    rest = max(share - parts.sum(), 0.0)
    square = 1 - np.square(decorrelation)
    powers = square[:, None] ** order
    return (powers[:, :-1] @ parts + powers[:, -1] * rest) / share


def _density(angle: np.ndarray, ratio: float) -> np.ndarray:
    """Spectral density of AᵀA by the angle of its values, without those that are zero."""
    return (2 / np.pi) * np.sin(angle) ** 2 / (1 + ratio + 2 * math.sqrt(ratio) * np.cos(angle))


def similarity_curve(
    shape: tuple[int, ...], *, k: int, seed: int = 0, draws: int = 12, size_limit: int = 128
) -> SimilarityCurve:
    """The similarity curve of a shape, made once.

    Args:
      shape: `[..., m, n]`.
      k: K, at most min(m, n).
      seed: of the draws of its deviation.
      draws: pairs sampled per point at least; small shapes take up to eight times as many.
      size_limit: largest side that is sampled as it is.

    Returns:
      `SimilarityCurve`.
    """
    with _lock:  # the threads of a comparison wait for one of them
        return _curve(*shape[-2:], k, seed, draws, size_limit)


@functools.lru_cache(maxsize=64)
def _curve(rows: int, columns: int, k: int, seed: int, draws: int, size_limit: int) -> SimilarityCurve:
    fine = np.linspace(0.0, 1.0, _FINE) ** 2  # dense near 0, where the curve falls
    mean = expected_similarity((rows, columns), fine, k=k)
    mean[0], mean[-1] = 1.0, disjoint_similarity((rows, columns), k=k)  # to the last digit
    shrink = min(1.0, size_limit / max(rows, columns))
    size = max(1, round(rows * shrink)), max(1, round(columns * shrink))
    few = min(max(round(k * shrink), min(k, _FEWEST)), *size)
    apart = np.linspace(0.0, 1.0, GRID) ** 2
    draws = draws * max(1, min(8, _ENTRIES // (size[0] * size[1])))
    rng, values = np.random.default_rng([seed, rows, columns, k]), np.empty((draws, GRID - 1))
    for row in values:
        first, second = rng.standard_normal((2, *size))
        base = _right_subspace(first, few)
        for place, one in enumerate(apart[1:]):
            moved = _right_subspace(math.sqrt(1 - one**2) * first + one * second, few)
            row[place] = np.square(base.T @ moved).sum() / few
    variance = np.square(few) * np.r_[0.0, values.var(0, ddof=1)]
    variance[-1] = np.square(few * disjoint_similarity_std(size, k=few))  # independent ones: known exactly
    # A few dozen draws tell a variance to a fifth only: it is smoothed over neighbouring points.
    inner = variance[1:-1].copy()
    padded = np.r_[inner[:1], inner, inner[-1:]]
    variance[1:-1] = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    level = expected_similarity(size, apart, k=few)
    std = np.interp(mean, level[::-1], np.sqrt(variance)[::-1])
    # Below what the reduced size reaches, as between independent ones.
    lower = mean < level[-1]
    std[lower] = math.sqrt(2) * mean[lower] * (1 - mean[lower])
    std /= k
    std[0], std[-1] = 0.0, disjoint_similarity_std((rows, columns), k=k)
    return SimilarityCurve(fine, mean, std)


def _right_subspace(matrix: np.ndarray, k: int) -> np.ndarray:
    """Leading right singular vectors `[n, k]` by the Gram matrix of the smaller side."""
    wide = matrix.shape[1] > matrix.shape[0]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    size = gram.shape[0]
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(size - k, size - 1))
    return matrix.T @ vectors / np.sqrt(values) if wide else vectors


def similarity_at(curve: SimilarityCurve, correlation: Any) -> NullMoments:
    """Sim_K of two isotropic updates of given correlation.

    Args:
      curve: `similarity_curve` of the shape and K.
      correlation: ρ, numpy or JAX, any shape.

    Returns:
      Mean and deviation; no deviation (NaN) where the two updates are one.
    """
    xp = namespace(correlation)
    apart = xp.sqrt(xp.clip(1 - xp.square(as_real(correlation, xp)), 0.0, 1.0))
    grid, mean, std = (as_real(x, xp) for x in curve)
    return NullMoments(xp.interp(apart, grid, mean), xp.where(apart > 0, xp.interp(apart, grid, std), xp.nan))


def disjoint_similarity(shape: tuple[int, ...], *, k: int) -> float:
    """Expected similarity of two independent isotropic right subspaces: K/n.

    Args:
      shape: `[..., m, n]`.
      k: K.

    Returns:
      A Python number.

    >>> disjoint_similarity((4096, 1024), k=16)
    0.015625
    """
    return min(1.0, k / shape[-1])


def disjoint_similarity_std(shape: tuple[int, ...], *, k: int) -> float:
    """Standard deviation of the similarity of two independent uniformly random K-dimensional subspaces of R^n.

    `Var ‖VᵀV'‖_F² = 2K²(n−K)²/(n²(n−1)(n+2))`, over K².

    Args:
      shape: `[..., m, n]`.
      k: K.

    Returns:
      A Python number.
    """
    n = float(shape[-1])
    if k >= n or n < 2:
        return 0.0
    return math.sqrt(2.0 * (n - k) ** 2 / (n * n * (n - 1) * (n + 2)))
