"""One matrix of two runs from one origin: changed masks, updates and leading subspaces, each with its nulls."""

import math
from collections.abc import Sequence

import numpy as np

from jaxgeom.comparison.algebra.matrix import Matrix, MatrixForm
from jaxgeom.comparison.one_matrix.rounding import RoundingNull
from jaxgeom.comparison.one_matrix.rows import Row, put, put_numbers
from jaxgeom.comparison.one_matrix.scan import ElementTotals, widen
from jaxgeom.comparison.one_matrix.subspaces import inner_and_alignment, right_subspace, similarity
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.path_numbers import orthogonal_statistics, similarity_beside_chance

MASK_STATISTICS = ("jaccard", "overlap_a_in_b", "overlap_b_in_a")
STATISTICS = (*MASK_STATISTICS, "orthogonal_share", "subspace_similarity")

Null = tuple[float, float]
"""Expected value and standard deviation."""


def measure_pair(
    origin: np.ndarray, final_a: np.ndarray, final_b: np.ndarray, settings: CompareSettings, form: MatrixForm = Matrix
) -> Row:
    """What the updates of two runs share in one matrix.

    Args:
        origin: stored W0 `[out, in]`.
        final_a, final_b: stored ends of the runs, same shape.
        settings: parameters; `subspace_k` is K.
        form: makes matrices where their algebra is to run.

    Returns:
        The statistics under their names; `_null` (independence), for masks `_rounding_null`, and `_excess` and `_z`
        over the rounding null, or over independence where the rounding null has no finite scale. None and a note where
        a statistic is undefined.
    """
    masks, totals = [], []
    for final in (final_a, final_b):
        masks.append(np.empty(origin.size, bool))
        totals.append(ElementTotals())
        totals[-1].add(origin, final, eta=settings.eta, rms=0.0, changed_out=masks[-1])
    row: Row = {"density_a": totals[0].density, "density_b": totals[1].density}
    _mask_statistics(row, int(np.count_nonzero(masks[0] & masks[1])), totals, settings)
    start = widen(origin)
    updates = [form(widen(final), start) for final in (final_a, final_b)]
    _update_statistics(row, updates, (totals[0].delta_squares, totals[1].delta_squares), settings)
    return row


def _update_statistics(
    row: Row, updates: Sequence[Matrix], squares: tuple[float, float], settings: CompareSettings
) -> None:
    rows, columns = updates[0].array.shape
    k = min(settings.subspace_k, max(1, min(rows, columns) - 1))
    row["subspace_k"] = k
    if min(squares) == 0:
        still = " and ".join(name for name, square in zip("AB", squares, strict=True) if square == 0)
        row |= {"orthogonal_share": None, "subspace_similarity": None}
        row["orthogonal_note"] = row["subspace_note"] = f"undefined: the update of run {still} is exactly zero"
        return
    shape = (rows, columns)
    product, alignment = inner_and_alignment(updates[0], updates[1])
    share = np.float64(_residual_share(updates[0], updates[1], product / squares[1], squares[0]))
    numbers = orthogonal_statistics(share, product, *map(np.float64, squares), alignment=alignment, shape=shape)
    shared = np.float64(similarity(*(right_subspace(update, k) for update in updates)))
    put_numbers(row, numbers | similarity_beside_chance("subspace_similarity", shared, shape=shape, k=k))
    if row["subspace_similarity"] is None:
        row["subspace_note"] = f"undefined: an update has fewer than {k} directions"


def _residual_share(first: Matrix, second: Matrix, factor: float, squares: float) -> float:
    """`‖A − factor·B‖²/‖A‖²`, in which nearly parallel updates keep their digits."""
    total = 0.0
    for where in first.blocks():
        residual = first.block(where) - factor * second.block(where)
        total += float(np.vdot(residual, residual))
    return min(1.0, total / squares)


def _mask_statistics(row: Row, both: int, totals: Sequence[ElementTotals], settings: CompareSettings) -> None:
    changed = (totals[0].changed, totals[1].changed)
    sizes = dict(zip(MASK_STATISTICS, (changed[0] + changed[1] - both, changed[1], changed[0]), strict=True))
    independent = independence_nulls(totals[0].count, changed)
    rounding = rounding_nulls(totals, settings.eta)
    for name, size in sizes.items():
        if not size:
            row[name] = None
            continue
        put(row, name, both / size, rounding[name] if rounding is not None else independent[name])
        row[f"{name}_null"] = independent[name][0]
        row[f"{name}_rounding_null"] = rounding[name][0] if rounding is not None else None
    still = " and ".join(name for name, count in zip("AB", changed, strict=True) if not count)
    if still:
        row["overlap_note"] = f"undefined: nothing changed in the bfloat16 view of run {still}"
    elif rounding is None:
        row["overlap_note"] = "no rounding null: every entry changed, so its noise has no finite scale"


def independence_nulls(count: int, changed: tuple[int, int]) -> dict[str, Null]:
    """Overlaps of two masks of the observed sizes laid at random: hypergeometric.

    `E|A ∩ B| = ab/N`, `Var|A ∩ B| = ab(N−a)(N−b)/(N²(N−1))`.

    Args:
        count: N, entries of the matrix.
        changed: a and b, the sizes of the masks.
    """
    a, b = map(float, changed)
    variance = a * b * (count - a) * (count - b) / (count**2 * max(count - 1, 1))
    return _overlaps(a, b, a * b / count, variance)


def rounding_nulls(totals: Sequence[ElementTotals], eta: float) -> dict[str, Null] | None:
    """Overlaps of two independent Gaussian updates whose scales give the observed densities, after rounding.

    With p_A, p_B the probabilities that an entry changes and q that it changes in both runs, `E|A ∩ B| = Σq`. The
    sizes of the masks are the observed ones, so the variance is that of `|A ∩ B|` given them (Gaussian conditioning:
    `Var x − cᵀΣ⁻¹c`, c the covariances of x with the sizes and Σ theirs).

    Args:
        totals: scans of both updates of one W0.
        eta: relative tolerance of the unchanged test.

    Returns:
        Expected value and standard deviation per statistic; None where a density of 0 or 1 fixes no scale.
    """
    null = RoundingNull(totals[0].histogram, eta, totals[0].on_grid)
    first, second = (null.scale_for_density(side.density) for side in totals)
    if first is None or second is None:
        return None
    pa, pb = null.probability(first), null.probability(second)
    both, counts = null.joint_probability(first, second), null.counts
    sizes = np.array(
        [[counts @ (pa * (1 - pa)), counts @ (both - pa * pb)], [counts @ (both - pa * pb), counts @ (pb * (1 - pb))]]
    )
    cross = np.array([counts @ (both * (1 - pa)), counts @ (both * (1 - pb))])
    variance = float(counts @ (both * (1 - both)) - cross @ np.linalg.pinv(sizes) @ cross)
    return _overlaps(float(counts @ pa), float(counts @ pb), float(counts @ both), variance)


def _overlaps(a: float, b: float, both: float, variance: float) -> dict[str, Null]:
    """Jaccard index and one-sided overlaps from `|A|`, `|B|` and the law of `|A ∩ B|`; the Jaccard by delta method."""
    deviation, either = math.sqrt(max(variance, 0.0)), a + b - both
    return {
        "jaccard": (both / either, deviation * (a + b) / either**2) if either else (0.0, 0.0),
        "overlap_a_in_b": (both / b, deviation / b) if b else (0.0, 0.0),
        "overlap_b_in_a": (both / a, deviation / a) if a else (0.0, 0.0),
    }
