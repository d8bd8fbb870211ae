"""Writing statistics and their nulls into the flat row of a matrix."""

import math
from typing import Any

Row = dict[str, Any]


def put(row: Row, name: str, value: float | None, null: tuple[float, float] | None = None) -> None:
    """Writes a statistic and, where it has a null (mean, deviation), `_null`, `_excess` and `_z` beside it."""
    row[name] = _number(value)
    if null is not None:
        put_null(row, name, null)


def put_null(row: Row, name: str, null: tuple[float, float] | None, kind: str = "") -> None:
    """Writes a null (mean, deviation) beside the statistic `name` that the row holds.

    Args:
        row: receives `<name><kind>_null`, `<name><kind>_excess` and `<name><kind>_z`, each None without a null.
        name: the statistic.
        null: expected value and standard deviation.
        kind: tells further nulls of the same statistic apart from its first, such as `_profile`.
    """
    value, (mean, deviation) = row[name], null or (None, 0.0)
    known = value is not None and mean is not None
    row[f"{name}{kind}_null"] = _number(mean)
    row[f"{name}{kind}_excess"] = _number(value - mean) if known else None
    row[f"{name}{kind}_z"] = _number((value - mean) / deviation) if known and deviation > 0 else None


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
