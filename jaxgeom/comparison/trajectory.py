"""The geometry of a run along its checkpoints."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.comparison.algebra.devices import Algebra
from jaxgeom.comparison.algebra.matrix import MatrixForm
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import to_json_text, version
from jaxgeom.comparison.one_matrix.along_run import RATE_STATISTICS, SPECTRAL_STATISTICS, STATISTICS, MatrixTrajectory
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.scan import ElementTotals, require_finite
from jaxgeom.comparison.run.plan import Reader, check_sides, plan_parts
from jaxgeom.comparison.run.processes import Team
from jaxgeom.comparison.run.run import Measurement, run
from jaxgeom.comparison.run.workers import Progress
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.errors import UserError
from jaxgeom.files import write_atomically

NULL_FORMS = {
    "stable_rank, hill": "closed: isotropic update of the same shape",
    "stable_rank_bf16, sim_to_final_bf16": "precision null: the final direction at each norm, in bfloat16",
    "sim_to_final": "random walk of independent increments of the observed norms (sampled once per shape)",
    "sim_disjoint": "closed: K/n",
    "sparsity_bf16": "closed: isotropic update of equal norm, rounded",
    "drift_ratio": "closed: 1, independent increments",
    "path_cosine, cosine_to_rest": "closed: 0",
    "lr_diffusion_ratio": "1 by definition: steps of size lr per entry that add up at random, lr·√T",
    "lr_drift_ratio": "1 by definition: steps of size lr per entry, all one way, lr·T",
    "nss, angle_*_mean_deg": "those of a comparison of W_t with W0",
    "<name>_z": "excess over the null's standard deviation; none for precision nulls, lr ratios and one increment",
}


def trajectory_checkpoints(
    initial: Reader,
    checkpoints: Sequence[tuple[int, Reader]],
    settings: CompareSettings | None = None,
    *,
    learning_rates: LearningRates | float | None = None,
    spectra: bool = False,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    force: bool = False,
    command: str = "trajectory",
    algebra: Algebra | None = None,
    team: Team | None = None,
) -> dict[str, Any]:
    """Trajectory statistics, each with its null, over checkpoints in order.

    Args:
        initial: checkpoint that holds W0.
        checkpoints: `(step, checkpoint)` in the order of training.
        settings: parameters; the population `attention` gives that of *On the Geometry of OPD*.
        learning_rates: of the optimizer steps after W0, one number where it is constant; adds `lr_diffusion_ratio`
            and `lr_drift_ratio`.
        spectra: adds `nss`, `angle_left_mean_deg`, `angle_right_mean_deg` of every step against W0, which is
            decomposed once; each step costs one decomposition more.
        out: folder for `trajectory.json`, and for finished matrices while the measurement runs.
        cache: folder of base spectra, shared with `compare_checkpoints`; used with `spectra`.
        progress: called after each parameter.
        force: takes over a folder that holds another measurement.
        command: named in the result.
        algebra: where the dense algebra runs, if not where `settings.device` says.
        team: the processes that call this together with the same arguments; each measures its share into `out`, which
            they share, and process 0 writes the result there.

    Returns:
        The content of `trajectory.json`.

    Raises:
        UserError: no checkpoints, steps out of order, mismatched or non-finite weights, steps without a known learning
            rate, spectra in the fast suite, a device that is not there, another process that failed.
    """
    settings = settings or CompareSettings()
    steps = [int(step) for step, _ in checkpoints]
    if not steps:
        raise UserError("a trajectory needs at least one checkpoint after the initial one")
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise UserError(f"the steps of a trajectory must ascend: {', '.join(map(str, steps))}")
    if spectra and settings.suite == "fast":
        raise UserError("spectra = True: the fast suite has none; take suite full")
    if isinstance(learning_rates, int | float):
        learning_rates = LearningRates(float(learning_rates), "one constant rate, as given")
    rates = None if learning_rates is None else [learning_rates.sums(step) for step in steps]
    readers = [checkpoint for _, checkpoint in checkpoints]
    names = check_sides([initial, *readers], settings)

    def matrix(part: Part, arrays: Sequence[np.ndarray], form: MatrixForm, bases: BaseCache) -> dict[str, Any]:
        return MatrixTrajectory(
            lambda index: arrays[index + 1], len(steps), settings,
            rates=rates, spectra=(part.name, bases) if spectra else None, form=form,
        ).measure()  # fmt: skip

    measurement = Measurement(
        kind="trajectory",
        sides={"initial": initial, "checkpoints": readers},
        parts=plan_parts(initial, names, settings),
        settings=settings,
        further={
            "steps": steps,
            "checkpoints": [reader.name for reader in readers],
            "spectra": spectra,
            "learning_rates": None if learning_rates is None else learning_rates.to_json(steps),
        },
        matrix=matrix,
        parameter=lambda part: _scan(part, initial, readers, settings),
        result=lambda rows, inputs, described: _result(rows, initial, steps, inputs, described, command),
        write=lambda result, folder: write_atomically(folder / "trajectory.json", to_json_text(result)),
        final="trajectory.json",
        ahead=False,  # of a long run a few checkpoints are held at a time, as each matrix asks for them
        identified_by="measured",
    )
    return run(measurement, out=out, cache=cache, progress=progress, force=force, algebra=algebra, team=team)


def _scan(part: Part, initial: Reader, readers: Sequence[Reader], settings: CompareSettings) -> dict[str, Any]:
    """Visible sparsity of a parameter that is no matrix, per step."""
    values = []
    for reader in readers:
        totals = ElementTotals()
        blocks = (side[part.tensor].row_blocks(1 << 24) for side in (initial, reader))
        for first, second in zip(*blocks, strict=True):
            require_finite(first, f"{initial.name}: {part.name}")
            require_finite(second, f"{reader.name}: {part.name}")
            totals.add(first, second, eta=settings.eta, rms=0.0)
        values.append(1 - totals.density)
    digests = [side[part.tensor].sha256() for side in (initial, *readers)]
    return {"sparsity_bf16": values, "digests": digests}


def _column(rows: Sequence[dict[str, Any]], key: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    held = [(row[key][index], row["parameters"]) for row in rows if row.get(key) and row[key][index] is not None]
    return np.array([value for value, _ in held], float), np.array([weight for _, weight in held], float)


def _curve(
    rows: Sequence[dict[str, Any]], key: str, count: int, *, weighted: bool, median: bool = False
) -> list[float | None]:
    result: list[float | None] = []
    for index in range(count):
        values, weights = _column(rows, key, index)
        if not values.size:
            result.append(None)
        elif median:
            result.append(float(np.median(values)))
        else:
            result.append(float(np.average(values, weights=weights if weighted else None)))
    return result


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The statistics that were measured, in order: those along every trajectory, then what was asked for beyond."""
    beyond = [name for name in (*RATE_STATISTICS, *SPECTRAL_STATISTICS) if any(name in row for row in rows)]
    return [*STATISTICS, *beyond]


