"""Principal angles between the leading subspaces of W0 and W+ from float64 bases."""

from collections.abc import Callable

import numpy as np

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import Spectrum

_TINY = 1e-5

Multiply = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Product of two float64 matrices, on the host or on a device."""


def _squares(gram: np.ndarray) -> np.ndarray:
    return np.clip(lapack.symmetric_values(np.asfortranarray(gram)), 0, 1)


def angles_from_cosines(cosines: np.ndarray) -> np.ndarray:
    """Angles, ascending, from `U0ᵀU+` in float64: by `1 − cos²`, good to about 1e-7 rad, and by cos² beyond 45°."""
    k = cosines.shape[0]
    shared = np.zeros((k, k), order="F")
    lapack.add_gram(shared, cosines)
    sines = _squares(np.eye(k) - shared)
    angles = np.arcsin(np.sqrt(sines))
    if sines[-1] > 0.5:
        closeness = _squares(shared)[::-1]
        angles = np.where(sines > 0.5, np.arccos(np.sqrt(closeness)), angles)
    return angles


def angles_from_bases(initial: np.ndarray, final: np.ndarray, multiply: Multiply = lapack.multiply) -> np.ndarray:
    """Angles, ascending, by the sine branch: the part of `final` outside `initial`.

    Exact for rotations of any smallness.
    """
    cosines = multiply(initial.T, final)
    residual = final - multiply(initial, cosines)
    residual -= multiply(initial, multiply(initial.T, residual))
    sines = np.sqrt(_squares(multiply(residual.T, residual)))
    angles = np.arcsin(sines)
    if sines[-1] > 0.7:
        closeness = np.sqrt(_squares(multiply(cosines.T, cosines))[::-1])
        angles = np.where(sines > 0.7, np.arccos(closeness), angles)
    return angles


def principal_angles(
    base: Spectrum, final: Spectrum, update: Matrix, final_matrix: Matrix, pulled: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Angles of the smaller and of the longer side, radians ascending.

    The longer side needs no vectors of W+: with `W+ᵀU0 = V0Σ0 + ΔWᵀU0` its cosines are
    `U0ᵀU+ = (Σ0·V0ᵀV+ + (ΔWᵀU0)ᵀV+)·Σ+⁻¹`, all of it on the smaller side.

    Args:
        base: spectrum and vectors of W0.
        final: spectrum and short-side vectors of W+.
        update: ΔW, for its shape.
        final_matrix: W+, for the rotations so small that its own long vectors are formed; products run where it is.
        pulled: `ΔWᵀU0`, `[short, ≥ k]`, good to single precision.
        k: dimension of the subspaces.
    """
    short0, short1 = base.short[:, :k], final.short[:, :k]
    multiply = final_matrix.multiply
    cosines = multiply(short0.T, short1)
    short = angles_from_cosines(cosines)
    if short.mean() < _TINY:
        short = angles_from_bases(short0, short1, multiply)
    weak = min(base.values[k - 1] / base.values[0], final.values[k - 1] / final.values[0]) < 1e-2
    if final.long.shape[1] >= k:
        return short, angles_from_bases(base.long[:, :k], final.long[:, :k], multiply)
    if not weak:
        other = base.values[:k, None] * cosines + multiply(pulled[:, :k].T, short1)
        other /= final.values[:k]
        long = angles_from_cosines(np.asfortranarray(other))
        # An error of eps·‖ΔWᵀU0‖/σ_k in the cosines moves an angle θ by that over θ.
        reach = float(np.sqrt(np.einsum("ij,ij->j", pulled[:, :k], pulled[:, :k]).max())) / final.values[k - 1]
        if long.mean() >= max(_TINY, reach):
            return short, long
    vectors = final_matrix.times_short(np.asfortranarray(short1)) / final.values[:k]
    return short, angles_from_bases(base.long[:, :k], vectors, multiply)
