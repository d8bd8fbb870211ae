"""The norm-matched null of rotation: an isotropic update of equal Frobenius norm against W0's subspaces.

Update `s·G`, G iid standard normal, `s = ‖ΔW‖_F/√(mn)`. G is rotation invariant, so that the spectrum of W0 decides.
The draws are an argument, so that the same draws give the same numbers in every namespace.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from ._decompose import matmul, short_gram, svd, svd_values, symmetric_values, transpose
from ._namespace import namespace
from .moments import NullMoments

EDGE = 32
"""Directions to each side of the cut that are drawn many times over: the fluctuations come from the narrow gaps there.
Measured on Gaussian weights, they carry the deviation of the mean and of the largest angle to within 2 and 8 %."""

WINDOW = 16
"""The same for updates so large that the corner itself is decomposed; levels further apart than s do not mix."""

EDGE_DRAWS = 192

SKEW = 1.08
"""Widening of the deviations. The angles at the narrowest gap follow |g|, g normal, whose upper tail is heavier than
the normal law's: with it |z| > 3 stays below one in a hundred."""

_MANY, _GRADED = 64, 1e4
"""k from which eigenvalues of the draws are taken in single precision where a routine for that is given, and the
largest energy of a row of the rotation over their median up to which they are: it moves the mean angle by less than
1e-4 of itself, where the draws tell it to about a hundredth. Measured on Gaussian, power-law and clustered spectra, k =
256."""

LARGE = 0.1
"""Norm of the noise over σ_k beyond which the rotation is no longer first order in it."""


class RotationDraws(NamedTuple):
    """Standard normal noise of the rotation null of one shape and k.

    Attributes:
      block: `[draws, k, max(p − k, 1)]`, p = min(m, n), turning leading directions into the others.
      beyond: `[draws, k, min(k, |m − n|)]`: L with `L·Lᵀ` the Wishart matrix that the |m − n| directions which the
        longer side has more add up to.
      edge: `[EDGE_DRAWS, a + b, a + b]`, the a ≤ EDGE directions before and the b ≤ EDGE after the cut alone.
      noise: `[draws, m, n]` noise in the singular bases of W0, for updates too large for a first order; None where
        nothing decomposes it.
    """

    block: Any
    beyond: Any
    edge: Any
    noise: Any = None


class SampledAngles(NamedTuple):
    """Principal angles of `W0 + s·noise` to W0, for updates too large for a first order.

    Attributes:
      left, right: radians `[draws, k]`.
      window: `noise[window, window]` of each draw, in the singular bases of W0, `window = noise_window(k, shape)`.
    """

    left: Any
    right: Any
    window: Any


def noise_window(k: int, shape: tuple[int, ...]) -> slice:
    """The directions next to the cut after the k-th, `WINDOW` to each side where there are so many.

    Args:
      k: dimension of the subspaces.
      shape: `[..., m, n]` of the matrix.

    Returns:
      A slice of `range(min(m, n))`.
    """
    return slice(max(0, k - WINDOW), min(min(shape[-2:]), k + WINDOW))


def rotation_draws(
    source: Any, *, shape: tuple[int, int], k: int, draws: int = 5, noise: bool = False
) -> RotationDraws:
    """Draws for `norm_matched_angles`.

    Args:
      source: a NumPy generator (float32 arrays on the host), or a random key of JAX.
      shape: (m, n).
      k: dimension of the subspaces, at most min(m, n).
      draws: how many, at least 2.
      noise: whether to draw what large updates need too, `draws·m·n` numbers.

    Returns:
      `RotationDraws` in the namespace of the source.

    Raises:
      ValueError: where k or draws is out of range.
    """
    rows, columns = shape
    rank, more = min(shape), abs(rows - columns)
    if not 1 <= k <= rank:
        raise ValueError(f"k is {k}; between 1 and {rank} is needed for shape {shape}")
    if draws < 2:
        raise ValueError(f"draws is {draws}; a deviation needs at least 2")
    around = min(k, EDGE) + min(max(rank - k, 1), EDGE)
    normal, chisquare = _sampler(source)
    block, beyond = normal(0, (draws, k, max(rank - k, 1))), normal(1, (draws, k, min(k, more)))
    if more >= k:  # Bartlett's form: below the diagonal normal, on it χ
        xp = namespace(beyond)
        diagonal = xp.sqrt(chisquare(2, (more - np.arange(k)).astype(np.float64), (draws, k)))
        beyond = xp.tril(beyond, -1) + diagonal[..., None] * xp.eye(k, dtype=beyond.dtype)
    whole = normal(4, (draws, rows, columns)) if noise else None
    return RotationDraws(block, beyond, normal(3, (EDGE_DRAWS, around, around)), whole)


