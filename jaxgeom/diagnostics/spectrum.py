"""Norms, ranks and shifts of matrices: each decomposes its arrays and reads the number off the singular values."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._layout import gather_matrix, matmul, safe_sqrt, transpose
from ._namespace import divide
from ._sequential import svd_values
from .krylov import krylov_top_singular
from .precision import require_matrix, widen, widen_pair
from .spectral_numbers import (
    default_hill_k,
    energy_share_from_singular_values,
    entropy_rank_from_singular_values,
    hill_from_singular_values,
    nss_from_singular_values,
)


def singular_values(matrix: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch r"]:
    """All singular values, descending, by LAPACK (CPU) or XLA's own decomposition.

    Args:
      matrix: `[..., out, in]`.

    Returns:
      `[..., min(out, in)]`, float32 or float64 as the (widened) input.

    Raises:
      ValueError: where the input is no floating-point matrix.
    """
    matrix = widen(matrix, "matrix")
    require_matrix(matrix, "matrix")
    return svd_values(gather_matrix(matrix))


def frobenius_norm(matrix: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """`‖A‖_F`, with derivative 0 at 0.

    Args:
      matrix: `[..., out, in]`.

    Returns:
      Norms, one per matrix.
    """
    matrix = widen(matrix, "matrix")
    require_matrix(matrix, "matrix")
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True))
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))  # squares of tiny updates do not underflow
    return safe_sqrt(jnp.sum(jnp.square(matrix / scale), axis=(-2, -1))) * scale[..., 0, 0]


def relative_norm(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """`‖ΔW‖_F / ‖W0‖_F`.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.

    Returns:
      Ratios, one per matrix; NaN where W0 is zero.
    """
    a, b = widen_pair(w0, w1)
    return divide(frobenius_norm(b - a), frobenius_norm(a))


def entry_kurtosis(matrix: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """Kurtosis of the entries about zero, `mn·Σa⁴/(Σa²)²`: 3 for normal ones, mn for a single one that is not zero.

    The isotropic nulls of ranks take it: rounding leaves few and unequal entries of a small update.

    Args:
      matrix: `[..., out, in]`.

    Returns:
      One number per matrix; NaN for a zero matrix.
    """
    matrix = widen(matrix, "matrix")
    require_matrix(matrix, "matrix")
    norm = frobenius_norm(matrix)
    unit = matrix / jnp.where(norm > 0, norm, jnp.ones_like(norm))[..., None, None]
    fourth = jnp.sum(jnp.square(jnp.square(unit)), axis=(-2, -1)) * (float(matrix.shape[-2]) * matrix.shape[-1])
    return jnp.where(norm > 0, fourth, jnp.full_like(fourth, jnp.nan))


def operator_norm(
    matrix: Float[ArrayLike, "*batch out in"], *, method: str = "svd", iterations: int = 24, block: int = 8
) -> Float[Array, "*batch"]:
    """The largest singular value `‖A‖₂`.

    Args:
      matrix: `[..., out, in]`.
      method: "svd" (all singular values) or "krylov" (matrix products only; never above the true value, relative
        error at most 1e-4 on iid Gaussian matrices, the hardest common case, and rounding where the spectrum decays;
        exact first derivatives).
      iterations: Krylov steps.
      block: Krylov block width.

    Returns:
      Norms, one per matrix.

    Raises:
      ValueError: for an unknown method.
    """
    if method == "svd":
        return singular_values(matrix)[..., 0]
    if method != "krylov":
        raise ValueError(f"method is {method!r}; 'svd' or 'krylov' is needed")
    matrix = widen(matrix, "matrix")
    require_matrix(matrix, "matrix")
    top = krylov_top_singular(jax.lax.stop_gradient(matrix), k=1, iterations=iterations, oversample=block - 1)
    # dσ = uᵀ dA v: with u and v held, the Rayleigh quotient has the value and the derivative of σ.
    return jnp.sum(top.left * matmul(gather_matrix(matrix), top.right), axis=(-2, -1))


def stable_rank(
    delta: Float[ArrayLike, "*batch out in"], *, method: str = "svd", iterations: int = 24, block: int = 8
) -> Float[Array, "*batch"]:
    """The stable rank `‖ΔW‖_F² / ‖ΔW‖₂²`.

    Args:
      delta: update `[..., out, in]`.
      method: "svd" or "krylov", see `operator_norm`; Krylov errs upwards by at most twice its relative error.
      iterations: Krylov steps.
      block: Krylov block width.

    Returns:
      Between 1 and min(out, in), one per matrix; NaN where the update is zero.

    Reference:
      *On the Geometry of On-Policy Distillation*, https://arxiv.org/abs/2606.07082

    >>> round(float(stable_rank(jnp.diag(jnp.array([2.0, 1.0])))), 5)
    1.25
    """
    frobenius = frobenius_norm(delta)
    defined = frobenius > 0
    # A zero matrix is replaced before it is decomposed: the derivative of its SVD would poison the whole batch.
    delta = widen(delta, "delta")
    unit = delta / jnp.where(defined, jax.lax.stop_gradient(frobenius), jnp.ones_like(frobenius))[..., None, None]
    unit = jnp.where(defined[..., None, None], unit, jnp.ones_like(unit))
    top = operator_norm(unit, method=method, iterations=iterations, block=block)
    ratio = jnp.square(frobenius_norm(unit)) / jnp.square(top)
    return jnp.where(defined, ratio, jnp.full_like(ratio, jnp.nan))


def normalized_spectral_shift(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """Normalized spectral shift `‖σ(W+) − σ(W0)‖₂ / ‖σ(W0)‖₂`, over the full spectrum.

    In float32 the singular values carry errors of about 1e-7 σ₁, so a shift below about 1e-6 is noise: pass float64
    under x64, or float64 spectra to `nss_from_singular_values`, for small shifts.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.

    Returns:
      Shifts, one per matrix; NaN where W0 is zero. The derivative at W+ = W0 is taken as 0.

    Reference:
      *The Path Not Taken*, https://arxiv.org/abs/2511.08567

    >>> w = jnp.diag(jnp.array([4.0, 3.0]))
    >>> round(float(normalized_spectral_shift(w, 1.1 * w)), 5)
    0.1
    """
    a, b = widen_pair(w0, w1)
    return nss_from_singular_values(singular_values(a), singular_values(b))


def hill_estimate(delta: Float[ArrayLike, "*batch out in"], *, k: int | None = None) -> Float[Array, "*batch"]:
    """Hill estimate of the tail exponent of the singular values of an update.

    `[ (1/(k−1)) Σ_{i<k} log(σ_i/σ_k) ]⁻¹`

    Args:
      delta: update `[..., out, in]`.
      k: length of the tail; `default_hill_k` where it is not given.

    Returns:
      Exponents, one per matrix; NaN where σ_k is numerically zero (the update has rank below k), or where the k
      largest values are all equal.

    Raises:
      ValueError: where k is out of range.

    Reference:
      *On the Geometry of On-Policy Distillation*, https://arxiv.org/abs/2606.07082
    """
    delta = widen(delta, "delta")
    require_matrix(delta, "delta")
    k = default_hill_k(delta.shape) if k is None else k
    return hill_from_singular_values(singular_values(delta), k=k, shape=delta.shape)


def entropy_rank(delta: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """Effective rank `exp H(σ/Σσ)`, the exponential of the entropy of the normalised singular values.

    Args:
      delta: update `[..., out, in]`.

    Returns:
      Between 1 and min(out, in), one per matrix; NaN where the update is zero.

    Reference:
      *Dense Supervision, Sparse Updates*, https://arxiv.org/abs/2606.13657

    >>> round(float(entropy_rank(jnp.eye(4))), 5)
    4.0
    """
    return entropy_rank_from_singular_values(singular_values(delta))


def participation_ratio(delta: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """Participation ratio `(Σσ²)² / Σσ⁴ = ‖A‖_F⁴ / ‖AᵀA‖_F²` (squares of σ), without a spectrum.

    Args:
      delta: update `[..., out, in]`.

    Returns:
      Between 1 and min(out, in), one per matrix; NaN where the update is zero.
    """
    delta = widen(delta, "delta")
    norm = frobenius_norm(delta)
    defined = norm > 0
    unit = gather_matrix(delta) / jnp.where(defined, norm, jnp.ones_like(norm))[..., None, None]
    wide = unit.shape[-1] > unit.shape[-2]
    gram = matmul(unit, transpose(unit)) if wide else matmul(transpose(unit), unit)
    total = jnp.square(jnp.sum(jnp.square(unit), axis=(-2, -1)))
    return divide(total, jnp.sum(jnp.square(gram), axis=(-2, -1)))


def energy_share(delta: Float[ArrayLike, "*batch out in"], *, k: int) -> Float[Array, "*batch"]:
    """Share of the update's energy in its k largest singular directions, `Σ_{i≤k} σ_i² / ‖ΔW‖_F²`.

    Args:
      delta: update `[..., out, in]`.
      k: how many directions.

    Returns:
      Shares in [0, 1], one per matrix; NaN where the update is zero.
    """
    return energy_share_from_singular_values(singular_values(delta), k=k)
