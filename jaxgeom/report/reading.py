"""Reading what a run left on disk, and reading numbers out of it without caring which of them are missing."""

import csv
import json
import math
import statistics as stats
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from ..errors import UserError
from .formatting import METHOD_LABELS, format_count, population_noun, population_words, statistic


class Cell(NamedTuple):
    """One statistic over one population: value, null, excess of it over the null, and over how many it was taken.

    Attributes:
        value: mean over the population.
        null: mean of the null over the same population.
        excess: value less null.
        low, high: ends of the 95 % interval over seeds, where there are several.
        count: matrices (or parameter tensors) of the population.
        of: how many there are.
    """

    value: float | None
    null: float | None = None
    excess: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    of: int | None = None


class Contents(NamedTuple):
    """What a directory holds: the report, the trajectory, the rows of the per-matrix table."""

    kind: str
    report: dict[str, Any]
    trajectory: dict[str, Any] | None
    rows: list[dict[str, Any]]


def number(value: Any) -> float | None:
    """`value` as a finite float, or None where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    """Each entry as a finite float or None; no list gives no entries."""
    return [number(v) for v in values] if isinstance(values, list) else []


def cell(summary: Any, key: str, kind: str = "") -> Cell:
    """A statistic of a summary or group, written as `{key: {"mean", "null", "excess", "count"}}` or flat.

    Args:
        summary: statistics by key, nested, or flat with `<key>_null`, `<key>_excess`, `<key>_count`, `<key>_ci`.
        key: the statistic.
        kind: which of its further nulls, "" for the first; the value is then the mean over that null's population.
    """
    if not isinstance(summary, dict):
        return Cell(None)
    entry, ahead = summary.get(key), f"{kind}_" if kind else ""
    nested = entry if isinstance(entry, dict) else {}
    if nested:
        value = number(nested.get(f"{ahead}mean", nested.get("mean", nested.get("value"))))
    else:
        value = number(summary.get(f"{key}_{kind}_mean", entry) if kind else entry)

    def beside(name: str) -> Any:
        if f"{ahead}{name}" in nested:
            return nested[f"{ahead}{name}"]
        held = summary.get(f"{key}_{ahead}{name}")
        return held.get("mean") if isinstance(held, dict) else held

    null, excess = number(beside("null")), number(beside("excess"))
    if kind and null is None:
        return Cell(None)
    if excess is None and value is not None and null is not None:
        excess = value - null
    low, high = (numbers(beside("ci")) + [None, None])[:2] if not kind else (None, None)
    count, of = beside("count"), nested.get("of", summary.get(f"{key}_of"))
    return Cell(value, null, excess, low, high, _whole(count), _whole(of))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """The interval of the mean by Student's t, or None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * stats.stdev(values) / math.sqrt(len(values))
    mean = stats.fmean(values)
    return mean - half, mean + half


def method_cell(method: dict[str, Any], key: str) -> Cell:
    """The statistic of a method by itself: over seeds the mean and its 95 % interval, else the one value."""
    own = cell(method.get("summary"), key)
    seeds = [cell(seed.get("summary"), key) for seed in seeds_of(method)]
    values = [c.value for c in seeds if c.value is not None]
    if own.low is not None or len(values) < 2:
        return own
    nulls = [c.null for c in seeds if c.value is not None and c.null is not None]
    mean, null = stats.fmean(values), stats.fmean(nulls) if len(nulls) == len(values) else None
    low, high = interval(values) or (None, None)
    return Cell(mean, null, None if null is None else mean - null, low, high, own.count, own.of)


def population_range(key: str, cells: Sequence[Cell]) -> str:
    """`n = 3 to 7 of 7 matrices`: over how many the numbers of a panel are; empty where it is not known."""
    known = [(own.count, own.of) for own in cells if own.value is not None and own.count is not None]
    counts, totals = [count for count, _ in known], {of for _, of in known}
    if not counts:
        return ""
    of = totals.pop() if len(totals) == 1 else None
    if min(counts) == max(counts):
        return population_words(counts[0], of, noun=population_noun(key))
    words = population_words(max(counts), of, noun=population_noun(key))
    return words.replace("n = ", f"n = {format_count(min(counts))} to ", 1)


def compared_cell(report: dict[str, Any], name: str, key: str, *, at: str = "end") -> Cell:
    """The statistic of a method over the matrices that are defined in every method, for showing them side by side.

    Args:
        report: the content of a study's `report.json`.
        name: the method.
        key: the statistic.
        at: which comparison: `end`, `step`, `relative_norm` or `early`.

    Returns:
        The cell; that of the method by itself where the report holds no such comparison of ends.
    """
    block = (report.get("matched") or {}).get(at)
    rows = matched_rows(block)
    if name in rows:
        noun = "parameters" if statistic(key).counted else "matrices"
        return cell(rows[name], key)._replace(of=_whole(((block or {}).get("of") or {}).get(noun)))
    method = methods_of(report).get(name)
    return method_cell(method, key) if method is not None and at == "end" and not rows else Cell(None)


