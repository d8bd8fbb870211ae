"""The scale-profile null: the rounding null with the row and column scales of the real update, `s·D_r·G·D_c`.

So loud rows and columns are not read as structure. The scales are estimated from the same update, one for every row and
column, and that shows: to second order a fitted scale lies off by its bias and its variance, which a curved probability
of change turns into too many or too few expected changes (of the order of the null's own deviation at every size); and
to first order part of the fluctuation is fitted away. Both are taken out here in closed form.

With `t = log s_ij`, `h = dE[δ²]/dt/s²`, `k` its next derivative, `W = Var(δ²)/s⁴`: the estimating equations
`Σ (δ² − E δ²)/s² = 0` of a row give `Var t_i = ΣW/(Σh)²` and a bias of `−½·Σk/Σh·Var t_i`, columns likewise; for noise
that is not rounded h = 2, k = 4, W = 2. The number of changes over the fitted expectation is
`Σ (X − p) − λ_ij·(δ² − E δ²)/s²`, λ the additive `α_i + β_j` with `Σ h·λ = Σ dp/dt` over every row and column.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax import lax

from ._decompose import matmul
from ._namespace import as_real, divide, namespace, repeat
from .moments import NullMoments, triple
from .rounding_cells import RoundingCells, change, left_noise, moments_of_share, scale_for_density, select
from .row_column_scales import (  # fmt: skip
    STEPS_PER_OCTAVE,
    kinds_of,
    places,
    rounding_table,
)
from .storage_grids import BINS

FEW = 3.0
"""A rounded row with fewer expected changes is often left as it was: its scale has no normal estimate."""

_THIN = 0.1
"""Share of the expected changes in such rows (or columns) beyond which the null has no deviation: their scales are
guesses, whose part in the variance of what changes is not known."""

_SWEEPS = 12
"""Alternations that solve for λ; each takes off at least half of the error."""


class ProfileCells(NamedTuple):
    """A pair of matrices under noise of unequal scales, grouped by class of W0's entry and scale.

    Attributes:
      cells: entries with noise, a class for every pair of class and scale, `[cells]`.
      scale: scale of the noise in each.
      drift: bias of the fitted log scale there.
      noise: variance of the fitted log scale.
      fitted: what of the variance of the number of changes is fitted away, `Σ 2λ·Cov − λ²·W`.
      thin: share of the expected changes that lie in rows, or in columns, with fewer than `FEW` of them.
      size: entries, those without noise too.
      sides: rows and columns, each with a scale of its own.
      masks: entries of each mask by statistic, `[cells]`.
    """

    cells: RoundingCells
    scale: Any
    drift: Any
    noise: Any
    fitted: Any
    thin: Any
    size: Any
    sides: int
    masks: Mapping[str, Any]


class Levels(NamedTuple):
    """Functions of the noise level averaged over W0's entries, by whole steps above the lowest, `[levels]`."""

    chance: Any
    slope: Any
    h: Any
    k: Any
    variance: Any
    together: Any


def averages(cells: RoundingCells, base: Any, count: int, unit: Any) -> Levels:
    """What noise of each level does to a typical entry of W0.

    Args:
      cells: the matrix under isotropic noise.
      base: the lowest level, a whole number of steps.
      count: how many levels.
      unit: exponent of the power of two in whose units the levels are.
    """
    xp = namespace(cells.counts, base)
    steps = base + xp.arange(count, dtype=np.int32)
    scale = xp.ldexp(xp.exp2(as_real(steps, xp) / STEPS_PER_OCTAVE), unit)
    size = cells.counts.sum(-1)
    response = change(cells, scale[:, None])
    chance, slope = ((cells.counts * part).sum(-1) / size for part in (response.probability, response.slope))

    def plain() -> Any:
        one = xp.ones_like(slope)
        return 2 * one, 4 * one, 2 * one, slope

    def rounded() -> Any:
        kinds, table = kinds_of(cells.storage), rounding_table(cells.storage, cells.eta)
        bend = np.gradient(table.slope, np.log(2) / STEPS_PER_OCTAVE, axis=0) + 2 * table.slope
        weights = cells.histogram
        if kinds == 128:
            weights = as_real(weights, xp).reshape(256, 128)
        else:
            by_field = as_real(weights, xp).reshape(32, 1024)
            weights = xp.stack([by_field[:, 0], by_field[:, 1:].sum(1)], axis=1)
        start = places(cells.storage)[:BINS].reshape(weights.shape[0], -1)[:, 0] // kinds
        place = steps[:, None] + STEPS_PER_OCTAVE * unit + xp.asarray(start)
        place = xp.clip(place, 0, table.slope.shape[0] - 1)
        found = []
        for part in (table.slope, bend, table.variance, table.together):
            by_exponent = matmul(as_real(part, xp), weights.T)
            found.append(xp.take_along_axis(by_exponent, place, axis=0).sum(1) / size)
        if cells.storage == "float16":  # which of its changes are visible depends on the place in the bfloat16 cell
            found[3] = _in_turn(lambda s: left_noise(cells, s).together, scale) / size
        return tuple(found)

    return Levels(chance, slope, *select(cells.is_rounded, rounded, plain))


