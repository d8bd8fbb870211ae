"""A random walk of weights as 16-bit checkpoints show it: covariances of its cumulative updates, in closed form.

The weights start on the checkpoints' grid, or anywhere in its cells (`shared_rounding`), and take independent Gaussian
increments that keep every digit; a checkpoint is their view rounded to the grid. In units of an entry's spacing the
stored update of a weight on the grid is `R(x)`, R rounding to the nearest integer and x normal. Two stored updates
share the rounding error of what lies between them: neighbouring increments are anticorrelated, the stored path is
shorter than its steps say, and small updates do not show at all.
"""

import math
from typing import Any

import numpy as np

from ._namespace import as_real, increasing_root, namespace, ndtr
from .shared_rounding import open_product

_BAND, _TERMS = 5, 64
_SMALL = 0.3
"""Standard deviation, in spacings, below which a weight leaves its cell by at most one spacing (to 1e-6)."""

_NONE = 0.05
"""Standard deviation below which none leaves it (to 1e-23)."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def _shown(xp: Any, x: Any, c: Any) -> Any:
    """`E R(x + c·g)`, g standard normal: what a later checkpoint shows of a weight that is at x now."""
    n = as_real(np.arange(1, _TERMS + 1), xp)
    wide = xp.maximum(c, 0.15)[..., None]
    damped = (
        xp.exp(-2 * xp.square(math.pi * n * wide)) * as_real((-1.0) ** np.arange(1, _TERMS + 1), xp) / (math.pi * n)
    )
    fourier = x + xp.sum(damped * xp.sin(2 * math.pi * n * x[..., None]), axis=-1)
    narrow, steps = xp.maximum(xp.minimum(c, 0.15), 1e-9)[..., None], as_real(np.arange(6) + 0.5, xp)
    counted = xp.sum(ndtr((x[..., None] - steps) / narrow) - ndtr((-x[..., None] - steps) / narrow), axis=-1)
    return xp.where(c >= 0.15, fourier, counted)


def rounded_product(a: Any, b: Any) -> Any:
    """`E[R(x)·R(x + y)]` for normal x of deviation a and x + y of deviation b ≥ a, y independent of x.

    By the Fourier series of R where a is at least 0.3, else by quadrature beyond the first rounding boundary.

    Args:
      a, b: arrays of one shape, numpy or JAX.

    Returns:
      Array of that shape.
    """
    xp = namespace(a, b)
    c = xp.sqrt(xp.maximum(xp.square(b) - xp.square(a), 0.0))
    if xp is not np:
        near = xp.where(a > _NONE, _by_quadrature(xp, xp.clip(a, _NONE, _SMALL), c), 0.0)
        return xp.where(a >= _SMALL, _by_fourier(xp, xp.maximum(a, _SMALL), c), near)
    out, far = np.zeros(np.shape(a)), a >= _SMALL
    near = (a > _NONE) & ~far
    out[far], out[near] = _by_fourier(np, a[far], c[far]), _by_quadrature(np, a[near], c[near])
    return out


def _by_fourier(xp: Any, a: Any, c: Any) -> Any:
    """`R(x) = x + Σ (−1)ⁿ sin(2πnx)/(πn)`: terms whose orders differ by more than a few vanish."""
    count = np.arange(1, _TERMS + 1)
    n = as_real(count, xp)
    damped = xp.exp(-2 * xp.square(math.pi * n * c[..., None]))
    edge = xp.exp(-2 * xp.square(math.pi * n * a[..., None])) * as_real((-1.0) ** count, xp)
    product = xp.square(a) * (1 + 2 * xp.sum(edge * (1 + damped), axis=-1))
    for apart in range(-_BAND, _BAND + 1):  # n − m
        m = count + apart
        weight = np.where(m > 0, (-1.0) ** apart / (2 * math.pi**2 * count * np.maximum(m, 1)), 0.0)
        close = xp.exp(-2 * xp.square(math.pi * apart * a))[..., None]
        far = xp.exp(-2 * xp.square(math.pi * (2 * n + apart) * a[..., None]))
        product = product + xp.sum((close - far) * damped * as_real(weight, xp), axis=-1)
    return product


def _by_quadrature(xp: Any, a: Any, c: Any) -> Any:
    """One cell away at most; nodes crowd at its edge, where a later checkpoint may be back."""
    reach = 12 * a
    x = 0.5 + reach[..., None] * as_real(_NODES**3, xp)
    density = xp.exp(-0.5 * xp.square(x / a[..., None])) / (math.sqrt(2 * math.pi) * a[..., None])
    shown = _shown(xp, x, xp.broadcast_to(c[..., None], x.shape))
    return 2 * xp.sum(density * shown * as_real(3 * _NODES**2 * _WEIGHTS, xp), axis=-1) * reach


def walk_covariance(increment_norms: Any, spacings: Any = None, counts: Any = None, *, is_open: bool = False) -> Any:
    """Covariances `E⟨W_s − W_0, W_t − W_0⟩` of a run of independent increments with the observed norms.

    Stored exactly they are `Σ_{τ ≤ min(s,t)} a_τ²`. With the spacings of the grid that checkpoints are rounded to, the
    increments' real sizes are found one after the other such that the stored increments have the observed norms.

    Args:
      increment_norms: `‖W_t − W_{t−1}‖_F` between checkpoints, `[T]`, numpy or JAX.
      spacings, counts: `spacing_counts` of W0, where all checkpoints are rounded to one grid.
      is_open: whether W0 is stored finer than that grid, else it is on it too.

    Returns:
      `[T, T]`; zero against a step where nothing has moved yet.
    """
    xp = namespace(increment_norms, spacings, counts)
    squares = xp.square(as_real(increment_norms, xp))
    if spacings is None:
        energy = xp.cumsum(squares)
        return xp.minimum(energy[:, None], energy[None, :])
    unit, weight = as_real(spacings, xp), as_real(counts, xp)
    if xp is np:
        unit, weight = unit[weight > 0], weight[weight > 0]
    energies = weight * xp.square(unit)
    count = xp.maximum(xp.sum(weight), 1.0)

    def product(a: Any, b: Any) -> Any:
        shown = open_product if is_open else rounded_product
        return xp.sum(energies * shown(a[..., None] / unit, b[..., None] / unit), axis=-1)

    has_moved = xp.cumsum(squares) > 0  # until then a checkpoint is W0, without an error of rounding
    before, sizes = xp.zeros_like(squares[0]), []
    for step in range(squares.shape[0]):
        target, start = squares[step], before
        rounded = has_moved[step - 1] if step else xp.zeros_like(has_moved[0])
        own = xp.where(rounded, product(before, before), 0.0)

        def short(log_size: Any, start: Any = start, rounded: Any = rounded, missing: Any = target - own) -> Any:
            now = xp.sqrt(xp.square(start) + xp.exp(2 * log_size))
            return product(now, now) - 2 * xp.where(rounded, product(start, now), 0.0) - missing

        guess = 0.5 * xp.log(xp.maximum(target, float(xp.finfo(squares.dtype).tiny)) / count)
        root = increasing_root(short, guess - 4.0, guess + 8.0)
        before = xp.where(target > 0, xp.sqrt(xp.square(before) + xp.exp(2 * root)), before)
        sizes.append(before)
    along = xp.stack(sizes)
    found = product(xp.minimum(along[:, None], along), xp.maximum(along[:, None], along))
    return xp.where(has_moved[:, None] & has_moved, found, 0.0)
