"""The leading singular values and directions of a matrix that is nowhere whole: block Krylov iteration with restarts.

Besides products with the matrix there are only blocks of a few dozen columns, laid out like the matrix's own sides, and
decompositions of small square matrices. The iteration goes on until the residuals say that it is done, so that spectra
without gaps (an isotropic update) come out at the dtype's accuracy too; a matrix with no more directions than the basis
has columns is exact after the first round.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._sequential import eigh
from .leaf_matrix import LeafMatrix, block_combine, block_inner, block_squares, spread_columns

GUARD = 8
"""Columns of the block beyond those that are asked for: what converges slowest is left outside."""

BLOCKS = 6
"""Blocks of a basis; its columns are what the iteration keeps beside the matrix, on either side."""

ROUNDS = 40
"""Restarts at most. An isotropic 1024 × 3072 matrix needs 30 for 16 directions in float64, 15 in float32."""

FLOOR = 64
"""Residuals below this many roundings of the largest are rounding themselves."""


class Leading(NamedTuple):
    """Leading singular triplets.

    Attributes:
      right: `[*batch, *in, k]` orthonormal right vectors by descending value; zero columns beyond the rank.
      images: `[*batch, *out, k]`, `A v_i = σ_i u_i`.
      residual: `[*batch, k]`, `‖AᵀA v_i − σ_i² v_i‖/σ₁²`. No `σ_i²` is above the true one, and it falls short by at
        most residual·σ₁², or residual²·σ₁⁴ over the gap to the values left out, whichever is less.
    """

    right: jax.Array
    images: jax.Array
    residual: jax.Array


def leading_triplets(matrix: LeafMatrix, *, k: int, vectors: bool) -> Leading:
    """The k leading singular triplets of each matrix.

    Deterministic: the start is the same in every call. Beside the matrices it keeps `6·(k + 8)` columns of either side.
    The entries should be of order one: squares of squares are taken.

    Args:
      matrix: the matrices; no derivative is taken of it.
      k: how many, at most min(out, in).
      vectors: whether the subspace is wanted to the dtype's accuracy, not only the values, whose error is of second
        order in the residual.

    Returns:
      `Leading`.

    Reference:
      Musco and Musco, *Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
      Decomposition* (2015), https://arxiv.org/abs/1504.05477; Wu and Simon, *Thick-restart Lanczos method for large
      symmetric eigenvalue problems* (2000).
    """
    matrix = matrix.over(jax.lax.stop_gradient(matrix.array))
    rank, batches = min(matrix.shape), matrix.batches
    width = min(k + GUARD, rank)
    blocks = min(BLOCKS, 1 + -(-rank // width))
    eps = float(jnp.finfo(matrix.array.dtype).eps)

    def lacking(residual: jax.Array, squares: jax.Array) -> jax.Array:
        """Error of each matrix's triplets that are asked for, in units of the leading one."""
        largest = jnp.max(residual[..., :k], axis=-1)
        if vectors:
            return largest
        gap = squares[..., k - 1] - squares[..., -1]
        open_ = gap > 0
        second = jnp.sum(jnp.square(residual[..., :k]), axis=-1) * squares[..., 0] / jnp.where(open_, gap, 1)
        return jnp.where(open_, jnp.minimum(second, largest), largest)

    def extend(index: jax.Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """One block more, of what the last one was mapped to."""
        basis, mapped, pulled = state
        block = _orthonormal(pulled, basis, batches)
        image = matrix.times(block)
        basis, mapped = (
            jax.lax.dynamic_update_slice_in_dim(all_, one, index * width, axis=all_.ndim - 1)
            for all_, one in ((basis, block), (mapped, image))
        )
        return basis, mapped, matrix.transposed_times(image)

    def once(state: tuple[Any, ...]) -> tuple[Any, ...]:
        right, images, pulled, _, count = state
        basis, mapped = (
            jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, (blocks - 1) * width)]) for part in (right, images)
        )
        basis, mapped, _ = jax.lax.fori_loop(1, blocks, extend, (basis, mapped, pulled))
        small = jnp.flip(eigh(block_inner(mapped, mapped, batches))[1], axis=-1)[..., :width]
        right, images = block_combine(basis, small, batches), block_combine(mapped, small, batches)
        squares, pulled = block_squares(images, batches), matrix.transposed_times(images)
        rest = jnp.sqrt(block_squares(pulled - right * spread_columns(squares, right), batches))
        top = squares[..., :1]
        residual = rest / jnp.where(top > 0, top, jnp.ones_like(top))
        return right, images, pulled, (residual, lacking(residual, squares)), count + 1

    def goes_on(state: tuple[Any, ...]) -> jax.Array:
        return (state[-1] < ROUNDS) & jnp.any(state[-2][1] > FLOOR * eps)

    start = jax.random.normal(jax.random.key(0), (*matrix.out, width), matrix.array.dtype)
    pulled = matrix.transposed_times(jnp.broadcast_to(start, (*matrix.batch, *start.shape)))
    far = jnp.full_like(block_squares(pulled, batches), jnp.inf)
    state = (jnp.zeros_like(pulled), jnp.zeros_like(matrix.times(pulled)), pulled, (far, far[..., 0]), 0)
    right, images, _, (residual, _), _ = jax.lax.while_loop(goes_on, once, state)
    return Leading(right[..., :k], images[..., :k], residual[..., :k])


def _orthonormal(block: jax.Array, basis: jax.Array, batches: int) -> jax.Array:
    """Orthonormal columns of the block's span outside the basis; zero columns in place of what is rounding alone.

    Two passes, since one loses digits. Each sums over the side twice, which is what it costs on many devices.
    """
    eps = float(jnp.finfo(block.dtype).eps)

    def turn(index: jax.Array, block: jax.Array) -> jax.Array:
        inner = block_inner(jnp.concatenate([basis, block], axis=-1), block, batches)
        whole = jnp.diagonal(inner[..., basis.shape[-1] :, :], axis1=-2, axis2=-1)
        block = block - block_combine(basis, inner[..., : basis.shape[-1], :], batches)
        gram = block_inner(block, block, batches)
        left = jnp.diagonal(gram, axis1=-2, axis2=-1)
        least = jnp.where(index == 0, (FLOOR * eps) ** 2, 0.25).astype(block.dtype)
        unit = _inverse_root(left, left > least * whole)
        values, vectors = eigh(gram * unit[..., None, :] * unit[..., :, None])
        weights = _inverse_root(values, values > FLOOR * eps * values[..., -1:])
        return block_combine(block, unit[..., :, None] * vectors * weights[..., None, :], batches)

    return jax.lax.fori_loop(0, 2, turn, block)


def _inverse_root(x: jax.Array, kept: jax.Array) -> jax.Array:
    """`1/√x` where it is kept, else 0."""
    return jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, x, jnp.ones_like(x))), jnp.zeros_like(x))
