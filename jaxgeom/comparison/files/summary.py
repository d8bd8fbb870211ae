"""From rows per matrix to summaries, groups and coverage; a triple is always over one population.

Over which rows value, null, excess and z of a statistic are, and how they are weighted, is the rule of
`jaxgeom.diagnostics.population_means`, which `summarize` of measured trees follows too; the table of statistics says
which statistics are weighted by parameters and over every tensor, and which are plain means over the matrices.
"""

import functools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgeom.comparison.files.population import MODULES
from jaxgeom.diagnostics.population_means import means_over, population_mask
from jaxgeom.diagnostics.statistics import FURTHER, is_counted, split_key, statistic
from jaxgeom.diagnostics.weight_numbers import projection_rank

Row = dict[str, Any]

_TRIPLE = ("mean", "null", "excess", "count", "z")

LABELS = ("name", "tensor", "shape", "layer", "module", "group", "parameters", "tower")
"""What a row says of its matrix, beside what was measured."""


def keys_of(rows: Iterable[Row]) -> list[str]:
    """The statistics that occur in rows, in order, without labels, nulls, settings, notes and lists."""
    found: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key not in found and not isinstance(value, str | list | bool | dict) and _is_statistic(key):
                found[key] = None
    return list(found)


@functools.cache
def _is_statistic(key: str) -> bool:
    entry = statistic(key)
    return key not in LABELS and split_key(key)[2] == "value" and (entry is None or not entry.is_setting)


def population(rows: Iterable[Row], key: str, kind: str = "") -> list[Row]:
    """The rows that a statistic's triple is taken over.

    Args:
        rows: one a matrix or parameter.
        key: the statistic.
        kind: which of its further nulls; "" for the first one.

    Returns:
        The rows where value and null are defined; where none has a null (of what is weighted by parameters: where they
        are of less than half of the parameters), those where the value is.
    """
    rows = list(rows)
    if not rows:
        return []
    parameters = _parameters(rows) if is_counted(key) else None
    over = population_mask(_columns(rows, key, kind), further=bool(kind), parameters=parameters)
    return [row for row, chosen in zip(rows, over, strict=True) if chosen]


def _columns(rows: Sequence[Row], key: str, kind: str = "") -> dict[str, np.ndarray]:
    """Value, null and z of a statistic, float64 `[rows]` each, NaN where a row has None."""
    ahead = f"{key}_{kind}_" if kind else f"{key}_"
    names = {"value": key, "null": f"{ahead}null", "z": f"{ahead}z"}
    return {what: np.array([row.get(name) for row in rows], np.float64) for what, name in names.items()}


def _parameters(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["parameters"] for row in rows], np.float64)


def mean_of(rows: Sequence[Row], key: str, *, weighted: bool) -> float | None:
    """Mean of a key over rows that all have it, weighted by their parameters or plain; None for no rows."""
    if not rows or any(row.get(key) is None for row in rows):
        return None
    weights = [row["parameters"] for row in rows] if weighted else None
    return float(np.average([row[key] for row in rows], weights=weights))


def triple(rows: Iterable[Row], key: str, kind: str = "") -> dict[str, Any]:
    """Mean, null, excess (mean less null, exactly) and count over the statistic's population, and its mean z.

    Args:
        rows: one a matrix or parameter.
        key: the statistic.
        kind: which of its further nulls; "" for the first one.

    Returns:
        `{"mean", "null", "excess", "count", "z", "z_count"}`, None where undefined.
    """
    rows = list(rows)
    return _triples(rows, np.ones((1, len(rows)), bool), key, kind)[0][0]


