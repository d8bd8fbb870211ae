"""What a 16-bit format leaves of noise: squares of `round(w + s·g) − w` for w on the grid to which it is rounded.

In units of s everything depends on the spacing c of the grid over s. Where the noise is far below the spacing nothing
is left, where it is far above, the noise itself plus a twelfth of the squared spacing (Sheppard); between, sums over
the next numbers on either side. In bfloat16, with 128 numbers between two powers of two, it matters which of them w is:
beyond a power of two the spacing is another. So the sums are taken for each of the 128, of the ten exponents for which
they differ from the limits.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ._namespace import as_real, namespace, ndtr
from .rounding_response import change_at_place, times_density
from .storage_grids import FINITE, grid_classes, magnitudes, unchanged_intervals

_STEPS = 20
"""Neighbours on either side that the sums reach: beyond them lies nothing of noise of `_FINE` spacings."""

_FINE = 1.5
"""Noise above this many spacings leaves what a continuum would, plus a twelfth of the squared spacing."""

_WINDOW = 10
"""Exponents that are summed number by number: spacings from a sixteenth to 32 times the power of two below s."""

_UNIT = 134
"""Exponent field of the bfloat16 numbers whose spacing is 1."""


class StoredNoise(NamedTuple):
    """E[δ] away from zero, E[δ²], its derivative in log s, E[δ⁴], E[δ²; view unchanged]; δ is what storage leaves."""

    outward: Any
    square: Any
    slope: Any
    fourth: Any
    unseen: Any


class LeftNoise(NamedTuple):
    """Sums over the entries of a matrix, in units of s.

    Attributes:
      square: `Σ E[δ²]/s²`.
      slope: its derivative in log s (of `Σ E[δ²]`), over s².
      together: `Σ Cov(changed, δ²)/s²`.
      variance: `Σ Var(δ²)/s⁴`.
      along: `E Σ w·δ/s²`: not zero, since powers of two have a nearer neighbour towards zero.
      across: `Var Σ w·δ/s⁴`.
    """

    square: Any
    slope: Any
    together: Any
    variance: Any
    along: Any
    across: Any


class Neighbourhood(NamedTuple):
    """Distances around the 128 bfloat16 numbers of one exponent, in units of their spacing.

    Attributes:
      up, down: to the next numbers, `[steps, 128]`.
      edge_up, edge_down: to the ends of the unchanged interval, `[128]`.
      above, below: to the powers of two on either side.
    """

    up: Any
    down: Any
    edge_up: Any
    edge_down: Any
    above: Any
    below: Any


@functools.lru_cache(maxsize=8)
def neighbourhood(eta: float) -> Neighbourhood:
    """Around the numbers of spacing 1, 128 … 255."""
    value, view = magnitudes("bfloat16"), unchanged_intervals(eta)
    bins = (_UNIT << 7) + np.arange(128)
    here, steps = value[bins], np.arange(1, _STEPS + 1)[:, None]
    return Neighbourhood(
        value[bins + steps] - here, here - value[bins - steps], view.high[bins] - here, here - view.low[bins],
        256 - here, here - 128,
    )  # fmt: skip


def sum_by_class(by_magnitude: Any, storage: str, eta: float) -> Any:
    """Sums over magnitudes `[..., 2¹⁵]` as sums over classes `[..., classes]`, floating."""
    table = grid_classes(storage, eta)
    xp = namespace(by_magnitude)
    if xp is np:
        return np.bincount(table.of, by_magnitude, minlength=table.low.size)

    places = table.of.astype(np.uint32)

    def gathered(one: Any) -> Any:
        return xp.zeros(table.low.size, one.dtype).at[places].add(one)

    for _ in range(by_magnitude.ndim - 1):
        gathered = jax.vmap(gathered)
    return gathered(as_real(by_magnitude, xp))


def stored_noise(up: Any, down: Any, edges: tuple[Any, Any], binade: tuple[Any, Any]) -> StoredNoise:
    """Mean squares that rounding leaves of noise of scale 1 around numbers of a grid, elementwise.

    Args:
      up, down: distances to the next numbers above and below, `[steps, ...]`, ascending.
      edges: distances to the upper and lower end of the unchanged interval, `[...]` each.
      binade: distances to the upper and lower end of the stretch of equal spacing that the number lies in.

    Returns:
      `StoredNoise`, `[...]`.
    """
    xp = namespace(up)
    spacing = xp.maximum(up[0], down[0])
    smooth = _smooth(spacing, edges, binade)
    if xp is not np:
        sums, fine = _sums(up, down, edges), spacing * _FINE < 1
        return StoredNoise(*(xp.where(fine, one, other) for one, other in zip(smooth, sums, strict=True)))
    # What the continuum describes, and what nothing is left of, need not be summed; of the rest, octave by octave, only
    # the steps that the noise reaches.
    summed = spacing * _FINE >= 1
    for whole in smooth:
        whole[summed] = 0.0
    octave = np.where(summed & (spacing < 40), np.frexp(spacing)[1], -100)
    for one in np.unique(octave[octave > -100]):
        these = octave == one
        reached = min(_STEPS, 1 + math.ceil(9 / float(np.minimum(up[0], down[0])[these].min())))
        sums = _sums(up[:reached, these], down[:reached, these], [edge[these] for edge in edges])
        for whole, part in zip(smooth, sums, strict=True):
            whole[these] = part
    return smooth


def _sums(up: Any, down: Any, edges: Any) -> StoredNoise:
    """Sums by parts over the next numbers: δ² rises by the difference of squares where the noise passes the middle."""
    xp = namespace(up)
    distances, edge = xp.clip(xp.stack([up, down]), 0.0, 1e4), xp.clip(xp.stack(edges), 0.0, 60.0)
    before = xp.concatenate([xp.zeros_like(distances[:, :1]), distances[:, :-1]], axis=1)
    middle = 0.5 * (before + distances)
    z = xp.clip(middle, 0.0, 60.0)  # nothing is left of noise so far below the spacing
    tail, beyond = ndtr(-z), ndtr(-edge)[:, None]
    rise = (distances - before) * (distances + before)
    fourth = rise * (distances * distances + before * before)
    seen = xp.where(middle < edge[:, None], rise * xp.maximum(tail - beyond, 0.0), 0.0)
    steps = (distances - before) * tail
    terms = rise * tail, rise * times_density(z), fourth * tail, seen
    return StoredNoise((steps[0] - steps[1]).sum(0), *(term.sum((0, 1)) for term in terms))


def _smooth(spacing: Any, edges: Any, binade: Any) -> StoredNoise:
    """The continuum plus Sheppard's twelfth of the squared spacing where the noise lands."""
    xp = namespace(spacing)
    spacing = xp.minimum(spacing, 1.0)
    above, below = ndtr(-xp.clip(xp.stack(binade), 0.0, 60.0))
    landing = spacing * spacing * (1 + 3 * above - 0.75 * below)
    stays = change_at_place(-edges[1], edges[0], 1.0)
    inside = 1 - stays.probability
    hidden = inside - stays.slope + inside * landing / 12
    # The interval of one number ends half a spacing from it, that of a number and its neighbours 1.5 or more.
    several = xp.maximum(edges[0], edges[1]) > 0.75 * spacing
    return StoredNoise(
        xp.zeros_like(landing),
        1 + landing / 12,
        xp.full_like(landing, 2.0),
        3 + 0.5 * landing + spacing**4 / 80,
        xp.where(several, hidden, xp.zeros_like(hidden)),
    )


