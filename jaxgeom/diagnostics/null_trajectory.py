"""Trajectory nulls: what a random walk with the observed steps gives for subspaces, distance and direction.

Independent isotropic increments have Gaussian cumulative updates whose correlation between steps s < t is
`ρ = c_s/c_t`, `c_t² = Σ_{τ≤t} a_τ²`. The similarity of their top-K subspaces depends on ρ and the shape alone: one
curve, sampled once per shape in float64 NumPy, serves every matrix of that shape and every sequence of norms, and is a
constant inside a jitted program. The disjoint similarity (`ΔW_{0→t}` against `ΔW_{t→T}`) of independent increments
is K/n exactly where checkpoints hold every digit; where they are rounded, the two share a rounding error.
"""

import functools
import math
import threading
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from ._namespace import as_real, divide, namespace
from .moments import NullMoments
from .null_isotropic import Carried, carried

SHOWN = 0.75
"""Largest `b·√min(m, n)` (`null_isotropic`) of an update at which the deviation of its subspace's similarity is known:
directions lean towards the few columns that hold large entries, and rounding makes those the same in both updates."""

GRID = 13
_ENTRIES = 1 << 16
"""Entries of a sampled matrix up to which more draws than the least are taken."""


class SimilarityCurve(NamedTuple):
    """Sim_K of the right top-K subspaces of two isotropic updates, by their correlation ρ; float64 NumPy.

    Attributes:
      decorrelation: `√(1 − ρ²)`, ascending from 0 to 1, `[13]`.
      mean: expected similarity there, from 1 down to K/n.
      std: standard deviation of one pair's similarity about that mean, the mean's own error included.
    """

    decorrelation: np.ndarray
    mean: np.ndarray
    std: np.ndarray


_lock = threading.Lock()


def similarity_curve(
    shape: tuple[int, ...], *, k: int, seed: int = 0, draws: int = 12, size_limit: int = 256
) -> SimilarityCurve:
    """The similarity curve of a shape, sampled once.

    Shapes above `size_limit` are sampled at that size with the same aspect ratio: at the edge of the spectrum
    subspaces decorrelate on the scale `√(1−ρ²) ∼ n^{−1/6}`, so `√(1−ρ²)/ρ` is rescaled by that factor, and the excess
    over chance K/n carried over. The variance is smoothed over neighbouring points, since a dozen draws tell it to
    about a fifth only; at full decorrelation it is known exactly.

    Args:
      shape: `[..., m, n]`.
      k: K, at most min(m, n).
      seed: of the draws.
      draws: pairs sampled per point at least; small shapes take up to eight times as many.
      size_limit: largest side that is sampled as it is.

    Returns:
      `SimilarityCurve`.
    """
    with _lock:  # the threads of a comparison wait for one of them
        return _curve(*shape[-2:], k, seed, draws, size_limit)


