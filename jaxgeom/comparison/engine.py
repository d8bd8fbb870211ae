"""The comparison of two checkpoints: tensors are read one at a time, the next ones while these are measured."""

import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxgeom.checkpoints.tensors import FLOAT_DTYPES, Tensor, array_digest
from jaxgeom.comparison import lapack
from jaxgeom.comparison.base import BaseCache
from jaxgeom.comparison.device import Algebra, DevicePool, choose_algebra
from jaxgeom.comparison.journal import Journal, description, kept, settings_key
from jaxgeom.comparison.matrix import MatrixMeasurement, element_statistics, norm_statistics
from jaxgeom.comparison.population import MODULES, Part, parts_of
from jaxgeom.comparison.processes import Team
from jaxgeom.comparison.report import Report
from jaxgeom.comparison.scan import ElementTotals, require_finite, root_mean_square
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.comparison.summary import coverage_of, groups_of, summary_of
from jaxgeom.cores import usable_cores
from jaxgeom.diagnostics.statistics import null_forms
from jaxgeom.errors import UserError

Progress = Callable[[int, int, str], None]
"""Called with entries done, entries in all, and the name of what was finished."""

_BLOCK_ENTRIES = 1 << 24
_IN_FLIGHT_ENTRIES = 1 << 27


@runtime_checkable
class Reader(Protocol):
    """The part of `Checkpoint` that the engine uses; trees in memory have it too."""

    name: str
    config: dict[str, Any] | None
    fingerprint: str

    @property
    def dtype(self) -> str: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def sha256(self, known: Mapping[str, str] | None = None) -> str: ...


def version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("jaxgeom")
    except metadata.PackageNotFoundError:
        return "unknown"


def check_pair(initial: Reader, final: Reader, settings: CompareSettings) -> list[str]:
    """The names that two checkpoints share and the settings select, in order of layers.

    Raises:
        UserError: names or shapes differ (all of them listed), a dtype is no float, or nothing is selected.
    """
    problems = []
    names = [name for name in initial if settings.selects(name)]
    others = {name for name in final if settings.selects(name)}
    only_initial, only_final = [n for n in names if n not in others], sorted(others - set(names))
    if only_initial:
        problems.append(f"only in {initial.name}: {', '.join(sorted(only_initial))}")
    if only_final:
        problems.append(f"only in {final.name}: {', '.join(only_final)}")
    for name in names:
        if name in others and initial[name].shape != final[name].shape:
            problems.append(f"{name} has shape {list(initial[name].shape)} and {list(final[name].shape)}")
    if problems:
        raise UserError(f"the checkpoints do not match: {'; '.join(problems)}")
    if not names:
        raise UserError("include/exclude leave no parameter to compare")
    for side in (initial, final):
        odd = [f"{name} ({side[name].dtype})" for name in names if not side[name].is_float]
        if odd:
            raise UserError(
                f"{side.name}: weights of dtype {', '.join(FLOAT_DTYPES)} are needed; not so {', '.join(odd)}"
            )
    return names


def plan_parts(initial: Reader, names: Sequence[str], settings: CompareSettings) -> list[Part]:
    """All parts of the named tensors that the settings' population has.

    Embedding first, then layers in order with their modules in order, then the rest.

    Raises:
        UserError: nothing of the population is there.
    """
    parts = [part for name in names for part in parts_of(initial[name], initial.config) if initial[name].size]
    return sorted(admitted(parts, settings), key=_order)


def admitted(parts: Sequence[Part], settings: CompareSettings) -> list[Part]:
    """The parts that belong to the settings' population; `UserError` where a population leaves none."""
    kept = [part for part in parts if settings.admits(part.module)]
    if parts and not kept:
        raise UserError(f"population = {settings.population!r}: leaves no parameter to measure")
    return kept


def _order(part: Part) -> tuple[int, int, int, list[tuple[int, str]]]:
    place = 1 if part.layer is not None else 0 if part.group == "embedding" else 2
    module = MODULES.index(part.module) if part.module in MODULES else len(MODULES)
    words = [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", part.name)]
    return place, part.layer or 0, module, words


def worker_count(devices: int = 0) -> int:
    """Matrices measured side by side: one per core that this process may use, at most 8, or two for each device."""
    return min(usable_cores(), max(8, 2 * devices))


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


class _Flight:
    """Bounds how many entries are read or measured at a time; one part always may."""

    def __init__(self, entries: int) -> None:
        self.entries, self.used = entries, 0
        self.condition = threading.Condition()

    def take(self, size: int) -> None:
        with self.condition:
            while self.used and self.used + size > self.entries:
                self.condition.wait()
            self.used += size

    def give(self, size: int) -> None:
        with self.condition:
            self.used -= size
            self.condition.notify_all()


def measure_parts(
    parts: Sequence[Part],
    read: Callable[[Part], Any],
    measure: Callable[[Part, Any], dict[str, Any]],
    finished: Callable[[Part, dict[str, Any]], None],
    *,
    devices: int = 0,
) -> None:
    """Measures parts on all cores, one BLAS thread each, reading ahead by one part per worker within a memory bound.

    Args:
        parts: what is measured, in this order.
        read: reads a part, on a thread of its own.
        measure: measures what was read.
        finished: takes the row, in the order of the parts.
        devices: accelerators at work; a host with several has the memory to keep them busy.
    """
    with lapack.one_blas_thread() as single:
        workers = worker_count(devices) if single else 1
        flight = _Flight(_IN_FLIGHT_ENTRIES * max(1, devices))
        pending: list[tuple[Part, Future[dict[str, Any]]]] = []

        def work(part: Part, loaded: "Future[Any]") -> dict[str, Any]:
            try:
                return measure(part, loaded.result())
            finally:
                flight.give(part.size)

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(workers) as pool:
            try:
                for part in parts:
                    while len(pending) > 2 * workers:
                        first, future = pending.pop(0)
                        finished(first, future.result())
                    flight.take(part.size)
                    pending.append((part, pool.submit(work, part, reader.submit(read, part))))
                while pending:
                    first, future = pending.pop(0)
                    finished(first, future.result())
            except BaseException:  # an interrupt too: leaving the pools would wait for all that is queued
                reader.shutdown(cancel_futures=True)
                pool.shutdown(cancel_futures=True)
                raise


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
