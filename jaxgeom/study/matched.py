"""Comparing methods where they are comparable: at their ends, at the same step, at the same size, early in training.

A comparison is over the matrices that are defined in every method (and every seed of it) at what is compared, so that
no difference between two methods is one of population; their count stands beside every number. A method in which a
statistic is defined nowhere has no value there and leaves the population to the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgeom.comparison.files.curves import along_keys, last_population, steady_curves
from jaxgeom.comparison.files.summary import Row, at, groups_of, keys_of, mean_of, population, triple
from jaxgeom.diagnostics.statistics import COMPARED, EARLY, bounds_of, early_place, is_counted, split_key
from jaxgeom.study.seeds import mean_interval, mean_rows


class Measured(NamedTuple):
    """What was measured of one run, matrix by matrix.

    Attributes:
        end: rows of the last checkpoint's comparison, matrices and other parameters.
        steps: saved steps, ascending.
        along: rows of the trajectory, with a list of numbers per statistic, one a step.
    """

    end: Sequence[Row]
    steps: Sequence[int]
    along: Sequence[Row]

    def at(self, index: int) -> list[Row]:
        """The trajectory's rows at one of its steps."""
        return [at(row, index, len(self.steps)) for row in self.along]


Runs = Mapping[str, Sequence[Measured]]
"""By method: one run a seed; none for a method that has no seed to compare."""

Points = Mapping[str, Sequence[Sequence[Row]]]
"""By method: the rows of each of its seeds at the point that is compared; no seeds where it does not reach it."""


def at_end(runs: Runs) -> dict[str, Any]:
    """Every method's statistics at its own end.

    Args:
        runs: what was measured, by method and seed.

    Returns:
        `{"rows": […], "of": …, "layers": {method: {layer: {statistic: entry}}}}`, see `compared`.
    """
    points = {method: [run.end for run in seeds] for method, seeds in runs.items()}
    keys = keys_of(row for seeds in points.values() for rows in seeds for row in rows)
    layers = {}
    shared = {method: _matrices(rows) for method, rows in shared_rows(points, COMPARED).items()}
    for method, rows in shared.items():
        by_layer = groups_of([{k: v for k, v in row.items() if _is_compared(k)} for row in rows])["layer"]
        layers[method] = by_layer
    return compared(points, keys) | {"layers": layers}


def at_step(runs: Runs) -> dict[str, Any]:
    """Every method's statistics at the last step that all runs saved.

    Args:
        runs: what was measured, by method and seed.

    Returns:
        `{"step": n, "rows": […], "of": …}`, see `compared`; no rows where the runs share no step.
    """
    saved = [set(run.steps) for seeds in runs.values() for run in seeds]
    shared = set.intersection(*saved) - {0} if saved else set()
    if not shared:
        return {"step": None, "rows": []}
    step = max(shared)
    points = {method: [run.at(list(run.steps).index(step)) for run in seeds] for method, seeds in runs.items()}
    return {"step": step} | compared(points, COMPARED)


def at_relative_norm(runs: Runs) -> dict[str, Any]:
    """Every method's statistics where its update first has the relative norm that all runs reach.

    That norm is the smallest of the runs' largest; a run's is the mean over the matrices that have one at every step of
    every run. Between two checkpoints value, null and z of each matrix are interpolated linearly in the relative norm.
    A method of which a run is past that norm at its first checkpoint has no value there: its row is empty.

    Args:
        runs: what was measured, by method and seed.

    Returns:
        `{"relative_norm": x, "rows": […], "of": …}`, see `compared`; a row's `step` is the mean over its seeds.
    """
    norms = _norms(runs)
    if norms is None:
        return {"relative_norm": None, "rows": []}
    target = float(min(curve.max() for curves in norms.values() for curve in curves))
    places = {method: [_crossing(curve, target) for curve in curves] for method, curves in norms.items()}
    points: dict[str, list[list[Row]]] = {}
    steps: dict[str, float | None] = {}
    for method, seeds in runs.items():
        found = [place for place in places[method] if place is not None]
        reached = len(found) == len(seeds)
        points[method] = [_between(run, place) for run, place in zip(seeds, found, strict=True)] if reached else []
        own = [_step(run.steps, place) for run, place in zip(seeds, found, strict=True)] if reached else []
        steps[method] = sum(own) / len(own) if own else None
    return {"relative_norm": target} | compared(points, COMPARED, steps)


