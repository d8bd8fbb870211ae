"""Nulls that keep something of the real update: its row and column scales, or its entries themselves.

- **Scale-profile null**: the rounding null with noise `s·D_r·G·D_c`, whose row and column RMS are those of ΔW, so that
  loud rows and columns are not read as structure. Closed form on classes of W0's entries and of noise scales.
- **Permutation null**: the entries of ΔW in random places of the matrix. An entry of W0 changes with the share of ΔW's
  entries that carry it out of its unchanged interval; the deviation is that of a sum over a random permutation. Closed
  form for what is counted entry by entry; ranks are sampled.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgeom.comparison.algebra.krylov import leading_and_fourth
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.one_matrix.rounding import RoundingNull, classes
from jaxgeom.comparison.one_matrix.rows import Row, put_null
from jaxgeom.comparison.one_matrix.scan import ElementTotals
from jaxgeom.comparison.one_matrix.update_cells import MASKS, UpdateCells, count_cells, pattern_classes

Moments = tuple[float, float]
"""Expected value and standard deviation of a statistic under a null."""

_PRODUCT = 1 << 19


def put_update_nulls(
    row: Row,
    initial: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    *,
    totals: ElementTotals,
    masks: dict[str, np.ndarray],
    eta: float,
) -> None:
    """Writes both nulls of visible sparsity and of the mask overlaps beside them; None where they are not defined.

    Args:
        row: holds the statistics.
        initial: stored W0 `[out, in]`.
        a, b: W0 and W+ widened to float32.
        totals: what was counted of the pair.
        masks: flat masks of W0 by overlap statistic; none where the overlaps are not defined.
        eta: relative tolerance of the unchanged test.
    """
    nulls: dict[str, dict[str, Moments | None]] = {"_profile": {}, "_permutation": {}}
    if totals.delta_squares > 0:
        isotropic = RoundingNull(totals.histogram, eta, totals.on_grid)
        left_by = (lambda scale: isotropic.expected_squares(scale) / isotropic.total) if totals.is_rounded else None
        cells = count_cells(
            initial, a, b, totals.histogram, eta=eta, on_grid=totals.on_grid, masks=masks, left_by=left_by
        )
        profile, permutation = profile_null(cells), PermutationNull(cells, list(masks))
        matched = profile.rounding.scale_for_squares(totals.delta_squares, stored_in_bf16=totals.is_rounded)
        scale = profile.rounding.scale_for_density(totals.density)
        if scale is not None:
            nulls["_profile"] = {name: profile.overlap(name, scale) for name in masks}
        nulls["_profile"]["sparsity_bf16"] = profile.rounding.sparsity(matched)
        nulls["_permutation"] = {name: permutation.overlap(name) for name in masks}
        nulls["_permutation"]["sparsity_bf16"] = permutation.sparsity()
    for kind, found in nulls.items():
        for name in ("sparsity_bf16", *MASKS):
            put_null(row, name, found.get(name), kind)


class ProfileNull(NamedTuple):
    """The rounding null for noise of unequal scales, and how the entries of a mask spread over its cells."""

    rounding: RoundingNull
    counts: np.ndarray
    cells: UpdateCells

    def overlap(self, name: str, scale: float) -> Moments:
        """Expected `|M★ ∩ M| / |M|` of the statistic `name` and its deviation for noise of the given scale."""
        return self.rounding.overlap(self.cells.inside(name, self.counts), scale)


def profile_null(cells: UpdateCells) -> ProfileNull:
    """The scale-profile null of a pair of matrices, signs and parities of W0's mantissas put together."""
    own = pattern_classes(cells.eta).magnitude[cells.members]
    members, place = np.unique(own, return_inverse=True)
    counts = np.zeros((members.size, *cells.counts.shape[1:]), np.int64)
    for row, one in zip(place, cells.counts, strict=True):
        counts[row] += one
    rounding = RoundingNull(counts.sum(-1), cells.eta, cells.on_grid, members=members, profile=cells.profile)
    return ProfileNull(rounding, counts, cells)


