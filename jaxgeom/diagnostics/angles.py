"""Principal angles between the top-k singular subspaces of two matrices, exact down to tiny rotations."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ._decompositions import qr, svd_values
from ._layout import gather_matrix, matmul, transpose
from .precision import widen_pair
from .spectrum import namespace
from .subspaces import top_subspaces


class PrincipalAngles(NamedTuple):
    """Principal angles in radians, ascending.

    Attributes:
      left: `[..., k]`, between the output-side subspaces.
      right: `[..., k]`, between the input-side subspaces.
    """

    left: jax.Array
    right: jax.Array


def capped_rank(k: int, shape: tuple[int, ...]) -> int:
    """k capped at `min(m, n) − 1` (at least 1), so that the gap `σ_k − σ_{k+1}` exists.

    Args:
      k: wanted dimension.
      shape: `[..., m, n]`.

    Returns:
      The dimension to use and to report.

    >>> capped_rank(512, (256, 1024))
    255
    """
    return max(1, min(k, min(shape[-2:]) - 1))


def spectral_gap(sigma: Any, *, k: int) -> Any:
    """The gap `γ_k = σ_k − σ_{k+1}` of a descending spectrum; an update whose norm exceeds it makes angles ill-posed.

    Args:
      sigma: `[..., r]`, numpy or JAX.
      k: 1 ≤ k < r.

    Returns:
      One gap per spectrum, same namespace and dtype.

    Raises:
      ValueError: where k is out of range.
    """
    if not 1 <= k < sigma.shape[-1]:
        raise ValueError(f"k is {k}; between 1 and {sigma.shape[-1] - 1} is needed for a gap")
    return sigma[..., k - 1] - sigma[..., k]


def angles_from_bases(u0: Any, u1: Any) -> Any:
    """Principal angles between two subspaces given by orthonormal bases.

    `cos θ_i = σ_i(U0ᵀU1)` for angles above 45°, and the sine branch `sin θ_i = σ_i((I − U0U0ᵀ)U1)` below, where the
    arccosine has lost its digits.

    Args:
      u0: orthonormal columns `[..., n, k]`, numpy or JAX.
      u1: orthonormal columns, same shape.

    Returns:
      `[..., k]` radians, ascending, same namespace and dtype.

    Reference:
      Björck and Golub, *Numerical methods for computing angles between linear subspaces*, 1973.
    """
    xp = namespace(u0)
    if xp is jnp:
        u0, u1 = (gather_matrix(u) for u in widen_pair(u0, u1, ("u0", "u1")))
        product, flip, values, triangular = matmul, transpose, svd_values, lambda a: qr(a)[1]
    else:
        product, flip = xp.matmul, lambda a: xp.swapaxes(a, -1, -2)
        values, triangular = partial(np.linalg.svd, compute_uv=False), partial(np.linalg.qr, mode="r")
    cross = product(flip(u0), u1)
    residual = u1 - product(u0, cross)
    # Singular values of the residual are those of its triangular factor: a k × k problem instead of n × k.
    triangle: Any = triangular(residual)
    sines = xp.flip(values(triangle), axis=-1)
    cosines = values(cross)
    sines, cosines = xp.clip(sines, 0.0, 1.0), xp.clip(cosines, 0.0, 1.0)
    return xp.where(sines * sines < 0.5, xp.arcsin(sines), xp.arccos(cosines))


def principal_angles(
    w0: Float[ArrayLike, "*batch out in"],
    w1: Float[ArrayLike, "*batch out in"],
    *,
    k: int,
    method: str = "svd",
) -> PrincipalAngles:
    """Principal angles between the top-k singular subspaces of W0 and W+, both sides.

    `cos θ_i = σ_i(U0_kᵀ U+_k)`, the same for V; small angles by the sine branch. Float32 bases carry errors of about
    1e-7·σ₁/γ_k, which bounds the smallest rotation that can be seen: pass float64 under x64 for tiny ones.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.
      k: dimension, at most min(out, in); `capped_rank` keeps a gap below it.
      method: "svd" or "krylov", see `top_subspaces`.

    Returns:
      `PrincipalAngles(left, right)`, radians `[..., k]`, ascending.

    Raises:
      ValueError: where k is out of range or the shapes differ.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567
    """
    a, b = widen_pair(w0, w1)
    top0, top1 = top_subspaces(a, k=k, method=method), top_subspaces(b, k=k, method=method)
    return PrincipalAngles(angles_from_bases(top0.left, top1.left), angles_from_bases(top0.right, top1.right))