@functools.lru_cache(maxsize=64)
def _curve(rows: int, columns: int, k: int, seed: int, draws: int, size_limit: int) -> SimilarityCurve:
    shrink = min(1.0, size_limit / max(rows, columns))
    size = tuple(max(k, round(side * shrink)) for side in (rows, columns))
    draws = draws * max(1, min(8, _ENTRIES // (size[0] * size[1])))
    grid = np.linspace(0.0, 1.0, GRID) ** 2  # dense near 0, where the curve falls
    # tan = d/ρ of the real matrix is tan·(n/n')^{1/6} of the sampled one: right at both ends.
    tangent = (min(rows, columns) / min(size)) ** (1 / 6) * grid
    sampled = tangent / np.sqrt(1 - np.square(grid) + np.square(tangent))
    rng, values = np.random.default_rng([seed, rows, columns, k]), np.empty((draws, GRID))
    for row in values:
        first, second = rng.standard_normal((2, *size))
        base = _right_subspace(first, k)
        for place, apart in enumerate(sampled):
            moved = _right_subspace(math.sqrt(1 - apart**2) * first + apart * second, k) if place else base
            row[place] = np.square(base.T @ moved).sum() / k
    chance, sampled_chance = min(1.0, k / columns), min(1.0, k / size[1])
    mean = np.clip((values.mean(0) - sampled_chance) / max(1 - sampled_chance, 1e-9), 0.0, 1.0)
    mean = chance + (1 - chance) * mean
    mean[0], mean[-1] = 1.0, chance  # an update against itself, and independent ones: known exactly
    variance = values.var(0, ddof=1) * (1 + 1 / draws)
    padded = np.pad(variance[1:], 1, mode="edge")
    variance[1:] = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    variance[0], variance[-1] = 0.0, disjoint_similarity_std((rows, columns), k=k) ** 2
    return SimilarityCurve(grid, mean, np.sqrt(variance))


def _right_subspace(matrix: np.ndarray, k: int) -> np.ndarray:
    """Leading right singular vectors `[n, k]` by the Gram matrix of the smaller side."""
    wide = matrix.shape[1] > matrix.shape[0]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    size = gram.shape[0]
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(size - k, size - 1))
    return matrix.T @ vectors / np.sqrt(values) if wide else vectors


def carried_directions(shape: tuple[int, ...], kurtosis: Any) -> Carried:
    """Whether enough entries carry an update for its leading directions to be those of an isotropic one.

    Args:
      shape: `[..., m, n]`.
      kurtosis: κ of the entries, `[...]`; NaN for an update of zero.
    """
    return carried(shape, kurtosis, most=SHOWN)


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


def where_carried(null: NullMoments, *updates: Carried | None) -> NullMoments:
    """A similarity's null where enough entries carry the updates whose subspaces are compared; else NaN.

    Args:
      null: mean and deviation.
      updates: what is known of each update, broadcast against the null; None for all.
    """
    xp, (mean, std) = namespace(null, updates), null
    for one in updates:
        if one is not None:
            mean, std = xp.where(one.near, mean, xp.nan), xp.where(one.known, std, xp.nan)
    return NullMoments(mean, std)


def random_walk_similarity(
    curve: SimilarityCurve, increment_norms: Any, covariance: Any = None, *, updates: Carried | None = None
) -> NullMoments:
    """Sim_K between the cumulative updates of a random walk with the observed increment norms.

    Args:
      curve: `similarity_curve` of the shape and K.
      increment_norms: `‖W_t − W_{t−1}‖_F` between saved checkpoints, `[..., T]`, numpy or JAX.
      covariance: `walk_covariance` `[..., T, T]` of checkpoints rounded to a 16-bit grid; None for stored exactly.
      updates: `carried_directions` of the cumulative updates, `[..., T]`; None where enough entries carry them all.

    Returns:
      Mean and deviation, `[..., T, T]` each; no deviation (NaN) where the two updates are one, neither of the two
      against a step where nothing has moved yet, or which too few entries carry.
    """
    first, second = (None, None) if updates is None else (
        Carried(*(part[..., :, None] for part in updates)), Carried(*(part[..., None, :] for part in updates))
    )  # fmt: skip
    return where_carried(_walk_similarity(curve, increment_norms, covariance), first, second)


def _walk_similarity(curve: SimilarityCurve, increment_norms: Any, covariance: Any) -> NullMoments:
    xp = namespace(increment_norms, covariance)
    if covariance is not None:
        own = xp.diagonal(covariance, axis1=-2, axis2=-1)
        both = xp.sqrt(own[..., :, None] * own[..., None, :])
        same = xp.eye(own.shape[-1], dtype=bool)
        return similarity_at(curve, xp.where(same & (own[..., :, None] > 0), 1.0, divide(covariance, both)))
    energy = xp.cumsum(xp.square(as_real(increment_norms, xp)), axis=-1)
    early = xp.minimum(energy[..., :, None], energy[..., None, :])
    late = xp.maximum(energy[..., :, None], energy[..., None, :])
    return similarity_at(curve, xp.sqrt(xp.where(early > 0, divide(early, late), xp.nan)))


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


def walked_distance(increment_norms: Any, cosine_stds: Any) -> tuple[Any, Any]:
    """`√Σ‖increments‖²` up to each step, and the deviation of `‖ΔW_t‖` over it for independent increments.

    `‖ΔW‖² = Σa_i² + 2Σ_{i<j} a_i a_j c_ij` with cosines c_ij of mean 0, so that to first order the ratio is 1 with
    variance `Σ_{i<j} a_i²a_j²·Var(c)/(Σa²)²`; no deviation (NaN) after a single increment.

    Args:
      increment_norms: norms a_i of the increments `[..., T]`, numpy or JAX.
      cosine_stds: deviation of the cosine of two increments, `[...]`: `1/√(mn)` for isotropic ones.

    Returns:
      Distances and deviations, `[..., T]` each.
    """
    xp = namespace(increment_norms, cosine_stds)
    squares = xp.square(as_real(increment_norms, xp))
    energy = xp.cumsum(squares, axis=-1)
    pairs = xp.maximum(xp.square(energy) - xp.cumsum(xp.square(squares), axis=-1), 0.0) / 2
    pairs = xp.where(xp.cumsum(squares > 0, axis=-1) <= 1, xp.nan, pairs)
    return xp.sqrt(energy), divide(xp.sqrt(pairs) * xp.asarray(cosine_stds)[..., None], energy)


def cosine_std(shape: tuple[int, ...]) -> float:
    """Standard deviation of the cosine between two independent isotropic updates, `1/√(mn)`.

    Args:
      shape: `[..., m, n]`.

    Returns:
      A Python number.
    """
    return 1 / math.sqrt(float(shape[-2]) * float(shape[-1]))
