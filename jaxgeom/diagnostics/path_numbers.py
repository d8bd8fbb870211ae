"""The numbers of directions, along a run and between two: path, cosines, orthogonal share, each beside its null.

Directions are judged by signs: under the null the products of two updates' entries have independent signs, given their
sizes. Then `⟨A, B⟩` has mean 0 and variance Σa²b², which is `‖A‖²‖B‖²/(mn)` for isotropic updates, and more where both
have their large entries in the same places (shared scales of rows and columns; rounding, which moves the same small
weights in both). Checkpoints rounded to a 16-bit grid share the rounding error of what lies between them, which
turns their increments against each other: with the covariances of `stored_walk` the nulls have that too.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import scipy.special

from ._namespace import as_real, divide, namespace
from .moments import NullMoments, triple
from .null_trajectory import cosine_std, walked_distance
from .update_numbers import Numbers

LEFT = 0.02
"""Largest `(κ − 3)/(mn)` of the entries of a stored update at which the deviation of its direction is known: a sum over
50 entries of one size is nearly normal, and rounding's own cosine is an expectation over as many."""


ROUNDED = 0.015
"""Share of the cosine that rounding alone gives (of what it takes off the drift ratio) which is added to the deviation:
the covariances of `stored_walk` take a spacing as the same on both sides of a number, which powers of two do not have,
and are off by about a hundredth. It shows from a million entries on."""


def cosine_statistics(
    key: str,
    product: Any,
    squares_a: Any,
    squares_b: Any,
    *,
    alignment: Any = None,
    expected: Any = 0.0,
    few: Any = False,
    shape: tuple[int, ...],
) -> Numbers:
    """The cosine of two updates beside that of independent signs, or of a stored random walk.

    Args:
      key: `path_cosine` or `cosine_to_rest`.
      product: `⟨A, B⟩`, `[...]`.
      squares_a, squares_b: `‖A‖²`, `‖B‖²`, `[...]`.
      alignment: Σa²b², `[...]`; that of isotropic updates where it is not given.
      expected: the cosine ρ under the null, `[...]`. The deviation then shrinks as that of a sample correlation does,
        `(1 − ρ²)²/(1 + 2ρ²)` of Σa²b²'s, and has the error of ρ besides (`ROUNDED`).
      few: whether so few entries are left of an update that there is no deviation, `[...]`.
      shape: `[..., m, n]` of the matrix.

    Returns:
      The statistic with its null; NaN where an update is zero.
    """
    xp = namespace(product, squares_a, squares_b, alignment, expected)
    product, a, b = (as_real(x, xp) for x in (product, squares_a, squares_b))
    size = xp.sqrt(a) * xp.sqrt(b)
    value = xp.clip(divide(product, size), -1.0, 1.0)
    square = xp.square(as_real(expected, xp))
    isotropic = xp.sqrt(1 + 2 * square) * cosine_std(shape) * xp.ones_like(value)
    std = isotropic if alignment is None else divide(xp.sqrt(as_real(alignment, xp)), size)
    std = std * (1 - square) / xp.sqrt(1 + 2 * square)
    std = xp.sqrt(xp.square(std) + xp.square(ROUNDED * as_real(expected, xp)))
    hidden = xp.isnan(value)
    mean, std = as_real(expected, xp) + xp.zeros_like(value), xp.where(few, xp.nan, std)
    return triple(key, value, NullMoments(*(xp.where(hidden, xp.nan, x) for x in (mean, std))))


