"""Counts behind the nulls that keep something of the real update: its row and column scales, or its own entries.

An entry matters to them through few values. Where it stands: which values of W0 round alike (a class of patterns),
which masks of W0 it lies in, and how loud its row and its column are, on a logarithmic grid where their levels add up.
What it becomes: the value of ΔW to eight bits. So a few passes over the arrays, block by block, fill small tables.
"""

import functools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from jaxgeom.comparison.one_matrix.scan import EntrySums, histogram_bits
from jaxgeom.diagnostics.entry_numbers import OVERLAPS
from jaxgeom.diagnostics.null_permutation import (  # fmt: skip
    UPDATE_BINS,
    PermutationCounts,
    pattern_classes,
    update_bins,
    update_values,
)
from jaxgeom.diagnostics.null_profile import ProfileCells, averages, estimation
from jaxgeom.diagnostics.rounding_cells import ENDS, RoundingCells, cells_of
from jaxgeom.diagnostics.row_column_scales import (  # fmt: skip
    STEPS_PER_OCTAVE,
    ScaleProfile,
    fit_profile,
    is_active,
    kinds_of,
    look_up,
    places,
    rounding_table,
)
from jaxgeom.diagnostics.storage_grids import grid_classes

_SCAN = 1 << 17


class UpdateSums:
    """Sums over the rows and columns of ΔW², in units of a power of two near its largest entry.

    Args:
        initial: stored W0 `[out, in]`.
        a, b: W0 and W+ widened to float32 `[out, in]`, not equal everywhere.
        storage: format of the magnitudes of W0.
        eta: relative tolerance of the unchanged test.
    """

    def __init__(self, initial: np.ndarray, a: np.ndarray, b: np.ndarray, storage: str, eta: float) -> None:
        self.initial, self.a, self.b, self.storage = initial, a, b, storage
        self.kinds, self.table = kinds_of(storage), _square_and_slope(storage, eta)
        peak = max(float(np.abs(b[where] - a[where]).max()) for where in row_blocks(a.shape))
        self.unit = int(np.clip(math.frexp(peak)[1], -125, 125))

    def _squares(self) -> Iterator[tuple[slice, np.ndarray]]:
        for where in row_blocks(self.a.shape):
            delta = np.subtract(self.b[where], self.a[where], dtype=np.float64)
            delta *= 2.0**-self.unit
            yield where, np.square(delta, out=delta)

    def rows(self, weights: np.ndarray) -> np.ndarray:
        """`Σ_j w_j ΔW_ij²` `[out]` for weights `[in]`."""
        out = np.empty(self.a.shape[0])
        for where, squares in self._squares():
            out[where] = squares @ weights
        return out

    def columns(self, weights: np.ndarray) -> np.ndarray:
        """`Σ_i w_i ΔW_ij²` `[in]` for weights `[out]`."""
        out = np.zeros(self.a.shape[1])
        for where, squares in self._squares():
            out += weights[where] @ squares
        return out

    def _left(self, profile: ScaleProfile) -> Iterator[tuple[slice, np.ndarray]]:
        """Per block of rows, complex `[rows, in]`: the mean square that storage leaves of noise of the entry's scale.

        In units of that scale squared; its derivative by the log of the scale is the imaginary part.
        """
        start = places(self.storage) + np.int32(STEPS_PER_OCTAVE * self.unit * self.kinds)
        rows, columns = (np.where(is_active(side), side, 0).astype(np.int32) * np.int32(self.kinds) for side in profile)
        for where in row_blocks(self.a.shape):
            keys = np.take(start, histogram_bits(self.initial[where]))
            keys += columns
            keys += rows[where, None]
            yield where, look_up(self.table, keys)

    def left_rows(self, profile: ScaleProfile) -> tuple[np.ndarray, np.ndarray]:
        """Sums over the active columns, `[out]` each."""
        out = np.empty(self.a.shape[0], complex)
        active = is_active(profile.columns).astype(complex)
        for where, left in self._left(profile):
            out[where] = left @ active
        return np.real(out), np.imag(out)

    def left_columns(self, profile: ScaleProfile) -> tuple[np.ndarray, np.ndarray]:
        """Sums over the active rows, `[in]` each."""
        out = np.zeros(self.a.shape[1], complex)
        active = is_active(profile.rows).astype(complex)
        for where, left in self._left(profile):
            out += active[where] @ left
        return np.real(out), np.imag(out)

    def values(self) -> np.ndarray:
        """Entries of ΔW per bin of values `[2¹⁷]`."""
        found = np.zeros(UPDATE_BINS, np.int64)
        for where in row_blocks(self.a.shape):
            found += np.bincount(update_bins(self.b[where] - self.a[where]).reshape(-1), minlength=UPDATE_BINS)
        return found


@functools.lru_cache(maxsize=2)
def _square_and_slope(storage: str, eta: float) -> np.ndarray:
    """What `_left` looks up, real and imaginary part in one table: complex, flat."""
    table = rounding_table(storage, eta)
    return (table.square + 1j * table.slope).reshape(-1)


