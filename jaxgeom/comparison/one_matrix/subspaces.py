"""Updates as a comparison reads them: inner products, leading right subspaces, and how far two of those agree."""

import math

import numpy as np

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.krylov import leading_directions
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import decompose
from jaxgeom.diagnostics.subspaces import has_directions, similarity_from_bases

_WEAK = 1e-2
"""Share of σ₁ below which a float32 Gram matrix, whose entries are good to 6e-8·σ₁², no longer tells a direction: to
6e-8/_WEAK² = 6e-4 radians here."""


def similarity(first: np.ndarray | None, second: np.ndarray | None) -> float:
    """`‖V_K(s)ᵀ V_K(t)‖_F²/K` of two bases `[n, K]`; NaN where one of the two updates has no such subspace."""
    if first is None or second is None:
        return math.nan
    return float(similarity_from_bases(np.asfortranarray(first), np.asfortranarray(second), product=lapack.multiply))


def right_subspace(update: Matrix, k: int) -> np.ndarray | None:
    """Leading right singular vectors of an update `[out, in]`: float64 `[in, k]`, from its float32 Gram matrix.

    In float64 where σ_k is below `_WEAK·σ₁`. None where it has fewer than k directions. Eight powers in place of six: a
    similarity compares whole subspaces, also where their last directions are close to the next ones.
    """
    short, long, values = leading_directions(update, k, passes=8)
    if values[0] > 0 and values[k - 1] < _WEAK * values[0]:
        found = decompose(update, k, long=update.is_wide)
        short, long, values = found.short, found.long, found.values
    if not has_directions(values, k):
        return None
    return long if update.is_wide else short


def inner(first: Matrix, second: Matrix) -> float:
    """`⟨A, B⟩` of two matrices `[out, in]`, in float64."""
    return inner_and_alignment(first, second)[0]


def inner_and_alignment(first: Matrix, second: Matrix) -> tuple[float, float]:
    """`⟨A, B⟩ = Σ ab` and `Σ (ab)²` of two matrices `[out, in]`, in float64."""
    total = squares = 0.0
    for where in first.blocks():
        products = first.block(where) * second.block(where)
        total += float(products.sum())
        squares += float(np.vdot(products, products))
    return total, squares
