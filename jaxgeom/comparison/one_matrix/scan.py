"""One pass over two arrays, entry by entry: sparsities, norms, histograms, the changed mask. Blocks stay in cache."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxgeom.diagnostics.counting import (  # fmt: skip
    ABSOLUTE_TOLERANCE,
    RMS_TOLERANCES,
    EntryCounts,
    above_half_ulp,
    bits_changed,
    exceeds,
    storage_of,
)
from jaxgeom.diagnostics.precision import bf16_bits
from jaxgeom.diagnostics.storage_grids import BINS
from jaxgeom.diagnostics.update_numbers import kurtosis_from_sums
from jaxgeom.errors import UserError

_BLOCK = 1 << 17
_MAGNITUDE = np.uint16(0x7FFF)
_TOO_LARGE = np.uint32(0x7F7F8000)  # from here on float32 rounds to infinity in bfloat16


def widen(array: np.ndarray) -> np.ndarray:
    """The same numbers in float32, any shape; a bfloat16 array is widened by its bits."""
    if array.dtype == np.float32:
        return array
    if array.dtype.name == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def bf16_view(array: np.ndarray) -> np.ndarray:
    """The values that a bfloat16 reader sees, in float32 and the same shape."""
    if array.dtype.name == "bfloat16":
        return widen(array)
    out = np.empty(array.shape, np.float32)
    flat, target = array.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        bits = bf16_bits(widen(flat[start : start + _BLOCK]))
        target[start : start + _BLOCK] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return out


@dataclasses.dataclass
class EntrySums:
    """Sums over the entries of a pair of arrays; adds up over blocks. `counts` is what the statistics take.

    The fields are those of `EntryCounts`, where they are described: counts, histograms `[2¹⁵]` over the magnitude bits
    of W0, and sums of squares in float64 in place of norms.
    """

    storage: str = "bfloat16"
    final_storage: str = "bfloat16"
    count: int = 0
    changed: int = 0
    differs: int = 0
    beyond_absolute: int = 0
    beyond_rms: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(RMS_TOLERANCES), np.int64))
    beyond_half_ulp: int = 0
    delta_squares: float = 0.0
    delta_fourths: float = 0.0
    initial_squares: float = 0.0
    inner: float = 0.0
    bf16_delta_squares: float = 0.0
    bf16_delta_fourths: float = 0.0
    on_grid: bool = True
    final_on_grid: bool = True
    histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    changed_histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    hidden_histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(
        self, initial: np.ndarray, final: np.ndarray, *, eta: float, rms: float, changed_out: np.ndarray | None = None
    ) -> None:
        """Adds a block of entries.

        Args:
            initial: entries of W0 in a stored dtype, any shape.
            final: the same entries of W+.
            eta: relative tolerance of the unchanged test.
            rms: RMS of the whole W0 in float64, for the tolerances relative to it.
            changed_out: bool array of the block's size that receives the changed mask.
        """
        self.storage, self.final_storage = storage_of(initial.dtype), storage_of(final.dtype)
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
        changed = bits_changed(a_bits, b_bits, eta)
        magnitude = np.subtract(b, a)
        np.abs(magnitude, out=magnitude)
        self.count += a.size
        self.changed += int(np.count_nonzero(changed))
        self.differs += int(np.count_nonzero(a != b))
        beyond = exceeds(magnitude, a, b, ABSOLUTE_TOLERANCE)
        self.beyond_absolute += int(np.count_nonzero(beyond))
        for index, tolerance in enumerate(RMS_TOLERANCES):
            self.beyond_rms[index] += int(np.count_nonzero(exceeds(magnitude, a, b, tolerance * rms)))
        self.beyond_half_ulp += int(np.count_nonzero(above_half_ulp(magnitude, a_bits)))
        wide_a = a.astype(np.float64)
        wide = b.astype(np.float64)
        wide -= wide_a
        squares, fourths = float(wide @ wide), _fourths(wide)
        self.initial_squares += float(wide_a @ wide_a)
        self.inner += float(wide_a @ wide)
        self.delta_squares += squares
        self.delta_fourths += fourths
        if initial.dtype.name == "bfloat16" and final.dtype.name == "bfloat16":
            self.bf16_delta_squares += squares
            self.bf16_delta_fourths += fourths
        else:
            rounded = _value(b_bits).astype(np.float64) - _value(a_bits).astype(np.float64)
            self.bf16_delta_squares += float(rounded @ rounded)
            self.bf16_delta_fourths += _fourths(rounded)
        self.on_grid = self.on_grid and _is_on_grid(initial, a)
        self.final_on_grid = self.final_on_grid and _is_on_grid(final, b)
        bins = initial.view(np.uint16) if self.storage == "float16" else a_bits
        counts = _counts(bins, changed)
        self.histogram += counts[0] + counts[1]
        self.changed_histogram += counts[1]
        hidden = changed & ~beyond
        few = np.flatnonzero(hidden) if np.count_nonzero(hidden) * 16 < a.size else None
        self.hidden_histogram += _counts(bins, hidden)[1] if few is None else _bin_counts(bins[few])
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
    def counts(self) -> EntryCounts:
        """What was counted, as the statistics take it."""
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in _SHARED}
        initial = self.initial_squares
        return EntryCounts(
            **same,
            delta_norm=np.float64(np.sqrt(self.delta_squares)),
            initial_norm=np.float64(np.sqrt(initial)),
            decay=np.float64(self.inner / initial if initial else np.nan),
            bf16_delta_norm=np.float64(np.sqrt(self.bf16_delta_squares)),
        )


_SHARED = {field.name for field in dataclasses.fields(EntryCounts)}


def _fourths(wide: np.ndarray) -> float:
    """Σ x⁴ of a float64 array `[n]`."""
    squares = np.square(wide)
    return float(squares @ squares)


def view_bits(stored: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """uint16 bits of the bfloat16 view of a stored array, any shape, of which `wide` is the float32 widening."""
    return stored.view(np.uint16) if stored.dtype.name == "bfloat16" else bf16_bits(wide)


def histogram_bits(stored: np.ndarray) -> np.ndarray:
    """uint16, same shape: the bits by which entries are counted; float16 ones by their own, others as bfloat16."""
    return stored.view(np.uint16) if stored.dtype == np.float16 else view_bits(stored, widen(stored))


def _is_on_grid(stored: np.ndarray, wide: np.ndarray) -> bool:
    """Whether every entry is a bfloat16 number."""
    return stored.dtype.name == "bfloat16" or not np.any(wide.view(np.uint32) & np.uint32(0xFFFF))


def _bin_counts(bits: np.ndarray) -> np.ndarray:
    """Entries per magnitude bin `[2¹⁵]`."""
    return np.bincount(bits & _MAGNITUDE, minlength=BINS)


def _counts(bits: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Entries `[n]` per magnitude bin without and with their flag `[n]`, `[2, 2¹⁵]`; it takes the sign's place."""
    keys = bits & _MAGNITUDE
    keys |= flags.view(np.uint8).astype(np.uint16) << np.uint16(15)
    return np.bincount(keys, minlength=2 * BINS).reshape(2, BINS)


