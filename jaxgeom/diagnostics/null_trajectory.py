"""Trajectory nulls: how similar the top subspaces of a run's cumulative updates are by chance.

A random walk with the observed increment norms has Gaussian cumulative updates whose correlation between steps s < t
is `ρ = c_s/c_t`, `c_t² = Σ_{τ≤t} a_τ²`. The similarity of their top-K subspaces depends on ρ and the shape alone: one
curve, sampled once per shape, serves every matrix of that shape and every sequence of norms. The disjoint similarity
(`ΔW_{0→t}` against `ΔW_{t→T}`) of independent increments is K/n exactly.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._layout import matmul, transpose
from .precision import widen

GRID = 13


class SimilarityCurve(NamedTuple):
    """Expected Sim_K of the right top-K subspaces of two isotropic updates, by their correlation.

    Attributes:
      decorrelation: `√(1 − ρ²)`, ascending from 0 to 1, `[13]`.
      mean: expected similarity there, from 1 down to K/n.
      std: standard deviation of one pair's similarity there.
    """

    decorrelation: jax.Array
    mean: jax.Array
    std: jax.Array


def similarity_curve(
    key: Array, *, shape: tuple[int, ...], k: int, draws: int = 4, size_limit: int = 512
) -> SimilarityCurve:
    """Samples the similarity curve of a shape.

    Shapes above `size_limit` are sampled at that size with the same aspect ratio: at the edge of the spectrum
    subspaces decorrelate on the scale `√(1−ρ²) ∼ n^{−1/6}`, so `√(1−ρ²)/ρ` is rescaled by that factor, and the excess
    over chance K/n carried over.

    Args:
      key: random key.
      shape: `[..., m, n]`.
      k: K, at most min(m, n).
      draws: pairs sampled per point.
      size_limit: largest side that is sampled as it is.

    Returns:
      `SimilarityCurve`.
    """
    rows, columns = shape[-2:]
    shrink = min(1.0, size_limit / max(rows, columns))
    sample_rows, sample_columns = (max(k, round(side * shrink)) for side in (rows, columns))
    grid = jnp.linspace(0.0, 1.0, GRID) ** 2  # dense near 0, where the curve falls
    # tan = d/ρ of the real matrix is tan·(n/n')^{1/6} of the sampled one: right at both ends.
    stretch = (min(rows, columns) / min(sample_rows, sample_columns)) ** (1 / 6)
    tangent = stretch * grid
    sampled = tangent / jnp.sqrt(1 - jnp.square(grid) + jnp.square(tangent))
    wide = sample_columns > sample_rows

    def top(x: jax.Array) -> jax.Array:
        if wide:  # right vectors from the smaller Gram matrix: V = Xᵀ U / σ
            values, vectors = jnp.linalg.eigh(matmul(x, transpose(x)))
            return matmul(transpose(x), vectors[:, -k:]) / jnp.sqrt(values[-k:])
        return jnp.linalg.eigh(matmul(transpose(x), x))[1][:, -k:]

    def draw(one: Array) -> jax.Array:
        first, second = jax.random.normal(one, (2, sample_rows, sample_columns))
        base = top(first)

        def at(d: jax.Array) -> jax.Array:
            moved = top(jnp.sqrt(1 - jnp.square(d)) * first + d * second)
            return jnp.sum(jnp.square(matmul(transpose(base), moved))) / k

        return jax.lax.map(at, sampled)

    values = jax.lax.map(draw, jax.random.split(key, draws))
    chance, sampled_chance = k / columns, k / sample_columns
    mean = jnp.clip((jnp.mean(values, axis=0) - sampled_chance) / max(1 - sampled_chance, 1e-9), 0.0, 1.0)
    mean = chance + (1 - chance) * mean
    mean = mean.at[-1].set(chance)  # independent updates: known exactly
    std = jnp.std(values, axis=0, ddof=1) if draws > 1 else jnp.full_like(mean, jnp.nan)
    return SimilarityCurve(grid, mean, std)


def random_walk_similarity(
    curve: SimilarityCurve, increment_norms: Float[ArrayLike, "*batch steps"]
) -> Float[Array, "*batch steps steps"]:
    """Sim_K between the cumulative updates of a random walk with the observed increment norms.

    Args:
      curve: `similarity_curve` of the shape and K.
      increment_norms: `‖W_t − W_{t−1}‖_F` between saved checkpoints, `[..., T]`.

    Returns:
      `[..., T, T]` expected similarities, 1 on the diagonal; NaN against a step where nothing has moved yet.
    """
    norms = widen(increment_norms, "increment_norms")
    energy = jnp.cumsum(jnp.square(norms), axis=-1)
    early = jnp.minimum(energy[..., :, None], energy[..., None, :])
    late = jnp.maximum(energy[..., :, None], energy[..., None, :])
    share = jnp.where(early > 0, early / jnp.where(late > 0, late, 1.0), jnp.nan)
    dtype = norms.dtype
    return jnp.interp(
        jnp.sqrt(jnp.clip(1 - share, 0.0, 1.0)), curve.decorrelation.astype(dtype), curve.mean.astype(dtype)
    )


def disjoint_similarity(shape: tuple[int, ...], *, k: int) -> float:
    """Expected similarity of two independent isotropic right subspaces: K/n.

    Args:
      shape: `[..., m, n]`.
      k: K.

    Returns:
      A Python number.

    >>> disjoint_similarity((4096, 1024), k=16)
    0.015625
    """
    return min(1.0, k / shape[-1])


def disjoint_similarity_std(shape: tuple[int, ...], *, k: int) -> float:
    """Standard deviation of the similarity of two independent uniformly random K-dimensional subspaces of R^n.

    `Var ‖VᵀV'‖_F² = 2K²(n−K)²/(n²(n−1)(n+2))`, over K².

    Args:
      shape: `[..., m, n]`.
      k: K.

    Returns:
      A Python number.
    """
    n = float(shape[-1])
    if k >= n or n < 2:
        return 0.0
    return math.sqrt(2.0 * (n - k) ** 2 / (n * n * (n - 1) * (n + 2)))
