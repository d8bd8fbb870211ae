"""Isotropic nulls of shape: what the spectrum of a direction-free Gaussian update gives, whatever its scale.

The singular values of an m × n Gaussian matrix follow the quarter-circle family (Marchenko and Pastur) up to O(1)
shifts in rank, and their largest one the Tracy–Widom law; so the expected ranks need no draw. Their fluctuations are
those of a linear spectral statistic, O(1) in rank whatever the size: calibrated once per aspect ratio on small draws.
"""

import functools
from collections.abc import Callable

import numpy as np

_TRACY_WIDOM_MEAN, _TRACY_WIDOM_VARIANCE = -1.2065335745820, 1.6077810345810
_CALIBRATION_SIZE, _CALIBRATION_DRAWS, _CALIBRATION_SEED = 96, 32, 20260


@functools.lru_cache(maxsize=64)
def isotropic_spectrum(rows: int, columns: int) -> np.ndarray:
    """Expected singular values, descending, of a `rows × columns` matrix of independent standard normal entries."""
    smaller, larger = min(rows, columns), max(rows, columns)
    ratio = smaller / larger
    angle = (np.arange(1 << 16) + 0.5) * (np.pi / (1 << 16))
    square = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(angle)
    mass = np.cumsum(np.sin(angle) ** 2 / square)
    mass /= mass[-1]
    positions = (np.arange(smaller) + 0.5) / smaller
    values = np.sqrt(np.maximum(larger * np.interp(positions, mass, square), 0))
    values[0] = np.sqrt(top_square(rows, columns)[0])
    values.setflags(write=False)
    return values


def top_square(rows: int, columns: int) -> tuple[float, float]:
    """Mean and standard deviation of the largest squared singular value of a standard normal matrix.

    Reference:
        Johnstone, *On the distribution of the largest eigenvalue in principal components analysis* (2001).
    """
    a, b = np.sqrt(max(rows, columns) - 0.5), np.sqrt(min(rows, columns) - 0.5)
    center, width = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(center + _TRACY_WIDOM_MEAN * width), float(np.sqrt(_TRACY_WIDOM_VARIANCE) * width)


def stable_rank_null(rows: int, columns: int) -> tuple[float, float]:
    """Expected stable rank of isotropic noise, `mn/E σ₁²`, and its standard deviation."""
    mean, deviation = top_square(rows, columns)
    value = rows * columns / mean
    return value, value * deviation / mean


@functools.lru_cache(maxsize=64)
def _calibration_spectra(aspect: float, smaller: int) -> tuple[np.ndarray, ...]:
    larger = max(smaller, round(smaller * aspect))
    rng = np.random.default_rng(_CALIBRATION_SEED)
    draws = []
    for _ in range(_CALIBRATION_DRAWS):
        sample = rng.standard_normal((larger, smaller))
        draws.append(np.sqrt(np.maximum(np.linalg.eigvalsh(sample.T @ sample)[::-1], 1e-300)))
    return tuple(draws)


def spectral_null(
    rows: int, columns: int, statistic: Callable[[np.ndarray, int], float], order: Callable[[int], int]
) -> tuple[float, float]:
    """Expected value and standard deviation of a smooth spectral statistic of isotropic noise.

    Args:
        rows, columns: shape of the matrix.
        statistic: of descending singular values and an order k.
        order: k for a given smaller side.
    """
    smaller, larger = min(rows, columns), max(rows, columns)
    small = min(smaller, _CALIBRATION_SIZE)
    k = order(smaller)
    reduced = min(max(2, round(k * small / smaller)), small)
    values = np.array(
        [statistic(spectrum, reduced) for spectrum in _calibration_spectra(round(larger / smaller, 6), small)]
    )
    if small == smaller:
        return float(values.mean()), float(values.std(ddof=1))
    expected = statistic(isotropic_spectrum(rows, columns), k)
    return expected, float(expected * values.std(ddof=1) / values.mean() * small / smaller)
