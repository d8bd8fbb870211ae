"""From rows with a list of numbers per step to curves and their coverage; at a step a triple is over one population."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgeom.comparison.files.summary import LABELS, Row, at, covered, of_text, population, summarize, triple
from jaxgeom.diagnostics.statistics import STATISTICS, is_counted


def along_keys(rows: Sequence[Row]) -> list[str]:
    """The statistics that rows have per step, in the order of the table."""
    return [key for key in STATISTICS if any(isinstance(row.get(key), list) for row in rows) and key not in LABELS]


def curves_of(rows: Sequence[Row], count: int) -> dict[str, Any]:
    """Summaries along a trajectory: per statistic lists over its steps, each step with its own population and count.

    Args:
        rows: one a matrix or parameter, with lists of `count` numbers; matrices are those of the group `matrices`.
        count: number of steps.

    Returns:
        Per statistic `mean`, `median`, `count`, and where there are any `null`, `excess`, `z`, as lists over the steps;
        `z_count`, over how many of a step's population z is; `as_last`, whether a step's population is that of the last
        step that has any; `of` how many rows; `weights`.
    """
    rows = of_text(rows)
    steps = [[at(row, index, count) for row in rows] for index in range(count)]
    table = {}
    for key in along_keys(rows):
        counted = is_counted(key)
        over = [[row for row in step if counted or row["group"] == "matrices"] for step in steps]
        found = [summarize(step, key) for step in over]
        fields = ("mean", "median", "count", "null", "excess", "z", "z_count")
        lists: dict[str, Any] = {name: [entry[name] for entry in found] for name in fields}
        for name in ("null", "excess", "z"):
            if all(value is None for value in lists[name]):
                lists[name] = None
        names = [{row["name"] for row in population(step, key)} for step in over]
        last = next((own for own in reversed(names) if own), None)
        lists["as_last"] = [own == last for own in names]
        table[key] = lists | {name: found[0][name] for name in ("of", "weights")}
    return table


def last_population(rows: Sequence[Row], count: int, key: str) -> set[str]:
    """The names that a statistic of a trajectory is over at the last step that has any.

    Args:
        rows: one a matrix, with lists of `count` numbers.
        count: number of steps.
        key: the statistic.
    """
    steps = (population([at(row, index, count) for row in rows], key) for index in reversed(range(count)))
    return next(({row["name"] for row in step} for step in steps if step), set())


def steady_population(rows: Sequence[Row], count: int, key: str) -> set[str]:
    """The names that one curve can follow: those defined at every step that has any.

    Where they are fewer than half of those of the last step (early on, little is defined), those of the last step.
    """
    steps = [{row["name"] for row in population([at(row, i, count) for row in rows], key)} for i in range(count)]
    common = set.intersection(*found) if (found := [step for step in steps if step]) else set()
    last = last_population(rows, count, key)
    return common if 2 * len(common) >= len(last) else last


def steady_curves(rows: Sequence[Row], count: int, names: Mapping[str, set[str]]) -> dict[str, Any]:
    """Curves that are each of the same matrices at every step; a step at which one is undefined has no point.

    Args:
        rows: one a matrix or parameter, with lists of `count` numbers.
        count: number of steps.
        names: by statistic the rows to follow.

    Returns:
        Per statistic `mean`, `null`, `excess`, `count`, `z`, lists over the steps, and `of`.
    """
    steps, summary = [[at(row, index, count) for row in rows] for index in range(count)], {}
    for key, own in names.items():
        over = [[row for row in step if is_counted(key) or row["group"] == "matrices"] for step in steps]
        entries = [triple([row for row in step if row["name"] in own], key) for step in over]
        entries = [entry if entry["count"] == len(own) else triple([], key) for entry in entries]
        summary[key] = {what: [entry[what] for entry in entries] for what in ("mean", "null", "excess", "count", "z")}
        summary[key]["of"] = len(over[0]) if over else 0
    return summary


def towers_along(rows: Sequence[Row], count: int) -> dict[str, Any]:
    """`{"groups": {"tower": {tower: curves}}}` of a trajectory, empty where no row is of a tower."""
    towers = list(dict.fromkeys(row["tower"] for row in rows if row.get("tower") is not None))
    if not towers:
        return {}
    curves = {}
    for tower in towers:
        own = [{**row, "tower": None} for row in rows if row.get("tower") == tower]
        curves[tower] = curves_of(own, count)
    return {"groups": {"tower": curves}}


def curve_coverage(rows: Sequence[Row], count: int, total: int) -> dict[str, Any]:
    """Per statistic of a trajectory what its summary is over at any step."""
    result, rows = {}, of_text(rows)
    for key in along_keys(rows):
        over = [row for row in rows if is_counted(key) or row["group"] == "matrices"]
        names = {row["name"] for index in range(count) for row in population([at(r, index, count) for r in over], key)}
        result[key] = covered([row for row in over if row["name"] in names], total)
    return result


def similarity_of(tables: Sequence[dict[str, list[list[float | None]]]], count: int) -> dict[str, Any]:
    """Mean similarities of every pair of steps over the matrices that have both value and null there, and how many.

    Args:
        tables: per matrix `full`, `full_null`, `disjoint`, `disjoint_null`, each `[count][count]`.
        count: number of steps.

    Returns:
        The same four as means, with `full_count` and `disjoint_count`.
    """
    result: dict[str, Any] = {}
    for kind in ("full", "disjoint"):
        shape = (len(tables), count, count)
        values, nulls = (
            np.array([table[name] for table in tables], float).reshape(shape) for name in (kind, f"{kind}_null")
        )
        both = np.isfinite(values) & np.isfinite(nulls)
        over = both | (np.isfinite(values) & ~both.any(0))
        result |= {kind: _means(values, over), f"{kind}_null": _means(nulls, both)}
        result[f"{kind}_count"] = over.sum(0).tolist()
    return result


def _means(values: np.ndarray, over: np.ndarray) -> list[list[float | None]]:
    """Means along the first axis over the chosen entries; None where there are none."""
    counts, sums = over.sum(0), np.where(over, values, 0.0).sum(0)
    return [
        [float(total / n) if n else None for total, n in zip(*line, strict=True)]
        for line in zip(sums, counts, strict=True)
    ]