def path_statistics(
    squares: Any,
    increments: Any,
    *,
    step_products: Any,
    rest_products: Any,
    rest_squares: Any,
    shape: tuple[int, ...],
    step_alignments: Any = None,
    rest_alignments: Any = None,
    covariance: Any = None,
    kurtoses: Sequence[Any] | None = None,
) -> Numbers:
    """How straight a run's path is, at each of T checkpoints.

    Args:
      squares: `‖W_t − W_0‖²`, `[..., T]`, numpy or JAX.
      increments: `‖W_t − W_{t−1}‖`, `[..., T]`.
      step_products: `⟨W_t − W_{t−1}, W_{t+1} − W_t⟩`, `[..., T]`; the last is not read.
      rest_products: `⟨W_t − W_0, W_T − W_t⟩`, `[..., T]`.
      rest_squares: `‖W_T − W_t‖²`, `[..., T]`.
      shape: `[..., m, n]` of the matrix.
      step_alignments, rest_alignments: Σa²b² of the pairs in the products, `[..., T]`; those of isotropic updates
        where they are not given.
      covariance: `walk_covariance` `[..., T, T]` of checkpoints rounded to a 16-bit grid; None for stored exactly.
      kurtoses: κ of the entries of the updates, of the increments and of what follows, `[..., T]` each: where rounding
        leaves so few entries that `LEFT` is passed there is no deviation. None where it does not.

    Returns:
      With nulls, each `[..., T]`: `drift_ratio`, `‖W_t − W_0‖/√Σ‖increments‖²`, 1 in pure diffusion and √t in pure
      drift; `path_cosine`; `cosine_to_rest`. NaN where a stretch is zero or there is none.
    """
    xp = namespace(squares, increments)
    squares, increments = as_real(squares, xp), as_real(increments, xp)
    steps = xp.square(increments)
    after = xp.concatenate([steps[..., 1:], xp.full_like(steps[..., :1], 0.0)], axis=-1)
    expected = _expected_cosines(covariance) if covariance is not None else (0.0, 0.0, 1.0)
    few = few_left(kurtoses, shape) if covariance is not None and kurtoses is not None else (False,) * 3
    found = cosine_statistics(
        "path_cosine", step_products, steps, after, alignment=step_alignments, expected=expected[0], few=few[0],
        shape=shape,
    )  # fmt: skip
    found |= cosine_statistics(
        "cosine_to_rest", rest_products, squares, rest_squares, alignment=rest_alignments, expected=expected[1],
        few=few[1], shape=shape,
    )  # fmt: skip
    spread = xp.full(steps.shape[:-1], cosine_std(shape), steps.dtype)
    if step_alignments is not None:
        # Increments that are no neighbours are taken to share their large entries as neighbours do.
        shared = divide(divide(as_real(step_alignments, xp), steps), after)
        spread = xp.sqrt(divide(xp.nansum(shared, axis=-1), xp.sum(as_real(xp.isfinite(shared), xp), axis=-1)))
        spread = xp.where(xp.isnan(spread), cosine_std(shape), spread)
    walked, std = walked_distance(increments, spread)
    moved, std = walked > 0, xp.where(few[2], xp.nan, std)
    std = xp.sqrt(xp.square(std * expected[2]) + xp.square(ROUNDED * (1 - expected[2])))
    null = NullMoments(*(xp.where(moved, part, xp.nan) for part in (expected[2] + xp.zeros_like(std), std)))
    return found | triple("drift_ratio", divide(xp.sqrt(squares), walked), null)


