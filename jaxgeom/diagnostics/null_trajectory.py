"""Trajectory nulls: what a random walk with the observed steps gives for subspaces, distance and direction.

Independent isotropic increments have Gaussian cumulative updates whose correlation between steps s < t is
`ρ = c_s/c_t`, `c_t² = Σ_{τ≤t} a_τ²`; `null_similarity` says how alike their subspaces are then. The disjoint similarity
(`ΔW_{0→t}` against `ΔW_{t→T}`) of independent increments is K/n exactly where checkpoints hold every digit; where they
are rounded, the two share a rounding error.
"""

import math
from typing import Any

from ._namespace import as_real, divide, namespace
from .moments import NullMoments
from .null_isotropic import Carried, carried
from .null_similarity import SimilarityCurve, similarity_at

SHOWN = 0.75
"""Largest `b·√min(m, n)` (`null_isotropic`) of an update at which the deviation of its subspace's similarity is known:
directions lean towards the few columns that hold large entries, and rounding makes those the same in both updates."""


def carried_directions(shape: tuple[int, ...], kurtosis: Any) -> Carried:
    """Whether enough entries carry an update for its leading directions to be those of an isotropic one.

    Args:
      shape: `[..., m, n]`.
      kurtosis: κ of the entries, `[...]`; NaN for an update of zero.
    """
    return carried(shape, kurtosis, most=SHOWN)


def where_carried(null: NullMoments, *updates: Carried | None) -> NullMoments:
    """A similarity's null where enough entries carry the updates whose subspaces are compared; else NaN.

    Args:
      null: mean and deviation.
      updates: what is known of each update, broadcast against the null; None for all.
    """
    xp, (mean, std) = namespace(null, updates), null
    for one in updates:
        if one is not None:
            mean, std = xp.where(one.near, mean, xp.nan), xp.where(one.known, std, xp.nan)
    return NullMoments(mean, std)


def random_walk_similarity(
    curve: SimilarityCurve, increment_norms: Any, covariance: Any = None, *, updates: Carried | None = None
) -> NullMoments:
    """Sim_K between the cumulative updates of a random walk with the observed increment norms.

    Args:
      curve: `similarity_curve` of the shape and K.
      increment_norms: `‖W_t − W_{t−1}‖_F` between saved checkpoints, `[..., T]`, numpy or JAX.
      covariance: `walk_covariance` `[..., T, T]` of checkpoints rounded to a 16-bit grid; None for stored exactly.
      updates: `carried_directions` of the cumulative updates, `[..., T]`; None where enough entries carry them all.

    Returns:
      Mean and deviation, `[..., T, T]` each; no deviation (NaN) where the two updates are one, neither of the two
      against a step where nothing has moved yet, or which too few entries carry.
    """
    first, second = (None, None) if updates is None else (
        Carried(*(part[..., :, None] for part in updates)), Carried(*(part[..., None, :] for part in updates))
    )  # fmt: skip
    return where_carried(_walk_similarity(curve, increment_norms, covariance), first, second)


def _walk_similarity(curve: SimilarityCurve, increment_norms: Any, covariance: Any) -> NullMoments:
    xp = namespace(increment_norms, covariance)
    if covariance is not None:
        own = xp.diagonal(covariance, axis1=-2, axis2=-1)
        both = xp.sqrt(own[..., :, None] * own[..., None, :])
        same = xp.eye(own.shape[-1], dtype=bool)
        return similarity_at(curve, xp.where(same & (own[..., :, None] > 0), 1.0, divide(covariance, both)))
    energy = xp.cumsum(xp.square(as_real(increment_norms, xp)), axis=-1)
    early = xp.minimum(energy[..., :, None], energy[..., None, :])
    late = xp.maximum(energy[..., :, None], energy[..., None, :])
    return similarity_at(curve, xp.sqrt(xp.where(early > 0, divide(early, late), xp.nan)))


def walked_distance(increment_norms: Any, cosine_stds: Any) -> tuple[Any, Any]:
    """`√Σ‖increments‖²` up to each step, and the deviation of `‖ΔW_t‖` over it for independent increments.

    `‖ΔW‖² = Σa_i² + 2Σ_{i<j} a_i a_j c_ij` with cosines c_ij of mean 0, so that to first order the ratio is 1 with
    variance `Σ_{i<j} a_i²a_j²·Var(c)/(Σa²)²`; no deviation (NaN) after a single increment.

    Args:
      increment_norms: norms a_i of the increments `[..., T]`, numpy or JAX.
      cosine_stds: deviation of the cosine of two increments, `[...]`: `1/√(mn)` for isotropic ones.

    Returns:
      Distances and deviations, `[..., T]` each.
    """
    xp = namespace(increment_norms, cosine_stds)
    squares = xp.square(as_real(increment_norms, xp))
    energy = xp.cumsum(squares, axis=-1)
    pairs = xp.maximum(xp.square(energy) - xp.cumsum(xp.square(squares), axis=-1), 0.0) / 2
    pairs = xp.where(xp.cumsum(squares > 0, axis=-1) <= 1, xp.nan, pairs)
    return xp.sqrt(energy), divide(xp.sqrt(pairs) * xp.asarray(cosine_stds)[..., None], energy)


def cosine_std(shape: tuple[int, ...]) -> float:
    """Standard deviation of the cosine between two independent isotropic updates, `1/√(mn)`.

    Args:
      shape: `[..., m, n]`.

    Returns:
      A Python number.
    """
    return 1 / math.sqrt(float(shape[-2]) * float(shape[-1]))