def _summed(noise: StoredNoise, chance: Any, weight: Any, counts: Any, axes: Any) -> LeftNoise:
    """Sums over the entries; `weight` is |w| over s."""
    together = noise.square * (1 - chance) - noise.unseen
    parts = (
        noise.square, noise.slope, together, noise.fourth - noise.square**2, weight * noise.outward,
        weight**2 * (noise.square - noise.outward**2),
    )  # fmt: skip
    return LeftNoise(*((counts * part).sum(axes) for part in parts))


def left_on_bf16_grid(cells: Any, scale: Any, *, weighted: bool) -> LeftNoise:
    """`LeftNoise` of a histogram over bfloat16 magnitudes.

    Args:
      cells: `RoundingCells`.
      scale: s, `[...]`.
      weighted: whether `across` is wanted, which asks for every magnitude; else it is incomplete.
    """
    xp = namespace(cells.counts, scale)
    table = Neighbourhood(*(as_real(part, xp) for part in neighbourhood(cells.eta)))
    _, octave = xp.frexp(scale)
    first = xp.clip(octave - 1 - 4 + _UNIT, 2, 255 - _WINDOW)
    exponents = first[..., None] + xp.arange(_WINDOW, dtype=first.dtype)
    spacing = xp.ldexp(as_real(0 * exponents + 1, xp), exponents - octave[..., None] - _UNIT)
    spacing = (spacing / xp.ldexp(scale, -octave)[..., None])[..., None]  # over s, by exact powers of two
    counts = cells.histogram.reshape(*cells.histogram.shape[:-1], 256, 128)
    counts = as_real(xp.take_along_axis(counts, exponents[..., None], axis=-2), xp)
    steps = [part.reshape(-1, *(1,) * exponents.ndim, 128) * spacing for part in (table.up, table.down)]
    edges = table.edge_up * spacing, table.edge_down * spacing
    noise = stored_noise(steps[0], steps[1], edges, (table.above * spacing, table.below * spacing))
    weight = as_real(np.arange(128, 256), xp) * spacing
    inner = _summed(noise, change_at_place(-edges[1], edges[0], 1.0).probability, weight, counts, (-2, -1))
    # Finer numbers than those: the continuum, class by class.
    width = 2 * xp.where(xp.isfinite(cells.cell_high), cells.cell_high, -cells.cell_low) / scale[..., None]
    edges = cells.stored_high / scale[..., None], -cells.stored_low / scale[..., None]
    far = xp.full_like(width, np.inf)
    # Spacings differ by powers of two: finer ones are half of the window's first or less.
    fine = xp.where(width < 0.75 * spacing[..., 0, :], cells.counts, xp.zeros_like(cells.counts))
    chance = change_at_place(-edges[1], edges[0], 1.0).probability
    outer = _summed(_smooth(width, edges, (far, far)), chance, xp.zeros_like(width), fine, -1)
    if not weighted:
        return LeftNoise(*(one + other for one, other in zip(inner, outer, strict=True)))
    squares = _square_weights(cells.histogram, cells.storage, scale)
    below = xp.arange(squares.shape[-1], dtype=first.dtype) < first[..., None] * 128
    outer = outer._replace(across=xp.where(below, squares, xp.zeros_like(squares)).sum(-1))
    return LeftNoise(*(one + other for one, other in zip(inner, outer, strict=True)))


