"""Writing statistics and their nulls into the flat row of a matrix."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgeom.diagnostics.moments import NullMoments, triple

Row = dict[str, Any]


Null = tuple[float, float | None]
"""Expected value of a statistic under a null, and its standard deviation where there is one."""


def put(row: Row, name: str, value: float | None, null: Null | None = None) -> None:
    """Writes a statistic and, where it has a null (mean, deviation), `_null`, `_excess` and `_z` beside it."""
    row[name] = _number(value)
    if null is not None:
        put_null(row, name, null)


def put_null(row: Row, name: str, null: Null | None, kind: str = "") -> None:
    """Writes a null (mean, deviation) beside the statistic `name` that the row holds.

    Args:
        row: receives `<name><kind>_null`, `<name><kind>_excess` and `<name><kind>_z`, each None without a null.
        name: the statistic.
        null: what it is under the null.
        kind: tells further nulls of the same statistic apart from its first, such as `_profile`.
    """
    mean, deviation = (math.nan, None) if null is None else null
    value = math.nan if row[name] is None else row[name]
    moments = NullMoments(np.float64(mean), np.float64(math.nan if deviation is None else deviation))
    put_numbers(row, {key: x for key, x in triple(name, np.float64(value), moments, kind).items() if key != name})


def put_numbers(row: Row, numbers: Mapping[str, Any]) -> None:
    """Writes what a family of the diagnostics gives: plain numbers, None for those that are not finite."""
    for key, value in numbers.items():
        row[key] = _number(float(value))


def put_undefined(row: Row, *names: str) -> None:
    """Writes statistics that have no value here, nor a null: a reader finds their keys in every row."""
    for name in names:
        put(row, name, None)
        put_null(row, name, None)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