def _triples(
    rows: Sequence[Row], members: np.ndarray, key: str, kind: str = ""
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Of every group, booleans `[groups, rows]`: what `triple` gives, and the values of its population."""
    parameters = _parameters(rows) if is_counted(key) else None
    weights = np.ones(len(rows)) if parameters is None else parameters
    columns = _columns(rows, key, kind)
    over = population_mask(columns, further=bool(kind), members=members, parameters=parameters)
    means = means_over(columns, weights, over)
    found = []
    for index, chosen in enumerate(over):
        mean, null, z = (_defined(means[what][index]) for what in ("value", "null", "z"))
        excess = None if mean is None or null is None else mean - null
        counts = {what: int(means[what][index]) for what in ("count", "z_count")}
        found.append(({"mean": mean, "null": null, "excess": excess, "z": z} | counts, columns["value"][chosen]))
    return found


def _defined(number: np.float64) -> float | None:
    return None if np.isnan(number) else float(number)


def summarize(rows: Sequence[Row], key: str) -> dict[str, Any]:
    """Mean, median, null and excess over one population, its size, and out of how many; how it was weighted.

    `z` is the mean over the `z_count` of them that have one. Each further null adds `<kind>_mean`, `<kind>_null`,
    `<kind>_excess`, `<kind>_count`, `<kind>_z` and `<kind>_z_count` over its own population.
    """
    return summarize_groups(rows, {"": range(len(rows))}, [key])[""][key]


def summarize_groups(
    rows: Sequence[Row], groups: Mapping[str, Sequence[int]], keys: Iterable[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """What `summarize` says of every group of rows and every statistic: `{group: {statistic: …}}`.

    Args:
        rows: of all groups.
        groups: by their names, the places in `rows` of those that belong to them.
        keys: the statistics.
    """
    members = np.zeros((len(groups), len(rows)), bool)
    for among, places in zip(members, groups.values(), strict=True):
        among[list(places)] = True
    found: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in groups}
    for key in keys:
        weights = "parameters" if is_counted(key) else "none"
        for (label, places), (own, values) in zip(groups.items(), _triples(rows, members, key), strict=True):
            median = statistics.median(values.tolist()) if values.size else None
            found[label][key] = own | {"median": median, "of": len(places), "weights": weights}
        for kind in FURTHER:
            has = np.array([f"{key}_{kind}_null" in row for row in rows], bool)
            if not has.any():
                continue
            for label, among, (own, _) in zip(groups, members, _triples(rows, members, key, kind), strict=True):
                if (has & among).any():
                    found[label][key] |= {f"{kind}_{name}": value for name, value in own.items()}
    return found


def of_text(rows: Iterable[Row]) -> list[Row]:
    """Rows without those of towers (vision, audio, …), which are groups of their own and in no other mean."""
    return [row for row in rows if row.get("tower") is None]


def summary_of(matrices: Sequence[Row], parameters: Sequence[Row] = ()) -> dict[str, Any]:
    """Per statistic: what is counted over every parameter, by their number; everything else a plain mean over matrices.

    Args:
        matrices: one row a matrix.
        parameters: one row a parameter that is no matrix of the layers.
    """
    matrices, everything = of_text(matrices), of_text([*matrices, *parameters])
    return {key: summarize(everything if is_counted(key) else matrices, key) for key in keys_of(everything)}


def groups_of(matrices: Sequence[Row], parameters: Sequence[Row] = ()) -> dict[str, Any]:
    """Summaries per module, per layer, per tower, and of what is counted per group of parameters."""
    towers: dict[str, list[Row]] = {}
    for row in (*matrices, *parameters):
        if row.get("tower") is not None:
            towers.setdefault(row["tower"], []).append(row)
    matrices, parameters = of_text(matrices), of_text(parameters)
    keys = keys_of(matrices)

    def split(label: str) -> dict[str, Any]:
        held: dict[Any, list[int]] = {}
        for place, row in enumerate(matrices):
            if row[label] is not None:
                held.setdefault(row[label], []).append(place)
        order = (lambda m: MODULES.index(m) if m in MODULES else len(MODULES)) if label == "module" else None
        return summarize_groups(matrices, {str(one): held[one] for one in sorted(held, key=order)}, keys)

    everything = [*matrices, *parameters]
    sparsity = {"all": list(range(len(everything))), "matrices": list(range(len(matrices)))}
    for place, row in enumerate(parameters, len(matrices)):
        sparsity.setdefault(row["group"], []).append(place)
    counted = [key for key in keys_of(everything) if is_counted(key)]
    return {
        "module": split("module"),
        "layer": split("layer"),
        "sparsity": summarize_groups(everything, sparsity, counted),
    } | ({"tower": {tower: _of_tower(rows) for tower, rows in towers.items()}} if towers else {})


def _of_tower(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of one tower, as `summary` is of the text model."""
    matrices = [row for row in rows if row["group"] == "matrices"]
    return {key: summarize(rows if is_counted(key) else matrices, key) for key in keys_of(rows)}


def coverage_of(matrices: Sequence[Row], parameters: Sequence[Row], total: int) -> dict[str, Any]:
    """Per statistic the share of the checkpoint's parameters and the number of matrices that its summary is over."""
    result = {}
    matrices, parameters = of_text(matrices), of_text(parameters)
    for key in keys_of([*matrices, *parameters]):
        over = population([*matrices, *parameters] if is_counted(key) else matrices, key)
        result[key] = covered(over, total)
    return result


def covered(rows: Sequence[Row], total: int) -> dict[str, Any]:
    """The share of `total` parameters, and the number of matrices, that rows are."""
    share = sum(row["parameters"] for row in rows) / total if total else 0.0
    return {"parameters": share, "matrices": sum(1 for row in rows if row.get("group", "matrices") == "matrices")}


def at(row: Row, index: int, count: int) -> Row:
    """A trajectory's row at one of its steps: every list of `count` numbers becomes its entry there."""
    return {
        key: value[index] if key != "shape" and isinstance(value, list) and len(value) == count else value
        for key, value in row.items()
    }


def settings_used(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """What k, K and rank the statistics of matrices were taken at, after every cap and floor, and in how many.

    Args:
        rows: one a matrix or parameter.

    Returns:
        `{"angle_k": {"31": 14}, …}`: by the key of the setting, by its value, how many matrices; of the projection
        energies at a share of min(m, n), `projection_1pct_k` and so on.
    """
    found: dict[str, dict[str, int]] = {}
    for row in of_text(rows):
        if row.get("group") not in (None, "matrices"):
            continue
        used = {key: value for key, value in row.items() if isinstance(value, int) and _is_setting(key)}
        for key in row:
            if share := _SHARE_OF.fullmatch(key):
                used[f"projection_{share[1]}pct_k"] = projection_rank(float(share[1]) / 100, tuple(row["shape"]))
        for key, value in used.items():
            by_value = found.setdefault(key, {})
            by_value[str(value)] = by_value.get(str(value), 0) + 1
    return found


_SHARE_OF = re.compile(r"projection_joint_([0-9.]+)pct")


def _is_setting(key: str) -> bool:
    entry = statistic(key)
    return entry is not None and entry.is_setting


def flat_summary(summary: dict[str, Any]) -> dict[str, float | None]:
    """A summary with one number per key: the mean as `NAME`, the rest as `NAME_null`, `NAME_rounding_mean` …"""
    kept = ("null", "excess", "count", "of", "z", *(f"{kind}_{name}" for kind in FURTHER for name in _TRIPLE))
    flat: dict[str, float | None] = {}
    for name, entry in summary.items():
        flat[name] = entry["mean"]
        flat |= {f"{name}_{key}": entry[key] for key in kept if entry.get(key) is not None}
    return flat
