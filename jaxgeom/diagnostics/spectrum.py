"""Numbers made of singular values alone.

Every `*_from_singular_values` takes spectra that were computed elsewhere, in the namespace they come in: a float64
numpy spectrum gives a float64 numpy result whatever JAX's x64 flag says. Spectra are descending, `[..., r]`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._decompositions import svd_values
from ._layout import gather_matrix, matmul, safe_divide, safe_sqrt, transpose
from .krylov import krylov_top_singular
from .precision import require_matrix, widen, widen_pair


def namespace(x: Any) -> Any:
    """numpy for numpy arrays, `jax.numpy` for everything else."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def _divide(xp: Any, numerator: Any, denominator: Any) -> Any:
    defined = denominator != 0
    return xp.where(defined, numerator / xp.where(defined, denominator, xp.ones_like(denominator)), xp.nan)


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
    return safe_divide(frobenius_norm(b - a), frobenius_norm(a))


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


def stable_rank_from_singular_values(sigma: Any) -> Any:
    """`Σσ² / σ₁²` from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where σ₁ is zero.
    """
    xp = namespace(sigma)
    scaled = _divide(xp, sigma, sigma[..., :1])
    return xp.sum(scaled * scaled, axis=-1)


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
    sigma0, sigma1 = singular_values(a), singular_values(b)
    return safe_divide(
        safe_sqrt(jnp.sum(jnp.square(sigma1 - sigma0), axis=-1)), safe_sqrt(jnp.sum(jnp.square(sigma0), axis=-1))
    )


def nss_from_singular_values(sigma0: Any, sigma1: Any) -> Any:
    """Normalized spectral shift from two descending spectra.

    Args:
      sigma0: spectrum of W0, `[..., r]`, numpy or JAX.
      sigma1: spectrum of W+, same shape.

    Returns:
      One number per pair, same namespace and dtype; NaN where W0 is zero.
    """
    xp = namespace(sigma0)
    shift = sigma1 - sigma0
    return _divide(xp, xp.sqrt(xp.sum(shift * shift, axis=-1)), xp.sqrt(xp.sum(sigma0 * sigma0, axis=-1)))


def default_hill_k(shape: tuple[int, ...]) -> int:
    """The default tail length of the Hill estimate, `max(10, ⌈0.1·min(m, n)⌉)`, at most min(m, n).

    Args:
      shape: `[..., m, n]`.

    Returns:
      k.

    >>> default_hill_k((2048, 1024))
    103
    """
    rank = min(shape[-2:])
    return min(rank, max(10, math.ceil(0.1 * rank)))


def hill_from_singular_values(sigma: Any, *, k: int, shape: tuple[int, ...] | None = None) -> Any:
    """Hill estimate of the tail exponent from a descending spectrum.

    `[ (1/(k−1)) Σ_{i<k} log(σ_i/σ_k) ]⁻¹`

    Args:
      sigma: `[..., r]`, numpy or JAX.
      k: length of the tail, 2 ≤ k ≤ r.
      shape: shape of the matrix, for the rank tolerance `σ₁·max(m, n)·ε` below which σ_k counts as zero; (r, r)
        where it is not given.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where σ_k is numerically zero.

    Raises:
      ValueError: where k is out of range.
    """
    xp = namespace(sigma)
    rank = sigma.shape[-1]
    if not 2 <= k <= rank:
        raise ValueError(f"k is {k}; between 2 and the {rank} singular values are needed")
    largest = max(shape[-2:]) if shape is not None else rank
    tail = sigma[..., k - 1 : k]
    defined = tail > sigma[..., :1] * (largest * float(xp.finfo(sigma.dtype).eps))
    logs = xp.log(xp.where(defined, sigma[..., : k - 1] / xp.where(defined, tail, xp.ones_like(tail)), xp.nan))
    return _divide(xp, xp.asarray(float(k - 1), dtype=sigma.dtype), xp.sum(logs, axis=-1))


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


def entropy_rank_from_singular_values(sigma: Any) -> Any:
    """`exp H(p)`, `p = σ/Σσ` (first power of σ), from a spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where all are zero.
    """
    xp = namespace(sigma)
    share = _divide(xp, sigma, xp.sum(sigma, axis=-1, keepdims=True))
    positive = share > 0
    terms = xp.where(positive, share * xp.log(xp.where(positive, share, xp.ones_like(share))), xp.zeros_like(share))
    total = xp.sum(sigma, axis=-1)
    return xp.where(total > 0, xp.exp(-xp.sum(terms, axis=-1)), xp.nan)


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


def participation_ratio_from_singular_values(sigma: Any) -> Any:
    """`(Σσ²)² / Σσ⁴` from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where all are zero.
    """
    xp = namespace(sigma)
    energy = _divide(xp, sigma, sigma[..., :1]) ** 2
    return xp.sum(energy, axis=-1) ** 2 / xp.sum(energy * energy, axis=-1)


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
    return safe_divide(total, jnp.sum(jnp.square(gram), axis=(-2, -1)))


def energy_share_from_singular_values(sigma: Any, *, k: int) -> Any:
    """`Σ_{i≤k} σ_i² / Σ σ²` from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.
      k: how many of the largest.

    Returns:
      One share per spectrum, same namespace and dtype; NaN where all are zero.
    """
    xp = namespace(sigma)
    energy = _divide(xp, sigma, sigma[..., :1]) ** 2
    return xp.sum(energy[..., :k], axis=-1) / xp.sum(energy, axis=-1)


def energy_share(delta: Float[ArrayLike, "*batch out in"], *, k: int) -> Float[Array, "*batch"]:
    """Share of the update's energy in its k largest singular directions, `Σ_{i≤k} σ_i² / ‖ΔW‖_F²`.

    Args:
      delta: update `[..., out, in]`.
      k: how many directions.

    Returns:
      Shares in [0, 1], one per matrix; NaN where the update is zero.
    """
    return energy_share_from_singular_values(singular_values(delta), k=k)
