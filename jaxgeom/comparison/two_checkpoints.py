"""The comparison of two checkpoints: tensors are read one at a time, the next ones while these are measured."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.devices import Algebra, DevicePool, choose_algebra
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import Report, version
from jaxgeom.comparison.files.summary import coverage_of, groups_of, summary_of
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement, element_statistics, norm_statistics
from jaxgeom.comparison.one_matrix.scan import ElementTotals, require_finite, root_mean_square
from jaxgeom.comparison.run.journal import Journal, description, kept, settings_key
from jaxgeom.comparison.run.plan import Reader, check_pair, plan_parts
from jaxgeom.comparison.run.processes import Team
from jaxgeom.comparison.run.workers import Progress, measure_parts
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.statistics import null_forms

_BLOCK_ENTRIES = 1 << 24


class _Pair(NamedTuple):
    initial: np.ndarray
    final: np.ndarray
    initial_digest: str
    final_digest: str


def _read_pair(part: Part, initial: Reader, final: Reader) -> _Pair:
    arrays = []
    for side in (initial, final):
        array = part.read(side[part.tensor])
        require_finite(array, f"{side.name}: {part.name}")
        arrays.append(array)
    digests = [array_digest(array) for array in arrays]
    return _Pair(arrays[0], arrays[1], digests[0], digests[1])


def _scan_parameter(part: Part, initial: Reader, final: Reader, settings: CompareSettings) -> dict[str, Any]:
    """Sparsity and norms of a parameter that is no matrix of the layers, in blocks of rows."""
    first, second = initial[part.tensor], final[part.tensor]
    totals, rms = ElementTotals(), root_mean_square(first.row_blocks(_BLOCK_ENTRIES))
    for a, b in zip(first.row_blocks(_BLOCK_ENTRIES), second.row_blocks(_BLOCK_ENTRIES), strict=True):
        require_finite(a, f"{initial.name}: {part.name}")
        require_finite(b, f"{final.name}: {part.name}")
        totals.add(a, b, eta=settings.eta, rms=rms)
    row: dict[str, Any] = {}
    element_statistics(row, totals, settings.eta)
    norm_statistics(row, totals)
    row["digests"] = [first.sha256(), second.sha256()]
    return row


def _labels(part: Part) -> dict[str, Any]:
    return {
        "name": part.name, "shape": list(part.shape), "layer": part.layer, "module": part.module,
        "group": part.group, "parameters": part.size,
    }  # fmt: skip


def compare_checkpoints(
    initial: Reader,
    final: Reader,
    settings: CompareSettings | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    force: bool = False,
    command: str = "compare",
    algebra: Algebra | None = None,
    team: Team | None = None,
) -> Report:
    """Every diagnostic, each with its null, between two checkpoints of one architecture.

    Args:
        initial: checkpoint that holds W0.
        final: checkpoint that holds W+.
        settings: what is measured and how.
        out: folder that keeps finished matrices while the comparison runs, so that it can be resumed; the report itself
            is written by `Report.write`.
        cache: folder of base spectra, keyed by content.
        progress: called after each parameter.
        force: takes over a folder that holds another comparison.
        command: named in the report.
        algebra: where the dense algebra runs, if not where `settings.device` says.
        team: the processes that call this together with the same arguments; each measures its share into `out`, which
            they share, and process 0 writes the report there.

    Returns:
        The report, whole on every process.

    Raises:
        UserError: mismatched checkpoints, non-finite weights, an odd dtype, a folder that holds something else, a
            device that is not there, another process that failed.
    """
    settings = settings or CompareSettings()
    parts = plan_parts(initial, check_pair(initial, final, settings), settings)
    return compare_parts(
        parts, initial, final, settings, out=out, cache=cache, progress=progress, force=force, command=command,
        algebra=algebra, team=team,
    )  # fmt: skip


def compare_parts(
    parts: Sequence[Part],
    initial: Reader,
    final: Reader,
    settings: CompareSettings,
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    force: bool = False,
    command: str = "compare",
    algebra: Algebra | None = None,
    team: Team | None = None,
) -> Report:
    """`compare_checkpoints` for parts that are known already."""
    if team is not None and out is None:
        raise ValueError("out is None: processes meet in the folder that they share")
    algebra = choose_algebra(settings.device) if algebra is None else algebra
    described = settings.to_json() | {"device_used": algebra.description}
    identity = {
        "settings": described,
        "initial": initial.fingerprint,
        "final": final.fingerprint,
        "version": version(),
    }
    journal = Journal(
        pathlib.Path(out) if out is not None else None,
        settings_key(identity | {"names": [initial.name, final.name]}),
        described=description({"initial": initial.name, "final": final.name}, described),
        contents=lambda: {"initial": initial.sha256(), "final": final.sha256()},
        force=force,
        process=(team.index, team.count) if team is not None else (0, 1),
    )
    bases, pool = BaseCache(cache, algebra.key), DevicePool(algebra)
    mine = parts if team is None else team.share(parts)
    total = sum(part.size for part in mine)
    done = sum(part.size for part in mine if part.name in journal.rows)

    def read(part: Part) -> _Pair | None:
        return _read_pair(part, initial, final) if part.is_matrix else None

    def measure(part: Part, pair: _Pair | None) -> dict[str, Any]:
        if pair is None:
            return _scan_parameter(part, initial, final, settings)
        with pool.borrow() as form:
            row = MatrixMeasurement(
                part.name, pair.initial, pair.final, settings, bases, pair.initial_digest, form
            ).measure()
        return row | {"digests": [pair.initial_digest, pair.final_digest]}

    def finished(part: Part, row: dict[str, Any]) -> None:
        nonlocal done
        journal.add(_labels(part) | row)
        done += part.size
        if progress is not None:
            progress(done, total, part.name)
        if team is not None:
            team.check(pathlib.Path(out or ""))

    def work() -> Report:
        todo = [part for part in mine if part.name not in journal.rows]
        measure_parts(todo, read, measure, finished, devices=len(algebra.devices))
        if team is not None:
            _gather(team, journal, parts, pathlib.Path(out or ""))
        return _report(parts, journal.rows, initial, final, described, command)

    if team is None:
        with kept(journal, out or ""):
            report = work()
            if out is not None:
                report.write(out)
        return report
    folder = pathlib.Path(out or "")
    with team.telling(folder), kept(journal, folder, remove=team.index == 0):
        team.tell(folder, "measuring")
        report = work()
        if team.index == 0:
            report.write(folder)
        team.tell(folder, "gathered")
        if team.index == 0:
            team.wait(folder, "gathered")
            journal.remove_all()
            team.tidy(folder)
    return report


def _gather(team: Team, journal: Journal, parts: Sequence[Part], folder: pathlib.Path) -> None:
    """Waits for the other processes and reads their rows."""
    team.tell(folder, "finished")
    team.wait(folder, "finished", "gathered")
    team.until_complete(folder, journal.load, lambda: [part.name for part in parts if part.name not in journal.rows])


def _report(
    parts: Sequence[Part], held: dict[str, dict[str, Any]], initial: Reader, final: Reader, settings: dict[str, Any],
    command: str,
) -> Report:  # fmt: skip
    rows = [held[part.name] for part in parts]
    known: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for part, row in zip(parts, rows, strict=True):
        if part.is_whole:
            for side in (0, 1):
                known[side][part.tensor] = row["digests"][side]
    rows = [{name: value for name, value in row.items() if name != "digests"} for row in rows]
    matrices = [row for row in rows if row["group"] == "matrices"]
    parameters = [row for row in rows if row["group"] != "matrices"]
    total = sum(initial[name].size for name in initial)
    inputs = {
        side: {"name": checkpoint.name, "dtype": checkpoint.dtype, "sha256": checkpoint.sha256(digests)}
        for side, checkpoint, digests in (("initial", initial, known[0]), ("final", final, known[1]))
    }
    same_view = all(checkpoint.dtype == "bfloat16" for checkpoint in (initial, final))
    described = settings | {"null_forms": null_forms("compare", settings["suite"]), "views_coincide": same_view}
    described["orientation"] = "[out, in]; left singular vectors on the output side"
    return Report(
        command=command,
        inputs=inputs,
        settings=described,
        coverage=coverage_of(matrices, parameters, total),
        summary=summary_of(matrices, parameters),
        groups=groups_of(matrices, parameters),
        matrices=matrices,
        parameters=parameters,
        version=version(),
    )
