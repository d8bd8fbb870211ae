"""Reference masks of the initial weights, and the overlap of the changed mask with them."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._layout import count_true, gather_matrix, matmul, transpose
from ._namespace import divide
from .precision import require_matrix, widen
from .selection import largest_mask, smallest_mask
from .spectral_numbers import numerical_zero
from .subspaces import top_subspaces


def low_rank_reconstruction(
    w0: Float[ArrayLike, "*batch out in"], *, rank: int, method: str = "svd"
) -> Float[Array, "*batch out in"]:
    """The best rank-r approximation `U_r Σ_r V_rᵀ`.

    Args:
      w0: weights `[..., out, in]`.
      rank: r, capped at min(out, in).
      method: "svd" or "krylov", see `top_subspaces`.

    Returns:
      `[..., out, in]` in the widened dtype.
    """
    w0 = widen(w0, "w0")
    rank = min(rank, *w0.shape[-2:])
    top = top_subspaces(w0, k=rank, method=method)
    return matmul(top.left * top.values[..., None, :rank], transpose(top.right))


def principal_mask(
    w0: Float[ArrayLike, "*batch out in"], *, rank: int = 64, fraction: float = 0.3, method: str = "svd"
) -> Bool[Array, "*batch out in"]:
    """The entries where the principal part of the weights is largest: top fraction of `|rank-r reconstruction of W0|`.

    Exactly `⌊α·n + ½⌋` entries, ties to the lower row-major index. Where W0 has no direction beyond the r-th its
    reconstruction is W0 itself, and is taken to be: rounding would tell entries apart that tie.

    Args:
      w0: initial weights as stored, `[..., out, in]`.
      rank: r; from min(out, in) on nothing is left out.
      fraction: α in [0, 1].
      method: "svd" or "krylov", see `top_subspaces`.

    Returns:
      Boolean mask `[..., out, in]`.

    Raises:
      ValueError: where the fraction is outside [0, 1] or the input no floating-point matrix.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567
    """
    w0 = gather_matrix(widen(w0, "w0"))
    require_matrix(w0, "w0")
    rank = min(rank, *w0.shape[-2:])
    if rank == min(w0.shape[-2:]):
        return largest_mask(w0, fraction)
    top = top_subspaces(w0, k=rank + 1, method=method)
    return mask_of_reconstruction(w0, top.left, top.values, top.right, rank=rank, fraction=fraction)


def mask_of_reconstruction(
    w0: Array, left: Array, values: Array, right: Array, *, rank: int, fraction: float
) -> Bool[Array, "*batch out in"]:
    """`principal_mask` from a decomposition of W0.

    Args:
      w0: initial weights, widened `[..., out, in]`.
      left: its leading left vectors, at least r `[..., out, ≥ r]`.
      values: its singular values, at least r + 1, descending `[..., > r]`.
      right: its leading right vectors, at least r `[..., in, ≥ r]`.
      rank: r, below min(out, in).
      fraction: α in [0, 1].
    """
    low_rank = matmul(left[..., :rank] * values[..., None, :rank], transpose(right[..., :rank]))
    ends = values[..., rank] <= numerical_zero(values, w0.shape)
    return largest_mask(jnp.where(ends[..., None, None], w0, low_rank), fraction)


def low_magnitude_mask(w0: Float[ArrayLike, "*batch out in"], *, fraction: float = 0.3) -> Bool[Array, "*batch out in"]:
    """The entries of smallest magnitude: bottom fraction of `|W0|`.

    Exactly `⌊α·n + ½⌋` entries, ties (bfloat16 magnitudes tie heavily) to the lower row-major index.

    Args:
      w0: initial weights as stored, `[..., out, in]`.
      fraction: α in [0, 1].

    Returns:
      Boolean mask `[..., out, in]`.

    Raises:
      ValueError: where the fraction is outside [0, 1] or the input no floating-point matrix.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567

    >>> low_magnitude_mask(jnp.array([[3.0, 1.0], [1.0, 2.0]]), fraction=0.25).tolist()
    [[False, True], [False, False]]
    """
    return smallest_mask(jnp.asarray(w0), fraction)


def mask_overlap(
    reference: Bool[ArrayLike, "*batch out in"], changed: Bool[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """Share of the changed entries that lie in a reference mask, `|M★ ∩ M| / |M|`.

    Args:
      reference: M★ `[..., out, in]`.
      changed: M, same shape.

    Returns:
      Shares in [0, 1], one per matrix; NaN where nothing changed.

    Raises:
      ValueError: where the shapes differ.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567
    """
    reference, changed = jnp.asarray(reference), jnp.asarray(changed)
    if reference.shape != changed.shape:
        raise ValueError(f"reference has shape {reference.shape} and changed has shape {changed.shape}; equal needed")
    return divide(count_true(reference & changed), count_true(changed))


def enrichment(overlap: Float[ArrayLike, "..."], expected: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """How many times more overlap than expected, `overlap / expected`.

    Args:
      overlap: observed shares.
      expected: shares under a null (the fraction α for independence, or `rounding_null`).

    Returns:
      Ratios; NaN where the expectation is zero.
    """
    overlap, expected = jnp.asarray(overlap), jnp.asarray(expected)
    dtype = jnp.result_type(overlap.dtype, expected.dtype)
    return divide(overlap.astype(dtype), expected.astype(dtype))


def mask_jaccard(a: Bool[ArrayLike, "*batch out in"], b: Bool[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """Jaccard index of two masks, `|A ∩ B| / |A ∪ B|`.

    Args:
      a: mask `[..., out, in]`.
      b: mask, same shape.

    Returns:
      Shares in [0, 1], one per matrix; NaN where both are empty.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    return divide(count_true(a & b), count_true(a | b))