def _value(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def require_finite(array: np.ndarray, where: str) -> None:
    """Refuses NaN and infinities, and finite float32 that round to infinity in bfloat16.

    Args:
        array: stored array of any shape and float dtype.
        where: names it in the message.

    Raises:
        UserError: naming where they are and how many there are.
    """
    flat, bad = array.reshape(-1), 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.dtype.name == "bfloat16":
            bad += int(np.count_nonzero((block.view(np.uint16) & _MAGNITUDE) >= np.uint16(0x7F80)))
        elif block.dtype == np.float32:
            bad += int(np.count_nonzero((block.view(np.uint32) & np.uint32(0x7FFFFFFF)) >= _TOO_LARGE))
        else:
            bad += int(np.count_nonzero(~np.isfinite(block)))
    if bad:
        finite = " in bfloat16, which sparsity is taken in" if np.isfinite(flat.astype(np.float32)).all() else ""
        raise UserError(f"{where}: {bad} of {flat.size} entries are NaN or infinite{finite}")


def root_mean_square(blocks: Iterable[np.ndarray]) -> float:
    """RMS of the entries of all blocks, of any shape, summed in float64; 0 where there are none."""
    total, count = 0.0, 0
    for array in blocks:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            wide = widen(flat[start : start + _BLOCK]).astype(np.float64)
            total += float(wide @ wide)
        count += flat.size
    return float(np.sqrt(total / max(count, 1)))


def low_magnitude_mask(initial: np.ndarray, totals: EntrySums, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat mask of the ⌊fraction·n + ½⌋ entries of smallest |W0| as stored, ties to the lower row-major index.

    Args:
        initial: stored W0 `[out, in]`.
        totals: what was counted of it.
        fraction: share of the entries.

    Returns:
        The mask, bool `[out·in]`, and its histogram over magnitude bins `[2¹⁵]`.
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

    Args:
        values: `[n]` without NaN.
        rank: 0 to n − 1.
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
    """Entries of W0 `[out, in]` inside a flat mask `[out·in]` per magnitude bin `[2¹⁵]`."""
    flat = initial.reshape(-1)
    out = np.zeros(BINS, np.int64)
    for start in range(0, flat.size, 4 * _BLOCK):
        where = slice(start, start + 4 * _BLOCK)
        out += _counts(histogram_bits(flat[where]), mask[where])[1]
    return out