def _square_weights(histogram: Any, storage: str, scale: Any) -> Any:
    """Σ w²/s² of the entries of each magnitude, `[..., 2¹⁵]`."""
    xp = namespace(histogram, scale)
    value = np.zeros(histogram.shape[-1])
    value[: FINITE[storage]] = np.minimum(magnitudes(storage)[:-1], 1e38)
    relative = xp.clip(as_real(value, xp) / scale[..., None], 0.0, 1e15)  # none is used that far up
    return as_real(histogram, xp) * relative**2


def left_on_classes(cells: Any, scale: Any) -> LeftNoise:
    """`LeftNoise` of classes whose numbers have neighbours of one spacing on either side: float16, of 1024 numbers.

    Args:
      cells: `RoundingCells`.
      scale: s, `[...]`.
    """
    xp = namespace(cells.counts, scale)
    down = -2 * cells.cell_low
    up = xp.where(xp.isfinite(cells.cell_high), 2 * cells.cell_high, down)
    relative = [side / scale[..., None] for side in (up, down)]
    steps = as_real(np.arange(1, _STEPS + 1), xp)
    ladder = [steps.reshape(-1, *(1,) * side.ndim) * side for side in relative]
    far = xp.full_like(relative[0], np.inf)
    edges = cells.stored_high / scale[..., None], -cells.stored_low / scale[..., None]
    noise = stored_noise(ladder[0], ladder[1], edges, (far, far))
    squares = _square_weights(cells.histogram, cells.storage, scale)
    squares = sum_by_class(squares, cells.storage, cells.eta)[..., cells.kept]
    weight = xp.sqrt(squares / xp.where(cells.counts > 0, cells.counts, xp.ones_like(squares)))
    return _summed(noise, change_at_place(-edges[1], edges[0], 1.0).probability, weight, cells.counts, -1)
