"""Writing the page: figures to files, everything into one HTML file that asks for nothing from outside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..comparison.files.report import to_csv_text
from ..files import write_atomically
from .figures_between import between_drawings
from .figures_compare import compare_drawings
from .figures_run import run_drawings
from .figures_study import study_drawings
from .figures_trajectory import trajectory_drawings
from .findings_between import between_findings, between_lead
from .findings_compare import findings, trajectory_findings
from .findings_run import run_findings, run_lead
from .findings_study import listed, study_findings
from .formatting import MODULES, format_count, format_value, further_nulls_say, headline_of, statistic
from .learned import nothing_learned
from .loading import Contents, load
from .looks import looks_of, own_variables, variable_of, variables_css
from .reading import cell, from_words, label_of, methods_of, number, seeds_of
from .steady import steady_trajectory
from .style import Drawing, house_style, remove_others, save
from .tables import (
    coverage_rows,
    flat_settings,
    further_nulls,
    matrix_data,
    partial_words,
    reading_notes,
    statistics_of,
    study_headline,
    summary_rows,
    trajectory_rows,
    written,
)
from .verdict import RULE

_HERE = Path(__file__).parent
_COLUMN_KINDS = {"null": "nulls", "z": "z-scores"}


def write_report(directory: Path) -> Path:
    """Write `DIR/figures/*.svg`, `*.png` and `DIR/report.html` from `DIR/report.json` and `DIR/trajectory.json`.

    The page is one file: figures, styles, script and the per-matrix rows are inside it, and it asks for nothing from
    outside. The same input gives the same bytes.

    Args:
        directory: what `compare`, `trajectory`, `between`, `study` or `train` wrote.

    A comparison's `matrices.csv` is written again too, from the rows of its report. Figures of an earlier report, of
    statistics that this one does not hold, are removed.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: neither file is there, or one is damaged.
    """
    directory = Path(directory)
    contents = load(directory)
    with house_style():
        drawings = _drawings(contents)
        variables = own_variables(looks_of(methods_of(contents.report)))
        figures = [_placed(d, directory / "figures", variables) for d in drawings]
    remove_others(directory / "figures", {d.name for d in drawings})
    if contents.report.get("matrices") and contents.kind in ("compare", "between"):
        write_atomically(directory / "matrices.csv", to_csv_text(contents.rows))
    page = directory / "report.html"
    content = _render(contents, figures)
    write_atomically(page, content.encode("utf-8", errors="replace").decode("utf-8"))
    return page


def _drawings(contents: Contents) -> list[Drawing]:
    if contents.kind == "study":
        return study_drawings(contents.report)
    if contents.kind == "run":
        return run_drawings(contents.report)
    text = [row for row in contents.rows if row.get("tower") is None]  # a tower is in no figure of the text model
    if contents.kind == "compare":
        found = compare_drawings(contents.report, text)
        return found + (trajectory_drawings(steady_trajectory(contents.trajectory)) if contents.trajectory else [])
    if contents.kind == "between":
        return between_drawings(contents.report, text)
    return trajectory_drawings(steady_trajectory(contents.report))


def _placed(drawing: Drawing, directory: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """A figure as the page has it, its files written."""
    texts: dict[str, Any] = {
        "name": drawing.name,
        "title": drawing.title,
        "text": drawing.how_to_read,
        "found": drawing.found,
    }
    return texts | {"svg": Markup(save(drawing, directory, variables))}


def _render(contents: Contents, figures: list[dict[str, Any]]) -> str:
    report = contents.report
    rows = _rows_that_count(contents)
    data = matrix_data(rows)
    looks = looks_of(methods_of(report))
    values: dict[str, Any] = {
        "kind": contents.kind,
        "version": str(report.get("version") or ""),
        "warnings": nothing_learned(report) if contents.kind == "study" else [],
        "rule": "" if contents.kind == "run" else RULE,  # of a run's log no sentence speaks of chance
        "created": str(report.get("created") or ""),
        "command": _command(report.get("command")),
        "figures": figures,
        "columns": [],
        "rows": [],
        "summary": [],
        "along": ([], []),
        "further_nulls_say": further_nulls_say(statistics_of(report.get("summary"))),
        "between": [],
        "sparsity": _sparsity_groups(report),
        "coverage": coverage_rows(report.get("coverage")),
        "notes": [*reading_notes(report.get("coverage")), *partial_words(report)],
        "settings": flat_settings(report.get("settings")),
        "inputs": _inputs(report.get("inputs")),
        "machine": flat_settings(report.get("machine")),
        "stages": _stages(report.get("stages")),
        "data": _embed(data) if data else None,
        "left_out": " and ".join(_COLUMN_KINDS[kind] for kind in data["left_out"]) if data else "",
        "has_csv": contents.kind in ("compare", "between", "study"),
        "chosen": {"study": "Method", "trajectory": "Step"}.get(contents.kind, ""),
        "matrices": len(rows),
        "modules": _embed(list(MODULES)),
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8") + variables_css(own_variables(looks))),
        "colors": {name: variable_of(one) for name, one in looks.items()},
        "script": Markup((_HERE / "page.js").read_text(encoding="utf-8")),
    }
    if contents.kind == "study":
        columns, rows = study_headline(report)
        values |= {"columns": columns, "rows": rows, "between": _between(report)}
        values |= {"title": _study_title(report), "lead": _study_lead(report)}
        found = [str(f) for f in report.get("findings") or study_findings(report)]
        values["findings"] = [sentence for sentence in found if sentence not in values["warnings"]]
        values["coverage"] = values["coverage"] or _study_coverage(report)
    elif contents.kind == "compare":
        forms = report["settings"].get("null_forms") if isinstance(report.get("settings"), dict) else None
        values["summary"] = summary_rows(report.get("summary"), report.get("coverage"), forms, report)
        values |= {"title": "What changed between two checkpoints", "lead": _compare_lead(report)}
        values["findings"] = findings(report)
        if contents.trajectory:
            values["findings"] += trajectory_findings(steady_trajectory(contents.trajectory))
    elif contents.kind == "between":
        forms = report["settings"].get("null_forms") if isinstance(report.get("settings"), dict) else None
        values["summary"] = summary_rows(report.get("summary"), report.get("coverage"), forms, report)
        values |= {"title": "What two runs share", "lead": between_lead(report)}
        values["findings"] = between_findings(report)
    elif contents.kind == "run":
        values |= {"title": f"What a run learned: {label_of(report['objective'])}", "lead": run_lead(report)}
        values["findings"] = run_findings(report)
    else:
        steps = report.get("steps") or []
        values |= {
            "title": "How the update grew along training",
            "findings": trajectory_findings(steady_trajectory(report)),
        }
        values["along"] = trajectory_rows(report)
        values["lead"] = [f"{len(steps)} checkpoints were measured against the initial one."]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja").render(values)


def _rows_that_count(contents: Contents) -> list[dict[str, Any]]:
    """The rows without those of seeds that learned nothing, which the map would average in."""
    idle = {
        (name, str(seed.get("seed")))
        for name, method in methods_of(contents.report).items()
        for seed in seeds_of(method, learned=False)
    }
    return [r for r in contents.rows if (r.get("method"), f"{number(r.get('seed')) or 0:.0f}") not in idle]


def _embed(value: Any) -> Markup:
    """JSON that may stand inside a script element, whatever the names in it are."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _command(command: Any) -> str:
    return " ".join(str(part) for part in command) if isinstance(command, list) else str(command or "")


