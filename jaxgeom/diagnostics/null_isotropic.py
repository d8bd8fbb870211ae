"""Isotropic nulls: what the spectrum of an update of independent entries gives, whatever its scale.

The singular values of an m × n matrix of independent entries follow the quarter-circle family (Marchenko and Pastur)
up to O(1) shifts in rank, the largest one the Tracy–Widom law. Both depend on the shape alone, so that they are taken
in float64 NumPy, once a shape, and are constants inside a jitted program. Expected numbers of larger matrices come from
the quarter circle, their O(1) corrections and their fluctuations (O(1) in rank whatever the size) from draws at a
reduced size with the same aspect ratio.

Entries with heavier tails than the normal law's, such as those that bfloat16 rounding leaves of a small update, widen
the spectrum: to first order every squared value moves by the factor `1 + b·cos φ`, b the excess kurtosis over √(mn) and
φ the value's angle on the quarter circle (the fourth-cumulant term of the central limit theorem for linear spectral
statistics). `(1 + b)^{cos φ}` continues it to sparse updates. How the deviations grow was measured on rounded Gaussian
updates: `experiments/calibration.py` prints the z's.

1/b is about how many entries of full size a row and a column hold. Where it falls to a few, the spectrum is that of a
sparse random graph, which no law of b describes: `KNOWN` and `NEAR` say up to where these moments hold.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from ._namespace import as_real, namespace
from .moments import NullMoments
from .spectral_numbers import (
    energy_share_from_singular_values,
    entropy_rank_from_singular_values,
    hill_from_singular_values,
    participation_ratio_from_singular_values,
    stable_rank_from_singular_values,
)

TRACY_WIDOM_MEAN, TRACY_WIDOM_VARIANCE = -1.2065335745820, 1.6077810345810
_REDUCED, _DRAWS, _SEED = 100, 256, 20260
KNOWN = 1.5
"""Largest `b·√min(m, n)` at which there is a deviation: what is of second order in b moves a statistic by about b²/10
of itself, up to here about a quarter of a deviation of the most exact of them, the entropy rank (`O(1/min(m, n))`)."""

NEAR = 0.5
"""Largest b at which there is a mean: up to here it is off by 1 to 7 % (the Hill index of a short tail by 12 %), at
b = 1 by up to 25 %."""

_FEW = 8
"""A statistic of the k leading values is reduced in size only down to this k: below, the edge has laws of its own."""


class Spread(NamedTuple):
    """How the deviation of a spectral statistic grows with the kurtosis of the entries: by `√(1 + factor·x/(1 + b)^p)`.

    `x = (m + n)·((κ − 1)² − 4)/(2mn)` is what unequal row and column energies add to the variance of Σσ⁴ over that of
    normal entries.

    Attributes:
      factor: of x, 1 for Σσ⁴ itself.
      power: p, how sparse updates damp it.
    """

    factor: float
    power: float


@functools.lru_cache(maxsize=64)
def _quarter_circle(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected singular values of unit normal entries, descending `[min(m, n)]`, and the cosines of their angles."""
    small, large = min(rows, columns), max(rows, columns)
    ratio = small / large
    # λ = 1 + c + 2√c cos φ turns the density into 2 sin²φ/(πλ) dφ, which is smooth: summed at midpoints.
    angle = (np.arange(1 << 16) + 0.5) * (np.pi / (1 << 16))
    square = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(angle)
    mass = np.cumsum(np.sin(angle) ** 2 / square)
    cosine = np.cos(np.interp((np.arange(small) + 0.5) / small, mass / mass[-1], angle))
    values = np.sqrt(np.maximum(large * (1 + ratio + 2 * np.sqrt(ratio) * cosine), 0))
    values[0], cosine[0] = math.sqrt(largest_square((rows, columns)).mean), 1.0
    for constant in (values, cosine):
        constant.setflags(write=False)
    return values, cosine


