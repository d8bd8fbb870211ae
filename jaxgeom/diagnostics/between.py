"""Measures between two runs from one origin: which entries both changed, and the share of the updates in common.

Two nulls of the masks' overlaps. **Independence**: masks of the observed sizes laid at random. **Rounding**: two
independent Gaussian updates whose scales give the observed densities; rounding alone makes them meet where weights are
small, so that independence is the weaker baseline.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._namespace import divide, namespace, real
from .counting import EntryCounts
from .drift import inner_product
from .masks import mask_jaccard, mask_overlap
from .moments import NullMoments, triple
from .precision import require_matrix, widen_pair
from .rounding_cells import RoundingCells, change, joint_probability, origin_cells, scale_for_density
from .spectrum import frobenius_norm

MASK_STATISTICS = ("jaccard", "overlap_a_in_b", "overlap_b_in_a")
"""Overlaps of two changed masks, by the keys of a report."""


class MaskOverlaps(NamedTuple):
    """Overlaps of the changed masks A and B of two runs, or their moments under a null.

    Attributes:
      a_in_b: `|A ∩ B| / |B|`.
      b_in_a: `|A ∩ B| / |A|`.
      jaccard: `|A ∩ B| / |A ∪ B|`.
    """

    a_in_b: Any
    b_in_a: Any
    jaccard: Any


def changed_overlaps(
    changed_a: Bool[ArrayLike, "*batch out in"], changed_b: Bool[ArrayLike, "*batch out in"]
) -> MaskOverlaps:
    """One-sided overlaps and Jaccard index of two runs' changed masks.

    Args:
      changed_a: changed mask of run A `[..., out, in]`.
      changed_b: changed mask of run B, same shape.

    Returns:
      `MaskOverlaps`, all NaN where one of the masks is empty: nothing changed then that the other could have met.

    Reference:
      *RL Finetunes Small Subnetworks*, https://arxiv.org/abs/2505.11711
    """
    a, b = jnp.asarray(changed_a), jnp.asarray(changed_b)
    both = a.any((-2, -1)) & b.any((-2, -1))
    overlaps = mask_overlap(a, b), mask_overlap(b, a), mask_jaccard(a, b)
    return MaskOverlaps(*(jnp.where(both, overlap, jnp.nan) for overlap in overlaps))


def _overlap_moments(a: Any, b: Any, both: Any, variance: Any) -> MaskOverlaps:
    """Moments from `|A|`, `|B|` and the law of `|A ∩ B|`: exact for the one-sided ones, delta method for the Jaccard.

    An intersection whose variance is below 1 is no normal variable; it has no deviation, unless it is fixed.
    """
    xp = namespace(a, both)
    deviation = xp.sqrt(xp.where(variance > 0, variance, xp.zeros_like(variance)))
    deviation = xp.where((variance >= 1) | (variance == 0), deviation, xp.full_like(deviation, xp.nan))
    either = a + b - both
    return MaskOverlaps(
        NullMoments(divide(both, b), divide(deviation, b)),
        NullMoments(divide(both, a), divide(deviation, a)),
        NullMoments(divide(both, either), divide(deviation * (a + b), either * either)),
    )


def independence_null(count: ArrayLike, changed_a: ArrayLike, changed_b: ArrayLike) -> MaskOverlaps:
    """`changed_overlaps` of masks of the observed sizes laid at random: hypergeometric.

    `E|A ∩ B| = ab/N`, `Var|A ∩ B| = ab(N−a)(N−b)/(N²(N−1))`.

    Args:
      count: N, entries of the matrix, `[...]`.
      changed_a: a, how many of them run A changed.
      changed_b: b, how many of them run B changed.

    Returns:
      `MaskOverlaps` of `NullMoments`, NaN where a mask is empty.
    """
    xp = namespace(count, changed_a, changed_b)
    n, a, b = (xp.asarray(x, real(xp)) for x in (count, changed_a, changed_b))
    a, b = _of_runs_that_changed(a, b)
    # Shares first: float32 holds no products of three counts.
    both = a * (b / n)
    variance = both * (1 - a / n) * ((n - b) / xp.maximum(n - 1, 1.0))
    return _overlap_moments(a, b, both, variance)


def _of_runs_that_changed(a: Any, b: Any) -> tuple[Any, Any]:
    """Sizes of two masks; NaN both where one of them is empty, since there is no mask to overlap then."""
    xp = namespace(a, b)
    none = xp.logical_or(xp.equal(a, 0), xp.equal(b, 0))
    return xp.where(none, xp.nan, a), xp.where(none, xp.nan, b)


def rounding_overlaps(cells: RoundingCells, changed_a: Any, changed_b: Any) -> MaskOverlaps:
    """`changed_overlaps` of two independent Gaussian updates after rounding, given the sizes of their masks.

    With p_A, p_B the probabilities that an entry changes and q that it changes in both runs, `E|A ∩ B| = Σq`, and the
    variance is that given the sizes (Gaussian conditioning): of `Σ (x_A x_B) − β_A·x_A − β_B·x_B` with the slopes by
    which the expectation follows the scales that the sizes fix.

    Args:
      cells: the common origin.
      changed_a, changed_b: how many entries each run changed, `[...]`.

    Returns:
      `MaskOverlaps` of `NullMoments`; NaN where a density of 0 or 1 fixes no scale.
    """
    xp = namespace(cells.counts, changed_a)
    size = cells.counts.sum(-1)
    first, second = (scale_for_density(cells, changed / size) for changed in (changed_a, changed_b))
    known = ~(xp.isnan(first) | xp.isnan(second))
    first, second = (xp.where(known, scale, xp.ones_like(scale)) for scale in (first, second))
    p_a, p_b = change(cells, first), change(cells, second)
    both, slope_a, slope_b = joint_probability(cells, first, second)

    def total(per_class: Any) -> Any:
        return (cells.counts * per_class).sum(-1)

    # How the expected intersection moves with each scale, over how the size of that run's mask does.
    beta_a, beta_b = (divide(total(s), total(p.slope)) for s, p in ((slope_a, p_a), (slope_b, p_b)))
    a, b = p_a.probability, p_b.probability
    beta_a, beta_b = beta_a[..., None], beta_b[..., None]
    # Var(x_A x_B − β_A x_A − β_B x_B), entry by entry: x_A x_B, x_A, x_B are 0 or 1.
    mean = both - beta_a * a - beta_b * b
    square = both * (1 - beta_a - beta_b) ** 2 + (a - both) * beta_a**2 + (b - both) * beta_b**2
    variance = total(square - mean * mean)
    lost = xp.full_like(size, xp.nan)
    sizes = [xp.where(known, xp.asarray(changed, size.dtype), lost) for changed in (changed_a, changed_b)]
    return _overlap_moments(sizes[0], sizes[1], total(both), xp.where(known, xp.maximum(variance, 0.0), lost))


def rounds_alike(counts_a: EntryCounts, counts_b: EntryCounts) -> Any:
    """Whether the bfloat16 views of both ends come about as the cells of their common W0 have it.

    Args:
      counts_a, counts_b: of W0 with either end.

    Returns:
      False where an end is float16 and W0 is not, or is and the other end is not.
    """
    xp = namespace(counts_a.delta_norm, counts_b.delta_norm)
    alone = xp.logical_or(counts_a.is_half_alone, counts_b.is_half_alone)
    return xp.logical_and(xp.equal(counts_a.final_is_half, counts_b.final_is_half), xp.logical_not(alone))


def overlap_statistics_between(
    cells: RoundingCells, both: Any, changed_a: Any, changed_b: Any, *, known: Any = True
) -> dict[str, Any]:
    """Overlaps of two runs' changed masks beside both nulls, by the keys of a report.

    Args:
      cells: the common origin.
      both: how many entries both runs changed, `[...]`.
      changed_a, changed_b: how many each of them changed.
      known: whether the rounding null is, `rounds_alike`.

    Returns:
      `{key: [...]}`, for every overlap its triple over independence and, as `_rounding`, over the rounding null. NaN
      where a mask is empty, or, for the rounding null, every entry changed or it is not known.
    """
    xp = namespace(cells.counts, both)
    size = cells.counts.sum(-1)
    both, a, b = (xp.asarray(x, size.dtype) for x in (both, changed_a, changed_b))
    a, b = _of_runs_that_changed(a, b)
    values = MaskOverlaps(divide(both, b), divide(both, a), divide(both, a + b - both))
    independent = independence_null(size, a, b)
    rounded = rounding_overlaps(cells, *(xp.where(known, changed, np.nan) for changed in (a, b)))
    found: dict[str, Any] = {}
    for key, part in zip(MASK_STATISTICS, ("jaccard", "a_in_b", "b_in_a"), strict=True):
        for kind, nulls in (("", independent), ("_rounding", rounded)):
            found |= triple(key, getattr(values, part), getattr(nulls, part), kind)
    return found


def cross_run_null(
    w0: Float[ArrayLike, "*batch out in"],
    density_a: Float[ArrayLike, "*batch"],
    density_b: Float[ArrayLike, "*batch"],
    *,
    eta: float = 1e-3,
) -> MaskOverlaps:
    """Overlaps that the changed masks of two runs from one origin would have if both updates were noise plus rounding.

    Args:
      w0: common initial weights `[..., out, in]` as stored.
      density_a: observed visible density of run A.
      density_b: observed visible density of run B.
      eta: relative tolerance η of the unchanged test.

    Returns:
      `MaskOverlaps` of `NullMoments`, given the sizes of the masks; NaN where a density of 0 or 1 fixes no scale.
    """
    w0 = jnp.asarray(w0)
    require_matrix(w0, "w0")
    cells = origin_cells(w0, eta)
    size = cells.counts.sum(-1)
    changed = (jnp.asarray(density).astype(size.dtype) * size for density in (density_a, density_b))
    return rounding_overlaps(cells, *changed)


def residual_share(blocks: Iterable[tuple[Any, Any]], factor: Any, squares: Any, *, product: Callable[..., Any]) -> Any:
    """`‖A − f·B‖²/‖A‖²`, `f = ⟨A, B⟩/‖B‖²`: the orthogonal share, in which nearly parallel updates keep their digits.

    Args:
      blocks: pairs of blocks of A and B that together make up the two.
      factor: f, broadcast against a block.
      squares: `‖A‖²`, `[...]`.
      product: the inner product of a block with itself, `[...]`.

    Returns:
      In [0, 1], `[...]`.
    """
    residuals = (a - factor * b for a, b in blocks)
    total = sum(product(residual, residual) for residual in residuals)
    return namespace(total).minimum(total / squares, 1.0)


def orthogonal_share(
    delta_a: Float[ArrayLike, "*batch out in"], delta_b: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """Share of one update's energy orthogonal to the other, `1 − cos²(ΔW_A, ΔW_B)`.

    Formed from the residual, so that nearly parallel updates keep their digits. Chance: `1 − 1/(mn)`.

    Args:
      delta_a: update of run A `[..., out, in]`.
      delta_b: update of run B, same shape.

    Returns:
      In [0, 1], one per pair; NaN where one is zero.
    """
    a, b = widen_pair(delta_a, delta_b, ("delta_a", "delta_b"))
    norm_a, norm_b = frobenius_norm(a), frobenius_norm(b)
    defined = (norm_a > 0) & (norm_b > 0)
    unit_a = a / jnp.where(defined, norm_a, jnp.ones_like(norm_a))[..., None, None]
    unit_b = b / jnp.where(defined, norm_b, jnp.ones_like(norm_b))[..., None, None]
    factor = inner_product(unit_a, unit_b)[..., None, None]
    share = residual_share([(unit_a, unit_b)], factor, 1.0, product=inner_product)
    return jnp.where(defined, share, jnp.full_like(share, jnp.nan))
