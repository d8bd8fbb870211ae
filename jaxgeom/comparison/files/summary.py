"""From rows per matrix to the report's summary, groups and coverage."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxgeom.comparison.files.population import MODULES

Row = dict[str, Any]

COUNTED = ("sparsity_bf16", "sparsity_stored", "sparsity_abs_1e-5", "density_bf16", "share_beyond_half_ulp")
"""Statistics that are averaged by parameter count over every parameter; `sparsity_rms_*` are too."""

_LABELS = ("name", "tensor", "shape", "layer", "module", "group", "parameters")
FURTHER_NULLS = ("profile", "permutation")
"""Nulls that some statistics have beside their first one: `<name>_<null>_null`, `_excess` and `_z`."""

_SUFFIXES = ("_null", "_excess", "_z")


def is_counted(statistic: str) -> bool:
    """Whether a statistic is averaged by parameter count."""
    return statistic in COUNTED or statistic.startswith("sparsity_")


def statistics_of(rows: Iterable[Row]) -> list[str]:
    """The statistics that occur in rows, in order, without labels, nulls, notes and lists."""
    found: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key in _LABELS or key.endswith(_SUFFIXES) or isinstance(value, str | list | bool):
                continue
            if key in ("angle_k", "hill_k", "projection_k", "mask_rank"):
                continue
            found[key] = None
    return list(found)


def _values(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row[key], row["parameters"]) for row in rows if row.get(key) is not None]
    return np.array([value for value, _ in pairs], float), np.array([weight for _, weight in pairs], float)


def summarize(rows: Sequence[Row], statistic: str, *, weighted: bool) -> dict[str, Any]:
    """Mean, median, count and, where there is a null, its mean and the mean excess; the weights are said with it.

    Further nulls add `<null>_null`, `<null>_excess` and `<null>_count`, the number of rows that have it.
    """
    values, weights = _values(rows, statistic)
    result: dict[str, Any] = {"mean": None, "median": None, "count": int(values.size), "null": None, "excess": None}
    result["weights"] = "parameters" if weighted else "none"
    if not values.size:
        return result

    def average(v: np.ndarray, w: np.ndarray) -> float:
        return float(np.average(v, weights=w if weighted else None))

    result["mean"], result["median"] = average(values, weights), float(np.median(values))
    for name in ("null", "excess"):
        theirs, their_weights = _values(rows, f"{statistic}_{name}")
        if theirs.size:
            result[name] = average(theirs, their_weights)
    for kind in FURTHER_NULLS:
        for name in ("null", "excess"):
            theirs, their_weights = _values(rows, f"{statistic}_{kind}_{name}")
            if theirs.size:
                result |= {f"{kind}_{name}": average(theirs, their_weights), f"{kind}_count": int(theirs.size)}
    return result


def summary_of(matrices: Sequence[Row], parameters: Sequence[Row]) -> dict[str, Any]:
    """Per statistic: sparsity over every parameter, by count; everything else a plain mean over matrices."""
    result = {}
    for statistic in statistics_of([*matrices, *parameters]):
        counted = is_counted(statistic)
        result[statistic] = summarize([*matrices, *parameters] if counted else matrices, statistic, weighted=counted)
    return result


def groups_of(matrices: Sequence[Row], parameters: Sequence[Row]) -> dict[str, Any]:
    """Summaries per module, per layer, and of sparsity per group of parameters."""
    statistics = statistics_of(matrices)

    def split(key: str) -> dict[str, Any]:
        labels = list(dict.fromkeys(row[key] for row in matrices if row[key] is not None))
        labels.sort(key=MODULES.index if key == "module" else None)
        table = {}
        for label in labels:
            rows = [row for row in matrices if row[key] == label]
            table[str(label)] = {name: summarize(rows, name, weighted=is_counted(name)) for name in statistics}
        return table

    everything = [*matrices, *parameters]
    sparsity = {"all": everything, "matrices": list(matrices)}
    for row in parameters:
        sparsity.setdefault(row["group"], []).append(row)
    counted = [name for name in statistics_of(everything) if is_counted(name)]
    return {
        "module": split("module"),
        "layer": split("layer"),
        "sparsity": {
            label: {name: summarize(rows, name, weighted=True) for name in counted} for label, rows in sparsity.items()
        },
    }


def coverage_of(matrices: Sequence[Row], parameters: Sequence[Row], total: int) -> dict[str, Any]:
    """Per statistic the share of the checkpoint's parameters and the number of matrices that it is taken of."""
    result = {}
    for statistic in statistics_of([*matrices, *parameters]):
        over = [*matrices, *parameters] if is_counted(statistic) else matrices
        held = [row for row in over if row.get(statistic) is not None]
        share = sum(row["parameters"] for row in held) / total if total else 0.0
        result[statistic] = {"parameters": share, "matrices": sum(1 for row in held if row["group"] == "matrices")}
    return result
