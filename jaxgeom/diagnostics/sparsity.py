"""Which entries moved: the changed mask, visible sparsity and its variants, and what a tolerance hides."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._layout import count_true, safe_divide
from .precision import bf16_bits, bf16_view, require_matrix, ulp_distance, widen_pair
from .selection import smallest_mask

SMALLEST_BF16_GAP = 2.0**-8
"""Smallest relative gap of adjacent normal bfloat16 numbers."""


def changed_mask(
    w0: Float[ArrayLike, "..."], w1: Float[ArrayLike, "..."], *, eta: float | jax.Array = 1e-3
) -> Bool[Array, "..."]:
    """The entries that a bfloat16 reader sees changed.

    `|a − b| > η·max(|a|, |b|)` on the bfloat16 views a, b. For any η below 2⁻⁸ (the smallest relative gap of adjacent
    normal bfloat16 numbers) this is bitwise inequality (+0 and −0 being equal), and is computed so: a sweep of η below
    0.0039 is one number repeated. A traced η takes the formula.

    Args:
      w0: initial weights, any floating dtype, any shape.
      w1: final weights, same shape.
      eta: relative tolerance η ≥ 0.

    Returns:
      Boolean mask of the same shape.

    Raises:
      ValueError: where the shapes differ or η is negative.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567

    >>> changed_mask(jnp.ones(3), jnp.array([1.0, 1.001, 1.01])).tolist()
    [False, False, True]
    """
    a, b = widen_pair(w0, w1)
    if isinstance(eta, float | int):
        if eta < 0:
            raise ValueError(f"eta is {eta}; a relative tolerance of at least 0 is needed")
        if eta < SMALLEST_BF16_GAP:
            bits_a, bits_b = bf16_bits(a), bf16_bits(b)
            both_zero = ((bits_a | bits_b) & 0x7FFF) == 0
            return (bits_a != bits_b) & ~both_zero
    a, b = bf16_view(a), bf16_view(b)
    return jnp.abs(a - b) > jnp.asarray(eta, jnp.float32) * jnp.maximum(jnp.abs(a), jnp.abs(b))


def _share(mask: jax.Array) -> jax.Array:
    require_matrix(mask, "w0")
    return count_true(mask) / (float(mask.shape[-2]) * float(mask.shape[-1]))


def visible_density(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, eta: float | jax.Array = 1e-3
) -> Float[Array, "*batch"]:
    """The share of entries that a bfloat16 reader sees changed, `#changed / n`.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.
      eta: relative tolerance of `changed_mask`.

    Returns:
      Shares in [0, 1], one per matrix.
    """
    return _share(changed_mask(w0, w1, eta=eta))


def visible_sparsity(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, eta: float | jax.Array = 1e-3
) -> Float[Array, "*batch"]:
    """The share of entries that a bfloat16 reader sees unchanged, `1 − #changed / n`.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.
      eta: relative tolerance η; every η below 2⁻⁸ gives the same number, see `changed_mask`.

    Returns:
      Shares in [0, 1], one per matrix. Averages over matrices are weighted by their parameter counts.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567

    >>> float(visible_sparsity(jnp.ones((2, 2)), jnp.ones((2, 2)).at[0, 1].set(2.0)))
    0.75
    """
    return _share(~changed_mask(w0, w1, eta=eta))


def stored_sparsity(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """The share of entries that are exactly equal as stored.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.

    Returns:
      Shares in [0, 1], one per matrix.
    """
    a, b = widen_pair(w0, w1)
    return _share(a == b)


def absolute_sparsity(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, tolerance: float = 1e-5
) -> Float[Array, "*batch"]:
    """The share of entries with `|ΔW| ≤ tolerance`, differences formed as stored, after widening.

    An absolute tolerance hides the movement of small weights selectively: see `share_hidden_by_decile`.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.
      tolerance: in units of the weights.

    Returns:
      Shares in [0, 1], one per matrix.

    Reference:
      *RL Finetunes Small Subnetworks*, https://arxiv.org/abs/2505.11711
    """
    a, b = widen_pair(w0, w1)
    return _share(jnp.abs(b - a) <= jnp.asarray(tolerance, a.dtype))


def relative_sparsity(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, tolerance: float = 1e-3
) -> Float[Array, "*batch"]:
    """The share of entries with `|ΔW| ≤ tolerance · RMS(W0)`, RMS over the matrix.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.
      tolerance: in units of the root mean square of W0.

    Returns:
      Shares in [0, 1], one per matrix.

    Reference:
      *Dense Supervision, Sparse Updates*, https://arxiv.org/abs/2606.13657
    """
    a, b = widen_pair(w0, w1)
    rms = jnp.sqrt(jnp.mean(jnp.square(a), axis=(-2, -1), keepdims=True))
    return _share(jnp.abs(b - a) <= jnp.asarray(tolerance, a.dtype) * rms)


def ulp_share(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, threshold: float = 0.5
) -> Float[Array, "*batch"]:
    """The share of entries whose update exceeds `threshold` bfloat16 spacings of the initial weight.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.
      threshold: in ULPs; ½ is what rounding lets through.

    Returns:
      Shares in [0, 1], one per matrix.

    Reference:
      *The Path Not Taken*, Gate III, https://arxiv.org/abs/2511.08567
    """
    distance = ulp_distance(w0, w1)
    return _share(distance > jnp.asarray(threshold, distance.dtype))


def magnitude_deciles(w0: Float[ArrayLike, "*batch out in"], *, parts: int = 10) -> Array:
    """The decile of `|W0|` to which each entry belongs, 0 for the smallest.

    The boundaries are exact counts `⌊j·n/parts + ½⌋`, ties going to the lower row-major index.

    Args:
      w0: weights `[..., out, in]`.
      parts: how many parts of (nearly) equal count.

    Returns:
      int32 `[..., out, in]`, 0 … parts − 1.
    """
    w0 = jnp.asarray(w0)
    index = jnp.zeros_like(w0, dtype=jnp.int32)
    for part in range(1, parts):
        index = index + (~smallest_mask(jnp.abs(w0), part / parts)).astype(jnp.int32)
    return index


def share_hidden_by_decile(
    w0: Float[ArrayLike, "*batch out in"],
    changed: Bool[ArrayLike, "*batch out in"],
    seen: Bool[ArrayLike, "*batch out in"],
    *,
    parts: int = 10,
) -> Float[Array, "*batch parts"]:
    """Of the entries that changed, the share that a coarser test does not see, by decile of `|W0|`.

    Args:
      w0: initial weights `[..., out, in]`.
      changed: mask of what changed by the finer test (`changed_mask`, or `w0 != w1` as stored).
      seen: mask of what the coarser test sees (`|ΔW| > 1e-5`, or `changed_mask`).
      parts: how many parts of equal count.

    Returns:
      `[..., parts]` shares, smallest weights first; NaN in a part where nothing changed.

    Reference:
      *Dense Supervision, Sparse Updates*, https://arxiv.org/abs/2606.13657
    """
    index = magnitude_deciles(w0, parts=parts)
    changed, seen = jnp.asarray(changed), jnp.asarray(seen)
    shares = []
    for part in range(parts):
        inside = changed & (index == part)
        shares.append(safe_divide(count_true(inside & ~seen), count_true(inside)))
    return jnp.stack(shares, axis=-1)


def density_by_decile(
    w0: Float[ArrayLike, "*batch out in"], changed: Bool[ArrayLike, "*batch out in"], *, parts: int = 10
) -> Float[Array, "*batch parts"]:
    """The share of entries that changed, by decile of `|W0|`: the observed side of `rounding_null_by_decile`.

    Args:
      w0: initial weights `[..., out, in]`.
      changed: mask of what changed.
      parts: how many parts of equal count.

    Returns:
      `[..., parts]` shares, smallest weights first.
    """
    index, changed = magnitude_deciles(w0, parts=parts), jnp.asarray(changed)
    shares = [safe_divide(count_true(changed & (index == p)), count_true(index == p)) for p in range(parts)]
    return jnp.stack(shares, axis=-1)
