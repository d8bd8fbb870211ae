"""Updates as a comparison reads them: inner products, leading right subspaces, and how far two of those agree."""

import numpy as np

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.krylov import leading_directions
from jaxgeom.comparison.algebra.matrix import Matrix


def similarity(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    """`‖V_K(s)ᵀ V_K(t)‖_F²/K`; None where one of the two updates has no such subspace."""
    if first is None or second is None:
        return None
    cosines = lapack.multiply(np.asfortranarray(first).T, np.asfortranarray(second))
    return float(np.vdot(cosines, cosines)) / first.shape[1]


def right_subspace(update: Matrix, k: int) -> np.ndarray | None:
    """Leading right singular vectors of an update by block Krylov iteration.

    None where it has fewer than k directions.
    """
    short, long, values = leading_directions(update, k, passes=8)
    if values[0] == 0 or values[-1] <= 1e-6 * values[0]:
        return None
    return long if update.is_wide else short


def inner(first: Matrix, second: Matrix) -> float:
    """`⟨A, B⟩` in float64."""
    total = 0.0
    for where in first.blocks():
        total += float(np.vdot(first.block(where), second.block(where)))
    return total
