"""The tables of the page as data: headline, groups, coverage, settings, and the columns of the per-matrix table."""

import math
import statistics as stats
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ..diagnostics.statistics import EARLY, FURTHER, KIND_LABELS, STATISTICS, early_place, is_counted, split_key
from .formatting import (
    column_label,
    format_count,
    format_value,
    headline_of,
    in_order,
    is_headline,
    population_noun,
    population_words,
    statistic,
)
from .learned import seeds_note
from .reading import (
    Cell,
    cell,
    compared_cell,
    confined_words,
    from_words,
    label_of,
    matched_rows,
    methods_of,
    number,
    numbers,
    seeds_of,
    spread,
    track,
    track_cells,
)
from .used import used_words


class Written(NamedTuple):
    """A cell as text: value, null, excess, 95 % interval (or both of two seeds), and over how many it was taken."""

    value: str
    null: str = ""
    excess: str = ""
    interval: str = ""
    population: str = ""


class Row(NamedTuple):
    """A row of the headline: method, label, what it started from, cells, which seeds it lacks, what confines it."""

    name: str
    label: str
    origin: str
    cells: list[Written]
    note: str = ""
    confined: str = ""


class Column(NamedTuple):
    """A column of the headline: its label, over how many matrices its numbers are, and at which k or rank."""

    label: str
    population: str = ""
    used: str = ""


def written(key: str, own: Cell) -> Written:
    """A cell as text."""
    span = ""
    if own.low is not None and own.high is not None:
        joined = " and " if own.seeds == 2 else " to "
        span = ("seeds " if own.seeds == 2 else "") + joined.join(format_value(key, v) for v in (own.low, own.high))
    null = format_value(key, own.null) if own.null is not None else ""
    excess = format_value(key, own.excess, signed=True) if own.excess is not None else ""
    population = population_words(own.count, own.of, noun=population_noun(key)) if own.value is not None else ""
    return Written(format_value(key, own.value), null, excess, span, population)


def study_headline(report: dict[str, Any]) -> tuple[list[Column], list[Row]]:
    """Columns and one row per method: what it learned, its size, and each statistic with null and excess.

    Methods stand side by side, so every statistic is over the matrices that are defined in all of them.
    """
    methods = methods_of(report)
    cells = {key: [compared_cell(report, name, key) for name in methods] for key in headline_of("compare")}
    cells = {key: held for key, held in cells.items() if any(own.value is not None for own in held)}
    early = [early_similarity(report, name) for name in methods]
    columns = [Column("accuracy before"), Column("accuracy after"), Column("steps")]
    for key, held in cells.items():
        columns.append(Column(statistic(key).label, shared_population(key, held), used_words(report, key)))
    if any(own.value is not None for own in early):
        cells["sim_to_final"] = early
        label = f"similarity to final at {early_words(report)} of steps"
        used = used_words(report, "sim_to_final")
        columns.append(Column(label, shared_population("sim_to_final", early), used))
    rows, shares = [], early_shares(report)
    for place, (name, method) in enumerate(methods.items()):
        before, after = accuracy_cells(method)
        steps = number(method.get("steps"))
        texts = [written("accuracy", before), written("accuracy", after)]
        texts.append(Written("–" if steps is None else f"{steps:.0f}"))
        for key, held in cells.items():
            text = written(key, held[place])
            text = text._replace(population="") if shared_population(key, held) else text
            if key == "sim_to_final" and len(set(shares.values())) > 1 and name in shares:
                where = f"at {percent(shares[name])}"
                text = text._replace(population=f"{where}, {text.population}" if text.population else where)
            texts.append(text)
        said = seeds_note(method), confined_words(method)
        rows.append(Row(name, label_of(name, method), from_words(method), texts, *said))
    return columns, rows


def shared_population(key: str, cells: list[Cell]) -> str:
    """The population that cells have in common, in words; empty where it is not one and the same."""
    words = {population_words(own.count, own.of, noun=population_noun(key)) for own in cells if own.value is not None}
    return words.pop() if len(words) == 1 else ""


