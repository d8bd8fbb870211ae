"""Every triple of a real study's files is over one population: value, null, excess and count, recomputed from the rows.

Nothing of the code under test is used for it: means, populations and weights are taken here from the rows in the files.
The tests of the study call the checks.
"""

import itertools
import json
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxgeom.diagnostics.statistics import split_key, statistic

COUNTED = {"sparsity_bf16", "sparsity_stored", "sparsity_abs_1e-5", "density_bf16", "share_beyond_half_ulp"}
COUNTED |= {f"sparsity_rms_{tolerance:g}" for tolerance in (1e-4, 1e-3, 1e-2)}
KINDS = ("profile", "permutation", "rounding")


class Study(NamedTuple):
    """What a study left on disk: its report, and by method and seed the comparison and the trajectory."""

    report: dict[str, Any]
    measures: dict[tuple[str, int], tuple[dict[str, Any], dict[str, Any]]]
    between: list[dict[str, Any]]


def read(out):
    """The files of a study's directory."""
    measures = {
        (path.parent.name, int(path.name.removeprefix("seed"))): tuple(
            json.loads((path / name).read_text()) for name in ("report.json", "trajectory.json")
        )
        for path in sorted(out.glob("measures/*/seed*"))
    }
    between = json.loads((out / "measures" / "between.json").read_text())
    return Study(json.loads((out / "report.json").read_text()), measures, between)


def _defined(rows, key, null):
    """Rows with value and null; with the value alone where no row has a null."""
    held = [row for row in rows if row.get(key) is not None]
    return [row for row in held if row.get(null) is not None] or held


def _mean(rows, key, counted):
    if not rows:
        return None
    weights = np.array([row["parameters"] if counted else 1.0 for row in rows], float)
    return float(np.dot([row[key] for row in rows], weights) / weights.sum())


def _same(one, other):
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def _check(entry, rows, key, where):
    """A summary's entry is the mean of value and null over one population, and its excess their difference."""
    counted = key in COUNTED
    over = _defined(rows, key, f"{key}_null")
    null = _mean(over, f"{key}_null", counted) if over and over[0].get(f"{key}_null") is not None else None
    assert entry["count"] == len(over) and entry["of"] == len(rows), where
    assert _same(entry["mean"], _mean(over, key, counted)), where
    assert _same(entry["null"], null), where
    assert entry["excess"] == (None if null is None else entry["mean"] - entry["null"]), where
    if over:
        assert entry["median"] == pytest.approx(np.median([row[key] for row in over]), rel=1e-12), where
    for kind in KINDS:
        held = [row for row in rows if row.get(key) is not None and row.get(f"{key}_{kind}_null") is not None]
        if f"{kind}_count" in entry or held:
            mean, null = (_mean(held, one, counted) for one in (key, f"{key}_{kind}_null"))
            assert entry[f"{kind}_count"] == len(held), (where, kind)
            assert _same(entry[f"{kind}_mean"], mean) and _same(entry[f"{kind}_null"], null), (where, kind)
            excess = None if null is None else entry[f"{kind}_mean"] - entry[f"{kind}_null"]
            assert entry[f"{kind}_excess"] == excess, (where, kind)


def check_report(report):
    """Summary, groups and coverage of a comparison; the number of triples that were read."""
    matrices, everything = report["matrices"], [*report["matrices"], *report.get("parameters", [])]
    read = 0
    for key, entry in report["summary"].items():
        _check(entry, everything if key in COUNTED else matrices, key, key)
        covered = _defined(everything if key in COUNTED else matrices, key, f"{key}_null")
        matched = [row for row in covered if row.get("group", "matrices") == "matrices"]
        assert report["coverage"][key]["matrices"] == len(matched), key
        read += entry["null"] is not None
    for by in ("module", "layer"):
        for label, table in report["groups"][by].items():
            for key, entry in table.items():
                _check(entry, [row for row in matrices if str(row[by]) == label], key, (by, label, key))
                read += entry["null"] is not None
    for label, table in report["groups"].get("sparsity", {}).items():
        rows = everything if label == "all" else [row for row in everything if row["group"] == label]
        for key, entry in table.items():
            _check(entry, rows, key, ("sparsity", label, key))
    return read


