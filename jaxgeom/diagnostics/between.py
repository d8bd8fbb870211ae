"""Measures between two runs from one origin: masks, updates, subspaces."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .drift import inner_product
from .masks import mask_jaccard, mask_overlap
from .precision import widen_pair
from .spectrum import frobenius_norm


class MaskOverlaps(NamedTuple):
    """Overlaps of the changed masks A and B of two runs.

    Attributes:
      a_in_b: `|A ∩ B| / |B|`.
      b_in_a: `|A ∩ B| / |A|`.
      jaccard: `|A ∩ B| / |A ∪ B|`.
    """

    a_in_b: jax.Array
    b_in_a: jax.Array
    jaccard: jax.Array


def changed_overlaps(
    changed_a: Bool[ArrayLike, "*batch out in"], changed_b: Bool[ArrayLike, "*batch out in"]
) -> MaskOverlaps:
    """One-sided overlaps and Jaccard index of two runs' changed masks.

    Args:
      changed_a: changed mask of run A `[..., out, in]`.
      changed_b: changed mask of run B, same shape.

    Returns:
      `MaskOverlaps`, each NaN where its denominator is empty.

    Reference:
      *RL Finetunes Small Subnetworks*, https://arxiv.org/abs/2505.11711
    """
    return MaskOverlaps(
        mask_overlap(changed_a, changed_b), mask_overlap(changed_b, changed_a), mask_jaccard(changed_a, changed_b)
    )


def independence_null(density_a: Float[ArrayLike, "..."], density_b: Float[ArrayLike, "..."]) -> MaskOverlaps:
    """`changed_overlaps` of independent masks of the observed densities: `d_A`, `d_B`, `d_A d_B/(d_A + d_B − d_A d_B)`.

    `cross_run_null` is the stronger null: rounding alone makes two independent updates meet at small weights.

    Args:
      density_a: visible density of run A.
      density_b: visible density of run B.

    Returns:
      `MaskOverlaps` of expectations.
    """
    a, b = jnp.asarray(density_a), jnp.asarray(density_b)
    both = a * b
    union = a + b - both
    return MaskOverlaps(a, b, jnp.where(union > 0, both / jnp.where(union > 0, union, 1.0), jnp.nan))


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
    rest = unit_a - inner_product(unit_a, unit_b)[..., None, None] * unit_b
    share = jnp.minimum(inner_product(rest, rest), 1.0)
    return jnp.where(defined, share, jnp.full_like(share, jnp.nan))
