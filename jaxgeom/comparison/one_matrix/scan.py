"""One pass over two arrays, entry by entry: sparsities, norms, histograms, the changed mask. Blocks stay in cache."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxgeom.comparison.one_matrix.rounding import BINS
from jaxgeom.comparison.settings import ABSOLUTE_TOLERANCE, RMS_TOLERANCES
from jaxgeom.diagnostics.update_numbers import kurtosis_from_sums
from jaxgeom.errors import UserError

_BLOCK = 1 << 17
_MAGNITUDE = np.uint16(0x7FFF)
_EIGHT = np.uint16(8 << 7)
"""Exponent field 8 of a bfloat16 number, in its place."""


def widen(array: np.ndarray) -> np.ndarray:
    """float32 with the same numbers; a bfloat16 array is widened by its bits."""
    if array.dtype == np.float32:
        return array
    if array.dtype.name == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def bf16_bits(wide: np.ndarray) -> np.ndarray:
    """Bits of float32 numbers rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(wide).view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype(np.uint16)


def bf16_view(array: np.ndarray) -> np.ndarray:
    """float32 array of the values that a bfloat16 reader sees."""
    if array.dtype.name == "bfloat16":
        return widen(array)
    out = np.empty(array.shape, np.float32)
    flat, target = array.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        bits = bf16_bits(widen(flat[start : start + _BLOCK]))
        target[start : start + _BLOCK] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return out


