"""From what was measured of every run to the study's report: per method over its seeds, and between methods."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgeom.comparison.files.curves import curve_coverage, curves_of
from jaxgeom.comparison.files.summary import Row, coverage_of, groups_of, population, summary_of
from jaxgeom.diagnostics.statistics import COMPARED, bounds_of, is_counted
from jaxgeom.errors import UserError
from jaxgeom.files import write_atomically
from jaxgeom.report.run_log import geometry_curves
from jaxgeom.study.matched import Measured, along, at_end, at_relative_norm, at_step, early, seed_values
from jaxgeom.study.seeds import mean_interval, mean_rows, over_seeds
from jaxgeom.training import RunSettings, wilson_interval
from jaxgeom.training.logs import read_json_lines
from jaxgeom.training.remarks import learned_nothing

_LEAKAGE = ("leakage", "leakage_max")
_KINDS = ("", "_null", "_excess", "_z")


class Result(NamedTuple):
    """One run: what the report says of it, and its rows."""

    said: dict[str, Any]
    measured: Measured
    total: int

    @property
    def learned(self) -> bool:
        """Whether the run learned anything; one that did not is in no mean and in no comparison."""
        return "learned_nothing" not in self.said


def add_along(trajectory: dict[str, Any], reports: Sequence[dict[str, Any]], total: int) -> None:
    """Puts what the comparisons of every step measured, and the trajectory did not, into its rows and summary.

    Args:
        trajectory: content of `trajectory.json`, changed in place.
        reports: contents of the comparison's `report.json`, one a step.
        total: parameters of the checkpoint.
    """
    steps = len(trajectory["steps"])
    names = [key for key in COMPARED if key not in trajectory["summary"]]
    by_name = [{row["name"]: row for row in report["matrices"]} for report in reports]
    for row in trajectory["matrices"]:
        held = [rows[row["name"]] for rows in by_name]
        keys = [name + kind for name in names for kind in _KINDS if any(name + kind in one for one in held)]
        row |= {key: [one.get(key) for one in held] for key in keys}
    rows = [*trajectory["matrices"], *trajectory["parameters"]]
    trajectory["summary"] = curves_of(rows, steps)
    trajectory["coverage"] = curve_coverage(rows, steps, total)
    forms = reports[-1]["settings"]["null_forms"] if reports else {}
    trajectory["settings"]["null_forms"] |= {name: forms[name] for name in names if name in forms}


def read_result(directory: Path, run: Path, settings: RunSettings, total: int) -> Result:
    """What the report says of one run, from its measures and its log.

    Args:
        directory: holds `report.json` and `trajectory.json` of the run.
        run: the training run's directory.
        settings: of the run.
        total: parameters of the checkpoint.

    Raises:
        UserError: the log lacks the accuracy at the start or at the end.
    """
    log = run / "metrics.jsonl"
    rows = read_json_lines(log) if log.exists() else []
    evaluations = [row for row in rows if "accuracy" in row]
    steps = [row for row in rows if "loss" in row]
    if {0, settings.steps} - {row["step"] for row in evaluations}:
        raise UserError(
            f"{log}: the accuracy at step 0 or {settings.steps} is not there, as where a log was"
            f" removed; delete {run}, and the same command trains it again"
        )
    first, last = evaluations[0], evaluations[-1]
    comparison = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    trajectory = json.loads((directory / "trajectory.json").read_text(encoding="utf-8"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
    said = {
        "seed": settings.seed,
        "steps": config["steps"],
        "learning_rate": config["optimizer"]["learning_rate"],
        "accuracy": {
            "initial": first["accuracy"],
            "final": last["accuracy"],
            "curve": [[row["step"], row["accuracy"]] for row in evaluations],
            "ci": list(wilson_interval(last["accuracy"] * last["accuracy_count"], int(last["accuracy_count"]))),
            "count": int(last["accuracy_count"]),
        },
        "training": {
            "steps": [row["step"] for row in steps],
            "loss": [row["loss"] for row in steps],
            "reward": [row.get("reward") for row in steps] if any("reward" in row for row in steps) else None,
            "gap": [row["gap"] for row in steps] if steps and "gap" in steps[0] else None,
            **{key: [row.get(key) for row in steps] for key in _LEAKAGE if any(key in row for row in steps)},
        },
        "summary": comparison["summary"],
        "groups": comparison["groups"],
        "coverage": comparison["coverage"],
        "used": {key: by for one in (comparison, trajectory) for key, by in one["settings"].get("used", {}).items()},
        "trajectory": {key: trajectory[key] for key in ("steps", "coverage", "summary", "similarity")},
    }
    if live := geometry_curves(rows):
        said["live"] = live
    confined = [row for row in steps if "leakage" in row]
    if confined:
        said["leakage"] = {"mean": confined[-1]["leakage"], "largest": confined[-1]["leakage_max"]}
    along = [*trajectory["matrices"], *trajectory["parameters"]]
    end = [*comparison["matrices"], *comparison["parameters"]]
    nothing = learned_nothing(rows, settings)
    if nothing is None and all(row.get("sparsity_stored") == 1.0 for row in end):
        nothing = (
            f"after {config['steps']} steps every parameter that was measured is what it was, bit for bit. To change: "
            "the learning rate, whose updates the precision of the weights does not hold"
        )
    if nothing is not None:
        said["learned_nothing"] = nothing
    return Result(said, Measured(end, trajectory["steps"], along), total)


def method_results(results: Sequence[Result]) -> dict[str, Any]:
    """What the report says of a method: the means over its seeds, each over the matrices that are defined in them all.

    Seeds that learned nothing are in no mean. A method of which no other is left has no statistic: its `summary`,
    `groups` and curves are empty, and `learned_nothing` says why.

    Args:
        results: one a seed.

    Returns:
        A seed's content with every number averaged; summaries, groups and curves are those of the seeds' mean rows, and
        a statistic of several seeds has each one's own in `seeds` and the 95 % interval `ci` of their mean, within what
        is possible.
    """
    every, results = results, [result for result in results if result.learned]
    if not results:
        return _undefined([result.said for result in every])
    seeds = [result.said for result in results]
    merged = {key: over_seeds([seed[key] for seed in seeds]) for key in seeds[0] if key != "seed"}
    if len(results) < 2:
        return merged
    ends = [result.measured.end for result in results]
    matrices, parameters = _split(mean_rows(ends))
    total = results[0].total
    merged["summary"] = summary_of(matrices, parameters)
    merged["groups"] = groups_of(matrices, parameters)
    merged["coverage"] = coverage_of(matrices, parameters, total)
    for key, entry in merged["summary"].items():
        over = population([*matrices, *parameters] if is_counted(key) else matrices, key)
        if over:
            entry["seeds"] = seed_values(ends, key, {row["name"] for row in over})
            entry["ci"] = list(mean_interval(entry["seeds"], bounds=bounds_of(key))[1:])
    steps = results[0].measured.steps
    if all(list(result.measured.steps) == list(steps) for result in results):
        along = mean_rows([result.measured.along for result in results])
        merged["trajectory"] |= {
            "summary": curves_of(along, len(steps)),
            "coverage": curve_coverage(along, len(steps), total),
        }
    accuracies = [seed["accuracy"]["final"] for seed in seeds]
    merged["accuracy"]["final"], *merged["accuracy"]["ci"] = mean_interval(accuracies, bounds=(0.0, 1.0))
    return merged


def _undefined(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A method no seed of which learned anything: what its runs did, and no statistic."""
    told = ("steps", "learning_rate", "accuracy", "training", "leakage")
    kept = {key: over_seeds([seed[key] for seed in seeds]) for key in told if key in seeds[0]}
    curves = {"steps": seeds[0]["trajectory"]["steps"], "coverage": {}, "summary": {}, "similarity": {}}
    empty = {"summary": {}, "groups": {}, "coverage": {}, "trajectory": curves}
    return kept | empty | {"learned_nothing": seeds[0]["learned_nothing"]}


