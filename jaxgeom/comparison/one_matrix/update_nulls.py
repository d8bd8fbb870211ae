"""Nulls that keep something of the real update, written beside the statistics that are counted entry by entry.

The scale-profile and the permutation null of visible sparsity and of the overlaps have a closed form; ranks of permuted
updates are sampled.
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxgeom.comparison.algebra.krylov import leading_and_fourth
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.one_matrix.rows import Row, put_null, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums
from jaxgeom.comparison.one_matrix.update_cells import count_cells
from jaxgeom.diagnostics.entry_numbers import OVERLAPS
from jaxgeom.diagnostics.moments import moments_of_draws
from jaxgeom.diagnostics.null_permutation import permutation_statistics
from jaxgeom.diagnostics.null_profile import profile_statistics
from jaxgeom.diagnostics.update_numbers import participation_ratio_of_sums, stable_rank_of_sums

Moments = tuple[float, float]
"""Expected value and standard deviation of a statistic under a null."""


def put_update_nulls(
    row: Row,
    initial: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    *,
    totals: EntrySums,
    masks: Mapping[str, np.ndarray],
    eta: float,
) -> None:
    """Writes both nulls of visible sparsity and of the mask overlaps beside them; None where they are not defined.

    Neither is where W+ is stored unlike W0 (`EntryCounts.is_coarser`): the scales, or the entries, are those of W0's
    rounding error too.

    Args:
        row: holds the statistics.
        initial: stored W0 `[out, in]`.
        a, b: W0 and W+ widened to float32 `[out, in]`.
        totals: what was counted of the pair.
        masks: flat masks of W0 by overlap statistic; none where the overlaps are not defined.
        eta: relative tolerance of the unchanged test.
    """
    for name in ("sparsity_bf16", *OVERLAPS):
        for kind in ("_profile", "_permutation"):
            put_null(row, name, None, kind)
    if totals.delta_squares > 0 and not totals.counts.is_coarser:
        profile, permutation = count_cells(initial, a, b, totals, masks, eta=eta)
        values = {name: np.float64(row[name]) for name in ("sparsity_bf16", *masks)}
        put_numbers(row, profile_statistics(profile, values, np.float64(totals.changed)))
        put_numbers(row, permutation_statistics(permutation, values))


def permuted_ranks(a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator) -> dict[str, Moments]:
    """Stable rank and participation ratio of ΔW with its entries in random places, sampled.

    A draw costs a permutation of the entries, a float32 Gram matrix of the smaller side and a few Lanczos steps.

    Args:
        a, b: W0 and W+ in float32 `[out, in]`.
        draws: number of draws, at least 2.
        rng: source of the permutations.

    Returns:
        Expected value and deviation per statistic; nothing for a zero update.
    """
    delta = b - a
    if not delta.any():
        return {}
    delta *= np.float32(2.0 ** -np.clip(math.frexp(float(np.abs(delta).max()))[1], -126, 126))
    squares = np.einsum("ij,ij->", delta, delta, dtype=np.float64)
    found = []
    for _ in range(draws):
        rng.shuffle(delta.reshape(-1))
        top, fourth = map(np.float64, leading_and_fourth(Matrix(delta)))
        found.append((stable_rank_of_sums(squares, top), participation_ratio_of_sums(squares, top, fourth)))
    mean, std = moments_of_draws(np.array(found))
    return {name: (float(mean[i]), float(std[i])) for i, name in enumerate(("stable_rank", "participation_ratio"))}
