"""The largest singular triplets by block Krylov iteration: matrix products and small decompositions only.

XLA's dense SVD is slow on accelerators; products are not. The block Krylov space `[X, (AᵀA)X, …, (AᵀA)^q X]` of a
random start is orthonormalised block by block, A is projected on it, and the small problem is solved exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._layout import gather_matrix, matmul, transpose
from ._sequential import qr, svd
from .precision import require_matrix, widen


class TopSingular(NamedTuple):
    """The k largest singular triplets and how far each is from being one.

    Attributes:
      left: `[..., out, k]` left singular vectors.
      values: `[..., k]` singular values, descending.
      right: `[..., in, k]` right singular vectors.
      residual: `[..., k]`, `‖Aᵀu_i − σ_i v_i‖` (A v_i = σ_i u_i holds to rounding). Some singular value of A lies
        within the residual of each returned value, no returned value exceeds the true one of the same rank, and the
        sine of the largest angle of the returned right subspace to the true one is at most
        `√Σ residual² / (σ_k − σ_{k+1})`, σ_k the returned and σ_{k+1} the true value.
    """

    left: jax.Array
    values: jax.Array
    right: jax.Array
    residual: jax.Array


def _orthonormal(block: jax.Array, basis: jax.Array | None) -> jax.Array:
    """The block made orthonormal, and orthogonal to `basis`: two passes, since one loses digits."""
    for _ in range(2):
        if basis is not None:
            block = block - matmul(basis, matmul(transpose(basis), block))
        block = qr(block)[0]
    return block


def krylov_top_singular(
    matrix: Float[ArrayLike, "*batch out in"],
    *,
    k: int,
    iterations: int = 8,
    oversample: int = 8,
    key: Array | None = None,
) -> TopSingular:
    """The k largest singular triplets by block Krylov iteration.

    Deterministic: without a key the start block is the same in every call. Memory is
    `in · (k + oversample) · iterations` numbers beside the matrix.

    Args:
      matrix: `[..., out, in]`.
      k: how many triplets, at most min(out, in).
      iterations: Krylov steps, each two products with the matrix.
      oversample: extra columns in the block.
      key: random key of the start block.

    Returns:
      `TopSingular`, with the residual of each triplet as its error bound.

    Raises:
      ValueError: where k is out of range or the input is no floating-point matrix.

    Reference:
      Musco and Musco, *Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
      Decomposition*, 2015, https://arxiv.org/abs/1504.05477
    """
    matrix = widen(matrix, "matrix")
    require_matrix(matrix, "matrix")
    rows, columns = matrix.shape[-2:]
    if not 1 <= k <= min(rows, columns):
        raise ValueError(f"k is {k}; a matrix of shape {matrix.shape} has {min(rows, columns)} singular values")
    matrix = gather_matrix(matrix)
    width = min(k + oversample, rows, columns)
    steps = max(1, min(iterations, min(rows, columns) // width))
    key = jax.random.key(0) if key is None else key
    start = jax.random.normal(key, (columns, width), matrix.dtype)
    # The start goes through A once: it is brought to A's batch shape and sharding, and to its row space.
    image = matmul(matrix, start)
    basis = None
    block = image
    for _ in range(steps):
        block = _orthonormal(matmul(transpose(matrix), block), basis)
        basis = block if basis is None else jnp.concatenate([basis, block], axis=-1)
        block = matmul(matrix, block)
    assert basis is not None
    left_basis, small = qr(matmul(matrix, basis))
    left_small, values, right_small = svd(small)
    left = matmul(left_basis, left_small[..., :k])
    right = matmul(basis, transpose(right_small)[..., :k])
    values = values[..., :k]
    gap = matmul(transpose(matrix), left) - right * values[..., None, :]
    return TopSingular(left, values, right, jnp.sqrt(jnp.sum(jnp.square(gap), axis=-2)))
