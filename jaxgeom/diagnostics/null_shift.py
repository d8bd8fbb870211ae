"""The norm-matched null of the spectral shift: what an isotropic update of equal Frobenius norm does to a spectrum.

Update `s·G`, G iid standard normal, `s = ‖ΔW‖_F/√(mn)`. G is rotation invariant, so that the spectrum of W0 decides.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ._namespace import divide, namespace
from .moments import NullMoments

RIGIDITY = 2 / math.pi**2
"""Growth of a level's variance, in squared spacings a unit of log time: Dyson's Brownian motion at β = 1."""

REACH = 5
"""Levels to each side over which the local spacing is averaged."""

ERROR = 0.15
"""Largest relative error of the expansion for levels below the norm of the noise, against sampling (Gaussian,
Student-t, decaying and row-scaled weights of 24 × 16 to 128 × 128 entries, relative norms up to 0.3)."""

_BLOCK = 512


class ShiftNull(NamedTuple):
    """Spectral shift under an isotropic update, NaN where the update is too large for the expansion.

    Attributes:
      plain: of `‖σ(W+) − σ(W0)‖/‖σ(W0)‖`.
      without_decay: the same with the component of the update along W0 taken out.
      holds: whether the noise's norm stays below half of σ₁.
    """

    plain: NullMoments
    without_decay: NullMoments
    holds: Any


def norm_matched_shift(sigma: Any, norm: Any, *, shape: tuple[int, ...]) -> ShiftNull:
    """Normalized spectral shift of an isotropic update of given norm.

    `δσ_i = s·g_ii + s²·[Σ_{j≠i} σ_i/(σ_i²−σ_j²) + (max−min)/(2σ_i)]`, g_ii standard normal. Denominators are softened
    at the scale of the perturbation, where neighbours repel instead of diverging. Repulsion also keeps a level from
    straying further than its neighbours let it: the variance s² saturates as `a·γ²·log(1 + s²/(a·γ²))`, γ the local
    spacing and a the rigidity. Taking the decay component out removes one of the min(m, n) fluctuations. Levels below
    the noise's norm move by more than an expansion in s tells: their share adds an error to the deviation.

    Args:
      sigma: full spectrum of W0, descending, `[..., min(m, n)]`, numpy or JAX.
      norm: `‖ΔW‖_F`, `[...]`.
      shape: `[..., m, n]`.

    Returns:
      `ShiftNull`, in the namespace and dtype of the spectrum; NaN where W0 is zero.
    """
    xp = namespace(sigma, norm)
    sigma, norm = xp.asarray(sigma), xp.asarray(norm, dtype=sigma.dtype)
    small, large = min(shape[-2:]), max(shape[-2:])
    tiny = float(xp.finfo(sigma.dtype).tiny)
    s = norm / math.sqrt(float(small) * large)
    drift = xp.square(s)[..., None] * _repulsion(xp, sigma, s, small, large)
    variance = xp.broadcast_to(xp.square(s)[..., None], sigma.shape)
    # Equal levels leave no room at all: what is left keeps the quotient below within its range.
    room = xp.maximum(RIGIDITY * xp.square(_spacing(xp, sigma)), xp.maximum(1e-30 * variance, tiny))
    if small > 8:  # fewer levels have no local spacing to speak of
        variance = room * xp.log1p(variance / room)
    moved = variance + xp.square(drift)
    total = xp.sum(moved, axis=-1)
    edge = s * (math.sqrt(small) + math.sqrt(large))
    lost = ERROR * divide(xp.sum(xp.where(sigma < edge[..., None], moved, 0.0), axis=-1), total)
    squares = xp.sum(xp.square(sigma), axis=-1)
    holds = edge < 0.5 * sigma[..., 0]
    along = divide(xp.square(xp.sum(drift * sigma, axis=-1)), squares)
    fluctuation, drifts = xp.sum(variance, axis=-1), xp.sum(xp.square(drift), axis=-1)

    def moments(variance: Any, crossed: Any, total: Any) -> NullMoments:
        # Var ‖δσ‖² = 2·Σ variance² + 4·s²‖drift‖²; the root's mean lies below the root of the mean by half of its own
        # variance over twice the root.
        spread = xp.square(s) * divide(variance / 2 + crossed, total)  # in this order: s⁴ is beyond float32
        mean = xp.sqrt(xp.maximum(total - spread, tiny))
        std = xp.sqrt(spread + xp.square(lost * mean))
        still, reference = s == 0, xp.where(holds | (s == 0), xp.sqrt(squares), xp.nan)
        return NullMoments(*(divide(xp.where(still, 0.0, x), reference) for x in (mean, std)))

    free = fluctuation * ((small - 1) / small)
    rest = xp.maximum(drifts - along, 0.0)
    return ShiftNull(moments(fluctuation, drifts, total), moments(free, rest, free + drifts), holds)


def _spacing(xp: Any, sigma: Any) -> Any:
    """Mean distance of neighbouring levels around each `[..., r]`."""
    count = sigma.shape[-1]
    reach, index = min(REACH, max(1, (count - 1) // 2)), np.arange(count)
    high, low = np.maximum(index - reach, 0), np.minimum(index + reach, count - 1)
    return (sigma[..., high] - sigma[..., low]) / xp.asarray(np.maximum(low - high, 1), dtype=sigma.dtype)


def _repulsion(xp: Any, sigma: Any, s: Any, small: int, large: int) -> Any:
    """What drives each level apart from the others and from zero, per s² `[..., r]`."""
    tiny = float(xp.finfo(sigma.dtype).tiny)
    # In units of σ₁, so that the squares of squares stay within the range of float32.
    top = xp.where(sigma[..., :1] > 0, sigma[..., :1], xp.ones_like(sigma[..., :1]))
    level, noise = sigma / top, (s[..., None] / top)
    regular = xp.maximum(level, noise)

    def rows(own: Any, softened: Any, levels: Any) -> Any:
        difference = xp.square(own)[:, None] - xp.square(levels)
        return own * xp.sum(difference / (xp.square(difference) + xp.square(softened)[:, None]), axis=-1)

    def one(levels: Any, noise: Any, regular: Any) -> Any:
        softened = xp.maximum(2 * noise * regular, 1e-15)
        if xp is np:
            blocks = [slice(start, start + _BLOCK) for start in range(0, small, _BLOCK)]
            return np.concatenate([rows(levels[cut], softened[cut], levels) for cut in blocks])
        if small <= _BLOCK:
            return rows(levels, softened, levels)
        return jax.lax.map(
            lambda pair: rows(pair[0][None], pair[1][None], levels)[0], (levels, softened), batch_size=_BLOCK
        )

    flat = [x.reshape(-1, x.shape[-1]) for x in (level, noise, regular)]
    if xp is np:
        found = np.stack([one(*parts) for parts in zip(*flat, strict=True)])
    else:
        found = jax.vmap(one)(*flat) if flat[0].shape[0] > 1 else one(*(part[0] for part in flat))[None]
    pushed = found.reshape(level.shape) + (large - small) / (2 * xp.maximum(regular, tiny))
    return pushed / top
