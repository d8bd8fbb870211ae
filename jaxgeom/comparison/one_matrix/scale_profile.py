"""The row and column scales of an update on a logarithmic grid: those of ΔW, or of what bfloat16 storage left it from.

Stored in bfloat16, a quiet row's update is mostly rounded away, and its RMS understates the noise that was there: the
profile of a stored update is steeper than the one before storage. So there the scales are fitted: `r_i` and `c_j` such
that rounding noise of scale `r_i·c_j` leaves the observed mean square in each row and each column.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STEPS_PER_OCTAVE = 64
"""Resolution of row and column scales: a rounding error of 0.3 %, where an RMS of n entries is known to `1/√(2n)`."""

_KNOTS_PER_OCTAVE = 4
_ROUNDS = 8


class ScaleProfile(NamedTuple):
    """Noise scale of the entry (i, j): `scale[rows[i] + columns[j]]`, of mean square 1 over the entries."""

    rows: np.ndarray
    columns: np.ndarray
    scale: np.ndarray


def scale_profile(
    row_squares: np.ndarray, column_squares: np.ndarray, left_by: Callable[[float], float] | None = None
) -> ScaleProfile:
    """The profile of an update from its mean squares.

    Args:
        row_squares: mean of ΔW² per row `[out]`.
        column_squares: the same per column `[in]`.
        left_by: mean square that bfloat16 storage leaves of noise of a given scale, where ΔW was stored so.
    """
    with np.errstate(divide="ignore"):
        own, other = (_bins(0.5 * np.log2(squares)) for squares in (row_squares, column_squares))
    if left_by is not None:
        own, other = _before_storage(row_squares, own, column_squares, other, left_by)
    silent = int(own.max() + other.max()) + 1  # bins from here on are of rows or columns without ΔW
    own, other = (np.where(bins < 0, silent, bins) for bins in (own, other))
    bins = np.arange(int(own.max() + other.max()) + 1)
    scale = np.exp2(np.where(bins < silent, bins / STEPS_PER_OCTAVE, -np.inf))
    scale /= np.sqrt(np.square(scale[own]).mean() * np.square(scale[other]).mean())
    return ScaleProfile(own, other, scale)


def _bins(octaves: np.ndarray) -> np.ndarray:
    """Place on the grid, the smallest 0; −1 where there is no scale."""
    moved = np.isfinite(octaves)
    levels = np.rint(STEPS_PER_OCTAVE * octaves[moved]).astype(np.int64)
    bins = np.full(octaves.size, -1)
    bins[moved] = levels - levels.min()
    return bins


def _before_storage(
    row_squares: np.ndarray,
    own: np.ndarray,
    column_squares: np.ndarray,
    other: np.ndarray,
    left_by: Callable[[float], float],
) -> tuple[np.ndarray, np.ndarray]:
    """Bins of the scales that the mean squares were left from, by alternating Newton steps on groups of equal bins."""
    sides = [_groups(squares, bins) for squares, bins in ((row_squares, own), (column_squares, other))]
    overall = float(np.log(row_squares.mean()))
    knots, levels = _response(left_by, min(side.levels.min() for side in sides), overall)
    slopes = np.gradient(levels, knots)
    logs = [np.interp(side.levels, levels, knots) for side in sides]
    logs[1] = logs[1] - np.interp(overall, levels, knots)
    for _ in range(_ROUNDS):
        for this, that in ((0, 1), (1, 0)):
            sums = logs[this][:, None] + logs[that][None, :]
            left = np.exp(np.interp(sums, knots, levels)) * sides[that].shares
            mean = left.sum(1)
            slope = (left * np.interp(sums, knots, slopes)).sum(1) / mean
            step = (sides[this].levels - np.log(mean)) / np.maximum(slope, 1.0)
            logs[this] = logs[this] + np.clip(step, -0.7, 0.7)
    found = []
    for side, log in zip(sides, logs, strict=True):
        octaves = np.full(side.of.size, -np.inf)
        octaves[side.of >= 0] = log[side.of[side.of >= 0]] / np.log(2)
        found.append(_bins(octaves))
    return found[0], found[1]


class _Groups(NamedTuple):
    """Rows or columns of equal bins: each one's group (−1 without update), log mean squares, shares of all."""

    of: np.ndarray
    levels: np.ndarray
    shares: np.ndarray


def _groups(squares: np.ndarray, bins: np.ndarray) -> _Groups:
    moved = bins >= 0
    _, inverse = np.unique(bins[moved], return_inverse=True)
    of = np.full(bins.size, -1)
    of[moved] = inverse
    sizes = np.bincount(inverse)
    return _Groups(of, np.log(np.bincount(inverse, squares[moved]) / sizes), sizes / bins.size)


def _response(left_by: Callable[[float], float], least: float, overall: float) -> tuple[np.ndarray, np.ndarray]:
    """Log mean square that storage leaves, at knots of the log scale that reach from far below `least` to far above."""
    step = np.log(2) / _KNOTS_PER_OCTAVE
    knots, levels = [overall / 2], [np.log(max(left_by(float(np.exp(overall / 2))), 1e-300))]
    while levels[0] > least - 4 and levels[0] > -600 and len(knots) < 400:
        knots.insert(0, knots[0] - step)
        levels.insert(0, np.log(max(left_by(float(np.exp(knots[0]))), 1e-300)))
    while levels[-1] < overall + 12:
        knots.append(knots[-1] + step)
        levels.append(np.log(max(left_by(float(np.exp(knots[-1]))), 1e-300)))
    return np.array(knots), np.maximum.accumulate(np.array(levels) + 1e-12 * np.arange(len(levels)))
