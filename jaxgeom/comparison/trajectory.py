"""The geometry of a run along its checkpoints."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.comparison.algebra.devices import Algebra
from jaxgeom.comparison.algebra.matrix import MatrixMaker
from jaxgeom.comparison.files.curves import curve_coverage, curves_of, similarity_of, towers_along
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import to_json_text, version
from jaxgeom.comparison.files.summary import of_text, settings_used
from jaxgeom.comparison.one_matrix.along_run import ENTRY_KEYS, MatrixTrajectory
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.rows import Row, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums, require_finite
from jaxgeom.comparison.run.plan import Reader, check_sides, match_sides, plan_parts, read_notes, text_parameters
from jaxgeom.comparison.run.processes import Apart, Team
from jaxgeom.comparison.run.run import Measurement, run
from jaxgeom.comparison.run.workers import Progress
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.entry_numbers import entry_statistics
from jaxgeom.diagnostics.statistics import null_forms
from jaxgeom.errors import UserError, listed
from jaxgeom.files import write_atomically


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
    team: Team | Apart | None = None,
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
        raise UserError(f"the steps of a trajectory must ascend: {listed(map(str, steps))}")
    if spectra and settings.suite == "fast":
        raise UserError("spectra = True: the fast suite has none; take suite full")
    if isinstance(learning_rates, int | float):
        learning_rates = LearningRates(float(learning_rates), "one constant rate, as given")
    rates = None if learning_rates is None else [learning_rates.sums(step) for step in steps]
    initial, *readers = match_sides([initial, *(checkpoint for _, checkpoint in checkpoints)])
    names = check_sides([initial, *readers], settings)

    def matrix(part: Part, arrays: Sequence[np.ndarray], make_matrix: MatrixMaker, bases: BaseCache) -> dict[str, Any]:
        return MatrixTrajectory(
            lambda index: arrays[index + 1], len(steps), settings,
            rates=rates, spectra=(part.name, bases) if spectra else None, make_matrix=make_matrix,
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
        result=lambda rows, inputs, described: _result(rows, [initial, *readers], steps, inputs, described, command),
        write=lambda result, folder: write_atomically(folder / "trajectory.json", to_json_text(result)),
        final="trajectory.json",
        ahead=False,  # of a long run a few checkpoints are held at a time, as each matrix asks for them
        identified_by="measured",
    )
    return run(measurement, out=out, cache=cache, progress=progress, force=force, algebra=algebra, team=team)


def _scan(part: Part, initial: Reader, readers: Sequence[Reader], settings: CompareSettings) -> dict[str, Any]:
    """Visible sparsity of a parameter that is no matrix, per step, beside its null."""
    found: dict[str, Any] = {key: [] for key in ENTRY_KEYS if key.startswith("sparsity")}
    for reader in readers:
        totals = EntrySums()
        blocks = (side[part.tensor].row_blocks(1 << 24) for side in (initial, reader))
        for first, second in zip(*blocks, strict=True):
            require_finite(first, f"{initial.name}: {part.name}")
            require_finite(second, f"{reader.name}: {part.name}")
            totals.add(first, second, eta=settings.eta, rms=0.0)
        cells: Row = {}
        put_numbers(cells, entry_statistics(totals.counts, eta=settings.eta))
        for key, values in found.items():
            values.append(cells[key])
    digests = [side[part.tensor].sha256() for side in (initial, *readers)]
    return found | {"digests": digests}


def _result(
    rows: Sequence[dict[str, Any]], sides: Sequence[Reader], steps: list[int], inputs: dict[str, Any],
    described: dict[str, Any], command: str,
) -> dict[str, Any]:  # fmt: skip
    matrices = [row for row in rows if row["group"] == "matrices"]
    total = text_parameters(sides[0])
    return {
        "schema": 1,
        "kind": "trajectory",
        "version": version(),
        "command": command,
        "inputs": inputs,
        "steps": steps,
        "settings": described
        | {"null_forms": null_forms("trajectory", described["suite"]), "used": settings_used(rows)},
        "coverage": curve_coverage(rows, len(steps), total) | read_notes(sides),
        "summary": curves_of(rows, len(steps)),
        **towers_along(rows, len(steps)),
        "similarity": similarity_of([row["similarity"] for row in of_text(matrices)], len(steps)),
        "matrices": [{name: value for name, value in row.items() if name != "similarity"} for row in matrices],
        "parameters": [row for row in rows if row["group"] != "matrices"],
    }
