"""Reading what a run left on disk: its report, its trajectory, the rows of its per-matrix table."""

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from .reading import number, numbers
from .run_log import run_report


class Contents(NamedTuple):
    """What a directory holds: the report, the trajectory, the rows of the per-matrix table."""

    kind: str
    report: dict[str, Any]
    trajectory: dict[str, Any] | None
    rows: list[dict[str, Any]]


SCHEMA = 1
_OBJECTS = (
    *("inputs", "settings", "coverage", "summary", "groups", "similarity"),
    *("methods", "matched", "machine", "accuracy", "trajectory"),
)
_LISTS = ("matrices", "seeds", "between", "stages", "findings")
_NESTED = (("groups", dict), ("inputs", dict), ("methods", dict), ("similarity", list))


def load(directory: Path) -> Contents:
    """Read DIR/report.json and DIR/trajectory.json, or a run's log; UserError where none is, or one is damaged."""
    report_path, trajectory_path = directory / "report.json", directory / "trajectory.json"
    if not report_path.is_file() and not trajectory_path.is_file():
        config = _config_of_run(directory / "config.json")
        if config is None:
            raise UserError(f"{directory}: holds neither report.json nor trajectory.json, and is no training run")
        return Contents("run", run_report(directory, config), None, [])
    report = _read_json(report_path) if report_path.is_file() else None
    trajectory = _read_json(trajectory_path) if trajectory_path.is_file() else None
    if report is None or report.get("kind") == "trajectory":
        trajectory = trajectory or report or {}
        return Contents("trajectory", trajectory, trajectory, _rows_by_step(trajectory))
    kind = str(report.get("kind") or ("study" if "methods" in report else "compare"))
    if kind not in ("compare", "between", "study"):
        raise UserError(f"{report_path}: kind is {kind!r}, not compare, between, trajectory or study")
    rows = report.get("matrices")
    if not isinstance(rows, list):
        rows = _read_csv(directory / str(report.get("matrices_csv") or "matrices.csv"), directory)
    return Contents(kind, report, trajectory, [r for r in rows if isinstance(r, dict)])


def _config_of_run(path: Path) -> dict[str, Any] | None:
    """The configuration of a training run; None where there is none, or it is another's."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and content.get("kind") == "run" and "schema" in content
    return content if ours else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object")
    if not content.keys() & {"schema", "kind", "methods"}:
        raise UserError(f"{path}: is no report of jaxgeom: it names neither schema nor kind")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise UserError(f"{path}: schema is {content['schema']!r}; this version reads schema {SCHEMA}")
    _check(content, str(path), "")
    return content


def _check(content: dict[str, Any], path: str, where: str) -> None:
    """That the sections of a report are objects and lists where the pages take them for that."""
    parts: list[tuple[str, Any, type]] = [(key, content.get(key), dict) for key in _OBJECTS]
    parts += [(key, content.get(key), list) for key in _LISTS]
    if "methods" not in content and not where:  # of a trajectory; a method's steps are one number
        parts.append(("steps", content.get("steps"), list))
    for section, kind in _NESTED:
        held = content.get(section)
        parts += [(f"{section}.{key}", value, kind) for key, value in held.items()] if isinstance(held, dict) else []
    for key, value, kind in parts:
        if value is not None and not isinstance(value, kind) and key != "inputs.checkpoints":
            needed = "an object" if kind is dict else "a list"
            raise UserError(f"{path}: {where}{key} holds a {type(value).__name__}, not {needed}")
    for name, method in (content.get("methods") or {}).items():
        _check(method, path, f"{where}methods.{name}.")


def _read_csv(path: Path, directory: Path) -> list[dict[str, Any]]:
    if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _parse(key, text) for key, text in row.items() if key} for row in csv.DictReader(file)]


_TEXT = ("name", "module", "method", "shape", "label", "origin")


def _parse(key: str, text: str | None) -> Any:
    if text is None or text == "":
        return None
    if key in _TEXT:
        return text
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and "." not in text and "e" not in text.lower() else value


_MAX_STEP_VALUES = 300_000  # above it, only the last step of every matrix goes into the page


def _rows_by_step(trajectory: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per matrix and step; only the last steps where the matrices are very many."""
    steps = numbers(trajectory.get("steps"))
    matrices = [matrix for matrix in trajectory.get("matrices") or [] if isinstance(matrix, dict)]
    places = list(range(len(steps)))
    if len(matrices) * len(steps) * len(matrices[0] if matrices else ()) > _MAX_STEP_VALUES:
        places = places[-1:]
    rows = []
    for matrix in matrices:
        labels = {key: value for key, value in matrix.items() if not isinstance(value, list | dict) or key == "shape"}
        tracks = {
            key: value
            for key, value in matrix.items()
            if isinstance(value, list) and key != "shape" and len(value) == len(steps)
        }
        for place in places:
            step = steps[place]
            at = {"step": int(step) if step is not None and step.is_integer() else step}
            rows.append(labels | at | {key: number(value[place]) for key, value in tracks.items()})
    return rows