def _in_turn(function: Any, values: Any) -> Any:
    if namespace(values) is np:
        return np.array([function(value) for value in values])
    return lax.map(function, values)


def _dual(h: Any, row_target: Any, column_target: Any, rows: Any, columns: Any) -> tuple[Any, Any]:
    """α and β with `Σ_j n_j·h_ij·(α_i + β_j)` and `Σ_i n_i·h_ij·(α_i + β_j)` equal to the targets."""
    by_row, by_column = matmul(h, columns), matmul(rows, h)

    def sweep(shares: tuple[Any, Any]) -> tuple[Any, Any]:
        alpha = _over(row_target - matmul(h, columns * shares[1]), by_row)
        return alpha, _over(column_target - matmul(rows * alpha, h), by_column)

    return repeat(_SWEEPS, sweep, (0 * by_row, 0 * by_column))


def _by_level(side: Any, held: Any, count: int) -> Any:
    """Sums of what the rows (columns) of each level hold, `[count]`."""
    xp = namespace(side, held)
    place = xp.clip(side, 0, count - 1)
    if xp is np:
        return np.bincount(place, held, minlength=count)
    return xp.zeros(count, held.dtype).at[place].add(held)


def _over(a: Any, b: Any) -> Any:
    xp = namespace(a, b)
    return xp.where(b > 0, a / xp.where(b > 0, b, xp.ones_like(b)), xp.zeros_like(a))


def estimation(
    levels: Levels, rows: Any, columns: Any, row_counts: Any, column_counts: Any
) -> tuple[Any, Any, Any, Any]:
    """Drift and noise of the fitted log scales per level, and what of the variance is fitted away.

    Args:
      levels: averages over W0's entries.
      rows, columns: levels of the rows and of the columns above the lowest of either, or of groups of them, `[rows]`,
        `[columns]`; the levels of `levels` are their sums.
      row_counts, column_counts: how many each stands for; 0 for those without noise.

    Returns:
      `drift`, `noise` `[levels]`, `fitted`, `thin` `[]`.
    """
    xp, count = namespace(levels.slope, rows), levels.slope.shape[0]
    place = xp.clip(rows[:, None] + columns[None, :], 0, count - 1)
    h, k, variance, slope, together = (
        part[place] for part in (levels.h, levels.k, levels.variance, levels.slope, levels.together)
    )

    def side(weigh: Any) -> tuple[Any, Any]:
        total = weigh(h)
        noise = _over(weigh(variance), total * total)
        return noise, -0.5 * _over(weigh(k), total) * noise

    row_noise, row_drift = side(lambda x: matmul(x, column_counts))
    column_noise, column_drift = side(lambda x: matmul(row_counts, x))
    pairs = row_counts[:, None] * column_counts[None, :]

    def per_level(by_row: Any, by_column: Any) -> Any:
        # A pair's level is the sum of its two: what float32 cannot sum pair by pair is a convolution of sums by side.
        own, other = (_by_level(side, held, count) for side, held in ((rows, by_row), (columns, by_column)))
        return np.convolve(own, other)[:count] if xp is np else xp.convolve(own, other, precision="highest")[:count]

    held = per_level(row_counts, column_counts)
    noise, drift = (
        _over(per_level(row_counts * own, column_counts) + per_level(row_counts, column_counts * other), held)
        for own, other in ((row_noise, column_noise), (row_drift, column_drift))
    )
    alpha, beta = _dual(h, matmul(slope, column_counts), matmul(row_counts, slope), row_counts, column_counts)
    share = alpha[:, None] + beta[None, :]
    fitted = (pairs * (2 * share * together - share * share * variance)).sum()
    changes = levels.chance[place]
    thin = []
    for expected, counts in (
        (matmul(changes, column_counts), row_counts),
        (matmul(row_counts, changes), column_counts),
    ):
        few = xp.where(expected < FEW, expected, xp.zeros_like(expected))
        thin.append(_over((counts * few).sum(), (counts * expected).sum()))
    return drift, noise, fitted, xp.maximum(*thin)


