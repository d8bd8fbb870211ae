"""Norm-matched nulls: spectral drift, rotation and projection of an isotropic update of the observed norm.

Closed forms are expansions in the update. They use the actual singular values of W0, and each says with its result
whether the expansion holds there; where it does not, the caller samples or prints nothing.
"""

import math

import numpy as np

from jaxgeom.comparison.algebra import lapack


def projection_null(rows: int, columns: int, left: int | None, right: int | None) -> tuple[float, float]:
    """Share of an isotropic update's energy in a left and a right subspace of the given dimensions, mean and deviation.

    The share is Beta(a·N/2, (1−a)·N/2) with N = mn and `a = (left/m)·(right/n)`; None stands for the whole side.
    """
    share = (left or rows) / rows * (right or columns) / columns
    return share, math.sqrt(2 * share * (1 - share) / (rows * columns + 2))


def shift_null(values: np.ndarray, rows: int, columns: int, scale: float) -> tuple[float, float, bool]:
    """Normalized spectral shift of `W0 + s·G`: first order, plus the mean second-order repulsion of the levels.

    `δσ_i = s·g_ii + s²·[Σ_{j≠i} σ_i/(σ_i²−σ_j²) + (max−min)/(2σ_i)]`, g_ii standard normal. Denominators are
    regularized at the scale of the perturbation, where neighbours repel instead of diverging. Repulsion also keeps a
    level from straying further than its neighbours let it: the variance s² saturates as `a·γ²·log(1 + s²/(a·γ²))`,
    γ the local spacing and a = 2/π² (the rigidity of Dyson's Brownian motion at β = 1).

    Returns:
        Expected NSS, its standard deviation, and whether the expansion holds (the noise's norm stays below half of σ₁).
    """
    smaller, larger = min(rows, columns), max(rows, columns)
    norm = float(np.sqrt(values @ values))
    if norm == 0 or scale <= 0:
        return 0.0, 0.0, norm > 0
    squares = values * values
    second = np.empty(smaller)
    floor = max(float(values[0]) * 1e-12, 1e-300)
    regular = np.maximum(values, scale)
    for start in range(0, smaller, 512):
        own = slice(start, min(start + 512, smaller))
        difference = squares[own, None] - squares[None, :]
        width = 2 * scale * regular[own, None]
        second[own] = (values[own, None] * difference / (difference**2 + width**2)).sum(1)
    second += (larger - smaller) / (2 * np.maximum(regular, floor))
    second *= scale**2
    reach = min(5, max(1, (smaller - 1) // 2))
    index = np.arange(smaller)
    high, low = np.maximum(index - reach, 0), np.minimum(index + reach, smaller - 1)
    spacing = (values[high] - values[low]) / np.maximum(low - high, 1)
    room = np.maximum(2 / math.pi**2 * spacing**2, 1e-300)
    first = float((room * np.log1p(scale**2 / room)).sum()) if smaller > 8 else smaller * scale**2
    total = first + float(second @ second)
    expected = math.sqrt(total) / norm
    deviation = scale * math.sqrt((first / 2 + float(second @ second)) / total) / norm
    holds = scale * (math.sqrt(smaller) + math.sqrt(larger)) < 0.5 * float(values[0])
    return expected, float(deviation), bool(holds)


def rotation_square_null(values: np.ndarray, k: int, extra: int, scale: float) -> float:
    """First-order `E‖sin Θ‖_F²` of the top-k subspace: `s²·[Σ_{i≤k<j} (σ_i²+σ_j²)/(σ_i²−σ_j²)² + extra·Σ_{i≤k} σ_i⁻²]`.

    Args:
        values: all singular values of W0, descending.
        k: dimension of the subspace.
        extra: by how much this side exceeds the smaller side.
        scale: standard deviation of an entry of the update.
    """
    squares = values * values
    inside, outside = squares[:k, None], squares[None, k:]
    pairs = float(((inside + outside) / (inside - outside) ** 2).sum())
    return scale**2 * (pairs + extra * float((1 / squares[:k]).sum()))


def rotation_draws(
    values: np.ndarray, k: int, extra: tuple[int, ...], scale: float, draws: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Sampled principal angles of the top-k subspaces of `W0 + s·G` to first order in the rotation's generator.

    Draws the k × (p − k) block of the generator, whose entries are independent with variance
    `s²(σ_i²+σ_j²)/(σ_i²−σ_j²)²`, regularized at the scale of the perturbation, and reads the angles off its singular
    values by their tangents. The directions beyond p (variance `s²/σ_i²`) enter as the Wishart matrix that they sum to.

    Args:
        values: all singular values of W0, descending.
        k: dimension of the subspace.
        extra: per side, by how much it exceeds the smaller side.
        scale: standard deviation of an entry of the update.
        draws: number of draws.
        rng: source of the draws; the same draws serve every side.

    Returns:
        Per side an array `[draws, k]` of angles in radians, ascending.
    """
    squares = values * values
    inside, outside = squares[:k, None], squares[None, k:]
    together = inside + outside
    deviation = np.sqrt(together / ((inside - outside) ** 2 + 2 * scale**2 * together))
    deviation = (scale * deviation).astype(np.float32)
    beyond = (scale / np.sqrt(np.maximum(squares[:k], scale**2))).astype(np.float32)[:, None]
    results = [np.empty((draws, k)) for _ in extra]
    for draw in range(draws):
        block = rng.standard_normal((k, values.size - k), np.float32)
        block *= deviation
        gram = np.zeros((k, k), np.float32, order="F")
        lapack.add_gram(gram, block.T)
        for side, more in enumerate(extra):
            if side and more == extra[0]:
                results[side][draw] = results[0][draw]
                continue
            full = gram.copy(order="F")
            if more:
                lapack.add_gram(full, (beyond * _wishart_root(k, more, rng)).T)
            tangents = np.sqrt(np.maximum(lapack.symmetric_values(full), 0))
            results[side][draw] = np.arctan(tangents)
    return results


def _wishart_root(size: int, freedom: int, rng: np.random.Generator) -> np.ndarray:
    """L with `L·Lᵀ` a Wishart matrix of the given degrees of freedom, by Bartlett's form at full rank."""
    if freedom < size:
        return rng.standard_normal((size, freedom), np.float32)
    root = np.tril(rng.standard_normal((size, size), np.float32), -1)
    root[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    return root
