"""What a comparison has measured so far, on disk, so that an interrupted one goes on where it was."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from jaxgeom.differences import other_content, shown, unequal
from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error

_NAME = ".partial.jsonl"
_ALL = ".partial*.jsonl"
_ADVICE = "give another --out or --force"
_CHECK = "check"


class Journal:
    """Finished rows in a file of the output folder, one JSON line each, synced to disk; without a folder a plain dict.

    Args:
        directory: the output folder, None to keep rows in memory only.
        described: what is measured: `kind`, `version`, `inputs` (names by role) and `settings`. What the folder holds
            of another kind, version or settings is not written over.
        stamps: change whenever the files of the inputs do.
        changed: the roles whose content is not what a finished row was measured of. Asked for every row of an
            unfinished comparison with other stamps: the same content under another path or date goes on.
        contents: computes the digests of the inputs. Called only where a finished comparison has the same settings:
            with other digests it is of other checkpoints, or of files that have changed, and is not written over.
        final: the file that a finished comparison leaves.
        force: takes over a folder that holds another comparison.
        process: (index, number) where several processes share the folder: each appends to a file of its own and reads
            those of all, also of a run with another number of processes.

    Attributes:
        is_resumed: whether it has rows of an earlier start in its own file, known when it is opened.

    Raises:
        UserError: the folder holds another comparison, or something that is no folder.
    """

    def __init__(
        self,
        directory: pathlib.Path | None,
        *,
        described: dict[str, Any],
        stamps: Sequence[str] = (),
        changed: Callable[[dict[str, Any]], list[str]] = lambda row: [],
        contents: Callable[[], dict[str, Any]] = dict,
        final: str = "report.json",
        force: bool = False,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.directory, self._described = directory, described
        self._stamps, self._changed = list(stamps), changed
        self._judged: dict[str, str | None] = {}
        self._same_content: set[str] = set()
        self.is_resumed = False
        self._file: TextIO | None = None
        self._made: list[pathlib.Path] = []
        self._process = process
        if directory is None:
            return
        self.path = directory / (_NAME if process[1] == 1 else f".partial.{process[0]}.jsonl")
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: is no directory")
        if force:
            # Only what no other process writes to now.
            for path in self._files() if process[1] == 1 else [self.path]:
                if self._fault(path) is not None:
                    path.unlink(missing_ok=True)
            self.load()
            return
        for path in self._files():
            if (fault := self._fault(path)) is not None:
                raise UserError(f"{directory}: holds an unfinished comparison of other {fault}; {_ADVICE}")
        if not self._files() and (directory / final).is_file():
            _require_same(directory / final, described, contents)
        self.load()

    def _files(self) -> list[pathlib.Path]:
        return sorted(self.directory.glob(_ALL)) if self.directory is not None else []

    @property
    def told(self) -> dict[str, Any]:
        """What is measured, without the paths of its inputs: in this all processes of a comparison agree."""
        return {name: self._described[name] for name in ("kind", "version", "settings")}

    def fault_of_others(self) -> str | None:
        """What the rows of a process that shares the folder now are of, in words, where it is not this comparison."""
        index, count = self._process
        others = [one for one in range(count) if one != index] if self.directory is not None else []
        found = ((one, self._fault(self.path.with_name(f".partial.{one}.jsonl"))) for one in others)
        return next((f"process {one} measures other {fault}" for one, fault in found if fault is not None), None)

    def _fault(self, path: pathlib.Path) -> str | None:
        """What the rows of a file are of, in words, where it is not this comparison; None where it is."""
        header = next(iter(_lines_of(path)), None)
        if header is None:
            return None
        known = json.dumps(header, sort_keys=True)
        if known not in self._judged:
            self._judged[known] = self._other_settings(header)
        if self._judged[known] is None and header.get("stamps") != self._stamps:
            self._judged[known] = self._other_content(header, path)
        return self._judged[known]

    def _other_settings(self, header: dict[str, Any]) -> str | None:
        held, wanted = header["of"], self._described
        differences = [line for name in ("kind", "version") for line in unequal(held.get(name), wanted[name], name)]
        differences += unequal(held.get("settings"), wanted["settings"])
        return f"inputs or settings ({shown(differences)})" if differences else None

    def _other_content(self, header: dict[str, Any], path: pathlib.Path) -> str | None:
        """Each row is looked at once: another process may add to the file, of content that only there is another."""
        for name, row in _rows_of(path).items():
            known = f"{name} {row.get('digests')}"
            if known in self._same_content:
                continue
            roles = self._changed(row)
            if roles:
                held, wanted = header["of"].get("inputs") or {}, self._described["inputs"]
                return f"inputs ({shown([other_content(role, held.get(role), wanted.get(role)) for role in roles])})"
            self._same_content.add(known)
        return None

    def load(self) -> None:
        """Reads the rows of this comparison that are in the folder, those of other processes too."""
        for path in self._files():
            if self._fault(path) is None:
                self.rows |= _rows_of(path)

    def open(self) -> None:
        """Makes the folder and rewrites the journal without a cut-off last line."""
        if self.directory is None:
            return
        try:
            missing = [folder for folder in (self.directory, *self.directory.parents) if not folder.exists()]
            self.directory.mkdir(parents=True, exist_ok=True)
            self._made = missing
            own = self.rows if self._process[1] == 1 else _rows_of(self.path)
            self.is_resumed = bool(own)
            temporary = self.path.with_suffix(".new")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(_checked({"of": self._described, "stamps": self._stamps}))
                file.writelines(_checked(row) for row in own.values())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise as_user_error(error, self.directory) from error

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a finished row."""
        self.rows[row["name"]] = row
        if self._file is None:
            return
        try:
            self._file.write(_checked(row))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise as_user_error(error, self.directory or "") from error

    def close(self, *, remove: bool) -> None:
        """Closes the file; removes it when the comparison is finished or its inputs turned out to be bad."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if remove and self.directory is not None:
            for path in self._files() if self._process[1] == 1 else [self.path]:
                path.unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Removes the journals of all processes, once the report is written."""
        if self.directory is not None:
            self.remove_from(self.directory)

    @staticmethod
    def remove_from(directory: pathlib.Path) -> None:
        """Removes whatever journals a folder has."""
        for path in directory.glob(_ALL):
            path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leaves no trace: the journal goes, and the folders that it made if they are empty."""
        self.close(remove=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return


def _checked(row: dict[str, Any]) -> str:
    """A row as one line, with a digest of it at its end."""
    text = json.dumps(row, allow_nan=False)
    return json.dumps(row | {_CHECK: _digest_of(text)}, allow_nan=False) + "\n"


def _unchecked(line: str) -> dict[str, Any] | None:
    """The row that `_checked` wrote; None where an interruption cut the line or a disk spoilt a bit of it."""
    try:
        row = json.loads(line)
        check = row.pop(_CHECK)
        return row if check == _digest_of(json.dumps(row)) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines_of(path: pathlib.Path) -> list[dict[str, Any] | None]:
    """The rows of one file, its header first, None for a spoilt one; none where it is gone or its header is spoilt."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = [_unchecked(line.decode("utf-8", "replace")) for line in lines]
    return found if found[0] is not None and isinstance(found[0].get("of"), dict) else []