def excess_over_root(shape: tuple[int, ...], kurtosis: Any) -> Any:
    """`b = (κ − 3)/√(mn)`, the size of what the kurtosis κ of the entries does to a spectrum; at least −½."""
    xp = namespace(kurtosis)
    return xp.maximum((kurtosis - 3) / math.sqrt(float(shape[-2]) * float(shape[-1])), -0.5)


class Carried(NamedTuple):
    """Whether enough entries carry an update for its spectrum to be that of independent ones; also where it is zero.

    Attributes:
      near: nearly: expectations hold.
      known: to a part of their deviation.
    """

    near: Any
    known: Any


def carried(shape: tuple[int, ...], kurtosis: Any, *, most: float = KNOWN) -> Carried:
    """What the kurtosis of an update's entries leaves known of its spectrum and of its leading directions.

    Args:
      shape: `[..., m, n]`.
      kurtosis: κ of the entries, `[...]`; NaN for an update of zero.
      most: largest `b·√min(m, n)` at which deviations are known.

    Returns:
      `Carried` of `[...]`; both hold of a single row or column, whose one singular value is its norm.
    """
    b, smaller = excess_over_root(shape, kurtosis), min(shape[-2:])
    lost = (b > NEAR) & (smaller > 1)
    return Carried(~lost, ~(lost | ((b * math.sqrt(smaller) > most) & (smaller > 1))))


def isotropic_spectrum(shape: tuple[int, ...], kurtosis: Any = None) -> Any:
    """Typical singular values of a matrix of independent entries of unit variance: Marchenko–Pastur quantiles.

    The largest value is put at its mean under the Tracy–Widom law.

    Args:
      shape: `[..., m, n]`.
      kurtosis: κ of the entries, 3 for normal ones; one number or an array `[...]`.

    Returns:
      `[..., min(m, n)]` values, descending: float64 NumPy without a kurtosis, else in its namespace.
    """
    values, cosine = _quarter_circle(*shape[-2:])
    if kurtosis is None:
        return values
    xp = namespace(kurtosis)
    exponent = 0.5 * xp.log1p(excess_over_root(shape, as_real(kurtosis, xp)))
    return as_real(values, xp) * xp.exp(exponent[..., None] * as_real(cosine, xp))


def largest_square(shape: tuple[int, ...]) -> NullMoments:
    """Mean and deviation of the largest squared singular value of a standard normal matrix, by the Tracy–Widom law.

    Of a single row or column it is the sum of the squares, `χ²` of as many degrees of freedom.

    Args:
      shape: `[..., m, n]`.

    Reference:
      Johnstone, *On the distribution of the largest eigenvalue in principal components analysis*, 2001.
    """
    if min(shape[-2:]) == 1:
        return NullMoments(float(max(shape[-2:])), math.sqrt(2.0 * max(shape[-2:])))
    a, b = (math.sqrt(side - 0.5) for side in shape[-2:])
    width = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return NullMoments((a + b) ** 2 + TRACY_WIDOM_MEAN * width, math.sqrt(TRACY_WIDOM_VARIANCE) * width)


