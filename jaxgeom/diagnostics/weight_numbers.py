"""The families of numbers that say what an update did to the weights' spectrum and singular subspaces, with nulls.

Every threshold that makes a number undefined stands here, with its reason.
"""

from typing import Any, NamedTuple

from ._namespace import namespace
from .moments import NullMoments, triple
from .null_projection import norm_matched_projection
from .null_rotation import AngleNull, RotationDraws, SampledAngles, norm_matched_angles
from .null_shift import ShiftNull
from .spectral_numbers import nss_from_singular_values, spectral_gap
from .update_numbers import Numbers

RESOLUTION = {"float64": 1e-9, "float32": 1e-6}
"""Gap of neighbouring singular values, over the largest, below which nothing tells their vectors apart. Vectors of a
Gram matrix turn by `ε·σ₁²/(σ_k·gap)`: in float64 by a radian's tenth at a gap of 1e-9 σ₁ where σ_k is 1e-6 σ₁."""

GRAM_FLOOR = 1e-3
"""Share of the largest singular value below which a float32 Gram matrix does not tell a value from 0: `√ε = 3.5e-4` of
it is lost in rounding."""

BLUR = 0.05
"""Share of k: the mean angle is undefined where σ_k was moved past more than this many of its neighbours. Up to there
a few directions of the cut have changed places, which moves the mean of k by a few of its parts."""

PROJECTION_SHARES = (0.01, 0.05, 0.10, 0.20)
"""Shares of min(m, n) at which projection energies are taken beside the one that the settings name."""

DEGREES = 57.29577951308232


def projection_rank(share: float, shape: tuple[int, ...]) -> int:
    """k of the projection energies at a share of min(m, n): at least one direction, at most all.

    Args:
      share: such as 0.01.
      shape: `[..., m, n]`.

    >>> projection_rank(0.01, (32, 48)), projection_rank(0.1, (128, 64))
    (1, 6)
    """
    smaller = min(shape[-2:])
    return max(1, min(round(share * smaller), smaller))


def is_open(sigma: Any, k: int) -> Any:
    """Whether the leading k directions are not determined: the gap after them is numerically zero.

    Args:
      sigma: spectrum `[..., r]`, descending.
      k: 1 ≤ k ≤ r; beyond r there are zeros.

    Returns:
      Booleans `[...]`.
    """
    return spectral_gap(sigma, k=k) <= RESOLUTION[sigma.dtype.name] * sigma[..., 0]


def shift_statistics(
    sigma0: Any, sigma1: Any, null: ShiftNull, *, key: str = "nss", decay: Any | None = None
) -> Numbers:
    """Normalized spectral shift beside its norm-matched null.

    Args:
      sigma0: spectrum of W0, `[..., r]`, numpy or JAX.
      sigma1: spectrum of W+, or of `W+ − c·W0` with `decay` 0, or of the bfloat16 views.
      null: `norm_matched_shift` of `sigma0` and the update's norm.
      key: `nss`, `nss_bf16` or `nss_without_decay`.
      decay: None where the decay component is part of the shift. Else the null is that without it, and
        `‖σ1 − (1 + decay)·σ0‖` is taken: c itself with the spectrum of W+ (`shifts_linearly`).

    Returns:
      The statistic with its null; NaN where W0 is zero, the null where the update is too large for it.
    """
    value = nss_from_singular_values(sigma0, sigma1, decay=0.0 if decay is None else decay)
    return triple(key, value, null.plain if decay is None else null.without_decay)


class AngleFlags(NamedTuple):
    """Why angles are undefined, and how their null was taken.

    Attributes:
      open: the gap after σ_k of W0 is numerically zero, or σ_k of W+ is: no angle is defined.
      crossed: σ_k moved by more than its gap: the largest angle is undefined.
      blurred: it moved past so many neighbours that the mean angle is undefined too (`BLUR`).
      large: the null decomposes W0 plus noise, since no first order holds.
      moved: how far σ_k or σ_{k+1} moved, uniform shrinking of W0 taken out where that makes it less.
      gap: `σ_k − σ_{k+1}` of W0.
      near: how many values of W0 lie within `moved` of σ_k.
    """

    open: Any
    crossed: Any
    blurred: Any
    large: Any
    moved: Any
    gap: Any
    near: Any


def angle_statistics(
    left: Any,
    right: Any,
    sigma0: Any,
    sigma1: Any,
    *,
    norm: Any,
    decay: Any,
    draws: RotationDraws,
    k: int,
    shape: tuple[int, int],
    sampled: SampledAngles | None = None,
) -> tuple[Numbers, AngleFlags]:
    """Mean and largest principal angle of each side in degrees, beside the norm-matched null.

    Args:
      left, right: principal angles `[k]` in radians, ascending; anything where `AngleFlags.open`.
      sigma0: full spectrum of one W0, descending `[min(m, n)]`, numpy or JAX.
      sigma1: spectrum of W+, at least the first k + 1 values of it.
      norm: `‖ΔW‖_F`.
      decay: c = ⟨ΔW, W0⟩/‖W0‖²; shrinking all of W0 moves every value and turns nothing.
      draws: `rotation_draws` of this shape and k.
      k: dimension of the subspaces.
      shape: (m, n).
      sampled: angles of decomposed noise where the update is large.

    Returns:
      `angle_gap`, and with nulls `angle_left_mean_deg`, `angle_left_max_deg`, `angle_right_mean_deg`,
      `angle_right_max_deg`; the flags. An update of norm zero turns nothing, and neither does its null.
    """
    flags = angle_flags(sigma0, sigma1, norm=norm, decay=decay, k=k)
    null = norm_matched_angles(sigma0, norm, draws, k=k, shape=shape, sampled=sampled)
    return put_angles(left, right, null, flags, still=norm == 0), flags._replace(large=null.large)