def matched_results(
    results: Mapping[str, Sequence[Result]], from_one_start: Sequence[Sequence[str]]
) -> dict[str, Any]:  # fmt: skip
    """Every comparison between methods, see `jaxgeom.study.matched`, of the runs that learned something.

    Args:
        results: by method, one a seed.
        from_one_start: the methods that start from one place, group by group; those of a group are compared at one
            step and at one size. `step` and `relative_norm` are of the largest group (the first of those), and where
            there are several `groups` has all of them.
    """
    runs = {method: [run.measured for run in seeds if run.learned] for method, seeds in results.items()}
    groups = []
    for names in from_one_start:
        matched = {method: runs[method] for method in names}
        groups.append({"methods": list(names), "step": at_step(matched), "relative_norm": at_relative_norm(matched)})
    first = max(groups, key=lambda group: len(group["methods"]), default=None)
    none = {"step": at_step({}), "relative_norm": at_relative_norm({})}
    return {
        "end": at_end(runs),
        **{at: (first or none)[at] for at in none},
        "early": early(runs),
        "along": along(runs),
        "groups": groups,
    }


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    matrices = [row for row in rows if row["group"] == "matrices"]
    return matrices, [row for row in rows if row["group"] != "matrices"]


def write_matrices(path: Path, sources: Sequence[tuple[str, int, Path]]) -> None:
    """All runs' per-matrix rows in one table, with the method and the seed in front.

    Args:
        path: the table.
        sources: method, seed and `matrices.csv` of each run.
    """
    rows: list[dict[str, Any]] = []
    for method, seed, source in sources:
        with source.open(newline="", encoding="utf-8") as file:
            rows += [{"method": method, "seed": seed} | row for row in csv.DictReader(file)]
    columns: Sequence[str] = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