def _inputs(inputs: Any) -> list[dict[str, str]]:
    if not isinstance(inputs, dict):
        return []
    found = []
    for role, held in inputs.items():
        for place, entry in enumerate(held if isinstance(held, list) else [held], start=1):
            entry = entry if isinstance(entry, dict) else {"name": entry}
            said = {"role": f"{role} {place}" if isinstance(held, list) else str(role)}
            found.append(said | {k: str(entry.get(k) or "–") for k in ("name", "dtype", "sha256")})
    return found


def _stages(stages: Any) -> list[tuple[str, str, str]]:
    rows = [s for s in stages or [] if isinstance(s, dict)]
    return [
        (
            str(s.get("name", "")),
            str(s.get("status", "")),
            "–" if (t := number(s.get("seconds"))) is None else f"{t:.1f} s",
        )
        for s in rows
    ]


def _sparsity_groups(report: dict[str, Any]) -> dict[str, Any] | None:
    """Sparsity by kind of parameter, per method of a study or for the one comparison."""
    if "methods" in report:
        sources = {label_of(n, m): (m.get("groups") or {}).get("sparsity") for n, m in methods_of(report).items()}
    else:
        sources = {"visible sparsity (bf16)": (report.get("groups") or {}).get("sparsity")}
    groups = [
        g for g in ("all", "matrices", "embedding", "head", "norm") if any(g in (s or {}) for s in sources.values())
    ]
    if not groups:
        return None
    rows = [
        (label, [format_value("sparsity_bf16", cell((source or {}).get(g), "sparsity_bf16").value) for g in groups])
        for label, source in sources.items()
    ]
    return {"groups": groups, "rows": rows}