def early(runs: Runs) -> dict[str, Any]:
    """How near every run's subspace is to its final one at the checkpoint nearest to a fifth of its steps.

    Args:
        runs: what was measured, by method and seed; methods of fewer than three checkpoints are left out.

    Returns:
        `{"share": 0.2, "rows": […], "of": …}`, see `compared`.
    """
    points: dict[str, list[list[Row]]] = {}
    steps: dict[str, float | None] = {}
    for method, seeds in runs.items():
        if seeds and all(len(run.steps) >= 3 for run in seeds):
            places = [early_place(run.steps) for run in seeds]
            points[method] = [run.at(place) for run, place in zip(seeds, places, strict=True)]
            steps[method] = sum(run.steps[place] for run, place in zip(seeds, places, strict=True)) / len(seeds)
    return {"share": EARLY} | compared(points, ("sim_to_final", "sim_to_final_bf16"), steps)


def along(runs: Runs) -> dict[str, Any]:
    """Every method's curves, all over one population that stays the same from step to step.

    A statistic's population are the matrices that are defined at the end (the last step that has any) of every method
    in which it is defined at all, every seed of it included: those of `at_end`. A step at which one of them is
    undefined has no point, so that no curve bends because matrices come or go.

    Args:
        runs: what was measured, by method and seed; methods whose seeds saved different steps are left out.

    Returns:
        By method `{"trajectory": {"steps": …, "summary": {statistic: {"mean", "null", "excess", "count", "z", "of"}}}}`
        of lists over the steps, and of several seeds `per_seed`, a list of the same.
    """
    alike = {method: seeds for method, seeds in runs.items() if len({tuple(run.steps) for run in seeds}) == 1}
    means = {
        method: Measured([], seeds[0].steps, mean_rows([run.along for run in seeds])) for method, seeds in alike.items()
    }
    names = {}
    for key in along_keys([row for mean in means.values() for row in mean.along]):
        held = {
            method: last_population(_rows_for(key, mean.along), len(mean.steps), key) for method, mean in means.items()
        }
        defined = [own for own in held.values() if own]
        common = set.intersection(*defined) if defined else set()
        names[key] = {method: common if held[method] else set() for method in means}
    found: dict[str, Any] = {}
    for method, mean in means.items():
        own = {key: by_method[method] for key, by_method in names.items()}
        found[method] = {"trajectory": _curves(mean, own)}
        if len(alike[method]) > 1:
            found[method]["per_seed"] = [{"trajectory": _curves(run, own)} for run in alike[method]]
    return found


def _curves(run: Measured, names: Mapping[str, set[str]]) -> dict[str, Any]:
    """A run's curves, each over the named matrices at the steps where all of them are defined."""
    return {"steps": list(run.steps), "summary": steady_curves(run.along, len(run.steps), names)}


