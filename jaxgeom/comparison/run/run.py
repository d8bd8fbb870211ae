"""The one run path of `compare`, `trajectory` and `between`.

It reads the parts of the checkpoints, measures them on all cores, keeps finished rows in a journal so that an
interrupted run goes on, shares the work with other processes and gathers theirs, and writes the result. What tells one
kind of measurement from another is a `Measurement`.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np

from jaxgeom import processes
from jaxgeom.buckets.places import named
from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.devices import Algebra, DevicePool, choose_algebra
from jaxgeom.comparison.algebra.matrix import MatrixMaker
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.files.report import version
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.scan import require_finite
from jaxgeom.comparison.run.journal import Journal, description, kept
from jaxgeom.comparison.run.outputs import check_folder
from jaxgeom.comparison.run.plan import Reader
from jaxgeom.comparison.run.processes import Apart, Team
from jaxgeom.comparison.run.workers import Progress, measure_parts
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.lock import locked, refuse_if_held

Row = dict[str, Any]
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Arrays(Sequence[np.ndarray]):
    """A part on every side, as stored; an array is read, and checked to be finite, each time that it is asked for."""

    part: Part
    readers: Sequence[Reader]

    def __len__(self) -> int:
        return len(self.readers)

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> list[np.ndarray]: ...
    def __getitem__(self, place: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        side = self.readers[place]
        array = self.part.read(side[self.part.tensor])
        require_finite(array, f"{side.name}: {self.part.name}")
        return array


@dataclasses.dataclass(frozen=True)
class Measurement(Generic[Result]):
    """What is measured of which checkpoints, and what becomes of the rows.

    Attributes:
        kind: `compare`, `between` or `trajectory`.
        sides: checkpoints by the role that the result's `inputs` have for them; some roles are played by several.
        parts: what is measured, in the order of the result.
        settings: what is measured and how.
        further: what else the result's `settings` say.
        matrix: row of a matrix, from the part, its stored arrays `[out, in]` on every side, what makes matrices of the
            algebra, and the base spectra. `digests` in it are those of the arrays.
        parameter: row of a part that is no matrix, `digests` likewise; None where `parts` has matrices alone.
        result: from all rows (without digests), the `inputs` and the `settings` of the result.
        write: writes the result's files into a folder, the one named `final` last.
        final: the file that says that a folder holds a finished measurement.
        ahead: whether all arrays of a part are read while those before it are measured, or each when it is asked for.
        identified_by: whether the digest of an input is of the whole checkpoint or of what was measured of it, so that
            nothing else is read.
    """

    kind: str
    sides: Mapping[str, Reader | list[Reader]]
    parts: Sequence[Part]
    settings: CompareSettings
    matrix: Callable[[Part, Sequence[np.ndarray], MatrixMaker, BaseCache], Row]
    result: Callable[[list[Row], dict[str, Any], dict[str, Any]], Result]
    write: Callable[[Result, pathlib.Path], None]
    parameter: Callable[[Part], Row] | None = None
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    final: str = "report.json"
    ahead: bool = True
    identified_by: Literal["checkpoint", "measured"] = "checkpoint"

    @property
    def readers(self) -> list[Reader]:
        """All sides in order, which is that of a row's digests."""
        return [reader for side in self.sides.values() for reader in (side if isinstance(side, list) else [side])]

    def by_role(self, values: Sequence[Any]) -> dict[str, Any]:
        """One value per reader, as the roles have them: alone, or in a list."""
        left = iter(values)
        return {
            role: [next(left) for _ in side] if isinstance(side, list) else next(left)
            for role, side in self.sides.items()
        }

    def contents(self) -> dict[str, Any]:
        """Digests of the inputs, read anew."""
        if self.identified_by == "checkpoint":
            return self.by_role([reader.sha256() for reader in self.readers])
        return self.by_role([_joined([_digest(part, reader) for part in self.parts]) for reader in self.readers])

    def changed(self, row: Row) -> list[str]:
        """The roles whose part of a row has other content than it was measured of; read anew."""
        part = next((part for part in self.parts if part.name == row["name"]), None)
        if part is None or len(row["digests"]) != len(self.readers):
            return list(self.sides)
        same = [_digest(part, reader) == held for reader, held in zip(self.readers, row["digests"], strict=True)]
        return [role for role, found in self.by_role(same).items() if not np.all(found)]

    def inputs(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Name, dtype and digest of every side, from the digests of the rows where they are there."""
        found = []
        for place, reader in enumerate(self.readers):
            digests = [row["digests"][place] for row in rows]
            if self.identified_by == "checkpoint":
                held = zip(self.parts, digests, strict=True)
                digest = reader.sha256({part.tensor: one for part, one in held if part.is_whole})
            else:
                digest = _joined(digests)
            found.append({"name": named(reader.name), "dtype": reader.dtype, "sha256": digest})
            if reader.adapter is not None:
                found[-1]["adapter"] = {key: value for key, value in reader.adapter.items() if key != "base_files"}
        return self.by_role(found)


def run(
    measurement: Measurement[Result],
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    force: bool = False,
    algebra: Algebra | None = None,
    team: Team | Apart | None = None,
) -> Result:
    """Measures all parts, or what an interrupted run left of them.

    Args:
        measurement: what is measured.
        out: folder of the result's files, and of finished rows while the run goes on; nothing is written without.
        cache: folder of base spectra, keyed by content.
        progress: called after each part.
        force: takes over a folder that holds another measurement.
        algebra: where the dense algebra runs, if not where `settings.device` says.
        team: the processes that call this together with the same arguments; each measures its share, a `Team` into
            `out`, which they share, and process 0 writes the files. Those that are `Apart` keep no unfinished rows, and
            `out` is that of process 0.

    Returns:
        The result, whole on every process.

    Raises:
        UserError: non-finite weights, a folder that holds something else, a device that is not there, another process
            that failed.
    """
    if team is None:
        return _run(measurement, out, cache, progress, force, algebra, None)
    if isinstance(team, Apart):
        result = _run(measurement, None, cache, progress, force, algebra, team)
        if out is not None:
            processes.from_first(lambda: _write(measurement, result, pathlib.Path(out)))
        return result
    if out is None:
        raise ValueError("out is None: processes meet in the folder that they share")
    with team.telling(pathlib.Path(out)):
        return _run(measurement, out, cache, progress, force, algebra, team)


def require_free(measurement: Measurement[Any], out: str | os.PathLike[str]) -> None:
    """Refuses what `run` without `force` would refuse of a folder; writes nothing.

    Args:
        measurement: what would be measured.
        out: the folder.

    Raises:
        UserError: the folder holds another measurement, or something that is none.
    """
    folder = pathlib.Path(out)
    refuse_if_held(folder)
    check_folder(folder, [reader.name for reader in measurement.readers])
    described = _described(measurement, choose_algebra(measurement.settings.device))
    _journal(measurement, folder, described, force=False, team=None)


def _run(
    measurement: Measurement[Result],
    out: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None,
    progress: Progress | None,
    force: bool,
    algebra: Algebra | None,
    team: Team | Apart | None,
) -> Result:
    folder = pathlib.Path(out) if out is not None else None
    if folder is None:
        return _measure(measurement, None, cache, progress, force, algebra, team)
    check_folder(folder, [reader.name for reader in measurement.readers])
    # Several processes share the folder by their own means.
    with locked(folder) if team is None else contextlib.nullcontext():
        return _measure(measurement, folder, cache, progress, force, algebra, team)


def _write(measurement: Measurement[Result], result: Result, folder: pathlib.Path) -> None:
    """The files of a result, over those of an earlier one, finished or not."""
    check_folder(folder, [reader.name for reader in measurement.readers])
    with locked(folder):
        Journal.remove_from(folder)
        measurement.write(result, folder)


def _measure(
    measurement: Measurement[Result],
    folder: pathlib.Path | None,
    cache: str | os.PathLike[str] | None,
    progress: Progress | None,
    force: bool,
    algebra: Algebra | None,
    team: Team | Apart | None,
) -> Result:
    algebra = choose_algebra(measurement.settings.device) if algebra is None else algebra
    described = _described(measurement, algebra)
    shared = team if isinstance(team, Team) else None
    journal = _journal(measurement, folder, described, force, shared)
    bases, pool = BaseCache(cache, algebra.key), DevicePool(algebra)
    mine = measurement.parts if team is None else team.share(measurement.parts)
    todo = [part for part in mine if part.name not in journal.rows]
    total = sum(part.size for part in mine)
    done = total - sum(part.size for part in todo)

    # Any for `Arrays`, since a checker of annotations would read an element to look at its type.
    def read(part: Part) -> Any:
        arrays = Arrays(part, measurement.readers)
        return list(arrays) if measurement.ahead and part.is_matrix else arrays

    def measure(part: Part, arrays: Any) -> Row:
        if not part.is_matrix and measurement.parameter is not None:
            return measurement.parameter(part)
        with pool.borrow() as make_matrix:
            return measurement.matrix(part, arrays, make_matrix, bases)

    def finished(part: Part, row: Row) -> None:
        nonlocal done
        journal.add(_labels(part) | row)
        done += part.size
        if progress is not None:
            progress(done, total, part.name)
        if shared is not None and folder is not None:
            shared.check(folder)

    def measured() -> list[Row]:
        measure_parts(todo, read, measure, finished, devices=len(algebra.devices))
        return [journal.rows[part.name] for part in mine]

    begin = getattr(progress, "begin", None)
    if begin is not None:  # a display: nothing refuses the folder any more
        begin()
    with kept(journal, folder or "", remove=shared is None or shared.index == 0):
        if shared is not None and folder is not None:
            shared.tell(folder, "measuring", of=journal.told)
        if isinstance(team, Apart):
            journal.rows |= {row["name"]: row for row in team.gather(measured)}
        else:
            measured()
        if shared is not None and folder is not None:
            _gather(shared, journal, measurement.parts, folder)
        rows = [journal.rows[part.name] for part in measurement.parts]
        bare = [{name: value for name, value in row.items() if name != "digests"} for row in rows]
        result = measurement.result(bare, measurement.inputs(rows), described)
        if folder is not None and (shared is None or shared.index == 0):
            measurement.write(result, folder)
        if shared is not None and folder is not None:
            _part_ways(shared, journal, folder)
    return result


def _described(measurement: Measurement[Any], algebra: Algebra) -> dict[str, Any]:
    """The `settings` of a result."""
    return measurement.settings.to_json() | {"device_used": algebra.description, **measurement.further}


def _journal(
    measurement: Measurement[Any], folder: pathlib.Path | None, described: dict[str, Any], force: bool,
    team: Team | None,
) -> Journal:  # fmt: skip
    """The journal of exactly these checkpoints, settings and version."""
    single = {role: named(side.name) for role, side in measurement.sides.items() if not isinstance(side, list)}
    same = {name: value for name, value in described.items() if name != "checkpoints"}
    return Journal(
        folder,
        described=description(measurement.kind, version(), single, same),
        stamps=[reader.fingerprint for reader in measurement.readers],
        changed=measurement.changed,
        contents=measurement.contents,
        final=measurement.final,
        force=force,
        process=(team.index, team.count) if team is not None else (0, 1),
    )


def _labels(part: Part) -> Row:
    """What a row says of its part before anything is measured."""
    labels = {
        "name": part.name, "shape": list(part.shape), "layer": part.layer, "module": part.module,
        "group": part.group, "parameters": part.size,
    }  # fmt: skip
    return labels if part.tower is None else labels | {"tower": part.tower}


def _digest(part: Part, reader: Reader) -> str:
    """Of what is measured of a part, as the rows have it."""
    tensor = reader[part.tensor]
    return array_digest(part.read(tensor)) if part.is_matrix else tensor.sha256()


def _joined(digests: Sequence[str]) -> str:
    """One digest of several."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _gather(team: Team, journal: Journal, parts: Sequence[Part], folder: pathlib.Path) -> None:
    """Waits for the other processes and reads their rows."""
    team.tell(folder, "finished", of=journal.told)
    team.wait(folder, "finished", "gathered")

    def missing() -> list[str]:
        return [part.name for part in parts if part.name not in journal.rows]

    team.until_complete(folder, journal.load, missing, journal.fault_of_others)


def _part_ways(team: Team, journal: Journal, folder: pathlib.Path) -> None:
    """Says that this process needs nothing more; process 0 cleans up once all have said so."""
    team.tell(folder, "gathered", of=journal.told)
    if team.index == 0:
        team.wait(folder, "gathered")
        journal.remove_all()
        team.tidy(folder)
