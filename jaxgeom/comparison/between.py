"""Two runs from one origin: do they change the same entries, in the same directions?"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.devices import Algebra
from jaxgeom.comparison.algebra.matrix import MatrixMaker
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import SCHEMA, to_csv_text, to_json_text, version
from jaxgeom.comparison.files.summary import coverage_of, groups_of, settings_used, summary_of
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.two_runs import measure_pair
from jaxgeom.comparison.run.plan import Reader, check_sides, match_sides, plan_parts, read_notes, text_parameters
from jaxgeom.comparison.run.processes import Apart, Team
from jaxgeom.comparison.run.run import Measurement, run
from jaxgeom.comparison.run.workers import Progress
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
    team: Team | Apart | None = None,
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
        team: the processes that call this together with the same arguments; each measures its share, a `Team` into
            `out`, which they share, and process 0 writes the report there.

    Returns:
        The content of `report.json`: per statistic mean, median, `null` (for masks, of independence), `excess` and
        count, for masks also `rounding_mean`, `rounding_null`, `rounding_excess` and `rounding_count`, in `summary` and
        in `groups` per module and layer; `coverage`, `settings`, and the rows in `matrices`.

    Raises:
        UserError: mismatched or non-finite weights, no matrix to measure, a folder that holds something else,
            a device that is not there, another process that failed.
    """
    settings = settings or CompareSettings()
    origin, final_a, final_b = match_sides([origin, final_a, final_b])
    names = check_sides([origin, final_a, final_b], settings)
    parts = [part for part in plan_parts(origin, names, settings) if part.is_matrix]
    if not parts:
        raise UserError("include/exclude leave no matrix to compare")

    def matrix(part: Part, arrays: Sequence[np.ndarray], make_matrix: MatrixMaker, _: BaseCache) -> dict[str, Any]:
        row = measure_pair(arrays[0], arrays[1], arrays[2], settings, make_matrix)
        return row | {"digests": [array_digest(array) for array in arrays]}

    measurement = Measurement(
        kind="between",
        sides={"initial": origin, "final_a": final_a, "final_b": final_b},
        parts=parts,
        settings=settings,
        matrix=matrix,
        result=lambda rows, inputs, described: _report(rows, [origin, final_a, final_b], inputs, described, command),
        write=_write,
    )
    return run(measurement, out=out, progress=progress, force=force, algebra=algebra, team=team)


def _write(report: dict[str, Any], folder: pathlib.Path) -> None:
    write_atomically(folder / "matrices.csv", to_csv_text(report["matrices"]))
    write_atomically(folder / "report.json", to_json_text(report))


def _report(
    rows: Sequence[dict[str, Any]],
    sides: Sequence[Reader],
    inputs: dict[str, Any],
    measured: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    everything = text_parameters(sides[0])
    groups = groups_of(rows)
    return {
        "schema": SCHEMA,
        "kind": "between",
        "version": version(),
        "command": command,
        "inputs": inputs,
        "settings": measured | {"null_forms": null_forms("between", measured["suite"]), "used": settings_used(rows)},
        "coverage": coverage_of(rows, (), everything) | read_notes(sides),
        "summary": summary_of(rows),
        "groups": {by: groups[by] for by in ("module", "layer", "tower") if by in groups},
        "matrices": rows,
    }
