"""The rounding null in closed form: which bfloat16 entries direction-free Gaussian noise would change.

For a weight `w` and an update `s·g`, g standard normal, the entry counts as changed with the Gaussian mass `p(w, s)`
outside the interval of values that the unchanged test takes for `w`. Of a weight on the bfloat16 grid p depends on the
distances to the ends of that interval alone, which few magnitudes differ in; of a finer stored weight on its place
within its rounding cell too, over which we average (uniformly). So one histogram over magnitude bits per mask gives
densities and overlaps, and one over classes of magnitudes and of noise scales the same for noise of unequal scales.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

BINS = 1 << 15
"""Magnitudes that 15 bits of exponent and mantissa can tell apart."""

FINITE = 0x7F80
"""Of those the finite ones, which come first."""

_NODES = 64
_LEAST_SCALE = 1e-60  # below the smallest distance between bfloat16 numbers by twenty powers of ten


class Edges(NamedTuple):
    """Per magnitude bin: its value, its rounding cell, the interval that the unchanged test takes for it.

    `lowest` and `highest` are the bins of the extreme bfloat16 numbers in that interval.
    """

    value: np.ndarray
    cell_low: np.ndarray
    cell_high: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


@functools.lru_cache(maxsize=8)
def edges(eta: float) -> Edges:
    """Interval of the unchanged test `|a−b| ≤ η·max(|a|,|b|)` around each bfloat16 magnitude.

    For values before rounding.
    """
    value = (np.arange(FINITE, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    value = np.append(value, 2.0**128)
    middle = (value[1:] + value[:-1]) / 2
    below = np.concatenate([[-middle[0]], middle])
    above = np.concatenate([middle, [np.inf]])
    lowest = np.searchsorted(value, value * (1 - eta), side="left")
    highest = np.searchsorted(value, value / (1 - eta), side="right") - 1
    result = Edges(value, below, above, below[lowest], above[highest], lowest, highest)
    return Edges(*(array[:FINITE] for array in result))


class Classes(NamedTuple):
    """Magnitudes grouped by where their rounding cell and their unchanged interval lie around them.

    `of` is the class of each finite magnitude bin; the four ends, one per class, are relative to the magnitude.
    """

    of: np.ndarray
    cell_low: np.ndarray
    cell_high: np.ndarray
    low: np.ndarray
    high: np.ndarray


@functools.lru_cache(maxsize=8)
def classes(eta: float) -> Classes:
    """The classes of magnitudes: for η < 2⁻⁸ two per exponent, powers of two and the others."""
    value, *absolute = edges(eta)[:5]
    ends = [end - value for end in absolute]
    cell, interval = (
        np.unique(np.stack(pair, axis=1).view(np.complex128), return_inverse=True)[1].reshape(-1)
        for pair in (ends[:2], ends[2:])
    )
    _, first, of = np.unique(cell * (interval.max() + 1) + interval, return_index=True, return_inverse=True)
    return Classes(of, *(end[first] for end in ends))


def _ramp(z: np.ndarray) -> np.ndarray:
    """∫ of the normal distribution function up to z."""
    return z * special.ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)


def _increasing_root(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where an increasing function crosses zero within the bounds, the nearer bound where it does not."""
    if function(low) >= 0:
        return low
    if function(high) <= 0:
        return high
    return float(optimize.root_scalar(function, bracket=(low, high), method="brentq", xtol=tolerance).root)


