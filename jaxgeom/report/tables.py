"""The tables of the page as data: headline, groups, coverage, settings, and the columns of the per-matrix table."""

import math
import statistics as stats
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from .catalogue import (
    FURTHER_NULLS,
    STATISTICS,
    SUFFIXES,
    base_key,
    column_label,
    format_count,
    format_value,
    statistic,
)
from .reading import (
    Cell,
    cell,
    interval,
    label_of,
    method_cell,
    methods_of,
    number,
    numbers,
    rounding_null,
    seeds_of,
    track,
)

HEADLINE = (
    "relative_norm",
    "sparsity_bf16",
    "overlap_principal",
    "overlap_low",
    "angle_left_mean_deg",
    "angle_right_mean_deg",
    "nss",
    "stable_rank",
    "stable_rank_bf16",
)
BETWEEN = ("jaccard", "overlap_a_in_b", "overlap_b_in_a", "orthogonal_share", "subspace_similarity")
ALONG = ("relative_norm", "stable_rank", "stable_rank_bf16", "hill", "sim_to_final", "sim_disjoint", "drift_ratio")
EARLY = 0.2  # the share of training at which A asks whether the subspace is already found


class Written(NamedTuple):
    """A cell as text: value, null, excess, 95 % interval."""

    value: str
    null: str = ""
    excess: str = ""
    interval: str = ""


class Row(NamedTuple):
    """A row of the headline: which method it is, its label, what it started from, its cells."""

    name: str
    label: str
    origin: str
    cells: list[Written]


def written(key: str, own: Cell) -> Written:
    """A cell as text."""
    span = ""
    if own.low is not None and own.high is not None:
        span = f"{format_value(key, own.low)} to {format_value(key, own.high)}"
    null = format_value(key, own.null) if own.null is not None else ""
    excess = format_value(key, own.excess, signed=True) if own.excess is not None else ""
    return Written(format_value(key, own.value), null, excess, span)