def compared(
    points: Points, keys: Sequence[str], steps: Mapping[str, float | None] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Statistics of methods at a point, each over the matrices that are defined in all of them.

    Args:
        points: by method, the rows of its seeds there.
        keys: the statistics.
        steps: by method, the step that its point lies at, where that belongs to the row.

    Returns:
        `rows`: by method one flat row: a statistic's mean under its key, `_null`, `_excess` (the mean less the null,
        exactly), `_count` and `_z` (the mean z of those that have one), and of several seeds `_ci`, the 95 % interval
        of the mean within what is possible, and `_seeds`, each one's mean;
        `of`: how many `matrices`, and how many `parameters` (tensors) for what is counted over them all.
    """
    means = {method: mean_rows(seeds) for method, seeds in points.items()}
    rows: list[Row] = [{"method": method} | ({"step": steps[method]} if steps else {}) for method in points]
    for key in keys:
        names = shared_names(means, key)
        if names is None:
            continue
        for row in rows:
            method = str(row["method"])
            row |= _cells(key, names.get(method, set()), means[method], points[method])
    everything = [rows for seeds in points.values() for rows in seeds]
    of = {
        "matrices": max((len(_matrices(rows)) for rows in everything), default=0),
        "parameters": max((len(rows) for rows in everything), default=0),
    }
    return {"rows": rows, "of": of}


def shared_names(means: Mapping[str, Sequence[Row]], key: str) -> dict[str, set[str]] | None:
    """By method the matrices that a comparison by `key` is over: the same for all that have it; None where none has."""
    held = {method: {row["name"] for row in population(_rows_for(key, rows), key)} for method, rows in means.items()}
    defined = {method: names for method, names in held.items() if names}
    if not defined:
        return None
    common = set.intersection(*defined.values())
    return {method: common if method in defined else set() for method in means}


def shared_rows(points: Points, keys: Sequence[str]) -> dict[str, list[Row]]:
    """By method its rows, averaged over seeds, with every statistic of `keys` left out where it is not compared."""
    means = {method: mean_rows(seeds) for method, seeds in points.items()}
    result = {method: [dict(row) for row in rows] for method, rows in means.items()}
    for key in keys:
        names = shared_names(means, key) or {}
        for method, rows in result.items():
            for row in rows:
                if key in row and row["name"] not in names.get(method, set()):
                    row[key] = None
    return result


def _is_compared(key: str) -> bool:
    base = next((key.removesuffix(end) for end in ("_null", "_excess") if key.endswith(end)), key)
    return base in COMPARED or key in ("name", "layer", "module", "group", "parameters")


def _matrices(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["group"] == "matrices"]


def _rows_for(key: str, rows: Sequence[Row]) -> Sequence[Row]:
    return rows if is_counted(key) else _matrices(rows)


def _cells(key: str, names: set[str], mean: Sequence[Row], seeds: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """A statistic of one method over the given matrices: of its seeds' mean, and each seed's own."""
    own = triple([row for row in _rows_for(key, mean) if row["name"] in names], key)
    cells: dict[str, Any] = {
        key: own["mean"], f"{key}_null": own["null"], f"{key}_excess": own["excess"], f"{key}_count": own["count"],
        f"{key}_z": own["z"],
    }  # fmt: skip
    if len(seeds) > 1 and names:
        values = seed_values(seeds, key, names)
        cells |= {f"{key}_seeds": values, f"{key}_ci": list(mean_interval(values, bounds=bounds_of(key))[1:])}
    return cells


def seed_values(seeds: Sequence[Sequence[Row]], key: str, names: set[str]) -> list[float]:
    """A statistic's mean over the named rows, seed by seed; every seed has it for each of them."""
    found = []
    for rows in seeds:
        value = mean_of([row for row in rows if row["name"] in names], key, weighted=is_counted(key))
        assert value is not None  # a name is shared where all seeds have it
        found.append(value)
    return found


def _norms(runs: Runs) -> dict[str, list[np.ndarray]] | None:
    """By method and seed the relative norm along the steps, over the matrices that have one throughout."""
    flat = [[run.at(index) for index in range(len(run.steps))] for seeds in runs.values() for run in seeds]
    names = [
        {row["name"] for row in _matrices(rows) if row.get("relative_norm") is not None} for run in flat for rows in run
    ]
    common = set.intersection(*names) if names else set()
    if not common:
        return None
    curves = [
        np.array([np.mean([row["relative_norm"] for row in rows if row["name"] in common]) for rows in run])
        for run in flat
    ]
    following = iter(curves)
    return {method: [next(following) for _ in seeds] for method, seeds in runs.items()}


def _crossing(values: np.ndarray, target: float) -> float | None:
    """The first place, in checkpoints and fractions of one, where a curve reaches `target`; None if before them all."""
    # Rounding must not push the method that sets the target past its own end.
    index = int(np.flatnonzero(values >= target * (1 - 1e-12))[0])
    if index == 0:
        return 0.0 if values[0] <= target * (1 + 1e-12) else None
    return float(index - 1 + (target - values[index - 1]) / (values[index] - values[index - 1]))


def _between(run: Measured, place: float) -> list[Row]:
    """Rows between two checkpoints: value, null and z interpolated together, None where one of the two is undefined."""
    low = int(np.floor(place))
    share = place - low
    first = run.at(low)
    if share == 0:
        return first
    second = run.at(low + 1)
    return [
        a | {key: _mixed(a[key], b.get(key), share) for key in a if _is_interpolated(key)}
        for a, b in zip(first, second, strict=True)
    ]


def _is_interpolated(key: str) -> bool:
    base, kind, what = split_key(key)
    return base in COMPARED and not kind and what in ("value", "null", "z")


def _mixed(a: float | None, b: float | None, share: float) -> float | None:
    return None if a is None or b is None else (1 - share) * a + share * b


def _step(steps: Sequence[int], place: float) -> float:
    low = int(np.floor(place))
    share = place - low
    return float(steps[low]) if share == 0 else (1 - share) * steps[low] + share * steps[low + 1]
