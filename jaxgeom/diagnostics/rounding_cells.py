"""The entries of one matrix grouped by how they answer noise, and what isotropic noise of a scale does to them.

Noise `s·g`, g iid standard normal, on the actual W0. Which scale is meant follows from the update: the one whose noise
has the update's Frobenius norm, after storage where storage rounded the update, or the one that changes the observed
share of entries. Both are found on a histogram over magnitudes: a few hundred classes stand for the matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ._namespace import as_real, divide, increasing_root, namespace, newton_root
from .counting import EntryCounts, is_on_bf16_grid, magnitude_histogram, storage_of
from .moments import NullMoments
from .precision import grid_bits
from .rounding_response import Change, change_at_place, change_in_cell
from .storage_grids import grid_classes
from .stored_noise import LeftNoise, left_on_bf16_grid, left_on_classes, sum_by_class

_NODES = 64

_LOG_SCALES = (-86.0, 80.0)
"""Natural logarithms of the scales that are looked at; float32 holds both ends."""


ENDS = ("low", "high", "cell_low", "cell_high", "stored_low", "stored_high")
"""The ends of intervals that classes have, as `GridClasses` and `RoundingCells` call them."""


class RoundingCells(NamedTuple):
    """Entries per class, and the ends of each class's cell and unchanged interval relative to its magnitudes.

    Attributes:
      counts: entries per class, `[..., classes]`.
      low, high: unchanged interval, `[classes]`.
      cell_low, cell_high: rounding cell in the storage format.
      stored_low, stored_high: unchanged interval of a final value that is rounded to that format first.
      histogram: entries per magnitude, `[..., 2¹⁵]`.
      is_open: W0 is stored finer than the grid, so that an entry may lie anywhere in its cell.
      is_rounded: the final value is rounded to the grid.
      eta, storage: tolerance of the unchanged test, and the format of the magnitudes.
      kept: which classes of `grid_classes` these are.
    """

    counts: Any
    low: Any
    high: Any
    cell_low: Any
    cell_high: Any
    stored_low: Any
    stored_high: Any
    histogram: Any
    is_open: Any
    is_rounded: Any
    eta: float
    storage: str
    kept: Any


def select(flag: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """One of two trees by a flag per matrix; where the flag is known, the other one is not computed."""
    if not isinstance(flag, jax.Array):
        return yes() if flag else no()
    xp = namespace(flag)

    def choose(one: Any, other: Any) -> Any:
        one, other = xp.asarray(one), xp.asarray(other)
        spread = flag.reshape(flag.shape + (1,) * (max(one.ndim, other.ndim) - flag.ndim))
        return xp.where(spread, one, other)

    return jax.tree.map(choose, yes(), no())


def rounding_cells(histogram: Any, storage: str, eta: float, *, is_open: Any, is_rounded: Any) -> RoundingCells:
    """Groups a histogram; NumPy keeps the occupied classes alone.

    Args:
      histogram: entries of W0 per magnitude, `[2¹⁵]`; JAX arrays may be batched, `[..., 2¹⁵]`.
      storage: format of the magnitudes.
      eta: relative tolerance η of the unchanged test.
      is_open: whether W0 is stored finer than the format.
      is_rounded: whether the final weights lie on the format's grid.
    """
    xp, table = namespace(histogram), grid_classes(storage, eta)
    counts = sum_by_class(histogram, storage, eta)
    kept = np.flatnonzero(counts) if xp is np else np.arange(table.low.size)
    ends = {name: as_real(getattr(table, name)[kept], xp) for name in ENDS}
    return RoundingCells(
        counts=counts[..., kept], histogram=histogram, is_open=is_open, is_rounded=is_rounded, eta=eta,
        storage=storage, kept=kept, **ends,
    )  # fmt: skip


def cells_of(counts: EntryCounts, eta: float) -> RoundingCells:
    """The cells of a pair of matrices."""
    flags = {"is_open": counts.is_open, "is_rounded": counts.is_rounded}
    return rounding_cells(counts.histogram, counts.storage, eta, **flags)


def origin_cells(w0: jax.Array, eta: float) -> RoundingCells:
    """The cells of initial weights `[..., out, in]` alone; final ones in float16 where these are."""
    storage = storage_of(w0.dtype)
    is_open = False if storage == "float16" else ~is_on_bf16_grid(w0)
    flags = {"is_open": is_open, "is_rounded": storage == "float16"}
    return rounding_cells(magnitude_histogram(grid_bits(w0)), storage, eta, **flags)


def change(cells: RoundingCells, scale: Any) -> Change:
    """Probability of a visible change per class, and its derivatives in log s, `[..., classes]`.

    Args:
      cells: the matrix.
      scale: s > 0, `[...]`, or one per class, `[..., classes]`.
    """
    scale = scale[..., None] if scale.ndim < cells.counts.ndim else scale

    def at_place() -> Change:
        # In bfloat16 the two are the same: rounding twice to one grid is rounding once.
        low, high = cells.low, cells.high
        if cells.storage == "float16":
            low, high = select(cells.is_rounded, lambda: (cells.stored_low, cells.stored_high), lambda: (low, high))
        return change_at_place(low, high, scale)

    return select(
        cells.is_open, lambda: change_in_cell(cells.low, cells.high, cells.cell_low, cells.cell_high, scale), at_place
    )


def joint_probability(cells: RoundingCells, scale_a: Any, scale_b: Any) -> tuple[Any, Any, Any]:
    """Per class the probability that two independent noises both change an entry, and its slopes in either log scale.

    Of a weight stored finer than the grid both start from the same place in its cell, so that the product is averaged
    over it (midpoint rule after `x = (1 − cos πu)/2`, dense at the cell's edges, where small noise acts).

    Args:
      cells: the matrix.
      scale_a, scale_b: scales of the two noises, `[...]`.

    Returns:
      Probability and two slopes, `[..., classes]`.
    """
    xp = namespace(cells.counts, scale_a)

    def at_place() -> Any:
        a, b = change(cells._replace(is_open=False), scale_a), change(cells._replace(is_open=False), scale_b)
        return a.probability * b.probability, a.slope * b.probability, a.probability * b.slope

    def averaged() -> Any:
        angle = (np.arange(_NODES) + 0.5) * (np.pi / _NODES)
        places = as_real((1 - np.cos(angle)) / 2, xp).reshape(-1, *(1,) * cells.counts.ndim)
        weights = as_real(np.sin(angle) / np.sin(angle).sum(), xp).reshape(places.shape)
        width = cells.cell_high - cells.cell_low
        x = xp.where(xp.isfinite(width), cells.cell_low + places * xp.where(xp.isfinite(width), width, 0.0), 0.0)
        a, b = (change_at_place(cells.low - x, cells.high - x, scale[..., None]) for scale in (scale_a, scale_b))
        products = a.probability * b.probability, a.slope * b.probability, a.probability * b.slope
        return tuple((weights * product).sum(0) for product in products)

    return select(cells.is_open, averaged, at_place)


def left_noise(cells: RoundingCells, scale: Any, *, weighted: bool = False) -> LeftNoise:
    """What storage leaves of noise of a scale s, summed over the entries, in units of s; `across` where weighted."""
    if cells.storage == "float16":
        return left_on_classes(cells, scale)
    return left_on_bf16_grid(cells, scale, weighted=weighted)


def scale_for_norm(cells: RoundingCells, norm: Any) -> Any:
    """The scale of noise of the given Frobenius norm, measured after storage where storage rounds.

    Args:
      cells: the matrix.
      norm: `‖ΔW‖_F`, `[...]`.

    Returns:
      Scales `[...]`; 0 for a norm of 0.
    """
    xp = namespace(cells.counts, norm)
    size = cells.counts.sum(-1)
    plain = xp.asarray(norm) / xp.sqrt(size)
    if not isinstance(cells.is_rounded, jax.Array) and not cells.is_rounded:
        return plain
    positive = plain > 0
    guess = xp.where(positive, plain, xp.ones_like(plain))
    start = xp.log(guess)
    target = xp.log(size)

    def beyond(log_scale: Any) -> Any:
        left = left_noise(cells, xp.exp(log_scale))
        square = xp.maximum(left.square, float(xp.finfo(left.square.dtype).tiny))
        return xp.log(square) + 2 * (log_scale - start) - target, left.slope / square

    low, high = xp.maximum(start - 2, _LOG_SCALES[0]), xp.minimum(start + 40, _LOG_SCALES[1])
    found = xp.exp(newton_root(beyond, xp.clip(start, low, high), low, high))
    return xp.where(positive, select(cells.is_rounded, lambda: found, lambda: plain), xp.zeros_like(plain))


def scale_for_density(cells: RoundingCells, density: Any, relative: Any = None) -> Any:
    """The scale at which the expected share of changed entries is the observed one.

    Args:
      cells: the matrix.
      density: observed share, `[...]`.
      relative: scale of each class's noise beside the one that is sought, `[..., classes]`; 1 where it is None.

    Returns:
      Scales `[...]`; NaN where no finite scale does it: at a density of 0 or 1, or beyond what silent entries allow.
    """
    xp = namespace(cells.counts, density)
    density = xp.asarray(density)
    target = density * cells.counts.sum(-1)
    offsets = 0.0 if relative is None else xp.log(relative)

    def beyond(log_scale: Any) -> Any:
        log_scales = log_scale if relative is None else xp.clip(log_scale[..., None] + offsets, *_LOG_SCALES)
        return (cells.counts * change(cells, xp.exp(log_scales)).probability).sum(-1) - target

    low, high = (0 * target + end for end in _LOG_SCALES)
    root = increasing_root(beyond, low, high)
    found = (density > 0) & (density < 1) & (root < high) & (root > low)
    return xp.where(found, xp.exp(xp.where(found, root, xp.zeros_like(root))), xp.full_like(root, np.nan))


def changed_law(cells: RoundingCells, scale: Any) -> tuple[Any, Any]:
    """How many entries noise of a scale changes that was itself taken from the squared norm of the update.

    Over draws the excess over the fitted expectation is `Σ(X − p) − λ·Σ(δ² − E δ²)`, `λ = ΣP'/ΣQ'`, to first order:
    a draw that is large by chance changes more entries and is expected to.

    Args:
      cells: the matrix.
      scale: from `scale_for_norm`, `[...]`.

    Returns:
      Expectation and variance of the number of changed entries, `[...]`; both 0 for a scale of 0.
    """
    xp = namespace(cells.counts, scale)
    moved = scale > 0
    safe = xp.where(moved, scale, xp.ones_like(scale))
    found = change(cells, safe)
    size = cells.counts.sum(-1)

    def mean(per_class: Any, counts: Any = cells.counts) -> Any:
        return (counts * per_class).sum(-1)

    spread, slope = mean(found.probability * (1 - found.probability)), mean(found.slope)

    def plain() -> Any:
        return spread - slope * slope / (2 * size)

    def rounded() -> Any:
        left = left_noise(cells, safe)
        share = divide(slope, left.slope)
        return spread - 2 * share * left.together + share**2 * left.variance

    variance = select(cells.is_rounded, rounded, plain)
    zero = xp.zeros_like(size)
    expected = xp.where(moved, mean(found.probability), zero)
    return expected, xp.where(moved, xp.maximum(variance, zero), zero)


def decay_law(cells: RoundingCells, scale: Any, initial_norm: Any) -> tuple[Any, Any]:
    """Expectation and deviation of the decay component `⟨δ, W0⟩/‖W0‖²` of noise of a scale.

    Noise that is not rounded has none of its own, `s/‖W0‖` of chance. Rounding hides the noise of large weights, and
    rounds powers of two towards zero sooner than away from it.

    Args:
      cells: the matrix.
      scale: from `scale_for_norm`, `[...]`.
      initial_norm: `‖W0‖_F`, `[...]`.

    Returns:
      Expectation and deviation, `[...]`; NaN where W0 is zero, 0 for a scale of 0.
    """
    xp = namespace(cells.counts, scale)
    ratio = divide(scale, initial_norm)
    safe = xp.where(scale > 0, scale, xp.ones_like(scale))

    def rounded() -> Any:
        left = left_noise(cells, safe, weighted=True)
        return left.along * ratio**2, xp.sqrt(xp.maximum(left.across, 0.0)) * ratio**2

    return select(cells.is_rounded, rounded, lambda: (0 * ratio, ratio))


def overlap_law(cells: RoundingCells, inside: Any, scale: Any) -> tuple[Any, Any]:
    """How many of the changed entries lie in a mask, for noise whose scale was taken from the number of changes.

    Over draws the excess is `Σ (m − r')(X − p)`, `r' = Σ_M p'/Σ p'`, to first order: a draw that changes more entries
    than expected is compared with noise of a larger scale.

    Args:
      cells: the matrix.
      inside: entries of the mask per class, `[..., classes]`.
      scale: from `scale_for_density`, `[...]`.

    Returns:
      Expectation of the share of the changed entries in the mask, variance of their number, `[...]`.
    """
    found = change(cells, scale)

    def mean(per_class: Any, counts: Any = cells.counts) -> Any:
        return (counts * per_class).sum(-1)

    share = divide(mean(found.slope, inside), mean(found.slope))
    spread = found.probability * (1 - found.probability)
    variance = (1 - share) ** 2 * mean(spread, inside) + share**2 * mean(spread, cells.counts - inside)
    return divide(mean(found.probability, inside), mean(found.probability)), variance


FIXED = 1e-9
"""Variance of a count up to which it is fixed: what rounding leaves of a variance of zero."""


def moments_of_share(mean: Any, variance: Any, size: Any) -> NullMoments:
    """Moments of a share that is a count over a size.

    A count whose variance is below 1 is no normal variable: one entry more is many deviations. It has no deviation
    here, and thereby no z, unless it is fixed: of a variance that is rounding alone.

    Args:
      mean: expected share, `[...]`.
      variance: of the count.
      size: what the count is divided by.

    Returns:
      `NullMoments` of the share.
    """
    xp = namespace(mean, variance)
    fixed = variance <= FIXED
    deviation = xp.sqrt(xp.where(fixed, xp.zeros_like(variance), variance))
    known = fixed | (variance >= 1)
    return NullMoments(mean, xp.where(known, divide(deviation, size), xp.full_like(deviation, np.nan)))