def profile_statistics(cells: ProfileCells, values: Mapping[str, Any], changed: Any) -> dict[str, Any]:
    """Visible sparsity and overlaps of masks beside the scale-profile null.

    Args:
      cells: the pair.
      values: the observed statistics: `sparsity_bf16`, and the overlaps of the masks that are defined.
      changed: how many entries changed.

    Returns:
      `{report key: number}`: `<name>_profile_null`, `_excess`, `_z` of every value.
    """
    xp = namespace(cells.scale, cells.drift)
    found: dict[str, Any] = {}
    expected, variance = _changes(cells)
    null = moments_of_share(1 - expected / cells.size, variance, cells.size)
    guessed = select(cells.cells.is_rounded, lambda: cells.thin > _THIN, lambda: cells.thin < 0)
    null = null._replace(std=xp.where(guessed, np.nan, null.std))
    # Of fewer changes than scales most rows, or columns, have none and are taken for silent.
    guessed_sides = select(cells.cells.is_rounded, lambda: xp.asarray(changed) < cells.sides, lambda: cells.thin < 0)
    for name, value in values.items():
        if name != "sparsity_bf16":
            null = _overlap(cells, cells.masks[name], xp.asarray(changed))
            null = null._replace(std=xp.where(guessed_sides, np.nan, null.std))
        found |= triple(name, xp.asarray(value), null, "_profile")
    return {key: value for key, value in found.items() if "_profile" in key}


def _bias(cells: ProfileCells, response: Any) -> Any:
    """How far the probability of change at the fitted scales lies off by their estimation, per cell."""
    return response.slope * cells.drift + 0.5 * response.bend * cells.noise


def _changes(cells: ProfileCells) -> tuple[Any, Any]:
    """Expectation and variance of the number of changes."""
    xp = namespace(cells.scale)
    response, counts = change(cells.cells, cells.scale), cells.cells.counts
    chance = response.probability
    expected = (counts * (chance - _bias(cells, response))).sum()
    expected = xp.clip(expected, 0.0, cells.size)
    return expected, xp.maximum((counts * chance * (1 - chance)).sum() - cells.fitted, 0.0)


def _overlap(cells: ProfileCells, inside: Any, changed: Any) -> NullMoments:
    """Moments of `|M★ ∩ M|/|M|` at the factor on all scales that gives the observed number of changes."""
    xp, counts = namespace(cells.scale, changed), cells.cells.counts
    possible = counts.sum()
    density = xp.where(possible > 0, changed / xp.where(possible > 0, possible, 1.0), 0.0)
    factor = scale_for_density(cells.cells, density, relative=cells.scale)
    known = ~xp.isnan(factor)
    response = change(cells.cells, xp.where(known, factor, xp.ones_like(factor)) * cells.scale)
    chance, bias = response.probability, _bias(cells, response)
    share = divide((inside * response.slope).sum(), (counts * response.slope).sum())
    total = (counts * chance).sum()
    mean = divide((inside * chance).sum() - ((inside - share * counts) * bias).sum(), total)
    spread = chance * (1 - chance)
    variance = ((inside * (1 - share) ** 2 + (counts - inside) * share**2) * spread).sum()
    moments = moments_of_share(xp.clip(mean, 0.0, 1.0), variance, changed)
    return NullMoments(*(xp.where(known, part, np.nan) for part in moments))