def _rows_of(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Rows of one file; a spoilt one is measured again."""
    return {row["name"]: row for row in _lines_of(path)[1:] if row is not None and "name" in row}


class ProcessFailed(UserError):
    """Another process of this comparison failed or is lost.

    Attributes:
        keep: whether what was measured is worth resuming from.
    """

    def __init__(self, message: str, keep: bool) -> None:
        super().__init__(message)
        self.keep = keep


def is_resumable(error: BaseException) -> bool:
    """Whether the rows measured before an error are worth going on from: not where the inputs turned out to be bad."""
    if isinstance(error, ProcessFailed):
        return error.keep
    is_mistake = isinstance(error, UserError) and error.status == UserError.status
    return not is_mistake or isinstance(error.__cause__, OSError)


@contextlib.contextmanager
def kept(journal: Journal, where: str | os.PathLike[str], *, remove: bool = True) -> Iterator[None]:
    """Opens a journal for a measurement, and decides at its end what stays.

    Finished: the journal goes. Bad inputs: no trace stays. Interrupted, or a folder that cannot be written to: the
    rows stay for the next try; so do those of an earlier start where it is another process that fails.

    Args:
        journal: the journal; its rows may be added to inside.
        where: named when the folder cannot be written to.
        remove: whether a finished journal goes; not where another process is still to read it.

    Raises:
        UserError: in place of an `OSError` of the folder.
    """
    journal.open()
    try:
        yield
    except BaseException as error:  # an interruption too; raised again
        if is_resumable(error) or (isinstance(error, ProcessFailed) and journal.is_resumed):
            journal.close(remove=False)
        else:
            journal.discard()
        if isinstance(error, OSError):
            raise as_user_error(error, where) from error
        raise
    journal.close(remove=remove)


def description(kind: str, version: str, inputs: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """What a finished report and a run about to start are told apart by."""
    told = {"kind": kind, "version": version, "inputs": inputs, "settings": settings}
    return json.loads(json.dumps(told))


def _require_same(path: pathlib.Path, described: dict[str, Any], contents: Callable[[], dict[str, Any]]) -> None:
    """Refuses to write over what was measured of other inputs or with other settings."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        inputs, settings = dict(held["inputs"]), dict(held["settings"])
        names = {role: inputs[role]["name"] for role in described["inputs"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path.parent}: already holds {path.name} of another kind; {_ADVICE}") from error
    # What the result adds to the settings (how it is oriented, the forms of the nulls) is no setting.
    differences = unequal({field: settings.get(field) for field in described["settings"]}, described["settings"])
    if differences:
        said = f"{path.parent}: already holds {path.name} of another comparison ({shown(differences)}); {_ADVICE}"
        raise UserError(said)
    changed = []
    for role, digest in contents().items():
        noted = _digests(inputs.get(role))
        name, wanted = names.get(role), described["inputs"].get(role)
        if noted != digest and (noted is not None or name != wanted):
            changed.append((role, name, wanted))
    if not changed:
        return
    told = shown([other_content(*one) for one in changed])
    moved = any(name != wanted for _, name, wanted in changed)
    what = "another comparison" if moved else "checkpoints whose content has changed since"
    raise UserError(f"{path.parent}: already holds {path.name} of {what} ({told}); {_ADVICE}")


def _digests(held: Any) -> Any:
    """The digest of an input, or of each of a list of them; None where it was not noted."""
    if isinstance(held, list):
        digests = [_digests(one) for one in held]
        return None if None in digests else digests
    return held.get("sha256") if isinstance(held, dict) else None
