"""The permutation null: the update's own entries in random places of the matrix, in closed form.

An entry of W0 changes with the share of ΔW's entries that carry it out of its unchanged interval; the deviation is that
of a sum over a random permutation. Entries of W0 are counted by class (16-bit patterns whose unchanged interval lies
alike around them), those of ΔW by their leading bits.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax import lax

from ._namespace import as_real, bitcast, divide, namespace
from .moments import NullMoments, triple
from .rounding_cells import moments_of_share, select
from .storage_grids import BINS, FINITE, GridClasses, bf16_bins, grid_classes, magnitudes, unchanged_intervals

UPDATE_BINS = 1 << 17
"""Bins of an update's entries: by sign, exponent and 7 bits of mantissa, exact ones apart from those between them."""

_PRODUCT = 1 << 19


class PatternClasses(NamedTuple):
    """The 2¹⁶ patterns of a format grouped by which updates leave them unchanged.

    Attributes:
      of: class of each pattern.
      magnitude: class of magnitudes (`GridClasses`) of each class.
      below, above: an update δ of an entry on the grid changes it where `δ < below` or `δ > above`.
      below_too, above_too: whether it does at the end itself: ties go to even mantissas.
      is_negative: mirrors what is relative to magnitudes.
    """

    of: np.ndarray
    magnitude: np.ndarray
    below: np.ndarray
    above: np.ndarray
    below_too: np.ndarray
    above_too: np.ndarray
    is_negative: np.ndarray


@functools.lru_cache(maxsize=8)
def pattern_classes(storage: str, eta: float) -> PatternClasses:
    """The classes of patterns: for bfloat16 and η < 2⁻⁸ odd and even ones, and both signs of powers of two."""
    table, view = grid_classes(storage, eta), unchanged_intervals(eta)
    finite = FINITE[storage]
    own = table.of[:finite]
    seen = np.minimum(bf16_bins(magnitudes(storage)[:finite]), FINITE["bfloat16"] - 1)
    low, high = table.low[own], table.high[own]
    low_odd, high_odd = (bins[seen] % 2 == 1 for bins in (view.lowest, view.highest))
    mirrored = (-low == high) & (low_odd == high_odd)
    codes = np.concatenate(
        [own * 8 + low_odd * 4 + high_odd * 2 + (negative & ~mirrored) for negative in (False, True)]
    )
    found, of = np.unique(codes, return_inverse=True)
    # What is not finite (float32 numbers may round to infinity) counts as the largest finite number.
    of = of.reshape(2, finite)[:, np.minimum(np.arange(BINS), finite - 1)].reshape(-1)
    magnitude, negative = found // 8, found % 2 == 1
    ends, ties = (table.low[magnitude], table.high[magnitude]), (found & 4 > 0, found & 2 > 0)
    below, above = np.where(negative, -ends[1], ends[0]), np.where(negative, -ends[0], ends[1])
    below_too, above_too = np.where(negative, ties[::-1], ties)
    return PatternClasses(of.astype(np.uint16), magnitude, below, above, below_too, above_too, negative)


def update_bins(delta: Any) -> Any:
    """The bin of each entry of an update, int32: its upper 16 bits, and whether the others are zero.

    Args:
      delta: float32 array.

    Returns:
      Whole numbers below `UPDATE_BINS`, same shape.
    """
    bits = bitcast(delta, np.uint32)
    upper = bits >> np.uint32(16)
    return (upper + ((bits + np.uint32(0xFFFF)) >> np.uint32(16))).astype(np.int32)


