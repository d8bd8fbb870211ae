"""The ragged matmul of a mixture of experts on TPUs, whose gradient XLA computes for all rows and every expert."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Rows, and columns of either side, that the kernel has in its memory at once: of v5e's 16 MiB a third.
_ROWS = 512
_COLUMNS = 512


@jax.custom_vjp
def ragged_product(
    rows: Float[Array, "m k"], kernels: Float[Array, "groups k n"], sizes: Int[Array, " groups"]
) -> Float[Array, "m n"]:
    """The rows of each group times its kernel, `jax.lax.ragged_dot`; the kernels' gradient by a Pallas kernel.

    Args:
        rows: sorted by group.
        kernels: one a group, of the rows' dtype, bfloat16: with others the kernel's products are not known to be exact.
        sizes: int32, rows of each group; behind them may be rows of none.

    Reference:
        MegaBlocks (arXiv 2211.15841); `jax.experimental.pallas.ops.tpu.megablox`.
    """
    return jax.lax.ragged_dot(rows, kernels, sizes)


def _forward(rows: Array, kernels: Array, sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return ragged_product(rows, kernels, sizes), (rows, kernels, sizes)


def _backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, None]:
    rows, kernels, sizes = kept
    (of_rows,) = jax.vjp(lambda rows: jax.lax.ragged_dot(rows, kernels, sizes), rows)[1](gradient)
    return of_rows, kernels_gradient(rows, gradient, sizes).astype(kernels.dtype), None


ragged_product.defvjp(_forward, _backward)


def kernels_gradient(
    rows: Float[Array, "m k"], gradient: Float[Array, "m n"], sizes: Int[Array, " groups"], *, interpret: bool = False
) -> Float[Array, "groups k n"]:
    """`rowsᵀ · gradient` within each group; zeros for a group without rows.

    Args:
        rows: sorted by group.
        gradient: of the products, row by row.
        sizes: int32, rows of each group.
        interpret: run the kernel's steps one by one, on any platform.
    """
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # half a second that other platforms do not need

    missing = -len(rows) % _ROWS  # of no group, and so not read
    rows, gradient = (jnp.pad(array, ((0, missing), (0, 0))) for array in (rows, gradient))
    tiles = (_ROWS, min(_COLUMNS, rows.shape[1]), min(_COLUMNS, gradient.shape[1]))
    options: dict[str, Any] = {"preferred_element_type": rows.dtype, "tiling": tiles, "interpret": interpret}
    with jax.numpy_dtype_promotion("standard"):  # which the kernel's own code needs
        return tgmm(rows.swapaxes(0, 1), gradient, sizes, **options)
