"""A training run's directory as a report: its log, and the geometry in it as curves like those of a trajectory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgeom.errors import UserError

SECTIONS = ("geometry", "step_geometry")
"""Of the update since the run's start, and of what one optimizer step changes."""


def geometry_curves(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a run measured of itself, over all matrices.

    Args:
        rows: of metrics.jsonl.

    Returns:
        By section of `SECTIONS` that the log holds `{"steps": [t], "summary": {statistic: {"mean": [t], "null": [t],
        "excess": [t]}}}`; None where a step has no number, and no `null` where the statistic has none.
    """
    found = {}
    for section in SECTIONS:
        held = [row for row in rows if any(key.startswith(f"{section}/") for key in row)]
        names = {key.removeprefix(f"{section}/") for row in held for key in row if key.startswith(f"{section}/")}
        named = {name for name in names if "/" not in name}  # with a slash: of one module
        summary: dict[str, dict[str, list[float | None]]] = {}
        for name in sorted(name for name in named if not name.endswith("_null")):
            mean, null = ([row.get(f"{section}/{name}{kind}") for row in held] for kind in ("", "_null"))
            summary[name] = {"mean": mean}
            if f"{name}_null" in named:
                excess = [None if a is None or b is None else a - b for a, b in zip(mean, null, strict=True)]
                summary[name] |= {"null": null, "excess": excess}
        if summary:
            found[section] = {"steps": [row["step"] for row in held], "summary": summary}
    return found


def run_report(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the page says of one training run.

    Args:
        directory: of the run.
        config: content of its `config.json`.

    Returns:
        Like the content of a `report.json` of kind `run`: `objective`, `settings`, `inputs`, the rows of the `log` and
        `live`, the curves of its geometry.

    Raises:
        UserError: the log is missing or damaged, or holds no step.
    """
    from jaxgeom.training.logs import read_json_lines  # with it comes JAX

    log = directory / "metrics.jsonl"
    rows = read_json_lines(log)
    if not rows:
        raise UserError(f"{log}: holds no row yet: the run has not taken a step")
    contents, inputs = config.get("contents"), {}
    digests = contents if isinstance(contents, dict) else {}
    for role, name in (config.get("inputs") or {}).items():
        names = [name] if not isinstance(name, list) else name
        keys = [role if not place else f"{role}{place}" for place in range(len(names))]
        held = [{"name": one, "sha256": digests.get(key)} for key, one in zip(keys, names, strict=True) if one]
        inputs |= {role: held if len(held) > 1 else held[0]} if held else {}
    return {
        "kind": "run",
        "version": config.get("version"),
        "objective": str(config.get("objective")),
        "settings": config.get("settings"),
        "inputs": inputs,
        "log": rows,
        "live": geometry_curves(rows),
    }