def compared_seeds(report: dict[str, Any], name: str, key: str) -> list[float | None]:
    """A method's statistic seed by seed, over the matrices that are defined in every method."""
    row = matched_rows((report.get("matched") or {}).get("end")).get(name)
    if row is None:
        return [cell(seed.get("summary"), key).value for seed in seeds_of(methods_of(report).get(name) or {})]
    return numbers(row.get(f"{key}_seeds")) or [number(row.get(key))]


def matched_rows(block: Any) -> dict[str, dict[str, Any]]:
    """The rows of a matched comparison by method."""
    rows = block.get("rows") if isinstance(block, dict) else None
    return {str(row.get("method")): row for row in rows or [] if isinstance(row, dict)}


def seeds_of(method: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of `per_seed`, or none."""
    seeds = method.get("per_seed")
    return [s for s in seeds if isinstance(s, dict)] if isinstance(seeds, list) else []


def methods_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods of a study: SFT, OPD, RLVR, SFT continued first, then whatever else there is, as written."""
    methods = report.get("methods") or {}
    order = [m for m in METHOD_LABELS if m in methods] + [m for m in methods if m not in METHOD_LABELS]
    return {m: methods[m] for m in order if isinstance(methods[m], dict)}


def label_of(name: str, method: dict[str, Any] | None = None) -> str:
    """What a method is called on the page."""
    label = str((method or {}).get("label") or METHOD_LABELS.get(name, name))
    return label.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair would stop the font


def compared_tracks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods, with curves over the matrices that are defined in all of them, the same ones at every step.

    A method keeps curves of its own where the report holds no such comparison.
    """
    block = (report.get("matched") or {}).get("along")
    curves = block if isinstance(block, dict) else {}
    found = {}
    for name, method in methods_of(report).items():
        own = curves.get(name)
        found[name] = method | own if isinstance(own, dict) else method
    return found


def by_layer(groups: Any, key: str) -> tuple[list[int], list[Cell]]:
    """The statistic along the layers, in the order of the layers, undefined ones left in."""
    layers = (groups or {}).get("layer") or {}
    order = sorted((int(name), entry) for name, entry in layers.items() if str(name).lstrip("-").isdigit())
    return [index for index, _ in order], [cell(entry, key) for _, entry in order]


def track(trajectory: Any, key: str, field: str = "mean") -> list[float | None]:
    """One field of a statistic along a trajectory's steps; a single number is repeated, nothing is all None."""
    if not isinstance(trajectory, dict):
        return []
    steps = trajectory.get("steps") or []
    entry = (trajectory.get("summary") or {}).get(key)
    values = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(values, list):
        found = numbers(values)
        return (found + [None] * len(steps))[: len(steps)]
    return [number(values)] * len(steps)


def track_cells(trajectory: Any, key: str) -> list[Cell]:
    """A statistic at every step of a trajectory, each over that step's population."""
    fields = [track(trajectory, key, field) for field in ("mean", "null", "excess", "count")]
    of = _whole((((trajectory or {}).get("summary") or {}).get(key) or {}).get("of"))
    cells = []
    for value, null, excess, count in zip(*fields, strict=True):
        if excess is None and value is not None and null is not None:
            excess = value - null
        cells.append(Cell(value, null, excess, count=None if count is None else int(count), of=of))
    return cells


def steady_cells(trajectory: Any, key: str) -> list[Cell]:
    """A statistic at the steps whose population is that of its last step, so that a path is of the same matrices.

    Steps without a value are left out, and, where the last one has a null, those without.
    """
    cells = track_cells(trajectory, key)
    if not isinstance(trajectory, dict):
        return []
    flags = ((trajectory.get("summary") or {}).get(key) or {}).get("as_last")
    known = [(place, own) for place, own in enumerate(cells) if own.value is not None]
    if not known:
        return []
    last = known[-1][1]
    if isinstance(flags, list) and len(flags) == len(cells):
        known = [(place, own) for place, own in known if flags[place]]
    return [own for _, own in known if own.count == last.count and (own.null is None) == (last.null is None)]


SCHEMA = 1
_OBJECTS = (
    *("inputs", "settings", "coverage", "summary", "groups", "similarity"),
    *("methods", "matched", "machine", "accuracy", "trajectory"),
)
_LISTS = ("matrices", "seeds", "between", "stages", "findings")
_NESTED = (("groups", dict), ("inputs", dict), ("methods", dict), ("similarity", list))


def load(directory: Path) -> Contents:
    """Read DIR/report.json and DIR/trajectory.json; UserError where there is neither, or one is damaged."""
    report_path, trajectory_path = directory / "report.json", directory / "trajectory.json"
    if not report_path.is_file() and not trajectory_path.is_file():
        raise UserError(f"{directory}: holds neither report.json nor trajectory.json")
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