class RoundingNull:
    """Change probabilities on the occupied classes of one matrix's magnitudes.

    Args:
        histogram: entries of W0 per bfloat16 magnitude bin `[2¹⁵]`; with a profile, per class of magnitudes and of
            scales `[classes, scales]`.
        eta: relative tolerance of the unchanged test.
        on_grid: whether every entry of W0 is a bfloat16 number.
        members: which class of magnitudes each row of such a histogram stands for.
        profile: relative scale of the noise in each of its columns; equal scales when None.
    """

    def __init__(
        self,
        histogram: np.ndarray,
        eta: float,
        on_grid: bool,
        *,
        members: np.ndarray | None = None,
        profile: np.ndarray | None = None,
    ) -> None:
        table = classes(eta)
        self._of = table.of if members is None else None
        cells = self._cells(histogram)
        self._occupied = np.flatnonzero(cells)
        self.counts = cells[self._occupied]
        self.total = float(self.counts.sum())
        self.on_grid = on_grid
        scales = 1 if profile is None else profile.size
        own, column = self._occupied // scales, self._occupied % scales
        own = own if members is None else members[own]
        self._ends = [end[own] for end in table[1:]]
        self._profile = np.ones(own.size) if profile is None else profile[column]

    def _cells(self, histogram: np.ndarray) -> np.ndarray:
        """Entries per class, flat."""
        if self._of is None:
            return histogram.reshape(-1).astype(np.float64)
        return np.bincount(self._of, histogram[:FINITE])

    def probability(self, scale: float) -> np.ndarray:
        """p per occupied class for noise of standard deviation `scale`, times the profile where there is one."""
        cell_low, cell_high, low, high = self._ends
        if scale <= 0:
            return np.zeros_like(low)
        scales = np.maximum(scale * self._profile, _LEAST_SCALE)
        direct = special.ndtr(low / scales) + special.ndtr(-high / scales)
        if self.on_grid:
            return direct
        width = cell_high - cell_low
        fine = width * 1e3 > scales  # far wider noise makes the place in the cell irrelevant and the ramps cancel
        if not fine.any():
            return direct
        w, a, b, lo, hi, s = (array[fine] for array in (width, cell_low, cell_high, low, high, scales))
        stay = _ramp((hi - a) / s) - _ramp((hi - b) / s) - _ramp((lo - a) / s) + _ramp((lo - b) / s)
        result = direct.copy()
        result[fine] = np.clip(1 - s / w * stay, 0, 1)
        return result

    def joint_probability(self, scale_a: float, scale_b: float) -> np.ndarray:
        """Per occupied class the probability that two independent noises both change an entry.

        Off the grid both runs start from the same place within the rounding cell, so the product is averaged over it
        (midpoint rule after `x = (1 − cos πu)/2`, which is dense at the cell's edges, where small noise acts).
        """
        if self.on_grid:
            return self.probability(scale_a) * self.probability(scale_b)
        cell_low, cell_high, low, high = self._ends
        angle = (np.arange(_NODES) + 0.5) * (np.pi / _NODES)
        total = np.zeros_like(low)
        for place, weight in zip((1 - np.cos(angle)) / 2, np.sin(angle) / np.sin(angle).sum(), strict=True):
            x = cell_low + place * (cell_high - cell_low)
            both = weight
            for scale in (scale_a * self._profile, scale_b * self._profile):
                both = both * (special.ndtr((low - x) / scale) + special.ndtr((x - high) / scale))
            total += both
        return total

    def density(self, scale: float) -> float:
        """Expected share of changed entries."""
        return float(self.counts @ self.probability(scale)) / self.total

    def scale_for_density(self, density: float) -> float | None:
        """The noise scale at which the expected density is the given one; None at density 0 or 1 (no finite scale)."""
        if not 0 < density < 1 or not self.total:
            return None
        if density > self.density(1e30):
            return None
        target = density * self.total
        least, most = float(np.log(1e-38)), float(np.log(1e30))
        typical = np.average(self._ends[3] - self._ends[2], weights=self.counts) + 1e-38
        left = right = float(np.clip(np.log(typical), least, most))

        def missing(log_scale: float) -> float:
            return float(self.counts @ self.probability(float(np.exp(log_scale)))) - target

        while missing(left) > 0 and left > least:
            left = max(left - 4, least)
        while missing(right) < 0 and right < most:
            right = min(right + 4, most)
        return float(np.exp(_increasing_root(missing, left, right, 1e-11)))

    def expected_squares(self, scale: float) -> float:
        """Σ E[(round(w + s·g) − w)²] for W0 on the bfloat16 grid: what noise of scale s leaves in a bfloat16 file."""
        cell_low, cell_high, _, _ = self._ends
        width = cell_high - cell_low
        scales = np.maximum(scale * self._profile, _LEAST_SCALE)
        ratio = width / scales
        result = scales**2 + width**2 / 12
        coarse = ratio > 0.7
        steps = np.arange(1, 9)[:, None]
        tails = special.ndtr(-(steps - 0.5) * ratio[coarse])
        result[coarse] = width[coarse] ** 2 * ((2 * steps - 1) * 2 * tails).sum(0)
        return float(self.counts @ result)

    def scale_for_squares(self, squares: float, *, stored_in_bf16: bool) -> float:
        """The scale of noise whose Σ δ² is the observed one.

        Args:
            squares: Σ ΔW².
            stored_in_bf16: W0 and W+ are on the bfloat16 grid, so that ΔW is what rounding left of the noise.
        """
        if not stored_in_bf16:
            return float(np.sqrt(squares / self.total))
        target, guess = np.log(squares), 0.5 * float(np.log(squares / self.total))

        def missing(log_scale: float) -> float:
            return float(np.log(max(self.expected_squares(float(np.exp(log_scale))), 1e-300)) - target)

        return float(np.exp(_increasing_root(missing, guess - 12, guess + 1, 1e-9)))

    def overlap(self, mask_counts: np.ndarray, scale: float) -> tuple[float, float]:
        """Expected `|M★ ∩ M| / |M|` and its standard deviation (delta method) for a mask given by its own histogram.

        That histogram has the layout of the one of the whole matrix.
        """
        p = self.probability(scale)
        inside = self._cells(mask_counts)[self._occupied]
        expected = float(self.counts @ p)
        overlap = float(inside @ p) / expected
        spread = p * (1 - p)
        variance = (1 - overlap) ** 2 * float(inside @ spread) + overlap**2 * float((self.counts - inside) @ spread)
        return overlap, float(np.sqrt(max(variance, 0.0))) / expected

    def sparsity(self, scale: float) -> tuple[float, float]:
        """Expected visible sparsity and its standard deviation for noise of the given scale."""
        p = self.probability(scale)
        return 1 - float(self.counts @ p) / self.total, float(np.sqrt(self.counts @ (p * (1 - p)))) / self.total
