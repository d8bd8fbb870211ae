"""The numbers that a 16-bit storage format can tell apart, and where the bfloat16 view of one begins to change.

Weights on a grid of 2¹⁵ magnitudes are counted by magnitude, and what happens to one under noise depends on a few
distances alone: to the ends of its rounding cell, and to the ends of the interval of values that the unchanged test
takes for it. Magnitudes that share those distances form a class (for η < 2⁻⁸ two per exponent of bfloat16), so that a
histogram of a few hundred classes stands for the whole matrix. Constant tables in float64 NumPy.
"""

import functools
from typing import NamedTuple

import numpy as np

BINS = 1 << 15
"""Magnitudes that 15 bits of exponent and mantissa can tell apart; the bins of a magnitude histogram."""

FINITE = {"bfloat16": 0x7F80, "float16": 0x7C00}
"""How many of them are finite; they come first."""

SMALLEST_BF16_GAP = 2.0**-8
"""Smallest relative gap of adjacent normal bfloat16 numbers."""


class Intervals(NamedTuple):
    """Per finite bfloat16 magnitude: the values before rounding that the unchanged test takes for it.

    Attributes:
      low, high: ends of the interval, `[32640]` float64.
      lowest, highest: bins of the extreme bfloat16 numbers in it.
    """

    low: np.ndarray
    high: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


class GridClasses(NamedTuple):
    """Magnitudes of a storage format by what noise does to them; all ends relative to the magnitude.

    Attributes:
      of: class of each bin, int32 `[2¹⁵]`; what is not finite counts as the largest finite number.
      cell_low, cell_high: ends of the rounding cell in the format, `[classes]`.
      low, high: ends of the interval of final values that count as unchanged.
      stored_low, stored_high: the same where the final value is rounded to the format before it is viewed.
    """

    of: np.ndarray
    cell_low: np.ndarray
    cell_high: np.ndarray
    low: np.ndarray
    high: np.ndarray
    stored_low: np.ndarray
    stored_high: np.ndarray


@functools.cache
def magnitudes(storage: str) -> np.ndarray:
    """Value of each finite magnitude bin and of the power of two that follows, float64 `[finite + 1]`."""
    bits = np.arange(FINITE[storage], dtype=np.uint32)
    if storage == "bfloat16":
        return np.append((bits << np.uint32(16)).view(np.float32).astype(np.float64), 2.0**128)
    return np.append(bits.astype(np.uint16).view(np.float16).astype(np.float64), 2.0**16)


def _cells(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the rounding cells of ascending magnitudes; the last one's cell has no upper end."""
    middle = (value[1:] + value[:-1]) / 2
    return np.concatenate([[-middle[0]], middle]), np.concatenate([middle, [np.inf]])


@functools.lru_cache(maxsize=8)
def unchanged_intervals(eta: float) -> Intervals:
    """Interval of the unchanged test `|a−b| ≤ η·max(|a|,|b|)` around each bfloat16 magnitude, before rounding."""
    value = magnitudes("bfloat16")
    below, above = _cells(value)
    lowest = np.searchsorted(value, value * (1 - eta), side="left")
    highest = np.searchsorted(value, value / (1 - eta), side="right") - 1
    found = Intervals(below[lowest], above[highest], lowest, highest)
    return Intervals(*(array[:-1] for array in found))


def bf16_bins(value: np.ndarray) -> np.ndarray:
    """Bin of the bfloat16 number to which non-negative float32 numbers round, ties to even."""
    bits = np.minimum(value, np.finfo(np.float32).max).astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.int64)


@functools.lru_cache(maxsize=8)
def grid_classes(storage: str, eta: float) -> GridClasses:
    """The classes of a format's magnitudes under the unchanged test with tolerance η.

    Args:
      storage: `bfloat16` or `float16`.
      eta: relative tolerance η in [0, 1).

    Returns:
      `GridClasses`, its ends float64.
    """
    value, view = magnitudes(storage), unchanged_intervals(eta)
    finite = FINITE[storage]
    cells = [end[:finite] for end in _cells(value)]
    seen = np.minimum(bf16_bins(value), FINITE["bfloat16"] - 1)
    low, high = view.low[seen][:finite], view.high[seen][:finite]
    # Stored in the format first: all its numbers whose bfloat16 view lies within, each with its own rounding cell.
    first = np.searchsorted(seen, view.lowest[seen[:finite]], side="left")
    last = np.minimum(np.searchsorted(seen, view.highest[seen[:finite]], side="right"), finite) - 1
    ends = [end - value[:finite] for end in (*cells, low, high, cells[0][first], cells[1][last])]
    _, chosen, of = np.unique(np.stack(ends, axis=1), axis=0, return_index=True, return_inverse=True)
    of = of.astype(np.int32).reshape(-1)[np.minimum(np.arange(BINS), finite - 1)]
    return GridClasses(of, *(end[chosen] for end in ends))
