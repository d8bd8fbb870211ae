"""The rounding null in closed form: which bfloat16 entries direction-free Gaussian noise would change.

For a weight `w` and an update `s·g`, g standard normal, the entry counts as changed with the Gaussian mass `p(w, s)`
outside the interval of values that the unchanged test takes for `w`. Of a weight on the bfloat16 grid p depends on the
15 magnitude bits alone, of a finer stored weight on its place within its rounding cell too, over which we average
(uniformly). So one histogram over magnitude bits per mask gives densities and overlaps.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special

BINS = 1 << 15
"""Magnitudes that 15 bits of exponent and mantissa can tell apart."""

_FINITE = 0x7F80
_NODES = 64


class Edges(NamedTuple):
    """Per magnitude bin: its value, its rounding cell, and the interval that the unchanged test takes for it."""

    value: np.ndarray
    cell_low: np.ndarray
    cell_high: np.ndarray
    low: np.ndarray
    high: np.ndarray


@functools.lru_cache(maxsize=8)
def edges(eta: float) -> Edges:
    """Interval of the unchanged test `|a−b| ≤ η·max(|a|,|b|)` around each bfloat16 magnitude.

    For values before rounding.
    """
    value = (np.arange(_FINITE, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    value = np.append(value, 2.0**128)
    middle = (value[1:] + value[:-1]) / 2
    below = np.concatenate([[-middle[0]], middle])
    above = np.concatenate([middle, [np.inf]])
    lowest = np.searchsorted(value, value * (1 - eta), side="left")
    highest = np.searchsorted(value, value / (1 - eta), side="right") - 1
    result = Edges(value, below, above, below[lowest], above[highest])
    return Edges(*(array[:_FINITE] for array in result))


def _ramp(z: np.ndarray) -> np.ndarray:
    """∫ of the normal distribution function up to z."""
    return z * special.ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)


class RoundingNull:
    """Change probabilities on the occupied bins of one matrix's magnitude histogram.

    Args:
        histogram: entries of W0 per bfloat16 magnitude bin `[2¹⁵]`.
        eta: relative tolerance of the unchanged test.
        on_grid: whether every entry of W0 is a bfloat16 number.
    """

    def __init__(self, histogram: np.ndarray, eta: float, on_grid: bool) -> None:
        self.bins = np.flatnonzero(histogram[:_FINITE])
        self.counts = histogram[self.bins].astype(np.float64)
        self.total = float(self.counts.sum())
        self.on_grid = on_grid
        self._edges = Edges(*(array[self.bins] for array in edges(eta)))

    def probability(self, scale: float) -> np.ndarray:
        """p per occupied bin for noise of standard deviation `scale`."""
        value, cell_low, cell_high, low, high = self._edges
        if scale <= 0:
            return np.zeros_like(value)
        direct = special.ndtr((low - value) / scale) + special.ndtr((value - high) / scale)
        if self.on_grid:
            return direct
        width = cell_high - cell_low
        fine = width * 1e3 > scale  # far wider noise makes the place in the cell irrelevant and the ramps cancel
        if not fine.any():
            return direct
        w, a, b, lo, hi = (array[fine] for array in (width, cell_low, cell_high, low, high))
        stay = _ramp((hi - a) / scale) - _ramp((hi - b) / scale) - _ramp((lo - a) / scale) + _ramp((lo - b) / scale)
        result = direct.copy()
        result[fine] = np.clip(1 - scale / w * stay, 0, 1)
        return result

    def joint_probability(self, scale_a: float, scale_b: float) -> np.ndarray:
        """Per occupied bin the probability that two independent noises both change an entry.

        Off the grid both runs start from the same place within the rounding cell, so the product is averaged over it
        (midpoint rule after `x = (1 − cos πu)/2`, which is dense at the cell's edges, where small noise acts).
        """
        if self.on_grid:
            return self.probability(scale_a) * self.probability(scale_b)
        _, cell_low, cell_high, low, high = self._edges
        angle = (np.arange(_NODES) + 0.5) * (np.pi / _NODES)
        total = np.zeros_like(low)
        for place, weight in zip((1 - np.cos(angle)) / 2, np.sin(angle) / np.sin(angle).sum(), strict=True):
            x = cell_low + place * (cell_high - cell_low)
            both = weight
            for scale in (scale_a, scale_b):
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
        low, high = np.log(1e-38), np.log(1e30)
        target = density * self.total
        guess = float(np.log(np.average(self._edges.value, weights=self.counts) * 2**-8 + 1e-38))
        width = 4.0
        left, right = max(guess - width, low), min(guess + width, high)
        while self.counts @ self.probability(float(np.exp(left))) > target and left > low:
            left = max(left - 8, low)
        while self.counts @ self.probability(float(np.exp(right))) < target and right < high:
            right = min(right + 8, high)
        for _ in range(60):
            middle = (left + right) / 2
            if self.counts @ self.probability(float(np.exp(middle))) < target:
                left = middle
            else:
                right = middle
            if right - left < 1e-10:
                break
        return float(np.exp((left + right) / 2))

    def overlap(self, mask_counts: np.ndarray, scale: float) -> tuple[float, float]:
        """Expected `|M★ ∩ M| / |M|` and its standard deviation (delta method) for a mask given by its own histogram."""
        p = self.probability(scale)
        inside = mask_counts[self.bins].astype(np.float64)
        expected = float(self.counts @ p)
        overlap = float(inside @ p) / expected
        spread = p * (1 - p)
        variance = (1 - overlap) ** 2 * float(inside @ spread) + overlap**2 * float((self.counts - inside) @ spread)
        return overlap, float(np.sqrt(max(variance, 0.0))) / expected

    def sparsity(self, scale: float) -> tuple[float, float]:
        """Expected visible sparsity and its standard deviation for noise of the given scale."""
        p = self.probability(scale)
        return 1 - float(self.counts @ p) / self.total, float(np.sqrt(self.counts @ (p * (1 - p)))) / self.total
