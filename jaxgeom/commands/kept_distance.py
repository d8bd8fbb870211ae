"""The functional distance in a report of `compare`, which a comparison run again without `--prompts` keeps."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxgeom.comparison import Report
from jaxgeom.training.model_distance import NULL


def with_distance(report: Report, distance: dict[str, Any], prompts: str) -> Report:
    """The report with a statistic of the models beside those of their matrices."""
    forms = report.settings["null_forms"] | {"functional_distance": NULL}
    return dataclasses.replace(
        report,
        summary=report.summary | {"functional_distance": distance},
        coverage=report.coverage | {"functional_distance": {"parameters": 1.0, "matrices": 0}},  # of the whole model
        settings=report.settings | {"null_forms": forms, "prompts": prompts},
    )


def finished_report(out: Path) -> dict[str, Any]:
    """The report that a folder holds, empty where it holds none that can be read."""
    try:
        held = json.loads((out / "report.json").read_text(encoding="utf-8"))
        parts = (held["inputs"], held["settings"], held["summary"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return held if all(isinstance(part, dict) for part in parts) else {}


def prompts_of(held: dict[str, Any]) -> str | None:
    """The prompts whose functional distance a report has."""
    return held["settings"].get("prompts") if "functional_distance" in held.get("summary", {}) else None


def distance_of(held: dict[str, Any], report: Report) -> tuple[dict[str, Any], str] | None:
    """Functional distance and prompts of an earlier report, where it is one of the same weights, seed and version."""
    prompts = prompts_of(held)
    same = prompts is not None and held["inputs"] == report.inputs and held.get("version") == report.version
    if prompts is None or not same or held["settings"].get("seed") != report.settings["seed"]:
        return None
    return held["summary"]["functional_distance"], prompts