def _summary(rows: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    matrices = [row for row in rows if row["group"] == "matrices"]
    table = {}
    for name in _measured(rows):
        counted = name.startswith("sparsity")
        over = rows if counted else matrices
        mean, null = _curve(over, name, count, weighted=counted), _curve(over, f"{name}_null", count, weighted=counted)
        both = [row for row in over if row.get(f"{name}_null")]
        own = _curve(both, name, count, weighted=counted)
        excess = [None if a is None or b is None else a - b for a, b in zip(own, null, strict=True)]
        z = _curve(over, f"{name}_z", count, weighted=False)
        has_null = any(value is not None for value in null)
        table[name] = {
            "mean": mean,
            "median": _curve(over, name, count, weighted=False, median=True),
            "null": null if has_null else None,
            "excess": excess if has_null else None,
            "z": z if any(value is not None for value in z) else None,
        }
    return table


def _mean_matrix(tables: Sequence[list[list[float | None]]], count: int) -> list[list[float | None]]:
    mean: list[list[float | None]] = [[None] * count for _ in range(count)]
    for s in range(count):
        for t in range(count):
            values = [value for table in tables if (value := table[s][t]) is not None]
            mean[s][t] = float(np.mean(values)) if values else None
    return mean


def _result(
    rows: Sequence[dict[str, Any]], initial: Reader, steps: list[int], inputs: dict[str, Any],
    described: dict[str, Any], command: str,
) -> dict[str, Any]:  # fmt: skip
    matrices = [row for row in rows if row["group"] == "matrices"]
    total = sum(initial[name].size for name in initial)
    coverage = {}
    for name in _measured(rows):
        held = [row for row in rows if any(value is not None for value in row.get(name) or [])]
        share = sum(row["parameters"] for row in held) / total if total else 0.0
        coverage[name] = {"parameters": share, "matrices": sum(1 for row in held if row["group"] == "matrices")}
    similarity = {
        kind: _mean_matrix([row["similarity"][kind] for row in matrices], len(steps))
        for kind in ("full", "full_null", "disjoint", "disjoint_null")
    }
    return {
        "schema": 1,
        "kind": "trajectory",
        "version": version(),
        "command": command,
        "inputs": inputs,
        "steps": steps,
        "settings": described | {"null_forms": NULL_FORMS},
        "coverage": coverage,
        "summary": _summary(rows, len(steps)),
        "similarity": similarity,
        "matrices": [{name: value for name, value in row.items() if name != "similarity"} for row in matrices],
    }
