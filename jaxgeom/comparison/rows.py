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
    value: float | None = row[name]
    excess = z = None
    if null is not None and value is not None:
        excess = value - null[0]
        z = excess / null[1] if null[1] > 0 else None
    row[f"{name}{kind}_null"] = _number(null[0]) if null is not None else None
    row[f"{name}{kind}_excess"], row[f"{name}{kind}_z"] = _number(excess), _number(z)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