def check_comparisons(study):
    """Every comparison of the study."""
    assert min(check_report(comparison) for comparison, _ in study.measures.values()) > 100


def check_between(study):
    """Every pair of runs, whose row has flat keys."""
    read = 0
    for pair in study.between:
        for key in [key for key in pair if f"{key}_count" in pair]:
            over = _defined(pair["matrices"], key, f"{key}_null")
            assert pair[f"{key}_count"] == len(over) and _same(pair[key], _mean(over, key, False)), key
            for kind in ("", *(f"_{kind}" for kind in KINDS)):
                null = f"{key}{kind}_null"
                if pair.get(null) is None:
                    continue
                over = [row for row in pair["matrices"] if row.get(key) is not None and row.get(null) is not None]
                mean = pair[key] if not kind else pair[f"{key}{kind}_mean"]
                assert pair[f"{key}{kind}_count"] == len(over)
                assert _same(mean, _mean(over, key, False)) and _same(pair[null], _mean(over, null, False))
                assert pair[f"{key}{kind}_excess"] == mean - pair[null]
                read += 1
    assert read > 5 * len(study.between)


def _along(trajectory, index):
    """A trajectory's rows at one step."""
    count = len(trajectory["steps"])
    return [
        {k: v[index] if isinstance(v, list) and k != "shape" and len(v) == count else v for k, v in row.items()}
        for row in (*trajectory["matrices"], *trajectory["parameters"])
    ]


def check_trajectories(study):
    """Every step of every trajectory, and the similarities of pairs of steps where the rows hold them."""
    for (name, seed), (_, trajectory) in study.measures.items():
        read = 0
        for index in range(len(trajectory["steps"])):
            rows = _along(trajectory, index)
            for key, entry in trajectory["summary"].items():
                over = rows if key in COUNTED else [row for row in rows if row["group"] == "matrices"]
                at = {
                    field: None if entry[field] is None else entry[field][index]
                    for field in ("mean", "median", "count", "null", "excess", "z")
                }
                _check(at | {"of": entry["of"]}, over, key, (name, seed, index, key))
                held = [row for row in _defined(over, key, f"{key}_null") if row.get(f"{key}_z") is not None]
                assert _same(at["z"], _mean(held, f"{key}_z", key in COUNTED)), (name, seed, index, key)
                assert entry["z_count"][index] == len(held), (name, seed, index, key)
                read += at["null"] is not None
        assert read > 20 and {"nss", "overlap_low"} <= trajectory["summary"].keys()
        check_similarities(trajectory)


def check_similarities(trajectory):
    """The heat maps' last column and diagonal are the curves: the same values, nulls and counts."""
    similar = trajectory["similarity"]
    for kind, key in (("full", "sim_to_final"), ("disjoint", "sim_disjoint")):
        entry = trajectory["summary"][key]
        for s, t in itertools.product(range(len(trajectory["steps"])), repeat=2):
            assert similar[f"{kind}_count"][s][t] >= 0
            if t == (len(trajectory["steps"]) - 1 if kind == "full" else s):
                assert similar[f"{kind}_count"][s][t] == entry["count"][s]
                assert _same(similar[kind][s][t], entry["mean"][s])
                if entry["null"] is not None:
                    assert _same(similar[f"{kind}_null"][s][t], entry["null"][s]), (kind, s)


def _seed_means(seeds):
    """By name, the values of every seed that all of them have."""
    return {row["name"]: [next(r for r in rows if r["name"] == row["name"]) for rows in seeds] for row in seeds[0]}


def _averaged(seeds):
    """Rows averaged over seeds: None where one of them has None."""
    found = []
    for rows in _seed_means(seeds).values():
        row = {k: rows[0][k] for k in ("name", "layer", "module", "group", "parameters")}
        for key, value in rows[0].items():
            if key not in row and not isinstance(value, str | list | bool):
                values = [one.get(key) for one in rows]
                row[key] = None if None in values else float(np.mean(values))
        found.append(row)
    return found