class PermutationNull:
    """Expected counts of changed entries, and their deviations, when ΔW's entries are put in random places.

    With `c_ij` whether the j-th entry of ΔW changes the i-th entry of W0 and weights m_i, `T = Σ_i m_i c_iπ(i)` over a
    random permutation π has the mean `Σ m_i p_i`, `p_i = Σ_j c_ij/n`, and the variance `Σ_ij d_ij²/(n−1)`, d the doubly
    centred `m_i c_ij`. Off the bfloat16 grid `c_ij` is averaged over the entry's place in its rounding cell, which
    makes the deviation slightly too large.

    Args:
        cells: counts of the pair of matrices.
        names: statistics whose masks are asked for.

    Reference:
        Hoeffding, *A combinatorial central limit theorem* (1951).
    """

    def __init__(self, cells: UpdateCells, names: Sequence[str]) -> None:
        counts = cells.counts.sum(1)
        self.total, self.places = float(cells.total), cells.update_counts / cells.total
        self.entries = counts.sum(-1).astype(np.float64)
        self.masks = {name: cells.inside(name, counts).astype(np.float64) for name in names}
        groups = np.stack([self.entries, *self.masks.values()])
        self.probability = np.empty(self.entries.size)
        by_update = np.zeros((len(groups), self.places.size))
        step = max(1, _PRODUCT // self.places.size)
        for start in range(0, self.entries.size, step):
            some = slice(start, start + step)
            changes = _changes(cells, cells.members[some])
            self.probability[some] = changes @ self.places
            by_update += groups[:, some] @ changes
        self._entries_by_update = by_update[0]
        self._masks_by_update = dict(zip(self.masks, by_update[1:], strict=True))

    @property
    def expected(self) -> float:
        """Expected number of changed entries."""
        return float(self.entries @ self.probability)

    def _deviation(self, squares: np.ndarray, by_update: np.ndarray, mean: float) -> float:
        """Deviation of T from Σ m_i² per class, Σ_i m_i c_ij per value of ΔW, and the mean of T."""
        n, p = self.total, self.probability
        squared = n * float(squares @ (p * (1 - p))) - float(self.places @ np.square(by_update)) + mean**2
        return math.sqrt(max(squared, 0.0) / max(n - 1, 1.0))

    def sparsity(self) -> Moments:
        """Expected visible sparsity and its deviation."""
        deviation = self._deviation(self.entries, self._entries_by_update, self.expected)
        return 1 - self.expected / self.total, deviation / self.total

    def overlap(self, name: str) -> Moments | None:
        """Expected `|M★ ∩ M| / |M|` and its deviation (delta method); None where no change is expected."""
        inside, expected = self.masks[name], self.expected
        if not expected > 0:
            return None
        overlap = float(inside @ self.probability) / expected
        squares = inside * (1 - 2 * overlap) + self.entries * overlap**2
        by_update = self._masks_by_update[name] - overlap * self._entries_by_update
        return overlap, self._deviation(squares, by_update, 0.0) / expected


def _changes(cells: UpdateCells, members: np.ndarray) -> np.ndarray:
    """Whether each value of ΔW changes an entry of each class `[classes, values]`; a share off the bfloat16 grid."""
    table, values = pattern_classes(cells.eta), cells.update_values.astype(np.float64)
    if cells.on_grid:
        below, above = table.below[members, None], table.above[members, None]
        return ((values < below) | (values > above)).astype(np.float64)
    ends = classes(cells.eta)
    own = table.magnitude[members]
    start, stop, low, high = (end[own, None] for end in ends[1:])
    moved = np.where(table.is_negative[members, None], -values, values)
    stay = np.minimum(stop, high - moved)
    stay -= np.maximum(start, low - moved)
    np.maximum(stay, 0, out=stay)
    return 1 - stay / (stop - start)


def permuted_ranks(a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator) -> dict[str, Moments]:
    """Stable rank and participation ratio of ΔW with its entries in random places, sampled.

    A draw costs a permutation of the entries, a float32 Gram matrix of the smaller side and a few Lanczos steps.

    Args:
        a, b: W0 and W+ in float32 `[out, in]`.
        draws: number of draws, at least 2.
        rng: source of the permutations.

    Returns:
        Expected value and deviation per statistic; nothing for a zero update.
    """
    delta = b - a
    if not delta.any():
        return {}
    delta *= np.float32(2.0 ** -np.clip(math.frexp(float(np.abs(delta).max()))[1], -126, 126))
    squares = float(np.einsum("ij,ij->", delta, delta, dtype=np.float64))
    found = []
    for _ in range(draws):
        rng.shuffle(delta.reshape(-1))
        top, fourth = leading_and_fourth(Matrix(delta))
        found.append((squares / top, squares**2 / fourth))
    return {
        name: (float(np.mean(values)), float(np.std(values, ddof=1)))
        for name, values in zip(("stable_rank", "participation_ratio"), zip(*found, strict=True), strict=True)
    }
