"""What a comparison has measured so far, on disk, so that an interrupted one goes on where it was."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, TextIO

from jaxgeom.errors import UserError

_NAME = ".partial.jsonl"


def settings_key(value: Any) -> str:
    """Digest of what identifies a comparison: inputs and settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_user_error(error: OSError, where: str | os.PathLike[str]) -> UserError:
    """A clear line for a folder that cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{where}: the disk is full; what was measured before is kept, run the same command again")
    return UserError(f"{where}: cannot be written to: {error.strerror or error}")


class Journal:
    """Finished rows in a file of the output folder, one JSON line each, synced to disk; without a folder a plain dict.

    Args:
        directory: the output folder, None to keep rows in memory only.
        key: identifies inputs and settings; a journal with another key is another comparison's.
        final: the file that a finished comparison leaves.
        described: what a finished one says of itself when it is this one: names of inputs and settings.
        force: takes over a folder that holds another comparison.

    Raises:
        UserError: the folder holds another comparison, or something that is no folder.
    """

    def __init__(
        self,
        directory: pathlib.Path | None,
        key: str,
        *,
        described: dict[str, Any],
        final: str = "report.json",
        force: bool = False,
    ) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.directory, self.key = directory, key
        self._file: TextIO | None = None
        self._made: list[pathlib.Path] = []
        if directory is None:
            return
        self.path = directory / _NAME
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: is no directory")
        if force:
            if self._foreign():
                self.path.unlink(missing_ok=True)
            else:
                self._load()
            return
        if self.path.is_file() and self._foreign():
            raise UserError(
                f"{directory}: holds an unfinished comparison of other inputs or settings; "
                "give another --out or --force"
            )
        if not self.path.is_file() and (directory / final).is_file() and not _is_same(directory / final, described):
            raise UserError(f"{directory}: already holds {final} of another comparison; give another --out or --force")
        self._load()

    def _foreign(self) -> bool:
        if not self.path.is_file():
            return False
        with self.path.open(encoding="utf-8") as file:
            try:
                return json.loads(file.readline()).get("key") != self.key
            except (ValueError, AttributeError):
                return False

    def _load(self) -> None:
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # the line that the interruption cut
                if "name" in row:
                    self.rows[row["name"]] = row

    def open(self) -> None:
        """Makes the folder and rewrites the journal without a cut-off last line."""
        if self.directory is None:
            return
        try:
            missing = [folder for folder in (self.directory, *self.directory.parents) if not folder.exists()]
            self.directory.mkdir(parents=True, exist_ok=True)
            self._made = missing
            temporary = self.path.with_suffix(".new")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(json.dumps({"key": self.key}) + "\n")
                file.writelines(json.dumps(row) + "\n" for row in self.rows.values())
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
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
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
            self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leaves no trace: the journal goes, and the folders that it made if they are empty."""
        self.close(remove=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return


@contextlib.contextmanager
def kept(journal: Journal, where: str | os.PathLike[str]) -> Iterator[None]:
    """Opens a journal for a measurement, and decides at its end what stays.

    Finished: the journal goes. Bad inputs: no trace stays. Interrupted, or a folder that cannot be written to: the
    rows stay for the next try.

    Args:
        journal: the journal; its rows may be added to inside.
        where: named when the folder cannot be written to.

    Raises:
        UserError: in place of an `OSError` of the folder.
    """
    journal.open()
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            journal.close(remove=False)
        else:
            journal.discard()
        raise
    except OSError as error:
        journal.close(remove=False)
        raise as_user_error(error, where) from error
    except BaseException:
        journal.close(remove=False)
        raise
    journal.close(remove=True)


def description(inputs: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """What a finished report and a run about to start are told apart by."""
    return {"inputs": inputs, "settings": json.loads(json.dumps(settings))}


def _is_same(path: pathlib.Path, described: dict[str, Any]) -> bool:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        names = {side: held["inputs"][side]["name"] for side in described["inputs"]}
        settings = {field: held["settings"][field] for field in described["settings"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return names == described["inputs"] and settings == described["settings"]
