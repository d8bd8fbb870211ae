"""Principal angles between the top-k singular subspaces of two matrices, exact down to tiny rotations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ._decompose import matmul, svd_values, symmetric_values, transpose, triangle
from ._layout import gather_matrix
from ._namespace import namespace
from .precision import widen_pair
from .subspaces import top_subspaces


class PrincipalAngles(NamedTuple):
    """Principal angles in radians, ascending.

    Attributes:
      left: `[..., k]`, between the output-side subspaces.
      right: `[..., k]`, between the input-side subspaces.
    """

    left: jax.Array
    right: jax.Array


def _by_branch(sines: Any, cosines: Callable[[], Any]) -> Any:
    """Angles from ascending sines and descending cosines: below 45° by the sine, where the cosine has lost digits."""
    xp = namespace(sines)
    sines = xp.clip(sines, 0.0, 1.0)
    if xp is np and not np.any(sines * sines >= 0.5):
        return np.arcsin(sines)  # cosines are not needed
    return xp.where(sines * sines < 0.5, xp.arcsin(sines), xp.arccos(xp.clip(cosines(), 0.0, 1.0)))


def angles_from_bases(u0: Any, u1: Any, *, product: Callable[[Any, Any], Any] = matmul) -> Any:
    """Principal angles between two subspaces given by orthonormal bases, exact for rotations of any smallness.

    `cos θ_i = σ_i(U0ᵀU1)` for angles above 45°, and `sin θ_i = σ_i((I − U0U0ᵀ)U1)` below, where the arccosine has lost
    its digits.

    Args:
      u0: orthonormal columns `[..., n, k]`, numpy or JAX.
      u1: orthonormal columns, same shape.
      product: multiplies two arrays where it is cheap; they come from and go to the namespace of the bases.

    Returns:
      `[..., k]` radians, ascending, same namespace and dtype.

    Reference:
      Björck and Golub, *Numerical methods for computing angles between linear subspaces*, 1973.
    """
    if namespace(u0, u1) is jax.numpy:
        u0, u1 = (gather_matrix(u) for u in widen_pair(u0, u1, ("u0", "u1")))
    cross = product(transpose(u0), u1)
    residual = u1 - product(u0, cross)
    residual = residual - product(u0, product(transpose(u0), residual))
    # Singular values of the residual are those of its triangular factor: a k × k problem instead of n × k.
    sines = namespace(u0).flip(svd_values(triangle(residual)), axis=-1)
    return _by_branch(sines, lambda: svd_values(cross))


def angles_from_cosines(cosines: Any, *, gram: Callable[[Any], Any] | None = None) -> Any:
    """Principal angles from `U0ᵀU1` alone, by the eigenvalues of `I − CᵀC` and `CᵀC`.

    An angle θ carries an absolute error of about `ε/θ`, ε of the dtype: 1e-11 at 1e-5 radians in float64. Half the
    price of `angles_from_bases`, and no basis is needed.

    Args:
      cosines: `[..., k, k]`, numpy or JAX.
      gram: gives `CᵀC` of C; a product where it is not given.

    Returns:
      `[..., k]` radians, ascending, same namespace and dtype.
    """
    xp = namespace(cosines)
    shared = matmul(transpose(cosines), cosines) if gram is None else gram(cosines)
    sines = symmetric_values(xp.eye(shared.shape[-1], dtype=shared.dtype) - shared)

    def closeness() -> Any:
        return xp.sqrt(xp.clip(xp.flip(symmetric_values(shared), axis=-1), 0.0, 1.0))

    return _by_branch(xp.sqrt(xp.clip(sines, 0.0, 1.0)), closeness)


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
