"""Two runs from one origin: do they change the same entries, in the same directions?"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.comparison.device import require_host
from jaxgeom.comparison.engine import Progress, Reader, check_pair, measure_parts, plan_parts, version
from jaxgeom.comparison.population import Part
from jaxgeom.comparison.rounding import RoundingNull
from jaxgeom.comparison.rows import put
from jaxgeom.comparison.scan import ElementTotals, require_finite, widen
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.comparison.spectrum import Matrix
from jaxgeom.comparison.trajectory_matrix import inner, right_subspace, similarity

STATISTICS = ("jaccard", "overlap_a_in_b", "overlap_b_in_a", "orthogonal_share", "subspace_similarity")

NULL_FORMS = {
    "<overlap>_null": "closed: independent masks of the observed densities",
    "<overlap>_rounding_null": "closed: two independent rounded Gaussian updates of the observed densities",
    "orthogonal_share": "closed: 1 - 1/(mn)",
    "subspace_similarity": "closed: K/n",
}


def between_runs(
    origin: Reader,
    final_a: Reader,
    final_b: Reader,
    settings: CompareSettings | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How much the updates of two runs share, beside what independent updates of the same visible densities share.

    `overlap_a_in_b = |A ∩ B|/|B|` for the changed masks A and B of the bfloat16 view, `jaccard = |A ∩ B|/|A ∪ B|`,
    `orthogonal_share = 1 − cos²(ΔW_A, ΔW_B)`, `subspace_similarity = ‖V_K(A)ᵀV_K(B)‖_F²/K`.

    Args:
        origin: checkpoint that both runs started from.
        final_a: end of run A.
        final_b: end of run B.
        settings: parameters; `subspace_k` is K.
        progress: called after each matrix.

    Returns:
        Means over matrices under the statistics' names with `_null`, `_rounding_null` and `_excess` (over the rounding
        null where there is one), `groups` per module, `coverage`, `settings`, and the rows in `matrices`.

    Raises:
        UserError: mismatched or non-finite weights.
    """
    settings = settings or CompareSettings()
    require_host(settings.device, "between_runs")
    names = check_pair(origin, final_a, settings)
    check_pair(origin, final_b, settings)
    parts = [part for part in plan_parts(origin, names) if part.is_matrix]
    rows: dict[str, dict[str, Any]] = {}
    total, done, lock = sum(part.size for part in parts), 0, threading.Lock()

    def read(part: Part) -> list[np.ndarray]:
        arrays = []
        for side in (origin, final_a, final_b):
            arrays.append(part.read(side[part.tensor]))
            require_finite(arrays[-1], f"{side.name}: {part.name}")
        return arrays

    def finished(part: Part, row: dict[str, Any]) -> None:
        nonlocal done
        with lock:
            labels = {"name": part.name, "shape": list(part.shape), "module": part.module, "layer": part.layer}
            rows[part.name] = labels | {"parameters": part.size} | row
            done += part.size
        if progress is not None:
            progress(done, total, part.name)

    measure_parts(parts, read, lambda part, arrays: _measure(arrays, settings), finished)
    ordered = [rows[part.name] for part in parts]
    everything = sum(origin[name].size for name in origin)
    coverage = {
        name: {
            "parameters": sum(row["parameters"] for row in ordered if row[name] is not None) / everything,
            "matrices": sum(1 for row in ordered if row[name] is not None),
        }
        for name in STATISTICS
    }
    modules = dict.fromkeys(row["module"] for row in ordered)
    return {
        "schema": 1,
        "kind": "between",
        "version": version(),
        "inputs": {
            side: {"name": c.name, "dtype": c.dtype} for side, c in (("origin", origin), ("a", final_a), ("b", final_b))
        },
        "settings": settings.to_json() | {"null_forms": NULL_FORMS},
        "coverage": coverage,
        **_means(ordered),
        "groups": {
            "module": {module: _means([row for row in ordered if row["module"] == module]) for module in modules}
        },
        "matrices": ordered,
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for name in STATISTICS:
        for key in (name, f"{name}_null", f"{name}_rounding_null", f"{name}_excess"):
            if not any(key in row for row in rows):
                continue
            values = [row[key] for row in rows if row.get(key) is not None]
            result[key] = float(np.mean(values)) if values else None
    return result


def _measure(arrays: list[np.ndarray], settings: CompareSettings) -> dict[str, Any]:
    origin, final_a, final_b = arrays
    masks, totals = [], []
    for final in (final_a, final_b):
        masks.append(np.empty(origin.size, bool))
        totals.append(ElementTotals())
        totals[-1].add(origin, final, eta=settings.eta, rms=0.0, changed_out=masks[-1])
    row: dict[str, Any] = {}
    _mask_statistics(row, masks, totals, settings)
    start, a, b = widen(origin), widen(final_a), widen(final_b)
    first, second = Matrix(a, start), Matrix(b, start)
    squares = (totals[0].delta_squares, totals[1].delta_squares)
    if min(squares) == 0:
        return row | {"orthogonal_share": None, "subspace_similarity": None}
    put(
        row,
        "orthogonal_share",
        _orthogonal_share(first, second, squares),
        (1 - 1 / origin.size, math.sqrt(2) / origin.size),
    )
    k = min(settings.subspace_k, max(1, min(origin.shape) - 1))
    shared = similarity(right_subspace(first, k), right_subspace(second, k))
    n = origin.shape[1]
    deviation = math.sqrt(2 * (n - k) ** 2 / (n * n * (n - 1) * (n + 2))) if n > k and n > 1 else 0.0
    put(row, "subspace_similarity", shared, (min(1.0, k / n), deviation))
    row["subspace_k"] = k
    return row


def _orthogonal_share(first: Matrix, second: Matrix, squares: tuple[float, float]) -> float:
    """`1 − cos²` from the residual, so that nearly parallel updates keep their digits."""
    factor = inner(first, second) / squares[1]
    total = 0.0
    for where in first.blocks():
        residual = first.block(where) - factor * second.block(where)
        total += float(np.vdot(residual, residual))
    return min(1.0, total / squares[0])


def _mask_statistics(
    row: dict[str, Any], masks: list[np.ndarray], totals: list[ElementTotals], settings: CompareSettings
) -> None:
    both = int(np.count_nonzero(masks[0] & masks[1]))
    changed = (totals[0].changed, totals[1].changed)
    either = changed[0] + changed[1] - both
    density = (totals[0].density, totals[1].density)
    union = density[0] + density[1] - density[0] * density[1]
    null = RoundingNull(totals[0].histogram, settings.eta, totals[0].on_grid)
    scales = [null.scale_for_density(value) for value in density]
    expected = None
    if scales[0] is not None and scales[1] is not None:
        pa, pb = null.probability(scales[0]), null.probability(scales[1])
        n_both, n_a, n_b = (float(null.counts @ p) for p in (null.joint_probability(scales[0], scales[1]), pa, pb))
        expected = {
            "jaccard": n_both / (n_a + n_b - n_both),
            "overlap_a_in_b": n_both / n_b,
            "overlap_b_in_a": n_both / n_a,
        }
    independent = {"jaccard": density[0] * density[1] / union if union else 0.0}
    independent |= {"overlap_a_in_b": density[0], "overlap_b_in_a": density[1]}
    for name, size in (("jaccard", either), ("overlap_a_in_b", changed[1]), ("overlap_b_in_a", changed[0])):
        value = both / size if size else None
        row[name] = value
        row[f"{name}_null"] = independent[name] if size else None
        rounding = expected[name] if expected is not None else None
        row[f"{name}_rounding_null"] = rounding
        baseline = rounding if rounding is not None else row[f"{name}_null"]
        row[f"{name}_excess"] = None if value is None or baseline is None else value - baseline
