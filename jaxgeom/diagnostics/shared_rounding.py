"""Updates that share a rounding error: of weights stored finer than the checkpoints that they are compared with.

A weight w of W0 lies anywhere in its cell of the grid that W+ is rounded to, of spacing c. The update of noise n is
then `R(w + n) − w = n + e(w + n)`, e the error of rounding, which is independent of n. Two updates from one w share it:
`E[e(w + n)·e(w + m)] = c²·T(Var(n − m)/c²)`, T falling from 1/12 to 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._namespace import as_real, divide, namespace
from .counting import EntryCounts
from .storage_grids import FINITE

_FAR = 0.04
"""Variance, in squared spacings, from which six terms of the Fourier series tell T to 1e-12."""

_RESOLVED = 5
"""Deviations of the squared rounding errors of a matrix above which what is left is taken for noise."""


def spacing_counts(histogram: Any, storage: str = "bfloat16", grid: str | None = None) -> tuple[Any, Any]:
    """Spacings of a 16-bit grid around weights and how many weights lie on each, from a histogram of their magnitudes.

    Args:
      histogram: weights per 15 magnitude bits of their format, `[..., 2¹⁵]` (or without the infinite ones).
      storage: that format, `bfloat16` or `float16`.
      grid: the format whose spacings are meant; the same where it is None.

    Returns:
      Spacings `[fields]` and counts `[..., fields]`, by exponent: 255 of bfloat16, 31 of float16.
    """
    xp = namespace(histogram)
    mantissa, bias = (10, 15) if storage == "float16" else (7, 127)
    fields = FINITE[storage] >> mantissa
    counts = as_real(histogram, xp)[..., : fields << mantissa]
    counts = xp.sum(counts.reshape(*counts.shape[:-1], fields, 1 << mantissa), axis=-1)
    exponent = np.maximum(np.arange(fields), 1) - bias
    last = np.maximum(exponent, -14) - 10 if (grid or storage) == "float16" else exponent - 7
    return as_real(np.ldexp(1.0, last), xp), counts


def noise_share(norm: Any, spacings: Any, counts: Any) -> Any:
    """The share of an update's squared norm that is noise, where the rest is the rounding error of W0's own places.

    Of weights anywhere in their cells rounding alone adds a twelfth of the squared spacings.

    Args:
      norm: `‖ΔW‖_F` of an update that is rounded to a grid which W0 is not on, `[...]`, not zero.
      spacings, counts: `spacing_counts` of W0 on that grid, `[fields]`, `[..., fields]`.

    Returns:
      `[...]`; NaN where the noise is too small to be told from the rounding, which fluctuates too.
    """
    xp = namespace(norm, counts)
    norm = xp.asarray(norm)
    unit = xp.where(norm > 0, norm, xp.ones_like(norm))[..., None]
    squares = xp.square(xp.where(counts > 0, spacings / unit, xp.zeros_like(counts)))
    energies = counts * squares
    share = 1 - xp.sum(energies, axis=-1) / 12
    # The square of an error, uniform over its cell, has the variance c⁴/180.
    least = _RESOLVED * xp.sqrt(xp.sum(energies * squares, axis=-1) / 180)
    return xp.where(share > least, share, xp.full_like(share, np.nan))


def shared_error(variance: Any) -> Any:
    """T: the mean product of two rounding errors of a spacing of 1, the values a normal distance apart.

    `Σ_k exp(−2π²k²v)/(2π²k²)`, half the mean of the second Bernoulli polynomial of the distance.

    Args:
      variance: v ≥ 0 of the distance, numpy or JAX.

    Returns:
      1/12 at 0, falling to 0; same shape.
    """
    xp = namespace(variance)
    near = xp.minimum(variance, _FAR)
    wide = xp.clip(variance, _FAR, 50.0)
    series = sum(xp.exp(-2 * (math.pi * k) ** 2 * wide) / (2 * (math.pi * k) ** 2) for k in range(1, 7))
    return xp.where(variance < _FAR, (near - xp.sqrt(2 * near / math.pi) + 1 / 6) / 2, series)


def open_product(a: Any, b: Any) -> Any:
    """`E[(R(w + n) − w)·(R(w + m) − w)]` of spacing 1 for w anywhere in its cell, n a walk that m goes on with.

    Args:
      a, b: deviations of n and of m, b ≥ a; numpy or JAX.
    """
    xp = namespace(a, b)
    return xp.square(a) + shared_error(xp.maximum(xp.square(b) - xp.square(a), 0.0))


def shared_cosine(counts_a: EntryCounts, counts_b: EntryCounts) -> Any:
    """The cosine that two independent updates of one W0 have by its rounding error alone.

    Args:
      counts_a, counts_b: of W0 `[out, in]` with either end, with histograms.

    Returns:
      A number: 0 where one of them at least is not rounded to a grid that W0 is not on; NaN where both are and what
      they share is not known: W0 itself is of 16 bits, their ends are stored unlike, or their noise is too small to be
      told from the rounding.
    """
    both = counts_a.is_coarser & counts_b.is_coarser
    halves = counts_a.is_half_alone, counts_b.is_half_alone
    xp = namespace(counts_a.delta_norm, counts_b.delta_norm)
    known = xp.logical_and(counts_a.is_open, xp.equal(*halves))
    bf16, half = (spacing_counts(counts_a.histogram, counts_a.storage, grid) for grid in ("bfloat16", "float16"))
    spacings = xp.where(xp.asarray(halves[0]), half[0], bf16[0])
    squares, size = xp.square(spacings), xp.sum(bf16[1])
    noise = [xp.square(one.delta_norm) * noise_share(one.delta_norm, spacings, bf16[1]) for one in (counts_a, counts_b)]
    known = known & ~xp.isnan(noise[0] + noise[1])
    variance = xp.where(known, noise[0] + noise[1], 0.0) / size
    product = xp.sum(bf16[1] * squares * shared_error(variance / squares))
    cosine = divide(divide(product, counts_a.delta_norm), counts_b.delta_norm)
    return xp.where(both, xp.where(known, cosine, np.nan), 0.0)


def grid_of_run(counts: Sequence[EntryCounts]) -> tuple[str | None, bool] | None:
    """The grid to which the checkpoints of a run are rounded, and whether W0 is stored finer than it.

    Args:
      counts: of W0 with every checkpoint, NumPy.

    Returns:
      `(grid, is_open)`, the grid None where checkpoints are stored finer than W0; None where they are stored unlike one
      another, or W0 unlike them and yet of 16 bits.
    """
    moved = [one for one in counts if one.differs]
    if not any(one.is_rounded or one.is_bf16 or one.is_coarser for one in moved):
        return None, False
    if all(one.is_bf16 for one in moved):
        return "bfloat16", False
    if all(one.is_rounded for one in moved):
        return moved[0].storage, False
    if all(one.is_open and one.final_on_grid for one in moved):
        return "bfloat16", True
    if all(one.is_open and one.is_half_alone for one in moved):
        return "float16", True
    return None