def accuracy_cells(method: dict[str, Any]) -> tuple[Cell, Cell]:
    """Held-out accuracy before and after: over seeds the mean and interval, else the run's own interval."""
    found = []
    for field in ("initial", "final"):
        values = [number((s.get("accuracy") or {}).get(field)) for s in seeds_of(method)]
        known = [v for v in values if v is not None]
        accuracy = method.get("accuracy") or {}
        if len(known) > 1:
            low, high = spread(known, (0.0, 1.0)) or (None, None)
            found.append(Cell(stats.fmean(known), low=low, high=high, seeds=len(known)))
        else:
            ci = numbers(accuracy.get("ci")) if field == "final" else []
            low, high = ci if len(ci) == 2 else (None, None)
            found.append(Cell(number(accuracy.get(field)), low=low, high=high))
    return found[0], found[1]


def early_similarity(report: dict[str, Any], name: str) -> Cell:
    """A method's similarity to its final subspace at the checkpoint nearest to 20 % of the steps, with the walk's."""
    if (report.get("matched") or {}).get("early"):
        return compared_cell(report, name, "sim_to_final", at="early")
    return early_cell((methods_of(report).get(name) or {}).get("trajectory"), "sim_to_final")


def early_share(trajectory: Any) -> float:
    """Which share of the steps the checkpoint nearest to 20 % of them lies at."""
    steps = [s or 0.0 for s in numbers((trajectory or {}).get("steps"))]
    return steps[early_place(steps)] / steps[-1] if steps and steps[-1] else EARLY


def early_shares(report: dict[str, Any]) -> dict[str, float]:
    """By method, which share of its steps the checkpoint nearest to 20 % of them lies at; without undefined ones."""
    rows, found = matched_rows((report.get("matched") or {}).get("early")), {}
    for name, method in methods_of(report).items():
        trajectory = method.get("trajectory")
        steps = numbers((trajectory or {}).get("steps"))
        step, last = number((rows.get(name) or {}).get("step")), steps[-1] if steps else None
        if early_similarity(report, name).value is not None:
            found[name] = step / last if step is not None and last else early_share(trajectory)
    return found


def early_words(report: dict[str, Any]) -> str:
    """`20 %`, or `20 % to 33 %` where methods saved other checkpoints: where the early similarity is taken."""
    shares = sorted(early_shares(report).values()) or [EARLY]
    low, high = percent(shares[0]), percent(shares[-1])
    return low if low == high else f"{low} to {high}"


def percent(share: float) -> str:
    """A share of the steps, `33 %`."""
    return f"{100 * share:.0f} %"


def early_cell(trajectory: Any, key: str) -> Cell:
    """The statistic of one trajectory at the checkpoint nearest to 20 % of its steps."""
    steps = [s or 0.0 for s in numbers((trajectory or {}).get("steps"))]
    return track_cells(trajectory, key)[early_place(steps)] if len(steps) >= 3 else Cell(None)


def summary_rows(
    summary: Any, coverage: Any, null_forms: Any = None, report: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One row per statistic of a comparison: mean, median, null, excess, over how many, parameters that it covers.

    Args:
        summary: of the report.
        coverage: of the report.
        null_forms: of its settings.
        report: what says at which k a statistic was taken.
    """
    rows, forms = [], null_forms if isinstance(null_forms, dict) else {}
    for key in statistics_of(summary):
        own, entry = cell(summary, key), summary.get(key)
        covered = (coverage or {}).get(key) if isinstance(coverage, dict) else None
        covered = covered if isinstance(covered, dict) else {}
        median = number(entry.get("median")) if isinstance(entry, dict) else None
        text = written(key, own)
        count = own.count if own.of is not None else number(covered.get("matrices", own.count))
        rows.append(
            {
                "label": statistic(key).label,
                "used": used_words(report or {}, key),
                "main": is_headline(key),
                "value": text.value if own.value is not None else "undefined",
                "median": format_value(key, median),
                "null": text.null or "–",
                "excess": text.excess or "–",
                "population": _population(key, count, own.of),
                "parameters": format_value("sparsity_bf16", number(covered.get("parameters"))),
                "further": further_nulls(key, summary),
                "null_is": null_form(key, forms) if text.null else "",
            }
        )
    return rows


def _population(key: str, count: float | int | None, of: int | None) -> str:
    if count is None:
        return "–"
    return (
        format_count(count)
        + (f" of {format_count(of)}" if of is not None else "")
        + (" tensors" if statistic(key).counted else "")
    )


def null_form(key: str, forms: dict[str, Any]) -> str:
    """What the null of a statistic is, by the report's own words: a name there may stand for several (`angle_*`)."""
    for names, words in forms.items():
        if ":" not in names and any(fnmatchcase(key, name.strip()) for name in names.split(",")):
            return str(words)
    null = statistic(key).null
    return "" if null is None else null.described


def trajectory_rows(trajectory: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[Written]]]]:
    """Column labels and one row per step of a trajectory: each statistic's mean, null, excess and population."""
    summary = trajectory.get("summary") or {}
    keys = [k for k in statistics_of(summary) if any(v is not None for v in track(trajectory, k))]
    cells = [track_cells(trajectory, key) for key in keys]
    rows = [
        (format_count(step), [written(key, held[place]) for key, held in zip(keys, cells, strict=True)])
        for place, step in enumerate(numbers(trajectory.get("steps")))
    ]
    return [statistic(key).label for key in keys], rows


