"""How a step's folder comes and goes: on a disk by renaming what is whole, in a bucket by a list written last."""

import contextlib
import io
import itertools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxgeom.buckets.places import is_stored
from jaxgeom.checkpoints import checksums
from jaxgeom.checkpoints.runs import step_names
from jaxgeom.errors import UserError, listed
from jaxgeom.owned_files import KINDS, contents_of, empty

_PENDING = "pending.npz"
_PARTIAL = r"\.\d+\.partial(?:\.\d+)?(?:\.orbax-checkpoint-tmp.*)?"

Say = Callable[[str], None]


@runtime_checkable
class Folders(Protocol):
    """The checkpoints of a run; only what is whole has a step's name, or its list.

    Attributes:
        place: their folder.
    """

    place: Any

    def begin(self, step: int) -> Any:
        """Where a step is to be written; it does not exist."""
        ...

    def finish(self, written: Any, step: int, **listing: Any) -> None:
        """Makes what was written a checkpoint, in the place of one that is there, with `checksums.json`."""
        ...

    def remove(self, step: int) -> None:
        """Takes away a checkpoint that need not stay, unless something is in it that is not ours."""
        ...

    def remove_unfinished(self) -> None:
        """Takes away what a kill or a full disk left of a save."""
        ...


def folders_of(place: Any, say: Say, require: Callable[[], None] = lambda: None) -> Folders:
    """Of a run on a disk, or in a bucket.

    Args:
        place: `buckets.places.checkpoints_of` a run.
        say: told when a checkpoint is replaced, and what cannot be removed.
        require: raises where a bucket's folder is another process's by now; asked before anything there is changed.
    """
    return StoredFolders(place, say, require) if is_stored(place) else DiskFolders(place, say)


class DiskFolders:
    """Steps on a disk: written under another name, and renamed."""

    def __init__(self, place: Path, say: Say) -> None:
        self.place, self._say = place, say

    def begin(self, step: int) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        return self._fresh(step)

    def finish(self, written: Path, step: int, **listing: Any) -> None:
        checksums.write_checksums(written, **listing)
        path = self.place / str(step)
        if path.exists():
            self._clear(path)
        written.rename(path)

    def remove(self, step: int) -> None:
        # Renamed first: a kill leaves a part of a save, which the next command takes away, and no damaged checkpoint.
        path = self.place / str(step)
        listing = (checksums.read_checksums(path) or {"files": {}})["files"]
        foreign = contents_of(path, KINDS["step"], also=listing).foreign
        try:
            if foreign:
                raise OSError(None, f"it holds {listed(foreign)}")
            hidden = self._fresh(step)
            path.rename(hidden)
            shutil.rmtree(hidden)
        except OSError as error:
            self._say(f"{path}: is not needed and cannot be removed: {error.strerror or error}")

    def remove_unfinished(self) -> None:
        # By its name and by what is in it.
        for path in self.place.glob(".*.partial*") if self.place.is_dir() else ():
            if path.is_symlink() or not path.is_dir() or not re.fullmatch(_PARTIAL, path.name):
                continue
            foreign = contents_of(path, KINDS["unfinished"]).foreign
            if all(name.endswith("/") for name in foreign):  # folders that hold nothing
                shutil.rmtree(path, ignore_errors=True)

    def _fresh(self, step: int) -> Path:
        """A name for a step that is being written, which nothing has."""
        names = itertools.chain([""], (f".{number}" for number in itertools.count(1)))
        paths = (self.place / f".{step}.partial{more}" for more in names)
        return next(path for path in paths if not os.path.lexists(path))

    def _clear(self, path: Path) -> None:
        """Takes away a checkpoint whose step has been reached again, but nothing that is not ours."""
        listing = (checksums.read_checksums(path) or {"files": {}})["files"]
        contents = contents_of(path, KINDS["step"], also=listing)
        if contents.foreign:
            raise UserError(f"{path}: to be replaced, but it holds {listed(contents.foreign)}; move that away")
        self._say(f"step {path.name}: replaces {path}")
        empty(path, "", contents)
        path.rmdir()


class StoredFolders:
    """Steps in a bucket, where nothing is renamed: one without `checksums.json`, written last, is not there."""

    def __init__(self, place: Any, say: Say, require: Callable[[], None]) -> None:
        from jaxgeom.buckets import store  # heavy, and only needed for buckets

        self.place, self._say, self._store, self._require = place, say, store, require

    def begin(self, step: int) -> Any:
        self._require()
        path = self.place / str(step)
        names = self._store.listed(str(path))
        if checksums.NAME in names:
            self._say(f"step {step}: replaces {path}")
        foreign = self._cleared(path, names)
        if foreign:
            raise UserError(f"{path}: to be replaced, but it holds {listed(foreign)}; move that away")
        return path

    def finish(self, written: Any, step: int, **listing: Any) -> None:
        self._require()
        checksums.write_checksums(written, **listing)

    def remove(self, step: int) -> None:
        self._require()
        path = self.place / str(step)
        with contextlib.suppress(self._store.BucketError):  # tried again after the next save
            foreign = self._cleared(path, self._store.listed(str(path)))
            if foreign:
                self._say(f"{path}: is not needed and cannot be removed: it holds {listed(foreign)}")

    def remove_unfinished(self) -> None:
        self._require()
        found: dict[str, dict[str, Any]] = {}
        for name, held in self._store.listed(str(self.place)).items():
            step, _, rest = name.partition("/")
            if step.isdecimal() and rest:
                found.setdefault(step, {})[rest] = held
        for step in found.keys() - {str(whole) for whole in step_names(self.place)}:
            self._cleared(self.place / step, found[step])

    def _cleared(self, path: Any, names: Mapping[str, Any]) -> list[str]:
        """Removes a step's objects, its list first; what is not ours keeps all, and is returned."""
        known = (checksums.read_checksums(path) or {"files": {}})["files"] if checksums.NAME in names else {}
        ours = re.compile(f"(?:{KINDS['step']}|{KINDS['unfinished']})")
        foreign = [name for name in names if name not in known and not ours.fullmatch(name)]
        if not foreign:
            order = sorted(names, key=lambda name: name != checksums.NAME)
            self._store.remove(f"{path}/{name}" for name in order)
        return foreign


def write_pending(folder: Any, arrays: Mapping[str, Any]) -> None:
    """Writes what a rollout has left for later steps beside a step's arrays; nothing where it left none."""
    if not arrays:
        return
    if not is_stored(folder):
        np.savez(folder / _PENDING, **arrays)
        return
    from jaxgeom.buckets import store  # heavy, and only needed for buckets

    held = io.BytesIO()
    np.savez(held, **arrays)
    store.write(str(folder / _PENDING), held.getvalue())


def read_pending(folder: Any) -> dict[str, np.ndarray]:
    """What `write_pending` wrote."""
    if is_stored(folder):
        from jaxgeom.buckets import store  # heavy, and only needed for buckets

        try:
            file: Any = io.BytesIO(store.read(str(folder / _PENDING)))
        except FileNotFoundError:
            return {}
    else:
        file = folder / _PENDING
        if not file.is_file():
            return {}
    with np.load(file) as held:
        return {key: held[key] for key in held.files}