def few_left(kurtoses: Sequence[Any], shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Whether rounding left few entries of what `path_cosine`, `cosine_to_rest` and `drift_ratio` are made of.

    Args:
      kurtoses: κ of the entries of the updates, of the increments and of what follows, `[..., T]` each; NaN where all
        are zero.
      shape: `[..., m, n]` of the matrix.

    Returns:
      Truth values `[..., T]` for each of the three.
    """
    xp = namespace(*kurtoses)
    most = 3 + LEFT * float(shape[-2]) * float(shape[-1])
    total, step, rest = (as_real(kurtosis, xp) > most for kurtosis in kurtoses)
    after = xp.concatenate([step[..., 1:], step[..., :1] & False], axis=-1)
    return step | after, total | rest, xp.cumsum(as_real(step, xp), axis=-1) > 0


def _expected_cosines(covariance: Any) -> tuple[Any, Any, Any]:
    """`path_cosine`, `cosine_to_rest` and `drift_ratio` `[..., T]` of a walk with these covariances `[..., T, T]`."""
    xp = namespace(covariance)
    own = xp.diagonal(covariance, axis1=-2, axis2=-1)
    zero = xp.zeros_like(own[..., :1])

    def shifted(x: Any, by: int) -> Any:
        return xp.concatenate([zero, x[..., :-1]] if by < 0 else [x[..., 1:], zero], axis=-1)

    beside = xp.concatenate([zero, xp.diagonal(covariance, offset=1, axis1=-2, axis2=-1)], axis=-1)  # t − 1 and t
    twice = xp.concatenate([zero, xp.diagonal(covariance, offset=2, axis1=-2, axis2=-1), zero], axis=-1)[
        ..., : own.shape[-1]
    ]  # t − 1 and t + 1
    steps = own + shifted(own, -1) - 2 * beside
    # ⟨W_t − W_{t−1}, W_{t+1} − W_t⟩
    cross = shifted(beside, 1) - own - twice + beside
    path = divide(cross, xp.sqrt(steps * shifted(steps, 1)))
    to_rest = xp.diagonal(rest_cosines(covariance), axis1=-2, axis2=-1)
    return path, to_rest, xp.sqrt(divide(own, xp.cumsum(steps, axis=-1)))


def rest_cosines(covariance: Any) -> Any:
    """Cosines of `W_s − W_0` and `W_T − W_t`, `[..., T, T]` by s and t, of a walk with these covariances."""
    xp = namespace(covariance)
    own, final = xp.diagonal(covariance, axis1=-2, axis2=-1), covariance[..., -1]
    rest = xp.maximum(own[..., -1:] - 2 * final + own, 0.0)
    return divide(final[..., :, None] - covariance, xp.sqrt(own[..., :, None] * rest[..., None, :]))


def rate_statistics(squares: Any, rate_sums: Any, rate_roots: Any, *, shape: tuple[int, ...]) -> Numbers:
    """Size of an update in units of what Adam's steps of size lr per entry give.

    Args:
      squares: `‖W_t − W_0‖²`, `[..., T]`, numpy or JAX.
      rate_sums: Σ lr up to each step `[T]`.
      rate_roots: `√Σ lr²` up to each step `[T]`.
      shape: `[..., m, n]` of the matrix.

    Returns:
      `lr_diffusion_ratio` (`‖ΔW‖_rms/√Σlr²`, steps at random) and `lr_drift_ratio` (`‖ΔW‖_rms/Σlr`, all one way), whose
      null is 1 without a deviation; NaN where no rate was positive.
    """
    xp = namespace(squares)
    rms = xp.sqrt(as_real(squares, xp)) * cosine_std(shape)
    found: Numbers = {}
    for key, unit in (("lr_diffusion_ratio", rate_roots), ("lr_drift_ratio", rate_sums)):
        value = xp.where(as_real(unit, xp) > 0, divide(rms, as_real(unit, xp)), xp.nan)
        found |= triple(key, value, NullMoments(xp.where(xp.isnan(value), xp.nan, 1.0), xp.full_like(value, xp.nan)))
    return found


def orthogonal_statistics(
    share: Any,
    product: Any,
    squares_a: Any,
    squares_b: Any,
    *,
    alignment: Any = None,
    expected: Any = 0.0,
    shape: tuple[int, ...],
) -> Numbers:
    """The share of one run's update that is orthogonal to the other's, beside that of independent signs.

    The squared cosine follows a χ² law of one degree of freedom, whose tail is far from normal: the z is that of the
    normal law with the same tail probability, `Φ⁻¹(2Φ(−|c|/std c))`; below zero where the updates share a direction.

    Args:
      share: `1 − cos²`, from the residual, so that nearly parallel updates keep their digits; `[...]`.
      product: `⟨A, B⟩`, `[...]`.
      squares_a, squares_b: `‖A‖²`, `‖B‖²`, `[...]`.
      alignment: Σa²b², `[...]`; that of isotropic updates where it is not given.
      expected: the cosine that the updates share by W0's rounding error, `shared_cosine`. The error decides the
        fluctuation then too: no deviation and no z where it is not 0, no null where it is NaN.
      shape: `[..., m, n]` of the matrix.

    Returns:
      `orthogonal_share` with its null; NaN where an update is zero.
    """
    xp = namespace(share, product, squares_a, squares_b)
    beside = cosine_statistics("cosine", product, squares_a, squares_b, alignment=alignment, shape=shape)
    z = xp.abs(beside["cosine_z"])
    if alignment is None:
        std = xp.full_like(z, cosine_std(shape))
    else:
        std = divide(divide(xp.sqrt(as_real(alignment, xp)), xp.sqrt(squares_a)), xp.sqrt(squares_b))
    square, expected = xp.where(xp.isnan(z), xp.nan, xp.square(std)), as_real(expected, xp)
    alone = expected == 0
    mean = 1 - xp.square(expected) - square * (1 - xp.square(expected))
    null = NullMoments(mean, xp.where(alone, math.sqrt(2) * square, xp.nan))
    found = triple("orthogonal_share", share, null)
    return found | {"orthogonal_share_z": xp.where(alone, two_sided_z(z), xp.nan)}


def two_sided_z(size: Any) -> Any:
    """The standard normal number whose lower tail is the probability that |g| exceeds `size`, g standard normal.

    `Φ⁻¹(2Φ(−size))`: large where the size is near 0, about −size where it is large.

    Args:
      size: non-negative, numpy or JAX.

    Returns:
      Same shape and namespace; at most about 8.
    """
    xp = namespace(size)
    size = as_real(size, xp)
    special: Any = scipy.special if xp is not jax.numpy else jax.scipy.special
    near = xp.clip(2 * special.ndtr(-xp.minimum(size, 2.0)), 0.0, 1 - float(xp.finfo(size.dtype).eps))
    # Further out by Newton's method on the logarithms, where the probabilities themselves vanish.
    far = xp.maximum(size, 2.0)
    target = math.log(2) + special.log_ndtr(-far)
    y = far - math.log(2) / (far + 1 / far)
    for _ in range(4):
        log_tail = special.log_ndtr(-y)
        slope = xp.exp(-0.5 * xp.square(y) - 0.5 * math.log(2 * math.pi) - log_tail)
        y = y + (log_tail - target) / slope
    return xp.where(size < 2, special.ndtri(near), -y)
