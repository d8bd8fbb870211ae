"""Which entries moved: the changed mask, visible sparsity and its variants."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._layout import count_true
from .counting import bits_changed, exceeds, is_equal, norm_and_unit
from .precision import bf16_bits, require_matrix, ulp_distance, widen_pair


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
    if isinstance(eta, float | int) and eta < 0:
        raise ValueError(f"eta is {eta}; a relative tolerance of at least 0 is needed")
    return bits_changed(bf16_bits(a), bf16_bits(b), eta)


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
    return _share(is_equal(a, b))


def absolute_sparsity(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, tolerance: float = 1e-5
) -> Float[Array, "*batch"]:
    """The share of entries with `|ΔW| ≤ tolerance`, differences formed as stored, after widening.

    An absolute tolerance hides the movement of small weights selectively: see `hidden_by_decile`.

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
    return _share(~exceeds(jnp.abs(b - a), a, b, tolerance))


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
    size = float(a.shape[-1]) * float(a.shape[-2])
    rms = norm_and_unit(a)[0][..., None, None] / math.sqrt(size)
    return _share(~exceeds(jnp.abs(b - a), a, b, tolerance * rms))


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
