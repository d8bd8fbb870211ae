"""The scales of an update's rows and columns: `r_i·c_j` such that the update over them is equally loud everywhere.

`ΔW_ij/(r_i·c_j)` has mean square 1 in every row and in every column. That is the equilibration of Sinkhorn and Knopp
applied to ΔW², and the maximum-likelihood estimate for Gaussian noise of such scales: a row's scale is known to
`1/√(2n)` however unequal the columns are, where its plain RMS would be that of the few loudest columns.

Where both sides are stored in one 16-bit format, a quiet row's update is mostly rounded away, and its mean square
understates the noise that was there. There the scales are such that noise of scale `r_i·c_j`, rounded on the actual
weights, would leave the observed mean squares (each entry over the square of its other scale).

Scales are held on a logarithmic grid, on which those of row and column add up.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ._namespace import as_real, namespace, repeat
from .rounding_cells import select
from .rounding_response import change_at_place
from .stored_noise import Neighbourhood, neighbourhood, stored_noise

STEPS_PER_OCTAVE = 64
"""Resolution of row and column scales: a rounding error of 0.3 %, where n entries tell a scale to `1/√(2n)`."""

OCTAVES = 24
"""A row this far below the loudest one is silent, as is one without an update; columns likewise."""

ROUNDS = 8
"""The most alternations between rows and columns."""

_STEP, _SHARE = 2, 1 / 16
"""An alternation is the last where it moves none by more than so many levels, and no more than this share of a side;
the next moves the expected density by less than a tenth of its deviation."""

_FINEST, _COARSEST = 6, -6
"""Octaves of the noise over the spacing between which rounding is tabled: above nothing is lost, below nothing left."""

RATIOS = (_FINEST - _COARSEST) * STEPS_PER_OCTAVE + 1


class ScaleProfile(NamedTuple):
    """Noise scale of the entry (i, j): `2^((rows[i] + columns[j])/64)`.

    Attributes:
      rows: whole numbers `[out]`; `SILENT` marks a row without noise.
      columns: whole numbers `[in]`.
    """

    rows: Any
    columns: Any


SILENT = -(1 << 20)


class RoundingTable(NamedTuple):
    """What a format leaves of noise s on a number of spacing c, by s/c on the grid of scales and by kind of number.

    In units of s, float64 `[ratios, kinds]`.

    Attributes:
      square: E[δ²].
      slope: its derivative in log s.
      variance: Var(δ²).
      together: Cov(δ², visible change).
    """

    square: np.ndarray
    slope: np.ndarray
    variance: np.ndarray
    together: np.ndarray


def kinds_of(storage: str) -> int:
    """Kinds of numbers that rounding tells apart: the 128 of a bfloat16 exponent; powers of two and others."""
    return 128 if storage == "bfloat16" else 2


@functools.lru_cache(maxsize=4)
def rounding_table(storage: str, eta: float) -> RoundingTable:
    """The table of a format under the unchanged test with tolerance η."""
    around = neighbourhood(eta)
    if storage == "float16":
        steps = np.arange(1, around.up.shape[0] + 1)[:, None] * np.ones(2)
        half = np.array([0.5, 0.5])
        far = np.full(2, np.inf)
        around = Neighbourhood(steps, steps * np.array([0.5, 1.0]), half, np.array([0.25, 0.5]), far, far)
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for octaves in np.array_split(np.arange(RATIOS) / STEPS_PER_OCTAVE + _COARSEST, _FINEST - _COARSEST):
        spacing = 2.0 ** -octaves[:, None]
        edges = around.edge_up * spacing, around.edge_down * spacing
        steps = around.up[:, None] * spacing, around.down[:, None] * spacing
        noise = stored_noise(*steps, edges, (around.above * spacing, around.below * spacing))
        chance = change_at_place(-edges[1], edges[0], 1.0).probability
        found = noise.square, noise.slope, noise.fourth - noise.square**2, noise.square * (1 - chance) - noise.unseen
        for part, values in zip(parts, found, strict=True):
            part.append(values)
    return RoundingTable(*(np.concatenate(part) for part in parts))


@functools.cache
def places(storage: str) -> np.ndarray:
    """Where each 16-bit pattern stands in a flat table, for noise of scale 1: `[2¹⁶]` whole numbers.

    `(−64·log2 c − lowest)·kinds + kind` for the spacing c of its exponent; adding 64·kinds a noise octave moves along.
    """
    bits = np.arange(1 << 15)
    mantissa = 7 if storage == "bfloat16" else 10
    field = np.maximum(bits >> mantissa, 1)
    octave = field - (134 if storage == "bfloat16" else 25)
    kinds = kinds_of(storage)
    rest = bits & ((1 << mantissa) - 1)
    kind = rest if kinds == 128 else np.minimum(rest, 1)
    start = (-STEPS_PER_OCTAVE * octave - STEPS_PER_OCTAVE * _COARSEST) * kinds + kind
    return np.tile(start, 2).astype(np.int32)


def look_up(table: Any, keys: Any) -> Any:
    """Entries of a flat table `[ratios·kinds]` at keys that may lie beyond its ends, where nothing changes any more."""
    return namespace(keys).take(table, keys, mode="clip")


def levels(log2_scales: Any) -> Any:
    """Scales in octaves as whole steps of the grid; `SILENT` for minus infinity and far below the largest."""
    xp = namespace(log2_scales)
    moved = xp.isfinite(log2_scales)
    steps = xp.round(STEPS_PER_OCTAVE * xp.where(moved, log2_scales, xp.zeros_like(log2_scales))).astype(np.int32)
    top = xp.max(xp.where(moved, steps, SILENT))
    return xp.where(moved & (steps > top - OCTAVES * STEPS_PER_OCTAVE), steps, SILENT)


def scale_of_levels(steps: Any) -> Any:
    """`2^(steps/64)`, 0 for silent rows and columns."""
    xp = namespace(steps)
    octaves = as_real(xp.where(is_active(steps), steps, 0), xp) / STEPS_PER_OCTAVE
    return xp.where(is_active(steps), xp.exp2(octaves), xp.zeros_like(octaves))


def fit_profile(sums: Any, shape: tuple[int, int], is_rounded: Any) -> ScaleProfile:
    """The profile of an update, from what an access to its entries sums up.

    Args:
      sums: has `rows(weights)` and `columns(weights)`, weighted sums of ΔW² per row `[out]` and per column `[in]`, and
        `left_rows(profile)` and `left_columns(profile)`, sums over active partners of the tabled E[δ²]/s² and its
        slope.
      shape: (out, in).
      is_rounded: whether both sides are stored in one 16-bit format.

    Returns:
      `ScaleProfile`.
    """
    rows = sums.rows(np.ones(shape[1])) / shape[1]
    columns = sums.columns(np.ones(shape[0])) / shape[0]
    xp = namespace(rows)
    whole = 0.5 * _log2(rows.mean())
    profile = ScaleProfile(levels(0.5 * (_log2(rows) - whole)), levels(0.5 * (_log2(columns) - whole)))

    def fitted(profile: ScaleProfile, side: int) -> Any:
        this, other = profile[side], profile[1 - side]
        partners = as_real(is_active(other), xp) / _positive(scale_of_levels(other)) ** 2
        seen = _log2((sums.rows, sums.columns)[side](partners))
        found = select(
            is_rounded,
            lambda: _before_storage(seen, this, *(sums.left_rows, sums.left_columns)[side](profile)),
            lambda: (seen - xp.log2(as_real(is_active(other).sum(), xp))) / 2,
        )
        return levels(xp.where(is_active(this), found, -np.inf))

    def alternate(profile: ScaleProfile) -> ScaleProfile:
        profile = profile._replace(rows=fitted(profile, 0))
        return profile._replace(columns=fitted(profile, 1))

    def settled(old: ScaleProfile, new: ScaleProfile) -> Any:
        moves = [xp.abs(one - other) for one, other in zip(old, new, strict=True)]
        still = [(xp.max(x) <= _STEP) & (xp.mean(as_real(x > 0, xp)) <= _SHARE) for x in moves]
        return still[0] & still[1]

    return repeat(ROUNDS, alternate, profile, settled=settled)


def _before_storage(seen: Any, this: Any, expected: Any, slope: Any) -> Any:
    """A Newton step in the logarithm towards the scales that leave the observed squares, in octaves."""
    xp = namespace(seen)
    now = as_real(xp.where(is_active(this), this, 0), xp) / STEPS_PER_OCTAVE
    missing = xp.where(seen > -np.inf, seen, 0.0) - _log2(_positive(expected)) - 2 * now
    return now + xp.clip(missing / xp.maximum(slope / _positive(expected), 1.0), -1.0, 1.0)


def is_active(steps: Any) -> Any:
    """Which rows or columns have noise."""
    return steps > SILENT // 2


def _positive(x: Any) -> Any:
    xp = namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def _log2(x: Any) -> Any:
    """log2, minus infinity at 0."""
    xp = namespace(x)
    return xp.where(x > 0, xp.log2(_positive(x)), -np.inf)
