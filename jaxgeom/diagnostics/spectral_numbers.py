"""Numbers made of singular values alone, in the namespace and dtype that the spectrum comes in.

A float64 NumPy spectrum gives float64 NumPy numbers, a JAX spectrum gives JAX numbers that may be traced. Spectra are
descending, `[..., r]`. Undefined numbers are NaN.
"""

from typing import Any

from ._namespace import divide, namespace


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
    return min(rank, max(10, -(-rank // 10)))


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
    """The gap `γ_k = σ_k − σ_{k+1}` of a descending spectrum, with zeros beyond its end.

    An update that moves σ_k by more than the gap makes the leading k directions ill-posed.

    Args:
      sigma: `[..., r]`, numpy or JAX.
      k: 1 ≤ k ≤ r.

    Returns:
      One gap per spectrum, same namespace and dtype.

    Raises:
      ValueError: where k is out of range.
    """
    if not 1 <= k <= sigma.shape[-1]:
        raise ValueError(f"k is {k}; between 1 and the {sigma.shape[-1]} singular values is needed for a gap")
    return sigma[..., k - 1] - sigma[..., k] if k < sigma.shape[-1] else sigma[..., k - 1]


def numerical_zero(sigma: Any, shape: tuple[int, ...] | None = None) -> Any:
    """The size below which a singular value is rounding: `σ₁·max(m, n)·ε`, ε of the spectrum's dtype.

    Args:
      sigma: `[..., r]`, numpy or JAX.
      shape: `[..., m, n]` of the matrix; (r, r) where it is not given.

    Returns:
      One size per spectrum, same namespace and dtype.
    """
    largest = max(shape[-2:]) if shape is not None else sigma.shape[-1]
    return sigma[..., 0] * (largest * float(namespace(sigma).finfo(sigma.dtype).eps))


def stable_rank_from_singular_values(sigma: Any) -> Any:
    """The stable rank `Σσ² / σ₁²` from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where σ₁ is zero.
    """
    scaled = divide(sigma, sigma[..., :1])
    return namespace(sigma).sum(scaled * scaled, axis=-1)


def nss_from_singular_values(sigma0: Any, sigma1: Any, *, decay: Any = 0.0) -> Any:
    """Normalized spectral shift `‖σ(W+) − (1 + c)·σ(W0)‖₂ / ‖σ(W0)‖₂` from two descending spectra.

    Args:
      sigma0: spectrum of W0, `[..., r]`, numpy or JAX.
      sigma1: spectrum of W+, same shape.
      decay: c, one number or one per pair; 0 is the plain shift. `shifts_linearly` says when c stands for a
        decomposition of `W+ − c·W0`.

    Returns:
      One number per pair, same namespace and dtype; NaN where W0 is zero.
    """
    xp = namespace(sigma0, sigma1)
    factor = xp.asarray(1.0 + decay, dtype=sigma0.dtype)
    shift = sigma1 - factor[..., None] * sigma0
    return divide(_norm(xp, shift), _norm(xp, sigma0))


def _norm(xp: Any, x: Any) -> Any:
    """Euclidean norm over the last axis, with derivative 0 at 0."""
    square = xp.sum(x * x, axis=-1)
    positive = square > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, square, 1.0)), 0.0)


def shifts_linearly(decay: Any, relative_norm: Any) -> Any:
    """Whether `σ(W+ − c·W0) − σ(W0)` is `σ(W+) − (1 + c)·σ(W0)` to 8e-6 of its norm.

    `W+ − c·W0 = (1 − c)·(W0 + ΔW/(1 − c))` lies on the line from W0 through W+, a little beyond it. The two are equal
    where values move in proportion to the distance; where they move like its power p, they differ by `|c|·(p − 1)`.
    Measured on isotropic, sparse, low-rank and aligned updates of W0 with Gaussian, heavy-tailed, stepped and clustered
    spectra, |p − 1| stays below 1 up to a relative norm of 0.03, and below 2.2 beyond.

    Args:
      decay: c.
      relative_norm: `‖ΔW‖/‖W0‖`.

    Returns:
      A truth value, of the namespace of the arguments.
    """
    xp = namespace(decay, relative_norm)
    return xp.abs(decay) <= xp.where(relative_norm <= 0.03, 8e-6, 3e-6)


def hill_from_singular_values(sigma: Any, *, k: int, shape: tuple[int, ...] | None = None) -> Any:
    """Hill estimate of the tail exponent, `[ (1/(k−1)) Σ_{i<k} log(σ_i/σ_k) ]⁻¹`, from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.
      k: length of the tail, 2 ≤ k ≤ r.
      shape: `[..., m, n]` of the matrix, for `numerical_zero`; (r, r) where it is not given.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where σ_k is numerically zero, or equal to all above it
      to rounding.

    Raises:
      ValueError: where k is out of range.
    """
    xp, rank = namespace(sigma), sigma.shape[-1]
    if not 2 <= k <= rank:
        raise ValueError(f"k is {k}; between 2 and the {rank} singular values are needed")
    tail, zero = sigma[..., k - 1 : k], numerical_zero(sigma, shape)[..., None]
    defined = tail > zero
    logs = xp.log(xp.where(defined, sigma[..., : k - 1] / xp.where(defined, tail, xp.ones_like(tail)), xp.nan))
    slope = xp.mean(logs, axis=-1)
    flat = slope <= divide(zero, sigma[..., :1])[..., 0]
    return 1 / xp.where(flat, xp.nan, slope)


def entropy_rank_from_singular_values(sigma: Any) -> Any:
    """`exp H(p)`, `p = σ/Σσ` (first power of σ), from a spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where all are zero.
    """
    xp = namespace(sigma)
    total = xp.sum(sigma, axis=-1, keepdims=True)
    share = divide(sigma, total)
    positive = share > 0
    terms = xp.where(positive, share * xp.log(xp.where(positive, share, xp.ones_like(share))), xp.zeros_like(share))
    return xp.where(total[..., 0] > 0, xp.exp(-xp.sum(terms, axis=-1)), xp.nan)


def participation_ratio_from_singular_values(sigma: Any) -> Any:
    """`(Σσ²)² / Σσ⁴` from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.

    Returns:
      One number per spectrum, same namespace and dtype; NaN where all are zero.
    """
    xp = namespace(sigma)
    energy = divide(sigma, sigma[..., :1]) ** 2
    return xp.sum(energy, axis=-1) ** 2 / xp.sum(energy * energy, axis=-1)


def energy_share_from_singular_values(sigma: Any, *, k: int) -> Any:
    """`Σ_{i≤k} σ_i² / Σ σ²` from a descending spectrum.

    Args:
      sigma: `[..., r]`, numpy or JAX.
      k: how many of the largest.

    Returns:
      One share per spectrum, same namespace and dtype; NaN where all are zero.
    """
    xp = namespace(sigma)
    energy = divide(sigma, sigma[..., :1]) ** 2
    return xp.sum(energy[..., :k], axis=-1) / xp.sum(energy, axis=-1)