def check_seeds(study):
    """Every method's summary and groups, over the matrices that are defined in all of its seeds."""
    report, measures, _ = study
    for name, method in report["methods"].items():
        seeds = [c for (method_name, _), (c, _) in measures.items() if method_name == name]
        rows = _averaged([[*one["matrices"], *one["parameters"]] for one in seeds])
        matrices = [row for row in rows if row["group"] == "matrices"]
        for key, entry in method["summary"].items():
            _check(entry, rows if key in COUNTED else matrices, key, (name, key))
        for layer, table in method["groups"]["layer"].items():
            for key, entry in table.items():
                _check(entry, [r for r in matrices if str(r["layer"]) == layer], key, (name, layer, key))
        for one, seed in zip(seeds, method["per_seed"], strict=True):
            assert seed["summary"] == one["summary"]
        for key in ("mean", "null", "excess"):
            for values in (entry[key] for entry in method["trajectory"]["summary"].values()):
                assert values is None or len(values) == len(method["trajectory"]["steps"])


def _check_compared(points, block, least):
    """A matched comparison: every method over the names that are defined in all methods and seeds."""
    means = {name: _averaged(seeds) for name, seeds in points.items() if seeds}
    rows = {row["method"]: row for row in block["rows"]}
    keys = {key for row in rows.values() for key in row if f"{key}_count" in row}
    read = 0
    for key in keys:
        counted = key in COUNTED
        held = {}
        for name, own in means.items():
            over = own if counted else [row for row in own if row["group"] == "matrices"]
            held[name] = {row["name"] for row in _defined(over, key, f"{key}_null")}
        common = set.intersection(*(names for names in held.values() if names))
        for name in rows:
            if not held.get(name):
                assert rows[name][key] is None and rows[name][f"{key}_count"] == 0, (name, key)
                continue
            over = [row for row in means[name] if row["name"] in common]
            has_null = bool(over) and all(row.get(f"{key}_null") is not None for row in over)
            null = _mean(over, f"{key}_null", counted) if has_null else None
            assert rows[name][f"{key}_count"] == len(common), (name, key)
            assert _same(rows[name][key], _mean(over, key, counted)), (name, key)
            assert _same(rows[name][f"{key}_null"], null), (name, key)
            excess = None if null is None else rows[name][key] - rows[name][f"{key}_null"]
            assert rows[name][f"{key}_excess"] == excess, (name, key)
            read += null is not None
    assert read >= least


def _points(measures, methods, pick):
    return {name: [pick(c, t) for (method, _), (c, t) in measures.items() if method == name] for name in methods}


def check_matched(study):
    """Methods at their ends, at the same step and early: over the matrices that all of them have."""
    report, measures, _ = study
    matched = report["matched"]
    everyone = list(report["methods"])
    later = [name for name in everyone if name != "sft_anchor"]

    def end(comparison, _):
        return [*comparison["matrices"], *comparison["parameters"]]

    _check_compared(_points(measures, everyone, end), matched["end"], 50)

    def shared(_, trajectory):
        return _along(trajectory, trajectory["steps"].index(matched["step"]["step"]))

    _check_compared(_points(measures, later, shared), matched["step"], 20)

    def early(_, trajectory):
        steps = trajectory["steps"]
        return _along(trajectory, min(range(len(steps)), key=lambda i: abs(steps[i] - 0.2 * steps[-1])))

    _check_compared(_points(measures, everyone, early), matched["early"], 2)


def check_along(study):
    """Curves of the methods side by side: one population a statistic, the same in every method and at every step."""
    report, measures, _ = study
    block, ends = report["matched"]["along"], {row["method"]: row for row in report["matched"]["end"]["rows"]}
    assert block.keys() == report["methods"].keys()
    read = 0
    for key in ("stable_rank", "stable_rank_bf16", "relative_norm", "hill", "sim_to_final", "sim_disjoint"):
        found = {name: block[name]["trajectory"]["summary"][key] for name in block}
        sizes = {count for entry in found.values() for count in entry["count"] if count}
        assert len(sizes) == 1, (key, sizes)
        for name, entry in found.items():
            runs = [t for (method, _), (_, t) in measures.items() if method == name]
            for index, count in enumerate(entry["count"]):
                if count:
                    rows = _averaged([_along(run, index) for run in runs])
                    over = _defined([row for row in rows if row["group"] == "matrices"], key, f"{key}_null")
                    assert len(over) >= count
                    if len(over) == count:  # the same matrices: the mean is theirs
                        assert _same(entry["mean"][index], _mean(over, key, False)), (name, key, index)
                        read += 1
                else:
                    assert entry["mean"][index] is None and entry["null"][index] is None
            if key in ("stable_rank", "relative_norm"):
                assert _same(entry["mean"][-1], ends[name][key]), (name, key)
    assert read > 20