def study_headline(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Column labels and one row per method: what it learned, its size, and each statistic with null and excess."""
    methods = methods_of(report)
    keys = [k for k in HEADLINE if any(method_cell(m, k).value is not None for m in methods.values())]
    early = any(early_similarity(m).value is not None for m in methods.values())
    columns = ["accuracy before", "accuracy after", "steps", *(statistic(k).label for k in keys)]
    columns += [f"similarity to final at {100 * EARLY:.0f} % of steps"] if early else []
    rows = []
    for name, method in methods.items():
        before, after = accuracy_cells(method)
        steps = number(method.get("steps"))
        cells = [written("accuracy", before), written("accuracy", after)]
        cells.append(Written("–" if steps is None else f"{steps:.0f}"))
        cells += [written(k, method_cell(method, k)) for k in keys]
        cells += [written("sim_to_final", early_similarity(method))] if early else []
        rows.append(Row(name, label_of(name, method), str(method.get("origin") or ""), cells))
    return columns, rows


def accuracy_cells(method: dict[str, Any]) -> tuple[Cell, Cell]:
    """Held-out accuracy before and after: over seeds the mean and interval, else the run's own interval."""
    found = []
    for field in ("initial", "final"):
        values = [number((s.get("accuracy") or {}).get(field)) for s in seeds_of(method)]
        known = [v for v in values if v is not None]
        accuracy = method.get("accuracy") or {}
        if len(known) > 1:
            low, high = interval(known) or (None, None)
            found.append(Cell(stats.fmean(known), low=low, high=high, count=len(known)))
        else:
            ci = numbers(accuracy.get("ci")) if field == "final" else []
            low, high = ci if len(ci) == 2 else (None, None)
            found.append(Cell(number(accuracy.get(field)), low=low, high=high))
    return found[0], found[1]


def early_similarity(method: dict[str, Any]) -> Cell:
    """Similarity to the final subspace at the checkpoint nearest to 20 % of the steps, with the random walk's."""
    sources = seeds_of(method) if len(seeds_of(method)) > 1 else [method]
    cells = [early_cell(source.get("trajectory"), "sim_to_final") for source in sources]
    values = [c.value for c in cells if c.value is not None]
    nulls = [c.null for c in cells if c.null is not None]
    if not values:
        return Cell(None)
    value, null = stats.fmean(values), stats.fmean(nulls) if nulls else None
    low, high = interval(values) or (None, None)
    return Cell(value, null, None if null is None else value - null, low, high)


def _early_index(steps: list[float]) -> int:
    return min(range(len(steps)), key=lambda i: abs(steps[i] - EARLY * steps[-1]))


def early_share(trajectory: Any) -> float:
    """Which share of the steps the checkpoint nearest to 20 % of them lies at."""
    steps = [s or 0.0 for s in numbers((trajectory or {}).get("steps"))]
    return steps[_early_index(steps)] / steps[-1] if steps and steps[-1] else EARLY


def early_cell(trajectory: Any, key: str) -> Cell:
    """The statistic of one trajectory at the checkpoint nearest to 20 % of its steps."""
    steps = [s or 0.0 for s in numbers((trajectory or {}).get("steps"))]
    if len(steps) < 3:
        return Cell(None)
    at = _early_index(steps)
    value, null = track(trajectory, key)[at], track(trajectory, key, "null")[at]
    return Cell(value, null, None if value is None or null is None else value - null)


def summary_rows(summary: Any, coverage: Any, null_forms: Any = None) -> list[dict[str, Any]]:
    """One row per statistic of a comparison: mean, median, null, excess, matrices and parameters that it covers."""
    rows, forms = [], null_forms if isinstance(null_forms, dict) else {}
    for key in _statistics_of(summary):
        own, entry = cell(summary, key), summary.get(key)
        covered = (coverage or {}).get(key) if isinstance(coverage, dict) else None
        covered = covered if isinstance(covered, dict) else {}
        median = number(entry.get("median")) if isinstance(entry, dict) else None
        text = written(key, own)
        count = covered.get("matrices", own.count)
        rows.append(
            {
                "label": statistic(key).label,
                "main": key in HEADLINE or key in BETWEEN or key in ("hill", "functional_distance"),
                "value": text.value if own.value is not None else "undefined",
                "median": format_value(key, median),
                "null": text.null or "–",
                "rounding_null": format_value(key, rounding_null(summary, key)),
                "excess": text.excess or "–",
                "matrices": "–" if count is None else format_count(number(count)),
                "parameters": format_value("sparsity_bf16", number(covered.get("parameters"))),
                "further": further_nulls(key, entry),
                "null_is": null_form(key, forms) if text.null else "",
            }
        )
    return rows


def null_form(key: str, forms: dict[str, Any]) -> str:
    """What the null of a statistic is, by the report's own words: a name there may stand for several (`angle_*`)."""
    for names, words in forms.items():
        if ":" not in names and any(fnmatchcase(key, name.strip()) for name in names.split(",")):
            return str(words)
    return statistic(key).null


def trajectory_rows(trajectory: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[Written]]]]:
    """Column labels and one row per step of a trajectory: each statistic's mean over the matrices, null and excess."""
    summary = trajectory.get("summary") or {}
    keys = [k for k in _statistics_of(summary) if any(v is not None for v in track(trajectory, k))]
    rows = []
    for place, step in enumerate(numbers(trajectory.get("steps"))):
        cells = []
        for key in keys:
            value, null, excess = (track(trajectory, key, field)[place] for field in ("mean", "null", "excess"))
            cells.append(written(key, Cell(value, null, excess)))
        rows.append((format_count(step), cells))
    return [statistic(key).label for key in keys], rows


