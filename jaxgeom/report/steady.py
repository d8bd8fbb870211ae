"""The curves of a trajectory's page: each of the same matrices at every step."""

from typing import Any

from ..comparison.files.curves import along_keys, steady_curves, steady_population
from ..comparison.files.summary import of_text
from ..diagnostics.statistics import is_counted

_NEEDED = ("name", "group", "parameters")


def steady_trajectory(trajectory: dict[str, Any]) -> dict[str, Any]:
    """A trajectory whose curves are over one population each, so that none bends because matrices come or go.

    A curve follows the matrices that are defined at every step (see `steady_population`); its count says how many.

    Args:
        trajectory: the content of a `trajectory.json`; one without its rows is given back as it is.
    """
    rows = [r for part in ("matrices", "parameters") for r in trajectory.get(part) or [] if isinstance(r, dict)]
    steps = trajectory.get("steps") or []
    if not steps or not rows or any(key not in row for row in rows for key in _NEEDED):
        return trajectory
    rows = of_text(rows)
    matrices = [row for row in rows if row["group"] == "matrices"]
    names = {key: steady_population(rows if is_counted(key) else matrices, len(steps), key) for key in along_keys(rows)}
    return trajectory | {"summary": (trajectory.get("summary") or {}) | steady_curves(rows, len(steps), names)}