def count_cells(
    initial: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    sums: EntrySums,
    masks: Mapping[str, np.ndarray],
    *,
    eta: float,
) -> tuple[ProfileCells, PermutationCounts]:
    """Counts a pair of matrices for the nulls that keep something of its update.

    Args:
        initial: stored W0 `[out, in]`.
        a: the same widened to float32.
        b: W+ widened to float32, not equal to `a` everywhere.
        sums: what was counted of the pair.
        masks: flat bool masks of W0 by the statistic that they belong to; absent ones count as empty.
        eta: relative tolerance of the unchanged test.
    """
    counts = sums.counts
    update = UpdateSums(initial, a, b, counts.storage, eta)
    profile = fit_profile(update, (a.shape[0], a.shape[1]), bool(counts.is_rounded))
    codes = np.zeros(a.shape, np.uint8)
    for name, mask in masks.items():
        codes |= mask.reshape(a.shape).view(np.uint8) << np.uint8(OVERLAPS.index(name))
    active = [is_active(side) for side in profile]
    lowest = [int(side[moved].min()) for side, moved in zip(profile, active, strict=True)]
    own, other = (side - low for side, low in zip(profile, lowest, strict=True))
    levels = int(own.max() + other.max()) + 1
    own, other = (np.where(moved, steps, levels) for steps, moved in zip((own, other), active, strict=True))
    members, found = _joint_counts(initial, counts.storage, counts.histogram, eta, own, other, codes)
    bits = {name: np.arange(1 << len(OVERLAPS)) & (1 << place) > 0 for place, name in enumerate(OVERLAPS)}
    values = update.values()
    kept = np.flatnonzero(values)
    permutation = PermutationCounts(
        found.sum((1, 2)), {name: found[..., inside].sum((1, 2)) for name, inside in bits.items()}, members,
        values[kept].astype(np.float64), update_values()[kept], counts.storage, eta, bool(counts.is_open),
        bool(counts.is_rounded),
    )  # fmt: skip

    isotropic = cells_of(counts, eta)
    drift, noise, fitted, thin = _estimation(isotropic, own, other, sum(lowest), levels, update.unit)
    table = pattern_classes(counts.storage, eta)
    classes, place = np.unique(table.magnitude[members], return_inverse=True)
    merged = np.zeros((classes.size, levels, found.shape[-1]), np.int64)
    for row, one in zip(place, found[:, :levels], strict=True):
        merged[row] += one
    which, level = np.nonzero(merged.any(-1))
    entries, ends = merged[which, level].astype(np.float64), grid_classes(counts.storage, eta)
    own_ends = {name: getattr(ends, name)[classes[which]] for name in ENDS}
    cells = RoundingCells(
        counts=entries.sum(-1), histogram=None, is_open=bool(counts.is_open), is_rounded=bool(counts.is_rounded),
        eta=eta, storage=counts.storage, kept=classes[which], **own_ends,
    )  # fmt: skip
    scale = np.ldexp(np.exp2((sum(lowest) + level) / STEPS_PER_OCTAVE), update.unit)
    inside = {name: entries[:, of].sum(-1) for name, of in bits.items()}
    estimated = drift[level], noise[level], fitted, thin
    return ProfileCells(cells, scale, *estimated, np.float64(a.size), sum(a.shape), inside), permutation


def row_blocks(shape: tuple[int, ...], entries: int = _SCAN) -> list[slice]:
    """Slices of whole rows of a shape `[out, in]` that hold about so many entries each."""
    step = max(1, entries // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _estimation(
    isotropic: RoundingCells, own: np.ndarray, other: np.ndarray, base: int, levels: int, unit: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """`estimation` of the scales that were fitted, rows (columns) of one level taken together.

    Args:
        isotropic: cells of W0 for noise of one scale.
        own: level of every row `[out]`, `levels` where nothing moved.
        other: level of every column `[in]` likewise.
        base: what the sum of the two lowest levels stands for, on the grid of scales.
        levels: number of different sums.
        unit: power of two of the scales.
    """
    groups = [np.unique(side, return_counts=True) for side in (own, other)]
    steps = [side for side, _ in groups]
    sizes = [np.where(side < levels, held, 0).astype(np.float64) for side, held in groups]
    found = averages(isotropic, np.int32(base), levels, np.int32(unit))
    return estimation(found, steps[0], steps[1], sizes[0], sizes[1])


def _joint_counts(
    initial: np.ndarray,
    storage: str,
    histogram: np.ndarray,
    eta: float,
    own: np.ndarray,
    other: np.ndarray,
    codes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of patterns that occur `[c]`, and entries per class, sum of the levels and mask code `[c, l, m]`.

    Args:
        initial: stored W0 `[out, in]`.
        storage: format of its magnitudes.
        histogram: entries per magnitude bin `[2¹⁵]`.
        eta: relative tolerance of the unchanged test.
        own: level of every row `[out]`.
        other: level of every column `[in]`.
        codes: uint8 `[out, in]`, a bit for each mask that an entry is in.
    """
    of, half = pattern_classes(storage, eta).of, histogram.size
    magnitudes = np.flatnonzero(histogram)
    present = np.zeros(int(of.max()) + 1, bool)
    present[of[magnitudes]] = present[of[magnitudes + half]] = True
    members = np.flatnonzero(present)
    width, scales = 1 << len(OVERLAPS), int(own.max() + other.max()) + 1
    start_of = ((np.cumsum(present) - 1) * (scales * width))[of]
    row_start, column_start = own[:, None] * width, other[None, :] * width
    size = members.size * scales * width
    found = np.zeros(size, np.int64)
    for where in row_blocks(initial.shape, max(_SCAN, size)):
        keys = np.take(start_of, histogram_bits(initial[where]))
        keys += column_start
        keys += row_start[where]
        keys += codes[where]
        found += np.bincount(keys.reshape(-1), minlength=size)
    return members, found.reshape(members.size, scales, width)
