"""What is counted entry by entry, written into the row of a matrix: sparsities, norms, overlaps with masks of W0."""

from collections.abc import Mapping

import numpy as np

from jaxgeom.comparison.one_matrix.rows import Row, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums
from jaxgeom.diagnostics.entry_numbers import (  # fmt: skip
    OVERLAPS,
    MaskCounts,
    entry_statistics,
    hidden_by_decile,
    overlap_statistics,
)

UNLIKE = "W+ is rounded to another grid than W0 is stored on, so that ΔW holds the rounding of W0's own places"
"""Why nulls are missing where the two sides are stored unlike."""


def put_entries(row: Row, sums: EntrySums, eta: float) -> None:
    """Sparsities with their null, norms of the update, its decay component.

    Args:
        row: receives them.
        sums: what was counted of the pair.
        eta: relative tolerance of the unchanged test.
    """
    counts = sums.counts
    put_numbers(row, entry_statistics(counts, eta=eta))
    if counts.is_coarser:
        what = "null" if row["sparsity_bf16_null"] is None else "z"
        hides = ", which hides its noise" if what == "null" and counts.is_open and not counts.is_half_alone else ""
        row["sparsity_note"] = row["density_note"] = f"no {what}: {UNLIKE}{hides}"
        row["decay_note"] = f"no z: {UNLIKE}"
    hidden = hidden_by_decile(counts)
    row["hidden_by_decile"] = [float(share) if np.isfinite(share) else None for share in hidden]


def put_overlaps(
    row: Row, sums: EntrySums, masks: Mapping[str, tuple[np.ndarray, np.ndarray]], changed: np.ndarray, eta: float
) -> None:
    """Overlaps of the changed entries with masks of W0, beside the rounding null.

    Args:
        row: receives them, and an `overlap_note` where none is defined.
        sums: what was counted of the pair.
        masks: by statistic, flat bool `[out·in]` and its histogram over magnitudes `[2¹⁵]`; those that are missing are
            undefined.
        changed: flat mask of the changed entries `[out·in]`.
        eta: relative tolerance of the unchanged test.
    """
    counted = dict.fromkeys(OVERLAPS) | {
        name: MaskCounts(histogram, int(np.count_nonzero(mask & changed))) for name, (mask, histogram) in masks.items()
    }
    put_numbers(row, overlap_statistics(sums.counts, counted, eta=eta))
    if sums.counts.is_half_alone:
        row["overlap_note"] = "no null: W+ is rounded to float16 and then to bfloat16, W0 is not"
    elif sums.counts.is_coarser:
        row["overlap_note"] = f"no scale-profile and no permutation null: {UNLIKE}"
    if sums.changed == 0 or sums.initial_squares == 0:
        still = "nothing changed in the bfloat16 view" if sums.changed == 0 else "the initial matrix is zero"
        row["overlap_note"] = f"undefined: {still}"
