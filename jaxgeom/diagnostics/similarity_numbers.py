"""Similarities of leading subspaces along a run and between two runs, each beside its null.

Under the null they are those of a random walk, or of independent updates; checkpoints that are rounded share an error
(`stored_walk`), which the nulls have too. An update that few entries carry leans towards their columns, the same ones
in both where rounding chose them: there a similarity has no deviation, then no null (`null_trajectory.SHOWN`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._namespace import as_real, namespace
from .moments import NullMoments, triple
from .null_isotropic import Carried
from .null_similarity import SimilarityCurve, disjoint_similarity, disjoint_similarity_std, similarity_at
from .null_trajectory import carried_directions, random_walk_similarity, where_carried
from .path_numbers import rest_cosines
from .update_numbers import Numbers


def similarity_statistics(
    to_final: Any,
    disjoint: Any,
    increments: Any,
    curve: SimilarityCurve,
    *,
    shape: tuple[int, ...],
    k: int,
    covariance: Any = None,
    kurtoses: tuple[Any, Any] | None = None,
) -> Numbers:
    """When an update finds its subspace, and whether training goes on in it, at each of T checkpoints.

    Args:
      to_final: `Sim_K(ΔW_{0→t}, ΔW_{0→T})`, `[..., T]`, numpy or JAX; NaN where an update has no such subspace.
      disjoint: `Sim_K(ΔW_{0→t}, ΔW_{t→T})`, `[..., T]`.
      increments: `‖W_t − W_{t−1}‖`, `[..., T]`.
      curve: `similarity_curve` of the shape and K.
      shape: `[..., m, n]` of the matrix.
      k: K.
      covariance: `walk_covariance` `[..., T, T]` of checkpoints rounded to a 16-bit grid; None for stored exactly.
      kurtoses: κ of the entries of the updates and of what follows, `[..., T]` each; those of normal ones where it is
        None.

    Returns:
      `sim_to_final` beside a random walk of the observed increments; `sim_disjoint` beside K/n, or beside the
      similarity of two stretches that share a rounding error; each `[..., T]`. Neither where few entries carry an
      update.
    """
    updates, rest = (None, None) if kurtoses is None else (carried_directions(shape, one) for one in kurtoses)
    null = random_walk_similarity(curve, increments, covariance, updates=updates)
    found = triple("sim_to_final", to_final, NullMoments(null.mean[..., -1], null.std[..., -1]))
    apart = disjoint_walk_similarity(curve, increments, covariance, shape=shape, k=k, updates=updates, rest=rest)
    xp = namespace(disjoint, *apart)
    hidden = xp.isnan(as_real(disjoint, xp))
    own = (xp.where(hidden, xp.nan, xp.diagonal(part, axis1=-2, axis2=-1)) for part in apart)
    return found | triple("sim_disjoint", disjoint, NullMoments(*own))


def disjoint_walk_similarity(
    curve: SimilarityCurve,
    increment_norms: Any,
    covariance: Any = None,
    *,
    shape: tuple[int, ...],
    k: int,
    updates: Carried | None = None,
    rest: Carried | None = None,
) -> NullMoments:
    """Sim_K between what a random walk did up to s and what it does after t ≥ s.

    Args:
      curve: `similarity_curve` of the shape and K.
      increment_norms: `‖W_t − W_{t−1}‖_F` between saved checkpoints, `[..., T]`, numpy or JAX.
      covariance: `walk_covariance` `[..., T, T]` of checkpoints rounded to a 16-bit grid; None for stored exactly.
      shape: `[..., m, n]` of the matrix.
      k: K.
      updates, rest: `carried_directions` of the updates up to s and of what follows t, `[..., T]`; None where enough
        entries carry them all.

    Returns:
      Mean and deviation, `[..., T, T]` by s and t: K/n, or that of two stretches that share a rounding error; NaN where
      t < s, or where few entries carry one of the two.
    """
    xp = namespace(increment_norms, covariance)
    increments = as_real(increment_norms, xp)
    if covariance is None:
        blank = increments[..., :, None] * increments[..., None, :] * 0
        null = NullMoments(blank + disjoint_similarity(shape, k=k), blank + disjoint_similarity_std(shape, k=k))
    else:
        null = similarity_at(curve, rest_cosines(covariance))
    after = xp.triu(xp.ones((increments.shape[-1],) * 2, bool))
    first = None if updates is None else Carried(*(part[..., :, None] for part in updates))
    second = None if rest is None else Carried(*(part[..., None, :] for part in rest))
    null = where_carried(null, first, second)
    return NullMoments(*(xp.where(after, part, xp.nan) for part in null))


def similarity_between(
    similarity: Any,
    *,
    expected: Any,
    curve: Callable[[], SimilarityCurve],
    shape: tuple[int, ...],
    k: int,
    kurtoses: Sequence[Any] = (),
) -> Numbers:
    """The similarity of two runs' right subspaces beside chance, or beside what W0's rounding error gives them.

    Args:
      similarity: `‖V_aᵀV_b‖_F²/K`, `[...]`, numpy or JAX; NaN where there is no such subspace.
      expected: the cosine of the updates under the null, `shared_cosine`.
      curve: gives the `similarity_curve` of the shape and K, which is sampled.
      shape: `[..., m, n]` of the matrix.
      k: K.
      kurtoses: κ of the entries of either update, `[...]`; those of normal ones where there are none.

    Returns:
      `subspace_similarity` with its null; without a z where the updates share a rounding error, and without a null
      where its size is not known; neither where few entries carry an update.
    """
    xp = namespace(similarity, expected)
    alone = xp.asarray(expected) == 0
    found = similarity_beside_chance("subspace_similarity", similarity, shape=shape, k=k, kurtoses=kurtoses)
    if xp is np and alone.all():  # no curve is needed
        return found
    shared = NullMoments(similarity_at(curve(), expected).mean, xp.nan)
    shared = where_carried(shared, *(carried_directions(shape, one) for one in kurtoses))
    mean = xp.where(alone, found["subspace_similarity_null"], shared.mean)
    null = NullMoments(xp.where(xp.isnan(similarity), xp.nan, mean), xp.where(alone, 0.0, xp.nan))
    return triple("subspace_similarity", similarity, null) | {
        "subspace_similarity_z": xp.where(alone, found["subspace_similarity_z"], xp.nan)
    }


def similarity_beside_chance(
    key: str, similarity: Any, *, shape: tuple[int, ...], k: int, kurtoses: Sequence[Any] = ()
) -> Numbers:
    """A similarity of two right subspaces beside that of independent random ones, K/n.

    Args:
      key: `sim_disjoint`, `subspace_similarity` or `basis_similarity`.
      similarity: `‖V_aᵀV_b‖_F²/K`, `[...]`, numpy or JAX; NaN where there is no such subspace.
      shape: `[..., m, n]` of the matrix.
      k: K.
      kurtoses: κ of the entries of the updates whose subspaces they are, `[...]` each; those of normal ones where there
        are none.

    Returns:
      The statistic with its null; NaN where the similarity is, the null also where few entries carry an update.
    """
    xp = namespace(similarity)
    similarity = as_real(similarity, xp)
    chance = NullMoments(disjoint_similarity(shape, k=k), disjoint_similarity_std(shape, k=k))
    chance = where_carried(chance, *(carried_directions(shape, one) for one in kurtoses))
    return triple(key, similarity, NullMoments(*(xp.where(xp.isnan(similarity), xp.nan, x) for x in chance)))