def check_one_size(study):
    """Methods at the same relative norm: value and null of each matrix interpolated together."""
    report, measures, _ = study
    block = report["matched"]["relative_norm"]
    target, points = block["relative_norm"], {}
    for name in (row["method"] for row in block["rows"]):
        points[name] = []
        for trajectory in (t for (method, _), (_, t) in measures.items() if method == name):
            norms = trajectory["summary"]["relative_norm"]["mean"]
            above = next(i for i, norm in enumerate(norms) if norm >= target * (1 - 1e-12))
            if above == 0 and norms[0] > target * (1 + 1e-12):
                points[name] = []
                break
            low = max(above - 1, 0)
            share = (target - norms[low]) / (norms[above] - norms[low]) if above else 0.0
            first, second = _along(trajectory, low), _along(trajectory, above)
            points[name].append([
                one | {
                    key: None if value is None or other[key] is None else (1 - share) * value + share * other[key]
                    for key, value in one.items()
                    if isinstance(value, float) and key in other
                }
                for one, other in zip(first, second, strict=True)
            ])  # fmt: skip
    _check_compared(points, block, 4)
    for name, row in ((row["method"], row) for row in block["rows"]):
        if points[name]:
            assert row["relative_norm"] == pytest.approx(target, rel=1e-9)


def check_excesses(study):
    """Excess is value less null wherever the report has the three beside each other, at any depth."""
    report = study.report
    read = 0

    def walk(node):
        nonlocal read
        if isinstance(node, list):
            for one in node:
                walk(one)
        if not isinstance(node, dict):
            return
        triples = [("mean", "null", "excess")] if {"mean", "null", "excess"} <= node.keys() else []
        triples += [(f"{k}_mean", f"{k}_null", f"{k}_excess") for k in KINDS if f"{k}_mean" in node]
        triples += [(k, f"{k}_null", f"{k}_excess") for k in node if f"{k}_null" in node and f"{k}_excess" in node]
        for value, null, excess in triples:
            cells = [node[value], node[null], node[excess]]
            columns = zip(*cells, strict=True) if all(isinstance(c, list) for c in cells) else [cells]
            for a, b, c in columns:
                if not isinstance(a, list) and a is not None and b is not None:
                    assert c == a - b, (value, node)
                    read += 1
        for one in node.values():
            walk(one)

    walk({key: report[key] for key in ("methods", "matched", "between")})
    assert read > 1000


def check_table(study):
    """Rows hold what the table of statistics says of the command, and nothing that it does not know."""
    labels = {"name", "shape", "layer", "module", "group", "parameters"}
    comparison, trajectory = study.measures["opd", 0]
    for command, rows in (
        ("compare", comparison["matrices"]),
        ("trajectory", trajectory["matrices"]),
        ("between", study.between[0]["matrices"]),
    ):
        keys = {key for row in rows for key in row} - labels
        names = {split_key(key)[0] for key in keys if not key.endswith(("_note", "_form"))}
        along = {"overlap_low", "overlap_principal"} if command == "trajectory" else set()  # the study's own
        for name in names - along:
            entry = statistic(name)
            assert entry is not None and command in entry.commands, (command, name)
            assert entry.is_setting or (f"{name}_null" in keys) == (entry.null_in(command) is not None), (command, name)
            for kind in KINDS:
                assert f"{name}_{kind}_null" not in keys or kind in entry.further, (command, name, kind)


CHECKS = (
    check_table,
    check_comparisons,
    check_between,
    check_trajectories,
    check_seeds,
    check_matched,
    check_along,
    check_one_size,
    check_excesses,
)