@functools.cache
def update_values() -> np.ndarray:
    """Value of each bin `[2¹⁷]`, float64: exact ones, and the middle between two of them; 0 where it is not finite."""
    keys = np.arange(UPDATE_BINS)
    ends = [(((keys + more) // 2).astype(np.uint32) << np.uint32(16)).view(np.float32) for more in (0, 1)]
    with np.errstate(invalid="ignore"):
        values = np.where(keys % 2 == 0, ends[0], (ends[0].astype(np.float64) + ends[1]) / 2)
    return np.where(np.isfinite(values), values, 0.0)


class PermutationCounts(NamedTuple):
    """What the permutation null needs of a pair of matrices.

    Attributes:
      entries: entries of W0 per class of patterns, `[classes]`.
      masks: those in each mask, by statistic.
      members: which of `pattern_classes` these are.
      updates: entries of ΔW per bin, `[bins]`.
      values: their values.
      storage: format of the patterns.
      eta: relative tolerance η of the unchanged test.
      is_open: W0 is stored finer than the format; then a change is averaged over the place in the rounding cell, which
        makes the deviation slightly too large.
      is_rounded: W+ was rounded to the grid that W0 is on. ΔW's entries then fit the places that they have, multiples
        of the spacing there: elsewhere most are too small to show, whatever the update was. No deviation, and no z.
    """

    entries: Any
    masks: Mapping[str, Any]
    members: Any
    updates: Any
    values: Any
    storage: str
    eta: float
    is_open: Any
    is_rounded: Any


def _changes(counts: PermutationCounts, place: Any) -> Any:
    """Whether each value of ΔW changes an entry of the classes at the given places, `[places, values]`."""
    xp = namespace(counts.entries, counts.values)
    table, ends = pattern_classes(counts.storage, counts.eta), grid_classes(counts.storage, counts.eta)
    members, values = counts.members[place], counts.values

    def at_place() -> Any:
        # The ends and ΔW are exact in float32 too, the numbers next to the ends are those of the dtype.
        below, above = as_real(table.below, xp), as_real(table.above, xp)
        below = xp.where(table.below_too, xp.nextafter(below, xp.full_like(below, xp.inf)), below)
        above = xp.where(table.above_too, xp.nextafter(above, xp.full_like(above, -xp.inf)), above)
        below, above = (end[members][..., None] for end in (below, above))
        return as_real((values < below) | (values > above), xp)

    def in_cell() -> Any:
        cell = GridClasses(ends.of, *(as_real(end[table.magnitude], xp)[members][..., None] for end in ends[1:]))
        moved = xp.where(xp.asarray(table.is_negative)[members][..., None], -values, values)
        stay = xp.minimum(cell.cell_high, cell.high - moved) - xp.maximum(cell.cell_low, cell.low - moved)
        width = cell.cell_high - cell.cell_low
        # The cells of the least numbers have no width where their ends are too small for the dtype.
        wide = xp.where(width > 0, width, xp.ones_like(width))
        return xp.where(width > 0, 1 - xp.maximum(stay, 0.0) / wide, as_real(moved != 0, xp))

    return select(counts.is_open, in_cell, at_place)


def _responses(counts: PermutationCounts, groups: Any) -> tuple[Any, Any]:
    """Probability of change per class, and `Σ_i m_i·c_ij` per value of ΔW for every group of weights m."""
    xp = namespace(counts.entries, counts.values)
    shares = counts.updates / counts.updates.sum()
    if xp is np:
        chance = np.empty(counts.entries.size)
        by_update = np.zeros((len(groups), shares.size))
        step = max(1, _PRODUCT // shares.size)
        for start in range(0, chance.size, step):
            some = slice(start, start + step)
            changes = _changes(counts, some)
            chance[some] = changes @ shares
            by_update += groups[:, some] @ changes
        return chance, by_update

    def add(by_update: Any, place: Any) -> Any:
        changes = _changes(counts, place)
        return by_update + groups[:, place][:, None] * changes, (changes * shares).sum()

    start = xp.zeros((groups.shape[0], shares.shape[0]), groups.dtype) + 0 * shares
    by_update, chance = lax.scan(add, start, xp.arange(counts.entries.shape[0]))
    return chance, by_update


def permutation_statistics(counts: PermutationCounts, values: Mapping[str, Any]) -> dict[str, Any]:
    """Visible sparsity and overlaps of masks beside the permutation null.

    With `c_ij` whether the j-th entry of ΔW changes the i-th entry of W0 and weights m_i, `T = Σ_i m_i c_iπ(i)` over a
    random permutation π has the mean `Σ m_i p_i`, `p_i = Σ_j c_ij/n`, and the variance `Σ_ij d_ij²/(n−1)`, d the doubly
    centred `m_i c_ij`. Overlaps are ratios of two such sums, to first order.

    Args:
      counts: of the pair.
      values: the observed statistics: `sparsity_bf16`, and the overlaps of the masks that are defined.

    Returns:
      `{report key: number}`: `<name>_permutation_null`, `_excess`, `_z` of every value.

    Reference:
      Hoeffding, *A combinatorial central limit theorem* (1951), https://doi.org/10.1214/aoms/1177729545
    """
    xp = namespace(counts.entries, counts.values)
    entries, names = as_real(counts.entries, xp), [name for name in values if name in counts.masks]
    inside = {name: as_real(counts.masks[name], xp) for name in names}
    groups = xp.stack([entries, *inside.values()])
    chance, by_update = _responses(counts, groups)
    size, shares = entries.sum(), counts.updates / counts.updates.sum()
    spread, expected = chance * (1 - chance), (entries * chance).sum()

    def variance(squares: Any, per_value: Any, mean: Any) -> Any:
        """From Σ m_i² per class, Σ_i m_i c_ij per value of ΔW, and the mean of T."""
        total = size * (squares * spread).sum() - (shares * per_value * per_value).sum() + mean**2
        return xp.maximum(total, 0.0) / xp.maximum(size - 1, 1.0)

    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "sparsity_bf16":
            null = moments_of_share(1 - expected / size, variance(entries, by_update[0], expected), size)
        else:
            own, place = inside[name], 1 + names.index(name)
            overlap = divide((own * chance).sum(), expected)
            share = xp.where(xp.isnan(overlap), xp.zeros_like(overlap), overlap)
            squares = own * (1 - 2 * share) + entries * share**2
            rest = by_update[place] - share * by_update[0]
            moments = moments_of_share(overlap, variance(squares, rest, 0.0), expected)
            null = NullMoments(*(xp.where(expected > 0, part, np.nan) for part in moments))
        null = null._replace(std=xp.where(counts.is_rounded, np.nan, null.std))
        found |= triple(name, xp.asarray(value), null, "_permutation")
    return {key: value for key, value in found.items() if "_permutation" in key}
