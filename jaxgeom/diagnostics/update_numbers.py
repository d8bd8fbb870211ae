"""The families of numbers that the singular values of an update give, each number beside its isotropic null."""

from typing import Any

from ._namespace import divide, namespace
from .moments import NullMoments, triple
from .null_isotropic import isotropic_moments
from .spectral_numbers import (
    default_hill_k,
    energy_share_from_singular_values,
    entropy_rank_from_singular_values,
    hill_from_singular_values,
    participation_ratio_from_singular_values,
    stable_rank_from_singular_values,
)

Numbers = dict[str, Any]
"""Numbers under their report keys; NaN where a number is undefined."""


def beside_isotropic(
    key: str, name: str, value: Any, shape: tuple[int, ...], kurtosis: Any, moved: Any, k: int | None = None
) -> Numbers:
    """A statistic beside its isotropic null, both undefined where nothing moved."""
    xp = namespace(value, moved)
    null = isotropic_moments(name, shape, kurtosis=kurtosis, k=k)
    return triple(key, value, NullMoments(*(xp.where(moved, part, xp.nan) for part in null)))


def update_statistics(
    sigma: Any, *, shape: tuple[int, ...], kurtosis: Any, hill_k: int | None = None, subspace_k: int = 16
) -> Numbers:
    """Ranks, tail and leading energy of an update from its full spectrum.

    Args:
      sigma: singular values of ΔW, descending `[..., min(m, n)]`, numpy or JAX.
      shape: `[..., m, n]` of the matrix.
      kurtosis: κ of the entries of ΔW, `mn·Σδ⁴/(Σδ²)²`, `[...]`: see `isotropic_moments`.
      hill_k: length of the Hill tail, capped at min(m, n); `default_hill_k` where it is not given.
      subspace_k: K of `energy_top_K`.

    Returns:
      `op_norm`, `hill_k`, and with nulls `stable_rank`, `entropy_rank`, `participation_ratio`, `hill`,
      `energy_top_K`, each `[...]`. NaN for an update that is zero; `hill` also where its k is below 2.
    """
    xp, rank = namespace(sigma), min(shape[-2:])
    order = default_hill_k(shape) if hill_k is None else min(hill_k, rank)
    moved, k = sigma[..., 0] > 0, min(subspace_k, rank)
    found: Numbers = {"op_norm": sigma[..., 0]}
    for key, value in (
        ("stable_rank", stable_rank_from_singular_values(sigma)),
        ("entropy_rank", entropy_rank_from_singular_values(sigma)),
        ("participation_ratio", participation_ratio_from_singular_values(sigma)),
    ):
        found |= beside_isotropic(key, key, value, shape, kurtosis, moved)
    found |= hill_statistics(sigma, shape=shape, kurtosis=kurtosis, k=order)
    energy = energy_share_from_singular_values(sigma, k=k)
    found |= beside_isotropic(f"energy_top_{subspace_k}", "energy_top", energy, shape, kurtosis, moved, k)
    return found | {"hill_k": xp.full_like(sigma[..., 0], order)}


def hill_statistics(sigma: Any, *, shape: tuple[int, ...], kurtosis: Any, k: int) -> Numbers:
    """The Hill estimate of an update beside its null.

    Args:
      sigma: the leading singular values of ΔW, at least k, descending `[..., r]`.
      shape: `[..., m, n]` of the matrix.
      kurtosis: κ of the entries of ΔW.
      k: length of the tail; below 2 there is none.

    Returns:
      `hill` with its null; NaN where the update is zero or σ_k numerically zero.
    """
    xp = namespace(sigma)
    moved = sigma[..., 0] > 0
    if k < 2:
        nan = xp.full_like(sigma[..., 0], xp.nan)
        return triple("hill", nan, NullMoments(nan, nan))
    value = hill_from_singular_values(sigma, k=k, shape=shape)
    return beside_isotropic("hill", "hill", value, shape, kurtosis, moved, k)


def stable_rank_statistics(
    squares: Any, largest_square: Any, *, shape: tuple[int, ...], kurtosis: Any, key: str = "stable_rank"
) -> Numbers:
    """The stable rank from two sums, where no spectrum is at hand: as stored, or of the bfloat16 view.

    Args:
      squares: `‖ΔW‖_F²`, `[...]`.
      largest_square: `σ₁²`, `[...]`.
      shape: `[..., m, n]` of the matrix.
      kurtosis: κ of the entries.
      key: `stable_rank`, or `stable_rank_bf16` for the difference of the bfloat16 views: rounding leaves few and
        unequal entries of a small update, and their kurtosis says what that alone does to the rank.

    Returns:
      The statistic with its null; NaN where the update is zero.
    """
    value = stable_rank_of_sums(squares, largest_square)
    return beside_isotropic(key, "stable_rank", value, shape, kurtosis, largest_square > 0)


def leading_statistics(
    squares: Any, largest_square: Any, fourths: Any, *, shape: tuple[int, ...], kurtosis: Any
) -> Numbers:
    """What a Gram matrix of the update tells without a spectrum.

    Args:
      squares: `‖ΔW‖_F² = Σσ²`, `[...]`.
      largest_square: `σ₁²`, `[...]`.
      fourths: `‖ΔWᵀΔW‖_F² = Σσ⁴`, `[...]`.
      shape: `[..., m, n]` of the matrix.
      kurtosis: κ of the entries.

    Returns:
      `op_norm`, and with nulls `stable_rank` and `participation_ratio`; NaN (`op_norm` 0) for an update that is zero.
    """
    xp = namespace(squares, largest_square, fourths)
    moved = largest_square > 0
    found: Numbers = {"op_norm": xp.sqrt(xp.where(moved, largest_square, 1.0)) * moved}
    found |= stable_rank_statistics(squares, largest_square, shape=shape, kurtosis=kurtosis)
    ratio = participation_ratio_of_sums(squares, largest_square, fourths)
    return found | beside_isotropic("participation_ratio", "participation_ratio", ratio, shape, kurtosis, moved)


def stable_rank_of_sums(squares: Any, largest_square: Any) -> Any:
    """`Σσ²/σ₁²`, as `stable_rank_from_singular_values`.

    Args:
      squares: Σσ², `[...]`.
      largest_square: σ₁², `[...]`.

    Returns:
      One number each; NaN where σ₁ is zero.
    """
    return divide(squares, largest_square)


def participation_ratio_of_sums(squares: Any, largest_square: Any, fourths: Any) -> Any:
    """`(Σσ²)²/Σσ⁴`, as `participation_ratio_from_singular_values`.

    Args:
      squares: Σσ², `[...]`.
      largest_square: σ₁², in units of which both are taken: squares of small updates leave the range of float32.
      fourths: Σσ⁴, `[...]`.

    Returns:
      One number each; NaN where σ₁ is zero.
    """
    xp = namespace(squares, largest_square, fourths)
    return divide(xp.square(divide(squares, largest_square)), divide(divide(fourths, largest_square), largest_square))


def kurtosis_from_sums(count: Any, squares: Any, fourths: Any) -> Any:
    """Kurtosis of entries about zero, `n·Σδ⁴/(Σδ²)²`: 3 for normal ones, n for a single one that is not zero.

    Args:
      count: n.
      squares: Σδ², `[...]`.
      fourths: Σδ⁴, `[...]`.

    Returns:
      One number each; NaN where all entries are zero.
    """
    return count * divide(divide(fourths, squares), squares)