def _between(report: dict[str, Any]) -> list[dict[str, Any]]:
    methods = methods_of(report)
    found = []
    for pair in report.get("between") or []:
        if isinstance(pair, dict):
            a, b = str(pair.get("a")), str(pair.get("b"))
            one, other = label_of(a, methods.get(a)), label_of(b, methods.get(b))
            seeds = pair.get("seed_a"), pair.get("seed_b")
            if a == b:  # one method against itself at another seed
                one, other = f"{one}, seed {seeds[0]}", f"seed {seeds[1]}"
            elif None not in seeds and {*seeds} != {*(report.get("seeds") or [])[:1]}:  # another than the first
                one, other = f"{one}, seed {seeds[0]}", f"{other}, seed {seeds[1]}"
            cells = [
                (statistic(k).label, written(k, cell(pair, k)), further_nulls(k, pair)) for k in headline_of("between")
            ]
            found.append({"pair": f"{one} and {other}", "cells": cells})
    return found


def _study_coverage(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return next((rows for m in methods_of(report).values() if (rows := coverage_rows(m.get("coverage")))), [])


def _study_title(report: dict[str, Any]) -> str:
    if {"sft_anchor", "opd", "rlvr"} <= methods_of(report).keys():
        return "What three ways of training did to the weights"
    return f"What training did to the weights: {report.get('name') or 'a study'}"


def _study_lead(report: dict[str, Any]) -> list[str]:
    methods = methods_of(report)
    labels = [label_of(n, m) for n, m in methods.items()]
    seeds = report.get("seeds") or []
    origins = _origins(methods)
    lead = [
        f"{listed(labels)}: what each run changed, measured against where it began and against chance; "
        + (
            f"{len(seeds)} seeds, with 95 % intervals over them."
            if len(seeds) > 2
            else "two seeds, each one's own number beside their mean."
            if len(seeds) == 2
            else "one seed, so no interval over seeds."
        )
    ]
    lead += [f"Each update is taken from where its run began: {origins}."] if origins else []
    lead.append(
        "The null under each number is what chance gives for an update of the same density or norm; methods are "
        "compared over the n matrices that are defined in all of them, value and null alike."
    )
    return lead


def _origins(methods: dict[str, dict[str, Any]]) -> str:
    found: dict[str, list[str]] = {}
    for name, method in methods.items():
        if method.get("origin"):
            found.setdefault(from_words(method), []).append(label_of(name, method))
    return "; ".join(f"{listed(labels)} from {origin}" for origin, labels in found.items())


def _compare_lead(report: dict[str, Any]) -> list[str]:
    inputs = report.get("inputs") or {}
    names = [str((inputs.get(role) or {}).get("name") or role) for role in ("initial", "final")]
    own = cell(report.get("summary"), "sparsity_bf16")
    count = len(report.get("matrices") or []) or own.count
    lead = [f"The update from {names[0]} to {names[1]}" + (f", over {format_count(count)} matrices." if count else ".")]
    lead.append(
        "Each statistic stands beside its null, which is what chance gives for an update of the same density or norm."
    )
    return lead
