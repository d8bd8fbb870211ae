"""What the nulls that keep something of the real update need of it: two passes over ΔW, counted into small tables.

The scale-profile null asks for each entry of W0 how far it is from rounding elsewhere and how loud its row and column
are; the permutation null asks for the former and for the distribution of ΔW's entries. Both depend on an entry through
few values: its class (bfloat16 patterns whose unchanged interval lies alike around them) and its noise scale `r_i·c_j`
on a fine logarithmic grid, whose bins add up from those of the row and of the column.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxgeom.comparison.one_matrix.rounding import BINS, FINITE, classes, edges
from jaxgeom.comparison.one_matrix.scale_profile import ScaleProfile, scale_profile
from jaxgeom.comparison.one_matrix.scan import view_bits

MASKS = ("overlap_principal", "overlap_low")
"""Statistics whose masks the counts tell apart; the place is the bit in the last axis of the counts."""

_SCAN = 1 << 17
_UPDATE_KEYS = 1 << 17


class PatternClasses(NamedTuple):
    """The 2¹⁶ bfloat16 patterns grouped by which updates leave them unchanged.

    `of` is the class of each pattern, `magnitude` each class's class of magnitudes (`rounding.classes`). An update δ of
    an entry on the bfloat16 grid changes it where `δ < below` or `δ > above`: ties go to even mantissas, so these are
    the ends of the interval or the float64 numbers next to them. `is_negative` mirrors what is relative to magnitudes.
    """

    of: np.ndarray
    magnitude: np.ndarray
    below: np.ndarray
    above: np.ndarray
    is_negative: np.ndarray


@functools.lru_cache(maxsize=8)
def pattern_classes(eta: float) -> PatternClasses:
    """The classes of patterns: for η < 2⁻⁸ four per exponent, odd and even ones and both signs of powers of two."""
    table, intervals = classes(eta), edges(eta)
    low, high = table.low[table.of], table.high[table.of]
    low_odd, high_odd = (bins % 2 == 1 for bins in (intervals.lowest, intervals.highest))
    mirrored = (-low == high) & (low_odd == high_odd)
    finite = np.minimum(np.arange(BINS), FINITE - 1)  # float32 numbers that round to infinity count as the largest
    codes = np.concatenate(
        [table.of * 8 + low_odd * 4 + high_odd * 2 + (negative & ~mirrored) for negative in (False, True)]
    )
    found, of = np.unique(codes, return_inverse=True)
    of = of.reshape(2, FINITE)[:, finite].reshape(-1)
    magnitude, negative = found // 8, found % 2 == 1
    low, high = table.low[magnitude], table.high[magnitude]
    low = np.where(found & 4, np.nextafter(low, np.inf), low)
    high = np.where(found & 2, np.nextafter(high, -np.inf), high)
    below, above = np.where(negative, -high, low), np.where(negative, -low, high)
    return PatternClasses(of.astype(np.uint16), magnitude, below, above, negative)


@dataclasses.dataclass(frozen=True)
class UpdateCells:
    """Counts of one pair of matrices.

    Attributes:
        eta: relative tolerance of the unchanged test.
        on_grid: whether every entry of W0 is a bfloat16 number.
        members: which of `pattern_classes` the rows of `counts` stand for.
        profile: relative scale of the noise per scale bin; mean square 1 over the entries.
        counts: entries per class, scale bin and masks that they lie in `[class, scale, 2^masks]`, int64.
        update_values: values of ΔW's entries, ascending: exact where they have 8 significant bits, else the middle of
            the values between two such numbers.
        update_counts: entries of ΔW per value.
    """

    eta: float
    on_grid: bool
    members: np.ndarray
    profile: np.ndarray
    counts: np.ndarray
    update_values: np.ndarray
    update_counts: np.ndarray

    @property
    def total(self) -> int:
        """Entries of the matrix."""
        return int(self.update_counts.sum())

    def inside(self, name: str, counts: np.ndarray | None = None) -> np.ndarray:
        """The counts without their last axis, of the entries in the mask of the statistic `name` alone."""
        codes = np.arange(1 << len(MASKS))
        counts = self.counts if counts is None else counts
        return counts[..., codes & (1 << MASKS.index(name)) > 0].sum(-1)


def count_cells(
    initial: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    histogram: np.ndarray,
    *,
    eta: float,
    on_grid: bool,
    masks: dict[str, np.ndarray],
    left_by: Callable[[float], float] | None = None,
) -> UpdateCells:
    """Counts a pair of matrices for the nulls that keep something of its update.

    Args:
        initial: stored W0 `[out, in]`.
        a: the same widened to float32.
        b: W+ widened to float32, not equal to `a` everywhere.
        histogram: entries of W0 per bfloat16 magnitude bin `[2¹⁵]`.
        eta: relative tolerance of the unchanged test.
        on_grid: whether every entry of W0 is a bfloat16 number.
        masks: flat bool masks of W0 by the statistic of `MASKS` that they belong to; absent ones count as empty.
        left_by: mean square that bfloat16 storage leaves of noise of a given scale, where ΔW was stored so.
    """
    rows, columns, values, counts = _update_scan(a, b)
    profile = scale_profile(rows, columns, left_by)
    codes = np.zeros(a.shape, np.uint8)
    for name, mask in masks.items():
        codes |= mask.reshape(a.shape).view(np.uint8) << np.uint8(MASKS.index(name))
    table = pattern_classes(eta)
    members, counted = _joint_counts(initial, a, histogram, table.of, profile, codes)
    return UpdateCells(eta, on_grid, members, profile.scale, counted, values, counts)


def _row_blocks(shape: tuple[int, ...], entries: int = _SCAN) -> list[slice]:
    step = max(1, entries // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _update_scan(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of ΔW² per row and per column, and the values of ΔW's entries with their counts.

    A key of 17 bits tells an entry's upper 16 bits, and whether the others are zero: then the value is exact.
    """
    rows, columns, found = np.empty(a.shape[0]), np.zeros(a.shape[1]), np.zeros(_UPDATE_KEYS, np.int64)
    peak = max(float(np.abs(b[where] - a[where]).max()) for where in _row_blocks(a.shape))
    power = -int(np.clip(math.frexp(peak)[1], -126, 126))
    unit = np.float32(2.0**power)  # squares of small updates would vanish
    for where in _row_blocks(a.shape):
        delta = b[where] - a[where]
        squares = np.square(delta * unit)
        rows[where] = squares.sum(1)
        columns += squares.sum(0)
        bits = delta.view(np.uint32)
        keys = bits >> np.uint32(16)
        bits += np.uint32(0xFFFF)
        bits >>= np.uint32(16)
        keys += bits
        found += np.bincount(keys.reshape(-1), minlength=_UPDATE_KEYS)
    keys = np.flatnonzero(found)
    exact, counts = keys % 2 == 0, found[keys]
    ends = [(((keys + more) // 2).astype(np.uint32) << np.uint32(16)).view(np.float32) for more in (0, 1)]
    values = np.where(exact, ends[0], (ends[0].astype(np.float64) + ends[1]) / 2)
    order = np.argsort(values, kind="stable")
    rows, columns = (np.ldexp(sums, -2 * power) for sums in (rows / a.shape[1], columns / a.shape[0]))
    return rows, columns, values[order], counts[order]


def _joint_counts(
    initial: np.ndarray, a: np.ndarray, histogram: np.ndarray, of: np.ndarray, profile: ScaleProfile, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The classes that occur, and entries per class, scale bin and mask code."""
    magnitudes = np.flatnonzero(histogram)
    present = np.zeros(int(of.max()) + 1, bool)
    present[of[magnitudes]] = present[of[magnitudes + BINS]] = True
    members = np.flatnonzero(present)
    width, scales = 1 << len(MASKS), profile.scale.size
    start_of = ((np.cumsum(present) - 1) * (scales * width))[of]
    row_start, column_start = profile.rows[:, None] * width, profile.columns[None, :] * width
    size = members.size * scales * width
    found = np.zeros(size, np.int64)
    for where in _row_blocks(a.shape, max(_SCAN, size)):
        keys = start_of[view_bits(initial[where], a[where])]
        keys += column_start
        keys += row_start[where]
        keys += codes[where]
        found += np.bincount(keys.reshape(-1), minlength=size)
    return members, found.reshape(members.size, scales, width)
