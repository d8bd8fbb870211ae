"""The comparison of two checkpoints: every diagnostic, each with its null."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.devices import Algebra
from jaxgeom.comparison.algebra.matrix import MatrixMaker
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import Report, version
from jaxgeom.comparison.files.summary import coverage_of, groups_of, settings_used, summary_of
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.entries import put_entries
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement
from jaxgeom.comparison.one_matrix.scan import EntrySums, require_finite, root_mean_square
from jaxgeom.comparison.run.plan import Reader, check_pair, match_sides, plan_parts, read_notes, text_parameters
from jaxgeom.comparison.run.processes import Apart, Team
from jaxgeom.comparison.run.run import Measurement, require_free, run
from jaxgeom.comparison.run.workers import Progress
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.statistics import null_forms

_BLOCK_ENTRIES = 1 << 24


def _scan_parameter(part: Part, initial: Reader, final: Reader, settings: CompareSettings) -> dict[str, Any]:
    """Sparsity and norms of a parameter that is no matrix of the layers, in blocks of rows."""
    first, second = initial[part.tensor], final[part.tensor]
    totals, rms = EntrySums(), root_mean_square(first.row_blocks(_BLOCK_ENTRIES))
    for a, b in zip(first.row_blocks(_BLOCK_ENTRIES), second.row_blocks(_BLOCK_ENTRIES), strict=True):
        require_finite(a, f"{initial.name}: {part.name}")
        require_finite(b, f"{final.name}: {part.name}")
        totals.add(a, b, eta=settings.eta, rms=rms)
    row: dict[str, Any] = {}
    put_entries(row, totals, settings.eta)
    row["digests"] = [first.sha256(), second.sha256()]
    return row


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
    team: Team | Apart | None = None,
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
        team: the processes that call this together with the same arguments; each measures its share, a `Team` into
            `out`, which they share, and process 0 writes the report there.

    Returns:
        The report, whole on every process.

    Raises:
        UserError: mismatched checkpoints, non-finite weights, an odd dtype, a folder that holds something else, a
            device that is not there, another process that failed.
    """
    settings = settings or CompareSettings()
    initial, final = match_sides([initial, final])
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
    team: Team | Apart | None = None,
) -> Report:
    """`compare_checkpoints` for parts that are known already."""
    measurement = _measurement(parts, initial, final, settings, command)
    return run(measurement, out=out, cache=cache, progress=progress, force=force, algebra=algebra, team=team)


def require_free_folder(initial: Reader, final: Reader, settings: CompareSettings, out: str | os.PathLike[str]) -> None:
    """Refuses at once what `compare_checkpoints` without `force` would refuse, before other work is done for it.

    Args:
        initial: checkpoint that holds W0.
        final: checkpoint that holds W+.
        settings: what is measured and how.
        out: where the report would go.

    Raises:
        UserError: mismatched checkpoints, or a folder that holds something else.
    """
    initial, final = match_sides([initial, final])
    parts = plan_parts(initial, check_pair(initial, final, settings), settings)
    require_free(_measurement(parts, initial, final, settings, ""), out)


def _measurement(
    parts: Sequence[Part], initial: Reader, final: Reader, settings: CompareSettings, command: str
) -> Measurement[Report]:
    def matrix(part: Part, arrays: Sequence[np.ndarray], make_matrix: MatrixMaker, bases: BaseCache) -> dict[str, Any]:
        digests = [array_digest(array) for array in arrays]
        row = MatrixMeasurement(part.name, arrays[0], arrays[1], settings, bases, digests[0], make_matrix).measure()
        return row | {"digests": digests}

    return Measurement(
        kind="compare",
        sides={"initial": initial, "final": final},
        parts=parts,
        settings=settings,
        matrix=matrix,
        parameter=lambda part: _scan_parameter(part, initial, final, settings),
        result=lambda rows, inputs, described: _report(rows, initial, final, inputs, described, command),
        write=Report.write,
    )


def _report(
    rows: Sequence[dict[str, Any]], initial: Reader, final: Reader, inputs: dict[str, Any], settings: dict[str, Any],
    command: str,
) -> Report:  # fmt: skip
    matrices = [row for row in rows if row["group"] == "matrices"]
    parameters = [row for row in rows if row["group"] != "matrices"]
    total = text_parameters(initial)
    same_view = all(checkpoint.dtype == "bfloat16" for checkpoint in (initial, final))
    described = settings | {"null_forms": null_forms("compare", settings["suite"]), "views_coincide": same_view}
    described["used"] = settings_used(matrices)
    notes = read_notes([initial, final])
    if (adapter := final.adapter) is not None and adapter["base_files"] != initial.fingerprint:
        # The adapter's low rank is that of what it adds to its own base.
        inputs["final"]["adapter"]["update"] += ", and what its base differs by from INITIAL"
        notes = {"notes": [*notes.get("notes", []), (
            f"{final.name}: its base {adapter['base']} is not {initial.name}: where the two differ, the update is that"
            " difference and scale·BA, of any rank"
        )]}  # fmt: skip
    described["orientation"] = "[out, in]; left singular vectors on the output side"
    return Report(
        command=command,
        inputs=inputs,
        settings=described,
        coverage=coverage_of(matrices, parameters, total) | notes,
        summary=summary_of(matrices, parameters),
        groups=groups_of(matrices, parameters),
        matrices=matrices,
        parameters=parameters,
        version=version(),
    )
