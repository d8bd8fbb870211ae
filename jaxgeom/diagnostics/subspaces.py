"""Subspaces of updates: their bases, their similarity, and how much of an update lies in them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from . import _decompose
from ._layout import gather_matrix, matmul, transpose
from ._namespace import divide, namespace
from ._sequential import svd
from .krylov import krylov_top_singular
from .precision import require_matrix, widen, widen_pair
from .spectrum import frobenius_norm


class TopSubspaces(NamedTuple):
    """Both top-k singular subspaces of a matrix.

    Attributes:
      left: `[..., out, k]`.
      values: singular values, `[..., r]` by SVD (all of them), `[..., k]` by Krylov iteration.
      right: `[..., in, k]`.
    """

    left: jax.Array
    values: jax.Array
    right: jax.Array


def top_subspaces(
    matrix: Float[ArrayLike, "*batch out in"],
    *,
    k: int,
    method: str = "svd",
    iterations: int = 8,
    oversample: int = 8,
) -> TopSubspaces:
    """Orthonormal bases of the k largest left and right singular directions.

    Args:
      matrix: `[..., out, in]`.
      k: dimension, at most min(out, in).
      method: "svd", or "krylov": matrix products only, with the error bound of `krylov_top_singular` (the residual
        over the gap at k; a spectrum without a gap there has no well-defined subspace by either method).
      iterations: Krylov steps.
      oversample: extra Krylov columns.

    Returns:
      `TopSubspaces`. Signs (and rotations within equal singular values) are arbitrary.

    Raises:
      ValueError: where k is out of range, the method unknown, or the input no floating-point matrix.
    """
    matrix = widen(matrix, "matrix")
    require_matrix(matrix, "matrix")
    if not 1 <= k <= min(matrix.shape[-2:]):
        raise ValueError(f"k is {k}; a matrix of shape {matrix.shape} has {min(matrix.shape[-2:])} singular values")
    if method == "krylov":
        top = krylov_top_singular(matrix, k=k, iterations=iterations, oversample=oversample)
        return TopSubspaces(top.left, top.values, top.right)
    if method != "svd":
        raise ValueError(f"method is {method!r}; 'svd' or 'krylov' is needed")
    left, values, right = svd(gather_matrix(matrix))
    return TopSubspaces(left[..., :k], values, transpose(right)[..., :k])


def top_subspace(
    delta: Float[ArrayLike, "*batch out in"],
    *,
    k: int,
    side: str = "right",
    method: str = "svd",
    iterations: int = 8,
    oversample: int = 8,
) -> Float[Array, "*batch dim k"]:
    """Orthonormal basis of the k largest singular directions of an update, on one side.

    Args:
      delta: update `[..., out, in]`.
      k: dimension, at most min(out, in).
      side: "right" (input side, `V_k`) or "left" (output side, `U_k`).
      method: "svd" or "krylov", see `top_subspaces`.
      iterations: Krylov steps.
      oversample: extra Krylov columns.

    Returns:
      `[..., in, k]` for "right", `[..., out, k]` for "left"; columns by descending singular value.

    Raises:
      ValueError: where k, side or method is not one of these.

    Reference:
      *On the Geometry of On-Policy Distillation*, https://arxiv.org/abs/2606.07082
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; 'left' or 'right' is needed")
    top = top_subspaces(delta, k=k, method=method, iterations=iterations, oversample=oversample)
    return top.right if side == "right" else top.left


def subspace_similarity(
    basis_a: Float[ArrayLike, "*batch dim k"], basis_b: Float[ArrayLike, "*batch dim k"]
) -> Float[Array, "*batch"]:
    """Mean squared cosine between two subspaces, `Sim_K = (1/K)‖V_aᵀ V_b‖_F²`.

    Args:
      basis_a: orthonormal columns `[..., n, K]`.
      basis_b: orthonormal columns, same shape.

    Returns:
      Between 0 (orthogonal) and 1 (equal), one per pair; chance is K/n.

    Raises:
      ValueError: where the shapes differ.

    Reference:
      *On the Geometry of On-Policy Distillation*, https://arxiv.org/abs/2606.07082

    >>> float(subspace_similarity(jnp.eye(4)[:, :2], jnp.eye(4)[:, 1:3]))
    0.5
    """
    a, b = widen_pair(basis_a, basis_b, ("basis_a", "basis_b"))
    require_matrix(a, "basis_a")
    return similarity_from_bases(gather_matrix(a), gather_matrix(b))


FEW_DIRECTIONS = 1e-6
"""σ_K over σ₁ below which an update has fewer than K directions that a float32 Gram matrix can tell from rounding."""


def has_directions(sigma: Any, k: int) -> Any:
    """Whether an update has a leading k-dimensional subspace: `σ_k > 1e-6·σ₁`.

    Args:
      sigma: the leading singular values, at least k, descending `[..., r]`, numpy or JAX.
      k: dimension.

    Returns:
      One truth value per spectrum, same namespace.
    """
    return sigma[..., k - 1] > FEW_DIRECTIONS * sigma[..., 0]