@dataclasses.dataclass
class ElementTotals:
    """Sums over the entries of a pair of arrays; adds up over blocks.

    Attributes:
        count: entries.
        changed: entries that fail the bfloat16 unchanged test.
        differs: entries that differ as stored.
        beyond_absolute: entries with `|ΔW|` above the absolute tolerance.
        beyond_rms: the same for each tolerance relative to RMS(W0).
        beyond_half_ulp: entries with `|ΔW|` above half the bfloat16 spacing at W0.
        delta_squares: Σ ΔW², float64.
        delta_fourths: Σ ΔW⁴.
        delta_max: max |ΔW|.
        initial_squares: Σ W0².
        inner: Σ ΔW·W0.
        bf16_delta_squares: Σ ΔW² of the bfloat16 views.
        bf16_delta_fourths: Σ ΔW⁴ of them.
        on_grid: every entry of W0 is a bfloat16 number.
        histogram: entries of W0 per magnitude bin.
        changed_histogram: changed ones of them.
        hidden_histogram: changed ones whose `|ΔW|` an absolute tolerance hides.
    """

    count: int = 0
    changed: int = 0
    differs: int = 0
    beyond_absolute: int = 0
    beyond_rms: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(RMS_TOLERANCES), np.int64))
    beyond_half_ulp: int = 0
    delta_squares: float = 0.0
    delta_fourths: float = 0.0
    delta_max: float = 0.0
    initial_squares: float = 0.0
    inner: float = 0.0
    bf16_delta_squares: float = 0.0
    bf16_delta_fourths: float = 0.0
    on_grid: bool = True
    histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    changed_histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    hidden_histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(
        self, initial: np.ndarray, final: np.ndarray, *, eta: float, rms: float, changed_out: np.ndarray | None = None
    ) -> None:
        """Adds a block of entries.

        Args:
            initial: entries of W0 in a stored dtype.
            final: the same entries of W+.
            eta: relative tolerance of the unchanged test.
            rms: RMS of the whole W0 in float64, for the tolerances relative to it.
            changed_out: bool array of the block's size that receives the changed mask.
        """
        first, second = initial.reshape(-1), final.reshape(-1)
        out = None if changed_out is None else changed_out.reshape(-1)
        for start in range(0, first.size, _BLOCK):
            stop = start + _BLOCK
            changed = self._add_block(first[start:stop], second[start:stop], eta, rms)
            if out is not None:
                out[start:stop] = changed

    def _add_block(self, initial: np.ndarray, final: np.ndarray, eta: float, rms: float) -> np.ndarray:
        a, b = widen(initial), widen(final)
        a_bits, b_bits = view_bits(initial, a), view_bits(final, b)
        if eta < 2**-8:
            changed = a_bits != b_bits
            changed &= ((a_bits | b_bits) & _MAGNITUDE) != 0  # +0 and −0 are equal
        else:
            x, y = _value(a_bits).astype(np.float64), _value(b_bits).astype(np.float64)
            changed = np.abs(x - y) > eta * np.maximum(np.abs(x), np.abs(y))
        delta = np.subtract(b, a)
        magnitude = np.abs(delta)
        self.count += a.size
        self.changed += int(np.count_nonzero(changed))
        self.differs += int(np.count_nonzero(a != b))
        beyond = _above(magnitude, a, b, ABSOLUTE_TOLERANCE)
        self.beyond_absolute += int(np.count_nonzero(beyond))
        for index, tolerance in enumerate(RMS_TOLERANCES):
            self.beyond_rms[index] += int(np.count_nonzero(_above(magnitude, a, b, tolerance * rms)))
        self.beyond_half_ulp += _count_above_half_ulp(magnitude, a_bits)
        wide_a = a.astype(np.float64)
        wide = b.astype(np.float64)
        wide -= wide_a
        self.initial_squares += float(wide_a @ wide_a)
        self.inner += float(wide_a @ wide)
        self.delta_squares += float(wide @ wide)
        self.delta_fourths += _fourths(wide)
        self.delta_max = max(self.delta_max, float(magnitude.max(initial=0)))
        same_grid = initial.dtype.name == "bfloat16" and final.dtype.name == "bfloat16"
        if same_grid:
            self.bf16_delta_squares, self.bf16_delta_fourths = self.delta_squares, self.delta_fourths
        else:
            rounded = _value(b_bits).astype(np.float64) - _value(a_bits).astype(np.float64)
            self.bf16_delta_squares += float(rounded @ rounded)
            self.bf16_delta_fourths += _fourths(rounded)
        if self.on_grid and initial.dtype.name != "bfloat16":
            self.on_grid = not np.any(a.view(np.uint32) & np.uint32(0xFFFF))
        counts = _counts(a_bits, changed)
        self.histogram += counts[0] + counts[1]
        self.changed_histogram += counts[1]
        hidden = changed & ~beyond
        few = np.flatnonzero(hidden) if np.count_nonzero(hidden) * 16 < a.size else None
        self.hidden_histogram += _counts(a_bits, hidden)[1] if few is None else _bin_counts(a_bits[few])
        return changed

    @property
    def kurtosis(self) -> float:
        """Kurtosis of the entries of ΔW; NaN for a zero update."""
        return float(kurtosis_from_sums(self.count, self.delta_squares, self.delta_fourths))

    @property
    def bf16_kurtosis(self) -> float:
        """The same of the difference of the bfloat16 views."""
        return float(kurtosis_from_sums(self.count, self.bf16_delta_squares, self.bf16_delta_fourths))

    @property
    def density(self) -> float:
        """Share of changed entries in the bfloat16 view."""
        return self.changed / self.count

    @property
    def is_rounded(self) -> bool:
        """Whether both sides are on the bfloat16 grid, so that ΔW is what rounding left of an update."""
        return self.on_grid and self.bf16_delta_squares == self.delta_squares

    def hidden_by_decile(self) -> list[float | None]:
        """Share of the visibly changed entries that the absolute tolerance hides, by decile of |W0|, smallest first.

        Deciles are cut between bfloat16 magnitudes, so that equal magnitudes stay together; None where nothing changed.
        """
        total = np.cumsum(self.histogram)
        decile = np.minimum((total - self.histogram) * 10 // max(int(total[-1]), 1), 9)
        changed = np.bincount(decile, self.changed_histogram, minlength=10)
        hidden = np.bincount(decile, self.hidden_histogram, minlength=10)
        return [float(h / c) if c else None for h, c in zip(hidden, changed, strict=True)]


def _fourths(wide: np.ndarray) -> float:
    """Σ x⁴ of a float64 array `[n]`."""
    squares = np.square(wide)
    return float(squares @ squares)


def view_bits(stored: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """Bits of the bfloat16 view of a stored array, of which `wide` is the float32 widening."""
    return stored.view(np.uint16) if stored.dtype.name == "bfloat16" else bf16_bits(wide)


def _bin_counts(bits: np.ndarray) -> np.ndarray:
    """Entries per magnitude bin `[2¹⁵]`."""
    return np.bincount(bits & _MAGNITUDE, minlength=BINS)


def _counts(bits: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Entries per magnitude bin without and with the flag `[2, 2¹⁵]`; the flag takes the place of the sign."""
    keys = bits & _MAGNITUDE
    keys |= flags.view(np.uint8).astype(np.uint16) << np.uint16(15)
    return np.bincount(keys, minlength=2 * BINS).reshape(2, BINS)


def _count_above_half_ulp(magnitude: np.ndarray, bits: np.ndarray) -> int:
    """How many float32 magnitudes exceed half the bfloat16 spacing `2^(E−135)` at the numbers of the given bits.

    E is the exponent field, at least 1. Read as integers, positive floats keep their order, and half the spacing is the
    exponent lowered by 8; where that leaves the normal numbers, it is written out.
    """
    exponent = bits & np.uint16(0x7F80)
    half = (np.maximum(exponent, _EIGHT) - _EIGHT).astype(np.uint32)
    half <<= np.uint32(16)
    above = magnitude.view(np.uint32) > half
    tiny = np.flatnonzero(exponent <= _EIGHT)
    if tiny.size:
        above[tiny] = magnitude[tiny] > np.ldexp(np.float32(1), np.maximum(exponent[tiny] >> 7, 1).astype(int) - 135)
    return int(np.count_nonzero(above))


def _value(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _above(magnitude: np.ndarray, a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray:
    """`|b − a| > tolerance` exactly: float32 decides all but the entries on the rounded tolerance, float64 those."""
    nearest = np.float32(tolerance)
    above = magnitude > nearest
    edge = np.flatnonzero(magnitude == nearest)
    if edge.size:
        above[edge] = np.abs(b[edge].astype(np.float64) - a[edge].astype(np.float64)) > tolerance
    return above


def require_finite(array: np.ndarray, where: str) -> None:
    """Refuses NaN and infinities.

    Raises:
        UserError: naming where they are and how many there are.
    """
    flat, bad = array.reshape(-1), 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.dtype.name == "bfloat16":
            bad += int(np.count_nonzero((block.view(np.uint16) & _MAGNITUDE) >= np.uint16(0x7F80)))
        elif block.dtype == np.float32:
            bad += int(np.count_nonzero((block.view(np.uint32) & np.uint32(0x7FFFFFFF)) >= np.uint32(0x7F800000)))
        else:
            bad += int(np.count_nonzero(~np.isfinite(block)))
    if bad:
        raise UserError(f"{where}: {bad} of {flat.size} entries are NaN or infinite")


def root_mean_square(blocks: Iterable[np.ndarray]) -> float:
    """RMS of all entries, summed in float64; 0 where there are none."""
    total, count = 0.0, 0
    for array in blocks:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            wide = widen(flat[start : start + _BLOCK]).astype(np.float64)
            total += float(wide @ wide)
        count += flat.size
    return float(np.sqrt(total / max(count, 1)))


def low_magnitude_mask(initial: np.ndarray, totals: ElementTotals, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat mask of the ⌊fraction·n + ½⌋ entries of smallest |W0| as stored, ties to the lower row-major index.

    Returns:
        The mask (bool, flat) and its histogram over magnitude bins.
    """
    take = int(np.floor(fraction * totals.count + 0.5))
    flat = initial.reshape(-1)
    if initial.dtype.name == "bfloat16":
        keys = flat.view(np.uint16) & _MAGNITUDE
        below = np.cumsum(totals.histogram)
        cut = int(np.searchsorted(below, take)) if take else 0
        threshold = np.uint16(cut)
    else:
        keys = widen(flat).view(np.uint32) & np.uint32(0x7FFFFFFF)
        threshold = order_statistic(keys, take - 1) if take else np.uint32(0)
    mask = keys < threshold
    missing = take - int(np.count_nonzero(mask))
    if missing:
        mask[np.flatnonzero(keys == threshold)[:missing]] = True
    bins = totals.histogram.copy()
    filled = np.cumsum(bins)
    cut = int(np.searchsorted(filled, take)) if take else 0
    inside = np.where(np.arange(BINS) < cut, bins, 0)
    inside[cut] = take - int(inside.sum())
    return mask, inside


def order_statistic(values: np.ndarray, rank: int) -> Any:
    """The value that would stand at index `rank` if the flat array were sorted, found without moving all of it.

    A sorted sample brackets it; only what lies within the bracket is partitioned.
    """
    if values.size < 1 << 18:
        return np.partition(values, rank)[rank]
    sample = np.sort(values[:: values.size >> 15])
    place, room = rank * sample.size // values.size, 4 * int(np.sqrt(sample.size))
    low, high = sample[max(place - room, 0)], sample[min(place + room, sample.size - 1)]
    below = int(np.count_nonzero(values < low))
    inside = values[(values >= low) & (values <= high)]
    if not below <= rank < below + inside.size:  # entries ordered so that the sample misleads
        return np.partition(values, rank)[rank]
    return np.partition(inside, rank - below)[rank - below]


def histogram_of(initial: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Entries of W0 inside a flat mask per magnitude bin."""
    flat = initial.reshape(-1)
    out = np.zeros(BINS, np.int64)
    for start in range(0, flat.size, 4 * _BLOCK):
        where = slice(start, start + 4 * _BLOCK)
        out += _counts(view_bits(flat[where], widen(flat[where])), mask[where])[1]
    return out
