"""Writing statistics and their nulls into the flat row of a matrix."""

import math
from collections.abc import Mapping
from typing import Any

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
    value: float | None = row[name]
    excess = z = None
    if null is not None and value is not None:
        excess = value - null[0]
        deviation = null[1]
        z = excess / deviation if deviation is not None and 0 < deviation < math.inf else None
    row[f"{name}{kind}_null"] = _number(null[0]) if null is not None else None
    row[f"{name}{kind}_excess"], row[f"{name}{kind}_z"] = _number(excess), _number(z)


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