def _sampler(source: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Normal numbers of (place, size) and χ² ones of (place, freedom, size), each place with a stream of its own."""
    if isinstance(source, np.random.Generator):
        generator: np.random.Generator = source
        return (
            lambda _, size: generator.standard_normal(size, np.float32),
            lambda _, freedom, size: generator.chisquare(freedom, size).astype(np.float32),
        )
    keys, dtype = jax.random.split(source, 5), jax.numpy.result_type(float)
    return (
        lambda place, size: jax.random.normal(keys[place], size, dtype),
        lambda place, freedom, size: jax.random.chisquare(
            keys[place], jax.numpy.asarray(freedom, dtype), shape=size, dtype=dtype
        ),
    )


class AngleNull(NamedTuple):
    """Principal angles under the norm-matched null, in radians.

    Attributes:
      left_mean, left_max: moments of the mean and the largest angle on the output side.
      right_mean, right_max: the same on the input side.
      large: whether the update is too large for a first order (`LARGE`); the moments are then those of decomposed
        noise, NaN where none is given.
    """

    left_mean: NullMoments
    left_max: NullMoments
    right_mean: NullMoments
    right_max: NullMoments
    large: Any


def rotation_is_large(sigma: Any, norm: Any, *, k: int, shape: tuple[int, ...]) -> Any:
    """Whether an isotropic update of this norm rotates the leading k directions by more than a first order tells.

    Args:
      sigma: full spectrum of W0, descending, `[..., min(m, n)]`.
      norm: `‖ΔW‖_F`, `[...]`.
      k: dimension of the subspaces.
      shape: `[..., m, n]`.

    Returns:
      Booleans `[...]`.
    """
    rows, columns = (float(side) for side in shape[-2:])
    return norm / math.sqrt(rows * columns) * (math.sqrt(rows) + math.sqrt(columns)) > LARGE * sigma[..., k - 1]


def _profile(xp: Any, sigma: Any, k: int, scale: Any) -> Any:
    """Standard deviations of the first-order rotation of direction i ≤ k into j > k, `[k, p − k]`.

    `s·√(σ_i²+σ_j²)/(σ_i²−σ_j²)`, softened at the scale of the perturbation; one column of zeros where k = p.
    """
    if k == sigma.shape[0]:
        return xp.zeros((k, 1), sigma.dtype)
    inside, outside = xp.square(sigma[:k])[:, None], xp.square(sigma[k:])[None, :]
    together = inside + outside
    return scale * xp.sqrt(together / (xp.square(inside - outside) + 2 * xp.square(scale) * together))


Values = Callable[[Any], Any]
"""Eigenvalues, ascending `[k]`, of a symmetric matrix `[k, k]`."""


def _serves_single(profile: np.ndarray) -> bool:
    """Whether eigenvalues in single precision tell the angles of a rotation with these deviations `[k, p − k]`."""
    if profile.shape[0] < _MANY:
        return False
    energies = np.square(profile).sum(1)
    return bool(0 < energies.max() <= _GRADED * np.median(energies))


def _figures(xp: Any, square: Any, k: int, unit: float = 1.0, values: Values = symmetric_values) -> tuple[Any, Any]:
    """Mean and largest of k angles from the Gram matrix of their tangents, which are in units."""
    found = values(square).astype(np.float64 if xp is np else square.dtype)
    angles = xp.arctan(xp.sqrt(xp.maximum(found, 0.0)) * unit)
    return xp.sum(angles, axis=-1) / k, angles[..., -1]


def norm_matched_angles(
    sigma: Any,
    norm: Any,
    draws: RotationDraws,
    *,
    k: int,
    shape: tuple[int, int],
    sampled: SampledAngles | None = None,
    single: Values | None = None,
) -> AngleNull:
    """Mean and largest principal angle under an isotropic update of given norm, from the spectrum of W0 alone.

    The tangents of the angles are the singular values of the first-order rotation, whose entries are independent with
    variance `s²(σ_i²+σ_j²)/(σ_i²−σ_j²)²`, plus `s²/σ_i²` for each direction that the longer side has more. A few whole
    draws give the level; the corner next to the cut, where the fluctuations arise, is drawn many times over and serves
    as control variate of the level and as source of the deviation, which a few draws could not tell. For large updates
    the same is done with decompositions of W0 plus noise in place of the first order.

    Args:
      sigma: full spectrum of one W0, descending, `[min(m, n)]`, numpy or JAX.
      norm: `‖ΔW‖_F`.
      draws: `rotation_draws` of this shape and k.
      k: dimension of the subspaces, below min(m, n).
      shape: (m, n).
      sampled: angles of decomposed noise, for an update that is large; `draws.noise` is decomposed here where it is
        given instead.
      single: on the host, eigenvalues of a float32 matrix, for many directions; in float64 where it is not given.

    Returns:
      `AngleNull`, in the namespace and dtype of the spectrum.

    Reference:
      Stewart and Sun, *Matrix Perturbation Theory*, 1990, chapter V.
    """
    xp = namespace(sigma, norm, draws.block)
    sigma = xp.asarray(sigma)
    norm = xp.asarray(norm, dtype=sigma.dtype)
    scale = norm / math.sqrt(float(shape[0]) * shape[1])
    large = rotation_is_large(sigma, norm, k=k, shape=shape)

    def small_update() -> tuple[NullMoments, ...]:
        return _first_order(xp, sigma, scale, draws, k, shape, single)

    def large_update() -> tuple[NullMoments, ...]:
        found = sampled
        if found is None and draws.noise is not None:
            cut = noise_window(k, shape)
            found = SampledAngles(*decomposed_noise(xp, sigma, scale, draws.noise, k), draws.noise[:, cut, cut])
        if found is None:
            nan = xp.full_like(scale, np.nan)
            return (NullMoments(nan, nan),) * 4
        return _large(xp, sigma, scale, draws, found, k, shape)

    if xp is np:
        chosen = large_update() if large else small_update()
    else:
        chosen = lax.cond(large, large_update, small_update)
    left_mean, left_max, right_mean, right_max = chosen
    return AngleNull(left_mean, left_max, right_mean, right_max, large)


def _first_order(
    xp: Any, sigma: Any, scale: Any, draws: RotationDraws, k: int, shape: tuple[int, int], single: Values | None
) -> tuple[NullMoments, ...]:
    """Moments of the mean and largest angle, left and right."""
    rows, columns = shape
    profile = _profile(xp, sigma, k, scale)
    high = min(k, EDGE)
    corner = profile[k - high :, :EDGE]
    edge = _figures(xp, short_gram(corner * draws.edge[:, :high, high:].astype(sigma.dtype)), k)
    beyond = scale / xp.maximum(sigma[:k], xp.maximum(scale, float(xp.finfo(sigma.dtype).tiny)))
    unit, values = 1.0, symmetric_values
    if single is not None and _serves_single(profile):
        unit, values = float(profile.max()), single
        profile, beyond = (profile / unit).astype(np.float32), (beyond / unit).astype(np.float32)

    def one(pair: Any) -> Any:
        turned = profile * pair[0].astype(profile.dtype)
        own = short_gram(turned)
        figures = [*_figures(xp, short_gram(turned[k - high :, :EDGE]), k, unit), *_figures(xp, own, k, unit, values)]
        if rows != columns:
            added = beyond[:, None] * pair[1].astype(profile.dtype)
            own = matmul(turned, transpose(turned)) + matmul(added, transpose(added))
        return *figures, *(_figures(xp, own, k, unit, values) if rows != columns else figures[2:])

    found = _over_draws(xp, one, (draws.block, draws.beyond))
    control, short, long = found[:2], found[2:4], found[4:]
    short, long = (_combined(xp, side, control, edge) for side in (short, long))
    return (*long, *short) if rows >= columns else (*short, *long)


def _large(
    xp: Any, sigma: Any, scale: Any, draws: RotationDraws, sampled: SampledAngles, k: int, shape: tuple[int, int]
) -> tuple[NullMoments, ...]:
    """The same from decomposed noise, with the decomposed corner as control."""
    cut, high = noise_window(k, shape), min(k, EDGE)
    inside = k - cut.start
    middle = slice(high - inside, high - inside + cut.stop - cut.start)

    def one(noise: Any) -> Any:
        left, _, _ = svd(xp.diag(sigma[cut]) + scale * noise.astype(sigma.dtype))
        angles = axis_angles(left[:, :inside], inside)
        return xp.sum(angles) / k, angles[-1]

    edge, control = (_over_draws(xp, one, x) for x in (draws.edge[:, middle, middle], sampled.window))
    moments = []
    for angles in (sampled.left, sampled.right):
        moments += _combined(xp, (xp.mean(angles, axis=-1), xp.max(angles, axis=-1)), control, edge)
    return tuple(moments)


def _over_draws(xp: Any, one: Any, draws: Any) -> tuple[Any, ...]:
    """`one` of each draw, which is an array or a pair of arrays along their first axes: a tuple of `[draws]`."""
    if xp is not np:
        return tuple(lax.map(one, draws))
    each = zip(*draws, strict=True) if isinstance(draws, tuple) else draws
    return tuple(np.array(x) for x in zip(*map(one, each), strict=True))


def _combined(xp: Any, whole: Any, control: Any, edge: Any) -> list[NullMoments]:
    """Moments of each figure from a few whole draws, the same draws' corner, and many draws of the corner."""
    moments = []
    for few, own, many in zip(whole, control, edge, strict=True):
        rest = few - own
        variance = xp.var(many, ddof=1) * (1 + 1 / many.size) + xp.var(rest, ddof=1) * (1 + 1 / rest.size)
        moments.append(NullMoments(xp.mean(rest) + xp.mean(many), SKEW * xp.sqrt(variance)))
    return moments


def decomposed_noise(xp: Any, sigma: Any, scale: Any, noise: Any, k: int) -> tuple[Any, Any]:
    """Angles (left, right) `[draws, k]` of `Σ0 + s·noise` to the coordinate axes, ascending."""
    rows, columns = noise.shape[-2:]
    spread = xp.concatenate([sigma, xp.zeros(columns - min(rows, columns), sigma.dtype)])

    def one(draw: Any) -> Any:
        moved = scale * draw.astype(sigma.dtype) + xp.eye(rows, columns, dtype=sigma.dtype) * spread
        left, _, right = svd(moved)
        return axis_angles(left[:, :k], k), axis_angles(transpose(right)[:, :k], k)

    left, right = _over_draws(xp, one, noise)
    return left, right


def axis_angles(vectors: Any, k: int) -> Any:
    """Principal angles, ascending `[k]`, of the span of orthonormal columns `[n, k]` to the first k axes."""
    xp = namespace(vectors)
    cosines = xp.clip(svd_values(vectors[:k]), 0.0, 1.0)
    sines = svd_values(vectors[k:])
    missing = k - sines.shape[-1]
    if missing > 0:
        sines = xp.concatenate([sines, xp.zeros(missing, sines.dtype)])
    sines = xp.clip(xp.flip(sines[:k], -1), 0.0, 1.0)
    return xp.where(xp.square(sines) < 0.5, xp.arcsin(sines), xp.arccos(cosines))


class SidePair(NamedTuple):
    """A number for each side.

    Attributes:
      left: of the output side.
      right: of the input side.
    """

    left: Any
    right: Any


def norm_matched_sine_energy(sigma: Any, norm: Any, *, k: int, shape: tuple[int, ...]) -> SidePair:
    """First-order expectation of `‖sin Θ‖_F²` under an isotropic update of given norm, both sides.

    Left: `s²·[Σ_{i≤k<j} (σ_i²+σ_j²)/(σ_i²−σ_j²)² + (m−n)₊·Σ_{i≤k} σ_i⁻²]`; right: m and n exchanged. It holds while
    s is well below the gap at k.

    Args:
      sigma: full spectrum of W0, descending, `[..., min(m, n)]`, numpy or JAX.
      norm: `‖ΔW‖_F`.
      k: dimension of the subspaces, below min(m, n) (or equal, on the longer side).
      shape: `[..., m, n]`.

    Returns:
      `SidePair(left, right)` of expectations; the root mean square angle is about `√(x/k)`.
    """
    xp = namespace(sigma, norm)
    rows, columns = shape[-2:]
    square = xp.square(xp.asarray(norm)) / (float(rows) * columns)
    inside, outside = xp.square(sigma[..., :k, None]), xp.square(sigma[..., None, k:])
    shared = square * xp.sum((inside + outside) / xp.square(inside - outside), axis=(-2, -1))
    inverse = square * xp.sum(1 / xp.square(sigma[..., :k]), axis=-1)
    return SidePair(shared + max(rows - columns, 0) * inverse, shared + max(columns - rows, 0) * inverse)