def similarity_from_bases(first: Any, second: Any, *, product: Callable[[Any, Any], Any] = _decompose.matmul) -> Any:
    """Mean squared cosine between two subspaces, `(1/K)‖V_aᵀ V_b‖_F²`, in the namespace of the bases.

    Args:
      first, second: orthonormal columns `[..., n, K]`, numpy or JAX.
      product: multiplies two arrays where it is cheap.

    Returns:
      One number per pair.
    """
    cosines = product(_decompose.transpose(first), second)
    return namespace(cosines).sum(cosines * cosines, axis=(-2, -1)) / first.shape[-1]


def similarity_matrix(
    bases_s: Float[ArrayLike, "s *batch dim k"], bases_t: Float[ArrayLike, "t *batch dim k"]
) -> Float[Array, "s t *batch"]:
    """All pairwise similarities of two lists of subspaces, `Sim_K(s, t)`.

    With the bases of `ΔW_{0→t}` twice: the full matrix. With those of `ΔW_{0→t}` and `ΔW_{t→T}`, the diagonal is the
    disjoint version, whose chance level is K/n.

    Args:
      bases_s: `[S, ..., n, K]` orthonormal bases along a run.
      bases_t: `[T, ..., n, K]` the same, or of other updates.

    Returns:
      `[S, T, ...]` similarities.
    """
    a, b = widen(bases_s, "bases_s"), widen(bases_t, "bases_t")
    return jax.vmap(lambda x: jax.vmap(lambda y: subspace_similarity(x, y))(b))(a)


class ProjectionEnergy(NamedTuple):
    """Shares of an update's energy that lie in reference subspaces.

    Attributes:
      joint: `‖UᵀΔW V‖² / ‖ΔW‖²`.
      left: `‖UᵀΔW‖² / ‖ΔW‖²`.
      right: `‖ΔW V‖² / ‖ΔW‖²`.
    """

    joint: Any
    left: Any
    right: Any


def projection_energy_from_bases(
    delta: Float[ArrayLike, "*batch out in"],
    left: Float[ArrayLike, "*batch out k"],
    right: Float[ArrayLike, "*batch in k"],
) -> ProjectionEnergy:
    """Shares of an update's energy in given left and right subspaces.

    Args:
      delta: update `[..., out, in]`.
      left: orthonormal columns U `[..., out, k]`.
      right: orthonormal columns V `[..., in, k]`.

    Returns:
      `ProjectionEnergy`, each NaN where the update is zero.
    """
    delta = gather_matrix(widen(delta, "delta"))
    norm = jax.lax.stop_gradient(frobenius_norm(delta))
    defined = norm > 0
    unit = delta / jnp.where(defined, norm, jnp.ones_like(norm))[..., None, None]
    u, v = (gather_matrix(widen(basis).astype(unit.dtype)) for basis in (left, right))
    rows, columns = matmul(transpose(u), unit), matmul(unit, v)
    joint = matmul(rows, v)

    def energy(x: Any) -> Any:
        return jnp.sum(jnp.square(x), axis=(-2, -1))

    total = energy(unit)
    return ProjectionEnergy(*(divide(energy(part), total) for part in (joint, rows, columns)))


def projection_energy(
    w0: Float[ArrayLike, "*batch out in"],
    delta: Float[ArrayLike, "*batch out in"],
    *,
    k: int,
    method: str = "svd",
) -> ProjectionEnergy:
    """Shares of an update's energy in the top-k singular subspaces of the initial weights.

    `‖U_kᵀΔW V_k‖²/‖ΔW‖²`, `‖U_kᵀΔW‖²/‖ΔW‖²`, `‖ΔW V_k‖²/‖ΔW‖²`, with U_k, V_k of W0. Chance: `k²/(mn)`, `k/m`, `k/n`.

    Args:
      w0: initial weights `[..., out, in]`.
      delta: update, same shape.
      k: dimension of both subspaces.
      method: "svd" or "krylov", see `top_subspaces`.

    Returns:
      `ProjectionEnergy` (joint, left, right), each NaN where the update is zero.

    Reference:
      *Dense Supervision, Sparse Updates*, https://arxiv.org/abs/2606.13657
    """
    w0, delta = widen_pair(w0, delta, ("w0", "delta"))
    top = top_subspaces(w0, k=k, method=method)
    return projection_energy_from_bases(delta, top.left, top.right)


def subspace_leakage(
    delta: Float[ArrayLike, "*batch out in"], basis: Float[ArrayLike, "*batch in k"]
) -> Float[Array, "*batch"]:
    """Share of an update's energy outside a right subspace, `‖ΔW(I − VVᵀ)‖² / ‖ΔW‖²`.

    Formed from the residual, so that a leakage of 1e-10 is not lost in `1 − share`.

    Args:
      delta: update `[..., out, in]`.
      basis: orthonormal columns V `[..., in, k]`.

    Returns:
      Shares in [0, 1], one per matrix; NaN where the update is zero.
    """
    delta = gather_matrix(widen(delta, "delta"))
    basis = gather_matrix(widen(basis, "basis").astype(delta.dtype))
    rest = delta - matmul(matmul(delta, basis), transpose(basis))
    return jnp.square(divide(frobenius_norm(rest), frobenius_norm(delta)))
