"""The norm-matched null in closed form: what an isotropic update of equal Frobenius norm does to spectrum and angles.

Update `s·G`, G iid standard normal, `s = ‖ΔW‖_F/√(mn)`. G is rotation invariant, so that the spectrum of W0 alone
decides; nothing of size m × n is formed except for the angles, which sample an `m × k` matrix.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .moments import NullMoments
from .precision import widen
from .subspaces import ProjectionEnergy


def _entry_scale(norm: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return norm / math.sqrt(float(shape[-2]) * float(shape[-1]))


def norm_matched_nss(
    sigma: Float[ArrayLike, "*batch r"], norm: Float[ArrayLike, "*batch"], *, shape: tuple[int, ...]
) -> NullMoments:
    """Normalized spectral shift of an isotropic update of given norm.

    To first order each σ_i moves by `s·N(0, 1)`, which gives `NSS ≈ (‖ΔW‖/‖W0‖)/√max(m, n)`. Beyond, the values repel:
    the drift `s²[(M−N)/(2σ_i) + ½ Σ_{j≠i} (1/(σ_i−σ_j) + 1/(σ_i+σ_j))]` (M ≥ N the two sides) is added, softened at
    distances below 2s, and the independent part is damped by `1/(1 + (s/gap_i)²)`. Against sampling: within 3 % of
    the mean while s is below a third of the median gap, within 8 % up to `‖ΔW‖ = 0.3 ‖W0‖`, both on spectra without
    exactly repeated values: clusters tighter than s split further than this says, and are to be sampled.

    Args:
      sigma: full spectrum of W0, descending, `[..., min(m, n)]`.
      norm: `‖ΔW‖_F`.
      shape: `[..., m, n]`.

    Returns:
      `NullMoments(mean, std)`, in the dtype of the spectrum; NaN where W0 is zero.
    """
    sigma = widen(sigma, "sigma")
    norm = jnp.asarray(norm).astype(sigma.dtype)
    large, small = max(shape[-2:]), min(shape[-2:])
    s = _entry_scale(norm, shape)[..., None]
    softening = jnp.square(2 * s)[..., None]
    difference = sigma[..., :, None] - sigma[..., None, :]
    total = sigma[..., :, None] + sigma[..., None, :]
    tiny = jnp.finfo(sigma.dtype).tiny
    others = ~jnp.eye(small, dtype=bool)
    repulsion = jnp.sum(difference / jnp.maximum(jnp.square(difference) + softening, tiny), axis=-1)
    mirror = jnp.sum(jnp.where(others, total / jnp.maximum(jnp.square(total) + softening, tiny), 0.0), axis=-1)
    floor = jnp.maximum(jnp.maximum(sigma, s), tiny)
    drift = jnp.square(s) * ((large - small) / (2 * floor) + 0.5 * (repulsion + mirror))
    steps = sigma[..., :-1] - sigma[..., 1:]
    if small > 1:
        gap = 0.5 * (
            jnp.concatenate([steps[..., :1], steps], axis=-1) + jnp.concatenate([steps, steps[..., -1:]], axis=-1)
        )
        damping = jnp.square(gap) / jnp.maximum(jnp.square(gap) + jnp.square(s), tiny)
    else:
        damping = jnp.ones_like(sigma)
    fluctuation = jnp.square(s) * damping
    energy = jnp.sum(jnp.square(sigma), axis=-1)
    square = jnp.sum(fluctuation + jnp.square(drift), axis=-1)
    spread = jnp.sqrt(jnp.sum(2 * jnp.square(fluctuation) + 4 * fluctuation * jnp.square(drift), axis=-1))
    size = jnp.sqrt(square)
    safe = jnp.where(size > 0, size, 1.0)
    reference = jnp.where(energy > 0, jnp.sqrt(energy), jnp.nan)
    return NullMoments(size / reference, spread / (2 * safe) / reference)


def norm_matched_projection(shape: tuple[int, ...], *, k: int) -> tuple[ProjectionEnergy, ProjectionEnergy]:
    """Projection energies of an isotropic update in any fixed k-dimensional subspaces: exact.

    Means `k²/(mn)`, `k/m`, `k/n`; each share is Beta distributed.

    Args:
      shape: `[..., m, n]`.
      k: dimension of both subspaces.

    Returns:
      Means and standard deviations, each as `ProjectionEnergy(joint, left, right)` of scalars.

    >>> mean, std = norm_matched_projection((20, 10), k=2)
    >>> [round(float(x), 3) for x in mean]
    [0.02, 0.1, 0.2]
    """
    rows, columns = shape[-2:]
    size = float(rows) * float(columns)
    means, deviations = [], []
    for inside in (float(k) * k, float(k) * columns, float(k) * rows):
        share = min(1.0, inside / size)
        means.append(jnp.asarray(share))
        deviations.append(jnp.asarray(math.sqrt(2 * share * (1 - share) / (size + 2))))
    return ProjectionEnergy(*means), ProjectionEnergy(*deviations)


def _rotation_profile(sigma: jax.Array, k: int, scale: jax.Array) -> jax.Array:
    """Standard deviations of the first-order rotation of direction i ≤ k into direction j > k, `[..., r − k, k]`."""
    inside, outside = sigma[..., None, :k], sigma[..., k:, None]
    denominator = jnp.square(inside) - jnp.square(outside)
    safe = jnp.where(denominator > 0, denominator, jnp.finfo(sigma.dtype).tiny)
    return scale[..., None, None] * jnp.sqrt(jnp.square(inside) + jnp.square(outside)) / safe


class SidePair(NamedTuple):
    """A number for each side.

    Attributes:
      left: of the output side.
      right: of the input side.
    """

    left: Any
    right: Any


def norm_matched_sine_energy(
    sigma: Float[ArrayLike, "*batch r"], norm: Float[ArrayLike, "*batch"], *, k: int, shape: tuple[int, ...]
) -> SidePair:
    """First-order expectation of `‖sin Θ‖_F²` under an isotropic update of given norm, both sides.

    Left: `s²·[Σ_{i≤k<j} (σ_i²+σ_j²)/(σ_i²−σ_j²)² + (m−n)₊·Σ_{i≤k} σ_i⁻²]`; right: m and n exchanged. It holds while
    s is well below the gap at k: `norm_matched_angles` says whether.

    Args:
      sigma: full spectrum of W0, descending, `[..., min(m, n)]`.
      norm: `‖ΔW‖_F`.
      k: dimension of the subspaces, below min(m, n) (or equal, on the longer side).
      shape: `[..., m, n]`.

    Returns:
      `SidePair(left, right)` of expectations; the root mean square angle is about `√(x/k)`.
    """
    sigma = widen(sigma, "sigma")
    scale = _entry_scale(jnp.asarray(norm).astype(sigma.dtype), shape)
    shared = jnp.sum(jnp.square(_rotation_profile(sigma, k, scale)), axis=(-2, -1))
    inverse = jnp.square(scale) * jnp.sum(1 / jnp.square(sigma[..., :k]), axis=-1)
    rows, columns = shape[-2:]
    return SidePair(shared + max(rows - columns, 0) * inverse, shared + max(columns - rows, 0) * inverse)


class AngleNull(NamedTuple):
    """Principal angles under the norm-matched null, in radians.

    Attributes:
      left_mean, left_max: moments of the mean and the largest angle on the output side.
      right_mean, right_max: the same on the input side.
      first_order: whether s is below a third of the gap at k, where the calculation was tested to hold; sample
        (`norm_matched_update`) where it is false.
    """

    left_mean: NullMoments
    left_max: NullMoments
    right_mean: NullMoments
    right_max: NullMoments
    first_order: jax.Array


def norm_matched_angles(
    key: Array,
    sigma: Float[ArrayLike, " r"],
    norm: Float[ArrayLike, ""],
    *,
    k: int,
    shape: tuple[int, int],
    draws: int = 5,
) -> AngleNull:
    """Mean and largest principal angle under an isotropic update of given norm, from the spectrum of W0 alone.

    The tangents of the angles are the singular values of the first-order rotation `E`, whose entries are independent
    between pairs: `E_ji = s(σ_i G_ji + σ_j G_ij)/(σ_i² − σ_j²)` on the left, G transposed on the right, plus
    `s G_ji/σ_i` for the |m − n| directions that one side has more. Only E `[max(m, n) − k, k]` is drawn.

    Args:
      key: random key.
      sigma: full spectrum of one W0, descending, `[min(m, n)]`.
      norm: `‖ΔW‖_F`.
      k: dimension of the subspaces, below min(m, n).
      shape: (m, n).
      draws: how many samples of E.

    Returns:
      `AngleNull`; standard deviations are over draws.

    Raises:
      ValueError: where k is not below min(m, n).
    """
    sigma = widen(sigma, "sigma")
    rows, columns = shape
    rank = min(rows, columns)
    if not 1 <= k < rank:
        raise ValueError(f"k is {k}; between 1 and {rank - 1} is needed for shape {shape}")
    scale = _entry_scale(jnp.asarray(norm).astype(sigma.dtype), shape)
    inside, outside = sigma[None, :k], sigma[k:, None]
    tiny = jnp.finfo(sigma.dtype).tiny
    factor = scale / jnp.maximum(jnp.square(inside) - jnp.square(outside), tiny)
    extra_scale = scale / jnp.maximum(inside, tiny)

    def angles(rotation: jax.Array) -> tuple[jax.Array, jax.Array]:
        square = jnp.linalg.qr(rotation, mode="r") if rotation.shape[0] > k else rotation
        tangents = jnp.linalg.svd(square, compute_uv=False)
        theta = jnp.arctan(tangents)
        return jnp.sum(theta) / k, theta[0]

    def draw(one: Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(one, 3)
        lower = jax.random.normal(keys[0], (rank - k, k), sigma.dtype)
        upper = jax.random.normal(keys[1], (rank - k, k), sigma.dtype)
        extra = jax.random.normal(keys[2], (abs(rows - columns), k), sigma.dtype) * extra_scale
        left = factor * (inside * lower + outside * upper)
        right = factor * (inside * upper + outside * lower)
        if rows > columns:
            left = jnp.concatenate([left, extra])
        elif columns > rows:
            right = jnp.concatenate([right, extra])
        return (*angles(left), *angles(right))

    values = jax.lax.map(draw, jax.random.split(key, draws))
    ddof = min(1, draws - 1)
    spread = [jnp.std(v, ddof=1) if ddof else jnp.full_like(v[0], jnp.nan) for v in values]
    moments = [NullMoments(jnp.mean(v), std) for v, std in zip(values, spread, strict=True)]
    return AngleNull(*moments, first_order=scale < (sigma[k - 1] - sigma[k]) / 3)


def isotropic_spectrum(shape: tuple[int, ...]) -> Float[Array, " r"]:
    """Typical singular values of an iid Gaussian matrix with entries of unit variance: Marchenko-Pastur quantiles.

    Hill, entropy rank, participation ratio, energy shares of an isotropic update follow from it by the
    `*_from_singular_values` helpers. The largest value is put at its mean under the Tracy-Widom law.

    Args:
      shape: `[..., m, n]`.

    Returns:
      `[min(m, n)]` values, descending.
    """
    large, small = max(shape[-2:]), min(shape[-2:])
    ratio = small / large
    # λ = 1 + c − 2√c cos φ turns the density into 2 sin²φ / (π λ) dφ, which is smooth: integrate at midpoints.
    points = 16384
    phi = (np.arange(points) + 0.5) * (np.pi / points)
    lam = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(phi)
    mass = np.cumsum(2 * np.sin(phi) ** 2 / lam)
    mass = np.concatenate([[0.0], mass / mass[-1]])
    edges = np.arange(points + 1) * (np.pi / points)
    quantile = np.interp((np.arange(small)[::-1] + 0.5) / small, mass, edges)
    values = np.sqrt(np.maximum(1 + ratio - 2 * math.sqrt(ratio) * np.cos(quantile), 0.0) * large)
    values[0] = math.sqrt(_largest_square(large, small))
    return jnp.asarray(values, dtype=jnp.result_type(float))


def _largest_square(rows: int, columns: int) -> float:
    """Mean of the squared largest singular value of a unit Gaussian matrix (Tracy-Widom, β = 1)."""
    a, b = math.sqrt(max(rows - 0.5, 0.5)), math.sqrt(max(columns - 0.5, 0.5))
    return (a + b) ** 2 - 1.2065335745820 * (a + b) * (1 / a + 1 / b) ** (1 / 3)


def isotropic_stable_rank(shape: tuple[int, ...]) -> float:
    """Stable rank of an isotropic update, about `mn/(√m + √n)²`, with the Tracy-Widom correction of the largest value.

    Args:
      shape: `[..., m, n]`.

    Returns:
      A Python number.

    >>> 250 < isotropic_stable_rank((1024, 1024)) < 270
    True
    """
    rows, columns = shape[-2:]
    return float(rows) * columns / _largest_square(rows, columns)
