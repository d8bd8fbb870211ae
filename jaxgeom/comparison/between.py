"""Two runs from one origin: do they change the same entries, in the same directions?"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.devices import Algebra, DevicePool, choose_algebra
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import SCHEMA, to_csv_text, to_json_text, version
from jaxgeom.comparison.files.summary import coverage_of, groups_of, summary_of
from jaxgeom.comparison.one_matrix.scan import require_finite
from jaxgeom.comparison.one_matrix.two_runs import measure_pair
from jaxgeom.comparison.run.journal import Journal, description, kept, settings_key
from jaxgeom.comparison.run.plan import Reader, check_pair, plan_parts
from jaxgeom.comparison.run.workers import Progress, measure_parts
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.statistics import null_forms
from jaxgeom.errors import UserError
from jaxgeom.files import write_atomically


def between_runs(
    origin: Reader,
    final_a: Reader,
    final_b: Reader,
    settings: CompareSettings | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    force: bool = False,
    command: str = "jg.between_runs",
    algebra: Algebra | None = None,
) -> dict[str, Any]:
    """How much the updates of two runs share, beside what independent updates of the same visible densities share.

    `overlap_a_in_b = |A ∩ B|/|B|` for the changed masks A and B of the bfloat16 view, `jaccard = |A ∩ B|/|A ∪ B|`,
    `orthogonal_share = 1 − cos²(ΔW_A, ΔW_B)`, `subspace_similarity = ‖V_K(A)ᵀV_K(B)‖_F²/K`.

    Args:
        origin: checkpoint that both runs started from.
        final_a: end of run A.
        final_b: end of run B.
        settings: parameters; `subspace_k` is K.
        out: folder for `report.json` and `matrices.csv`, and for finished matrices while the measurement runs.
        progress: called after each matrix.
        force: takes over a folder that holds another measurement.
        command: named in the report.
        algebra: where the dense algebra runs, if not where `settings.device` says.

    Returns:
        The content of `report.json`: per statistic mean, median, `null` (for masks, of independence), `excess` and
        count, for masks also `rounding_mean`, `rounding_null`, `rounding_excess` and `rounding_count`, in `summary` and
        in `groups` per module and layer; `coverage`, `settings`, and the rows in `matrices`.

    Raises:
        UserError: mismatched or non-finite weights, no matrix to measure, a folder that holds something else,
            a device that is not there.
    """
    settings = settings or CompareSettings()
    algebra = choose_algebra(settings.device) if algebra is None else algebra
    sides = {"initial": origin, "final_a": final_a, "final_b": final_b}
    names = check_pair(origin, final_a, settings)
    check_pair(origin, final_b, settings)
    parts = [part for part in plan_parts(origin, names, settings) if part.is_matrix]
    if not parts:
        raise UserError("include/exclude leave no matrix to compare")
    measured = settings.to_json() | {"device_used": algebra.description}
    described = description({role: side.name for role, side in sides.items()}, measured)
    fingerprints = {role: side.fingerprint for role, side in sides.items()}
    key = settings_key(["between", described, fingerprints, version()])
    journal = Journal(
        pathlib.Path(out) if out is not None else None, key, described=described, force=force,
        contents=lambda: {role: side.sha256() for role, side in sides.items()},
    )  # fmt: skip
    pool = DevicePool(algebra)
    total, done = sum(part.size for part in parts), sum(part.size for part in parts if part.name in journal.rows)

    def read(part: Part) -> list[np.ndarray]:
        arrays = []
        for side in sides.values():
            arrays.append(part.read(side[part.tensor]))
            require_finite(arrays[-1], f"{side.name}: {part.name}")
        return arrays

    def measure(part: Part, arrays: list[np.ndarray]) -> dict[str, Any]:
        digests = [array_digest(array) for array in arrays]
        with pool.borrow() as form:
            return measure_pair(arrays[0], arrays[1], arrays[2], settings, form) | {"digests": digests}

    def finished(part: Part, row: dict[str, Any]) -> None:
        nonlocal done
        labels = {"name": part.name, "shape": list(part.shape), "module": part.module, "layer": part.layer}
        journal.add(labels | {"parameters": part.size} | row)
        done += part.size
        if progress is not None:
            progress(done, total, part.name)

    with kept(journal, out or ""):
        todo = [part for part in parts if part.name not in journal.rows]
        measure_parts(todo, read, measure, finished, devices=len(algebra.devices))
        report = _report(parts, journal.rows, sides, measured, command)
        if out is not None:
            write_atomically(pathlib.Path(out) / "matrices.csv", to_csv_text(report["matrices"]))
            write_atomically(pathlib.Path(out) / "report.json", to_json_text(report))
    return report


def _report(
    parts: Sequence[Part], held: dict[str, dict[str, Any]], sides: dict[str, Reader], measured: dict[str, Any],
    command: str,
) -> dict[str, Any]:  # fmt: skip
    rows = [held[part.name] for part in parts]
    inputs = {}
    for place, (role, side) in enumerate(sides.items()):
        whole = {part.tensor: held[part.name]["digests"][place] for part in parts if part.is_whole}
        inputs[role] = {"name": side.name, "dtype": side.dtype, "sha256": side.sha256(whole)}
    rows = [{name: value for name, value in row.items() if name != "digests"} for row in rows]
    everything = sum(sides["initial"][name].size for name in sides["initial"])
    groups = groups_of(rows)
    return {
        "schema": SCHEMA,
        "kind": "between",
        "version": version(),
        "command": command,
        "inputs": inputs,
        "settings": measured | {"null_forms": null_forms("between", measured["suite"])},
        "coverage": coverage_of(rows, (), everything),
        "summary": summary_of(rows),
        "groups": {by: groups[by] for by in ("module", "layer")},
        "matrices": rows,
    }
