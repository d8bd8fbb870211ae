"""Statistics over seeds: a mean with its interval, value by value, through nested results."""

import math
from collections.abc import Sequence
from typing import Any

from jaxgeom.diagnostics.statistics import split_key
from jaxgeom.report.reading import interval

Row = dict[str, Any]


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, bounds: tuple[float | None, float | None] = (None, None)
) -> tuple[float, float | None, float | None]:
    """Mean and Student-t interval of independent seeds; no interval for a single seed.

    Args:
        values: one number a seed, at least one.
        confidence: coverage of the interval, such as 0.95.
        bounds: the least and the largest value that there can be; the interval ends there.

    Returns:
        Mean, lower and upper end; None for the ends of a single seed.

    >>> mean_interval([1.0])
    (1.0, None, None)
    """
    low, high = interval(values, confidence=confidence, bounds=bounds) or (None, None)
    return math.fsum(values) / len(values), low, high


def over_seeds(results: Sequence[Any]) -> Any:
    """The mean of equal-shaped nested results (dicts, lists, numbers): numbers are averaged, None where any is None.

    Text and booleans are taken from the first; a number in only some of the results is left out.

    Args:
        results: one a seed, at least one.

    Returns:
        The same nesting.
    """
    first = results[0]
    if len(results) == 1:
        return first
    if isinstance(first, dict):
        keys = [key for key in first if all(isinstance(r, dict) and key in r for r in results)]
        return {key: over_seeds([result[key] for result in results]) for key in keys}
    if isinstance(first, list):
        return [over_seeds(list(items)) for items in zip(*results, strict=False)]
    if isinstance(first, bool) or isinstance(first, str):
        return first
    if any(not isinstance(result, int | float) or isinstance(result, bool) for result in results):
        return None
    if all(isinstance(result, int) for result in results) and len(set(results)) == 1:
        return first
    return math.fsum(results) / len(results)


def mean_rows(seeds: Sequence[Sequence[Row]]) -> list[Row]:
    """One row a matrix, averaged over seeds: a number is the mean of the seeds' where all have it, else None.

    A summary over these rows is over the matrices that are defined in every seed, and its mean is the mean over seeds
    of each seed's mean over those matrices. Excesses are taken of the means.

    Args:
        seeds: by seed the rows, of the same matrices; numbers, or lists of them along a trajectory.

    Returns:
        The rows, in the first seed's order; of one seed, that seed's.
    """
    if len(seeds) < 2:
        return list(seeds[0]) if seeds else []
    others = [{row["name"]: row for row in rows} for rows in seeds]
    found = []
    for first in seeds[0]:
        row = over_seeds([rows[first["name"]] for rows in others if first["name"] in rows])
        for key in [key for key in row if split_key(key)[2] == "excess"]:
            base, kind, _ = split_key(key)
            row[key] = _difference(row.get(base), row.get(f"{base}_{kind}_null" if kind else f"{base}_null"))
        found.append(row)
    return found


def _difference(value: Any, null: Any) -> Any:
    if isinstance(value, list) and isinstance(null, list):
        return [_difference(a, b) for a, b in zip(value, null, strict=True)]
    return None if value is None or null is None else value - null