def angle_flags(sigma0: Any, sigma1: Any, *, norm: Any, decay: Any, k: int) -> AngleFlags:
    """What `angle_statistics` finds undefined, from the spectra alone.

    Args:
      sigma0: spectrum of W0 `[r]`, descending, numpy or JAX.
      sigma1: spectrum of W+, same length.
      norm: `‖ΔW‖_F`.
      decay: the decay component c.
      k: dimension of the subspaces, below r.

    Returns:
      The flags, each a scalar.
    """
    xp = namespace(sigma0, sigma1)
    factor = xp.abs(1.0 + xp.asarray(decay, dtype=sigma0.dtype))
    factor = xp.where(factor > 0, factor, 1.0)
    before, after = sigma0[k - 1 : k + 1], sigma1[k - 1 : k + 1]
    moved = xp.minimum(xp.max(xp.abs(after - before)), xp.max(xp.abs(after / factor - before)))
    gap = spectral_gap(sigma0, k=k)
    near = xp.sum(xp.abs(sigma0 - sigma0[k - 1]) <= moved)
    still = xp.asarray(norm) == 0
    unresolved = (sigma1[k - 1] <= RESOLUTION[sigma0.dtype.name] * sigma0[0]) | is_open(sigma0, k)
    crossed = (moved >= gap) & ~still & ~unresolved
    blurred = crossed & (near > int(max(2.0, BLUR * k)))
    return AngleFlags(unresolved & ~still, crossed, blurred, xp.zeros_like(crossed), moved, gap, near)


def put_angles(left: Any, right: Any, null: AngleNull, flags: AngleFlags, *, still: Any) -> Numbers:
    """The numbers of `angle_statistics` from angles, null and flags.

    Args:
      left: angles `[k]` in radians on the output side, ascending.
      right: the same on the input side.
      null: of `norm_matched_angles`, in radians.
      flags: of `angle_flags`.
      still: whether the update is zero, so that every angle is 0.

    Returns:
      `angle_gap`, and mean and largest angle of each side in degrees with their nulls; NaN where flagged.
    """
    xp = namespace(left, right, flags.gap)
    found: Numbers = {"angle_gap": flags.gap}
    for side, angles in (("left", left), ("right", right)):
        for figure, value, hidden in (
            ("mean", xp.mean(angles), flags.blurred), ("max", angles[..., -1], flags.crossed)
        ):  # fmt: skip
            moments = getattr(null, f"{side}_{figure}")
            value = xp.where(still, 0.0, xp.where(hidden | flags.open, xp.nan, value))
            moments = NullMoments(
                *(xp.where(still, 0.0, xp.where(flags.open, xp.nan, part)) * DEGREES for part in moments)
            )
            found |= triple(f"angle_{side}_{figure}_deg", value * DEGREES, moments)
    return found


def projection_statistics(
    joint: Any,
    left: Any,
    right: Any,
    *,
    shape: tuple[int, ...],
    k: int,
    kurtosis: Any = None,
    open: Any = False,
    suffix: str = "",
) -> Numbers:
    """Shares of an update's energy in the leading singular subspaces of W0, beside those of independent entries.

    Args:
      joint, left, right: `‖U_kᵀΔW V_k‖²/‖ΔW‖²`, `‖U_kᵀΔW‖²/‖ΔW‖²`, `‖ΔW V_k‖²/‖ΔW‖²`, `[...]`; NaN for a zero update.
      shape: `[..., m, n]` of the matrix.
      k: dimension of the subspaces.
      kurtosis: κ of the entries of ΔW, `[...]`; that of normal ones where it is None.
      open: `is_open(sigma0, k)`; whole sides are determined whatever the gap, and a square matrix's k = n is.
      suffix: of the keys, such as `_10pct`.

    Returns:
      `projection_joint`, `projection_left`, `projection_right` with their nulls; NaN where the subspace is open or the
      update zero.
    """
    xp = namespace(joint, left, right, open)
    if k == min(shape[-2:]) and shape[-2] == shape[-1]:
        open = xp.zeros_like(xp.asarray(open))
    found: Numbers = {}
    mean, std = norm_matched_projection(shape, k=k, kurtosis=kurtosis)
    for name, share in (("joint", joint), ("left", left), ("right", right)):
        hidden = xp.asarray(open) | xp.isnan(share)
        null = NullMoments(*(xp.where(hidden, xp.nan, getattr(part, name)) for part in (mean, std)))
        found |= triple(f"projection_{name}{suffix}", xp.where(hidden, xp.nan, share), null)
    return found