def _tridiagonal(rows: int, columns: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Leading part of a tridiagonal matrix with the squared singular values of a standard normal one.

    Householder reflections turn normal entries into a bidiagonal matrix of independent χ variables.

    Reference:
      Dumitriu and Edelman, *Matrix models for beta ensembles*, 2002.
    """
    small, large = min(rows, columns), max(rows, columns)
    diagonal = rng.chisquare(large - np.arange(length))
    below = rng.chisquare(np.maximum(small - 1 - np.arange(length), 1e-300))
    off = np.sqrt(below[: length - 1] * diagonal[1:])
    if length < small:
        return diagonal + below, off
    diagonal[:-1] += below[:-1]
    return diagonal, off


def _values(diagonal: np.ndarray, off: np.ndarray) -> np.ndarray:
    squares = diagonal
    if off.size:
        squares = scipy.linalg.eigvalsh_tridiagonal(diagonal, off, lapack_driver="sterf", check_finite=False)
    return np.sqrt(np.maximum(squares[::-1], 0))


@functools.lru_cache(maxsize=64)
def _draws(rows: int, columns: int) -> np.ndarray:
    """Spectra of standard normal matrices `[draws, min(m, n)]`, descending."""
    rng = np.random.default_rng(_SEED)
    return np.array([_values(*_tridiagonal(rows, columns, min(rows, columns), rng)) for _ in range(_DRAWS)])


@functools.lru_cache(maxsize=64)
def _leading_draws(rows: int, columns: int, k: int) -> np.ndarray:
    """The k leading singular values of standard normal matrices, and `√Σσ²` over the others: `[draws, k + 1]`.

    Leading eigenvectors of the tridiagonal form live in its first entries: the k-th reaches to the turning point that
    the k-th zero of the Airy function marks, and dies out behind it: what lies four of its units beyond moves the
    energy of the k values by less than a thousandth of its deviation.
    """
    root = math.sqrt(rows) + math.sqrt(columns)
    airy = (1.5 * math.pi * k) ** (2 / 3)
    unit = (1 / math.sqrt(rows) + 1 / math.sqrt(columns)) ** (1 / 3) * math.sqrt(float(rows) * columns) / root
    length = min(min(rows, columns), math.ceil((airy + 4) * unit))
    rng, found = np.random.default_rng(_SEED), np.empty((_DRAWS, k + 1))
    for draw in found:
        diagonal, off = _tridiagonal(rows, columns, length, rng)
        draw[:k] = _values(diagonal, off)[:k]
        freedom = float(rows) * columns - float(rows + columns) * length + float(length) * length
        rest = diagonal.sum() - np.square(draw[:k]).sum() + (rng.chisquare(freedom) if freedom >= 1 else 0.0)
        draw[k] = math.sqrt(max(rest, 0.0))
    return found


Measure = Callable[[Any], Any]
"""A statistic of descending spectra `[..., r]`, in their namespace."""


def _normal_moments(shape: tuple[int, ...], measure: Callable[[int], Measure], k: int | None) -> tuple[float, float]:
    """Mean and deviation for normal entries; `measure(k)` is the statistic, of the k leading values if it has a k."""
    rows, columns = shape[-2:]
    small, large = min(rows, columns), max(rows, columns)
    order = k or small
    if small <= _REDUCED:
        values = measure(order)(_draws(rows, columns))
        return float(np.nanmean(values)), float(np.nanstd(values, ddof=1))
    reduced = round(order * _REDUCED / small)
    if reduced < _FEW:
        values = measure(order)(_leading_draws(rows, columns, order))
        return float(np.mean(values)), float(np.std(values, ddof=1))
    cut = (_REDUCED, max(_REDUCED, round(large * _REDUCED / small)))
    values, share = measure(reduced)(_draws(*cut)), _REDUCED / small
    typical = float(measure(reduced)(_quarter_circle(*cut)[0]))
    mean = float(measure(order)(_quarter_circle(rows, columns)[0]))
    # O(1) in rank: relative to the statistic it falls like 1/min(m, n).
    return mean * (1 + share * (float(np.mean(values)) / typical - 1)), mean * share * float(
        np.std(values, ddof=1) / np.mean(values)
    )


def _normal_participation(rows: int, columns: int) -> tuple[float, float]:
    """Mean and deviation of the participation ratio, to second order in the exact moments of `tr W²/(tr W)²`, W = AAᵀ.

    The trace is independent of what W is over it, and Var tr W² = 4mn(2m² + 2n² + 5mn + 5m + 5n + 5). In whole numbers:
    the relative variance is of the order of 1/(mn).
    """
    m, n, size = rows, columns, rows * columns
    second = size * (m + n + 1)
    square = 4 * size * (2 * m * m + 2 * n * n + 5 * size + 5 * m + 5 * n + 5) + second * second
    mean = Fraction(second, size * (size + 2))
    variance = Fraction(square, size * (size + 2) * (size + 4) * (size + 6)) / mean**2 - 1
    return float((1 + variance) / mean), math.sqrt(variance) / float(mean)


@functools.lru_cache(maxsize=256)
def _cached_moments(name: str, shape: tuple[int, int], k: int | None) -> tuple[float, float]:
    if name == "stable_rank" and min(shape) > _REDUCED:
        top = largest_square(shape)
        relative = top.std / top.mean
        mean = float(shape[0]) * shape[1] / top.mean * (1 + relative**2)
        return mean, mean * relative
    if name == "participation_ratio" and min(shape) > _REDUCED:
        return _normal_participation(*shape)
    return _normal_moments(shape, _MEASURES[name], k)


_MEASURES: dict[str, Callable[[int], Measure]] = {
    "stable_rank": lambda k: stable_rank_from_singular_values,
    "entropy_rank": lambda k: entropy_rank_from_singular_values,
    "participation_ratio": lambda k: participation_ratio_from_singular_values,
    "hill": lambda k: lambda sigma: hill_from_singular_values(sigma, k=k),
    "energy_top": lambda k: lambda sigma: energy_share_from_singular_values(sigma, k=k),
}
_SPREADS = {
    "stable_rank": Spread(0.4, 2), "entropy_rank": Spread(0.6, 0), "participation_ratio": Spread(1, 2),
    "hill": Spread(0, 0), "energy_top": Spread(1, 2),
}  # fmt: skip


def isotropic_moments(name: str, shape: tuple[int, ...], *, kurtosis: Any = None, k: int | None = None) -> NullMoments:
    """Mean and deviation of a spectral statistic of an update of independent entries.

    Args:
      name: `stable_rank`, `entropy_rank`, `participation_ratio`, `hill` or `energy_top`.
      shape: `[..., m, n]`.
      kurtosis: κ of the entries, `mn·Σδ⁴/(Σδ²)²`; that of normal ones, 3, where it is not given. One number or `[...]`.
      k: length of the tail of `hill`, dimension of `energy_top`.

    Returns:
      `NullMoments(mean, std)`: Python numbers without a kurtosis, else in its namespace; NaN where it is NaN, and
      where few entries carry the update: std beyond `KNOWN`, both beyond `NEAR`.

    Reference:
      Bai and Silverstein, *Spectral Analysis of Large Dimensional Random Matrices*, 2010, chapter 9.

    >>> null = isotropic_moments("stable_rank", (1024, 1024))
    >>> 250 < null.mean < 270, 1 < null.std < 3
    (True, True)
    """
    rows, columns = shape[-2:]
    mean, std = _cached_moments(name, (max(rows, columns), min(rows, columns)), k)  # a matrix and its transpose: once
    if kurtosis is None:
        return NullMoments(mean, std)
    xp = namespace(kurtosis)
    kurtosis = as_real(kurtosis, xp)
    measure = _MEASURES[name](k or min(rows, columns))
    moved = measure(isotropic_spectrum(shape, kurtosis)) / float(measure(_quarter_circle(rows, columns)[0]))
    spread, b = _SPREADS[name], excess_over_root(shape, kurtosis)
    added = xp.maximum(xp.square(kurtosis - 1) - 4, 0.0) * ((rows + columns) / (2.0 * rows * columns))
    deviation = std * xp.sqrt(1 + spread.factor * added / (1 + b) ** spread.power)
    near, known = carried(shape, kurtosis)
    return NullMoments(xp.where(near, mean * moved, xp.nan), xp.where(known, deviation, xp.nan))


def isotropic_stable_rank(shape: tuple[int, ...]) -> float:
    """Stable rank of an isotropic update of normal entries, about `mn/(√m + √n)²`.

    Args:
      shape: `[..., m, n]`.

    Returns:
      A Python number.

    >>> 250 < isotropic_stable_rank((1024, 1024)) < 270
    True
    """
    return isotropic_moments("stable_rank", shape).mean