def further_nulls(key: str, entry: Any) -> list[tuple[str, str, str]]:
    """Label, value and excess of the nulls that a statistic of a summary has beside its first one.

    A null that fewer matrices or parameters have than the statistic itself says how many.
    """
    found = []
    for name, label in FURTHER_NULLS.items() if isinstance(entry, dict) else ():
        null, excess = number(entry.get(f"{name}_null")), number(entry.get(f"{name}_excess"))
        if null is not None:
            count = entry.get(f"{name}_count")
            label += f", {count} of {entry.get('count')}" if count != entry.get("count") else ""
            found.append((label, format_value(key, null), format_value(key, excess, signed=True)))
    return found


def _statistics_of(summary: Any) -> list[str]:
    keys = {base_key(k)[0] for k in summary} if isinstance(summary, dict) else set()
    return [k for k in STATISTICS if k in keys] + sorted(keys.difference(STATISTICS))


def coverage_rows(coverage: Any) -> list[tuple[str, str, str]]:
    """Statistic, matrices, share of parameters."""
    if not isinstance(coverage, dict):
        return []
    found = [(statistic(str(k)).label, v) for k, v in coverage.items() if isinstance(v, dict)]
    return [
        (
            label,
            format_count(number(v.get("matrices"))),
            format_value("sparsity_bf16", number(v.get("parameters"))),
        )
        for label, v in found
    ]


def flat_settings(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) in the order in which they were written."""
    if not isinstance(settings, dict):
        return [(prefix or "value", _plain(settings))] if settings is not None else []
    found = []
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found += flat_settings(value, name) if isinstance(value, dict) else [(name, _plain(value))]
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return "–" if value is None else str(value)


_TEXT_COLUMNS = ("method", "seed", "step", "name", "shape", "module", "layer")
_MAX_VALUES = 600_000  # about 5 MB in the page; above it, what can be had from value and excess is left to the CSV


def matrix_data(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The per-matrix table, column by column, for the page's script; None without rows.

    `left_out` names the kinds of columns (`z`, `null`, …) that a very long table leaves to the CSV.
    """
    if not rows:
        return None
    keys = dict.fromkeys(k for row in rows for k in row)
    text = [k for k in _TEXT_COLUMNS if k in keys]
    bases = dict.fromkeys(base_key(k)[0] for k in keys if k not in _TEXT_COLUMNS)
    order = [b for b in STATISTICS if b in bases] + [b for b in bases if b not in STATISTICS]
    beside = ("_null", "_rounding_null", "_excess", "_z", "_ratio")
    suffixes = ("", *beside, *(s for s in SUFFIXES if s not in beside))
    numeric = [key for base in order for suffix in suffixes if (key := base + suffix) in keys]
    left_out: list[str] = []
    for kinds in (("z", "ratio"), ("null", "rounding null")):
        if len(rows) * len(numeric) > _MAX_VALUES:
            left_out += sorted({kind for k in numeric if (kind := base_key(k)[1]) in kinds})
            numeric = [k for k in numeric if base_key(k)[1] not in kinds]
    columns = [{"key": k, "base": k, "label": k, "kind": "text", "unit": ""} for k in text]
    data: list[list[Any]] = [[_cell_text(row.get(k)) for row in rows] for k in text]
    for key in numeric:
        found = [row.get(key) for row in rows]
        values = [float(f"{v:.5g}") if isinstance(v, float | int) and math.isfinite(v) else None for v in found]
        if any(v is not None for v in values) or key in STATISTICS:
            base, kind = base_key(key)
            label, unit = column_label(key), statistic(base).unit
            columns.append({"key": key, "base": base, "label": label, "kind": kind, "unit": unit})
            data.append(values)
    main = (*HEADLINE, *BETWEEN, *(ALONG if "step" in keys else ()))
    return {
        "columns": columns,
        "data": data,
        "headline": [k for k in dict.fromkeys(main) if k in keys],
        "left_out": left_out,
    }


def _cell_text(value: Any) -> Any:
    if isinstance(value, list):
        return "×".join(str(v) for v in value)
    return value if isinstance(value, int | str) or value is None else str(value)
