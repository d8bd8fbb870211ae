"""Nulls that are sampled: updates that keep something of the real one and are random otherwise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._layout import gather_matrix
from .moments import NullMoments
from .precision import bf16_view, require_matrix, widen, widen_pair
from .spectrum import frobenius_norm


def _normal_like(key: Array, x: jax.Array) -> jax.Array:
    return jax.random.normal(key, x.shape, x.dtype)


def norm_matched_update(key: Array, delta: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch out in"]:
    """An isotropic Gaussian update of exactly the same Frobenius norm, matrix by matrix.

    Args:
      key: random key.
      delta: the real update `[..., out, in]`.

    Returns:
      A draw of the norm-matched null, same shape, widened dtype.
    """
    delta = widen(delta, "delta")
    require_matrix(delta, "delta")
    noise = _normal_like(key, delta)
    return noise * (frobenius_norm(delta) / frobenius_norm(noise))[..., None, None]


def permuted_update(key: Array, delta: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch out in"]:
    """The real update's entries in random order within each matrix.

    Args:
      key: random key.
      delta: the real update `[..., out, in]`.

    Returns:
      A draw of the permutation null, same shape and dtype.
    """
    delta = gather_matrix(jnp.asarray(delta))
    require_matrix(delta, "delta")
    rows, columns = delta.shape[-2:]

    def permute(one_key: Array, one: jax.Array) -> jax.Array:
        return jax.random.permutation(one_key, one.reshape(rows * columns)).reshape(rows, columns)

    for axis_size in reversed(delta.shape[:-2]):
        permute = _split_and_map(permute, axis_size)
    return permute(key, delta)


def _split_and_map(fn: Callable[..., jax.Array], size: int) -> Callable[..., jax.Array]:
    return lambda key, x: jax.vmap(fn)(jax.random.split(key, size), x)


def rounded_update(
    w0: Float[ArrayLike, "*batch out in"],
    direction: Float[ArrayLike, "*batch out in"],
    norm: Float[ArrayLike, "*batch"],
) -> Float[Array, "*batch out in"]:
    """The bfloat16 view of a fixed-direction update of given Frobenius norm: a draw of the precision null.

    `bf16(W0 + a·D/‖D‖) − bf16(W0)`. Along a trajectory of observed norms this is what rounding alone does to stable
    rank and subspace of an update that never turns.

    Args:
      w0: initial weights `[..., out, in]`.
      direction: D, the final update or a random one, same shape.
      norm: a, one per matrix.

    Returns:
      float32 update `[..., out, in]`.
    """
    w0, direction = widen_pair(w0, direction, ("w0", "direction"))
    length = frobenius_norm(direction)
    factor = jnp.asarray(norm).astype(w0.dtype) / jnp.where(length > 0, length, jnp.ones_like(length))
    return bf16_view(w0 + factor[..., None, None] * direction) - bf16_view(w0)


def sampled_null(key: Array, draw: Callable[[Array], Any], *, draws: int) -> NullMoments:
    """Mean and standard deviation of a statistic under a null that is sampled.

    Args:
      key: random key.
      draw: takes a key, returns the statistic (an array or a tree of arrays) of one draw.
      draws: how many, at least 2 for a deviation.

    Returns:
      `NullMoments(mean, std)`, each with the structure of one draw; std (divisor draws − 1) is NaN for one draw.

    >>> null = sampled_null(jax.random.key(0), lambda key: jax.random.normal(key), draws=1000)
    >>> abs(float(null.mean)) < 0.1
    True
    """
    values = lax.map(draw, jax.random.split(key, draws))
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), values)
    if draws < 2:
        return NullMoments(mean, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), mean))
    return NullMoments(mean, jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1), values))
