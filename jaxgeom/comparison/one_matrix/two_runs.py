"""One matrix of two runs from one origin: changed masks, updates and leading subspaces, each with its nulls."""

from collections.abc import Sequence

import numpy as np

from jaxgeom.comparison.algebra.matrix import Matrix, MatrixMaker
from jaxgeom.comparison.one_matrix.rows import Row, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums, widen
from jaxgeom.comparison.one_matrix.subspaces import inner_and_alignment, right_subspace, similarity
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.between import MASK_STATISTICS, overlap_statistics_between, residual_share, rounds_alike
from jaxgeom.diagnostics.null_similarity import similarity_curve
from jaxgeom.diagnostics.null_trajectory import carried_directions
from jaxgeom.diagnostics.path_numbers import orthogonal_statistics
from jaxgeom.diagnostics.rounding_cells import cells_of
from jaxgeom.diagnostics.shared_rounding import shared_cosine
from jaxgeom.diagnostics.similarity_numbers import similarity_between
from jaxgeom.diagnostics.spectral_numbers import capped_rank

STATISTICS = (*MASK_STATISTICS, "orthogonal_share", "subspace_similarity")


def measure_pair(
    origin: np.ndarray,
    final_a: np.ndarray,
    final_b: np.ndarray,
    settings: CompareSettings,
    make_matrix: MatrixMaker = Matrix,
) -> Row:
    """What the updates of two runs share in one matrix.

    Args:
        origin: stored W0 `[out, in]`.
        final_a, final_b: stored ends of the runs, same shape.
        settings: parameters; `subspace_k` is K.
        make_matrix: `Matrix`, or what makes one on an accelerator.

    Returns:
        The statistics under their names, each with `_null`, `_excess` and `_z`; for masks those are over independence,
        and `_rounding_null`, `_rounding_excess`, `_rounding_z` over the rounding null. None and a note where a
        statistic is undefined.
    """
    masks, totals = [], []
    for final in (final_a, final_b):
        masks.append(np.empty(origin.size, bool))
        totals.append(EntrySums())
        totals[-1].add(origin, final, eta=settings.eta, rms=0.0, changed_out=masks[-1])
    row: Row = {"density_a": totals[0].density, "density_b": totals[1].density}
    _mask_statistics(row, int(np.count_nonzero(masks[0] & masks[1])), totals, settings)
    start = widen(origin)
    updates = [make_matrix(widen(final), start) for final in (final_a, final_b)]
    _update_statistics(row, updates, totals, settings)
    return row


def _update_statistics(
    row: Row, updates: Sequence[Matrix], totals: Sequence[EntrySums], settings: CompareSettings
) -> None:
    squares = (totals[0].delta_squares, totals[1].delta_squares)
    rows, columns = updates[0].array.shape
    k = capped_rank(settings.subspace_k, (rows, columns))
    row["subspace_k"] = k
    if min(squares) == 0:
        still = " and ".join(name for name, square in zip("AB", squares, strict=True) if square == 0)
        row |= {"orthogonal_share": None, "subspace_similarity": None}
        row["orthogonal_note"] = row["subspace_note"] = f"undefined: the update of run {still} is exactly zero"
        return
    shape = (rows, columns)
    product, alignment = inner_and_alignment(updates[0], updates[1])
    blocks = ((updates[0].block(where), updates[1].block(where)) for where in updates[0].blocks())
    share = residual_share(blocks, product / squares[1], np.float64(squares[0]), product=np.vdot)
    expected = shared_cosine(totals[0].counts, totals[1].counts)
    numbers = orthogonal_statistics(
        share, product, *map(np.float64, squares), alignment=alignment, expected=expected, shape=shape
    )
    shared = np.float64(similarity(*(right_subspace(update, k) for update in updates)))
    kurtoses = [np.float64(one.kurtosis) for one in totals]
    numbers |= similarity_between(
        shared, expected=expected, curve=lambda: similarity_curve(shape, k=k, seed=settings.seed), shape=shape, k=k,
        kurtoses=kurtoses,
    )  # fmt: skip
    put_numbers(row, numbers)
    if expected != 0:
        what = "null" if np.isnan(expected) else "z"
        row["orthogonal_note"] = row["subspace_note"] = (
            f"no {what}: both runs are rounded to a grid that W0 is not on, and their updates share that error of W0"
        )
    elif not all(carried_directions(shape, kurtosis).known for kurtosis in kurtoses):
        what = "null" if row["subspace_similarity_null"] is None else "z"
        row["subspace_note"] = f"no {what}: few entries carry an update, and its directions lean towards their columns"
    if row["subspace_similarity"] is None:
        row["subspace_note"] = f"undefined: an update has fewer than {k} directions"


def _mask_statistics(row: Row, both: int, totals: Sequence[EntrySums], settings: CompareSettings) -> None:
    changed = (totals[0].changed, totals[1].changed)
    first, second = (one.counts for one in totals)
    known = rounds_alike(first, second)
    put_numbers(row, overlap_statistics_between(cells_of(first, settings.eta), both, *changed, known=known))
    still = " and ".join(name for name, count in zip("AB", changed, strict=True) if not count)
    note = ""
    if still:
        note = f"undefined: nothing changed in the bfloat16 view of run {still}"
    elif not known:
        note = "no rounding null: float16 ends are rounded again to bfloat16, W0 or the other end is not"
    elif row["jaccard_rounding_null"] is None:
        note = "no rounding null: every entry changed, so its noise has no finite scale"
    if note:
        row["overlap_note"] = row["jaccard_note"] = note