def further_nulls(key: str, summary: Any) -> list[tuple[str, str, str]]:
    """Label, value and excess of the nulls that a statistic of a summary has beside its first one.

    A null that fewer matrices or parameters have than the statistic itself says how many, and the statistic's mean over
    those.
    """
    found = []
    own = cell(summary, key)
    for kind in FURTHER:
        other = cell(summary, key, kind)
        if other.null is not None:
            label = KIND_LABELS[kind]
            if other.count is not None and other.count != own.count:
                label += f" (n = {format_count(other.count)}, mean there {format_value(key, other.value)})"
            found.append((label, format_value(key, other.null), format_value(key, other.excess, signed=True)))
    return found


def statistics_of(summary: Any) -> list[str]:
    """The statistics that a summary holds, nested or flat, in the order of the table."""
    return in_order({split_key(k)[0] for k in summary} if isinstance(summary, dict) else set())


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


def reading_notes(coverage: Any) -> list[str]:
    """What was left out of the checkpoints, or read otherwise than it may seem; a sentence each."""
    notes = coverage.get("notes") if isinstance(coverage, dict) else None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def partial_words(report: dict[str, Any]) -> list[str]:
    """Which statistics that every tensor counts in are over less than half of the parameters, a sentence each."""
    summary, coverage, found = report.get("summary"), report.get("coverage"), []
    for key in statistics_of(summary):
        covered = coverage.get(key) if isinstance(coverage, dict) else None
        share = number(covered.get("parameters")) if isinstance(covered, dict) else None
        own = cell(summary, key)
        if is_counted(key) and share is not None and share < 0.5 and own.null is not None and own.of != own.count:
            label, over = statistic(key).label, population_words(own.count, own.of, noun="tensors").removeprefix("n = ")
            found.append(
                f"{label[0].upper()}{label[1:]}, value and null, is over {over} with "
                f"{format_value('sparsity_bf16', share)} of the parameters: the others have no null."
            )
    return found


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
    bases = dict.fromkeys(split_key(k)[0] for k in keys if k not in _TEXT_COLUMNS)
    order = [b for b in STATISTICS if b in bases] + [b for b in bases if b not in STATISTICS]
    kinds = ("", *(f"_{kind}" for kind in FURTHER))
    suffixes = ("", *(f"{kind}_{what}" for kind in kinds for what in ("null", "excess", "z")))
    numeric = [key for base in order for suffix in suffixes if (key := base + suffix) in keys]
    left_out: list[str] = []
    for what in ("z", "null"):
        if len(rows) * len(numeric) > _MAX_VALUES:
            left_out += [what] if any(split_key(k)[2] == what for k in numeric) else []
            numeric = [k for k in numeric if split_key(k)[2] != what]
    columns = [{"key": k, "base": k, "label": k, "kind": "text", "unit": ""} for k in text]
    data: list[list[Any]] = [[_cell_text(row.get(k)) for row in rows] for k in text]
    for key in numeric:
        found = [row.get(key) for row in rows]
        values = [float(f"{v:.5g}") if isinstance(v, float | int) and math.isfinite(v) else None for v in found]
        if any(v is not None for v in values) or key in STATISTICS:
            base, _, what = split_key(key)
            columns.append(
                {"key": key, "base": base, "label": column_label(key), "kind": what, "unit": statistic(base).unit}
            )
            data.append(values)
    main = [key for command in ("compare", "between") for key in headline_of(command)]
    main += headline_of("trajectory") if "step" in keys else ()
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
