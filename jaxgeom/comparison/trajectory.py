"""The geometry of a run along its checkpoints."""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.devices import Algebra, DevicePool, choose_algebra
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import to_json_text, version
from jaxgeom.comparison.files.summary import curve_coverage, curves_of, similarity_of
from jaxgeom.comparison.one_matrix.along_run import MatrixTrajectory
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.scan import ElementTotals, require_finite
from jaxgeom.comparison.run.journal import Journal, description, kept, settings_key
from jaxgeom.comparison.run.plan import Reader, check_pair, plan_parts
from jaxgeom.comparison.run.workers import Progress, measure_parts
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.statistics import null_forms
from jaxgeom.errors import UserError
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

    Returns:
        The content of `trajectory.json`.

    Raises:
        UserError: no checkpoints, steps out of order, mismatched or non-finite weights, steps without a known learning
            rate, spectra in the fast suite, a device that is not there.
    """
    settings = settings or CompareSettings()
    algebra = choose_algebra(settings.device) if algebra is None else algebra
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
    names = check_pair(initial, checkpoints[0][1], settings)
    for _, checkpoint in checkpoints[1:]:
        check_pair(initial, checkpoint, settings)
    parts = plan_parts(initial, names, settings)
    readers = [checkpoint for _, checkpoint in checkpoints]
    described = settings.to_json() | {
        "device_used": algebra.description,
        "checkpoints": [reader.name for reader in readers],
        "spectra": spectra,
        "learning_rates": None if learning_rates is None else learning_rates.to_json(steps),
    }
    fingerprints = [initial.fingerprint, [reader.fingerprint for reader in readers]]
    key = settings_key(["trajectory", described, steps, initial.name, fingerprints, version()])
    folder = pathlib.Path(out) if out is not None else None
    told = description({"initial": initial.name}, described)
    journal = Journal(
        folder, key, described=told, final="trajectory.json", force=force,
        contents=lambda: _contents([_measured_digest(parts, side) for side in (initial, *readers)]),
    )  # fmt: skip
    bases, pool = BaseCache(cache, algebra.key), DevicePool(algebra)
    total, done = sum(part.size for part in parts), sum(part.size for part in parts if part.name in journal.rows)

    def read_step(part: Part, index: int) -> np.ndarray:
        side = initial if index < 0 else readers[index]
        array = part.read(side[part.tensor])
        require_finite(array, f"{side.name}: {part.name}")
        return array

    def measure(part: Part, _: None) -> dict[str, Any]:
        if part.is_matrix:
            kept_bases = (part.name, bases) if spectra else None
            with pool.borrow() as form:
                return MatrixTrajectory(
                    lambda index: read_step(part, index), len(steps), settings,
                    rates=rates, spectra=kept_bases, form=form,
                ).measure()  # fmt: skip
        return _scan(part, initial, readers, settings)

    def finished(part: Part, row: dict[str, Any]) -> None:
        nonlocal done
        labels = {"name": part.name, "shape": list(part.shape), "module": part.module, "layer": part.layer}
        journal.add(labels | {"group": part.group, "parameters": part.size} | row)
        done += part.size
        if progress is not None:
            progress(done, total, part.name)

    with kept(journal, out or ""):
        todo = [part for part in parts if part.name not in journal.rows]
        measure_parts(todo, lambda part: None, measure, finished, devices=len(algebra.devices))
        rows = [journal.rows[part.name] for part in parts]
        result = _result(rows, steps, described, [initial, *readers], command)
        if out is not None:
            write_atomically(pathlib.Path(out) / "trajectory.json", to_json_text(result))
    return result


def _contents(sides: list[Any]) -> dict[str, Any]:
    """What is held per side of a trajectory, as its result names them."""
    return {"initial": sides[0], "checkpoints": sides[1:]}


def _joined(digests: list[str]) -> str:
    """One digest of what was measured of a checkpoint; what was not is not read for its sake."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _measured_digest(parts: Sequence[Part], side: Reader) -> str:
    tensors = ((part, side[part.tensor]) for part in parts)
    return _joined([array_digest(part.read(one)) if part.is_matrix else one.sha256() for part, one in tensors])


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


def _result(
    rows: Sequence[dict[str, Any]], steps: list[int], described: dict[str, Any], sides: Sequence[Reader], command: str
) -> dict[str, Any]:
    inputs = [
        {"name": side.name, "dtype": side.dtype, "sha256": _joined([row["digests"][place] for row in rows])}
        for place, side in enumerate(sides)
    ]
    rows = [{name: value for name, value in row.items() if name != "digests"} for row in rows]
    matrices = [row for row in rows if row["group"] == "matrices"]
    total = sum(sides[0][name].size for name in sides[0])
    return {
        "schema": 1,
        "kind": "trajectory",
        "version": version(),
        "command": command,
        "inputs": _contents(inputs),
        "steps": steps,
        "settings": described | {"null_forms": null_forms("trajectory", described["suite"])},
        "coverage": curve_coverage(rows, len(steps), total),
        "summary": curves_of(rows, len(steps)),
        "similarity": similarity_of([row["similarity"] for row in matrices], len(steps)),
        "matrices": [{name: value for name, value in row.items() if name != "similarity"} for row in matrices],
        "parameters": [row for row in rows if row["group"] != "matrices"],
    }
