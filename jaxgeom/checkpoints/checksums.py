"""Checksums of all that belongs to a checkpoint: damage is found before anything is read into a model."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxgeom.buckets.places import is_stored
from jaxgeom.checkpoints import late_errors
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.runs import step_names
from jaxgeom.cores import usable_cores
from jaxgeom.errors import UserError
from jaxgeom.files import sha256_of, write_atomically

NAME = "checksums.json"
_SCHEMA, _OWN = 2, "sha256"

late_errors.hush_orbax()


def write_checksums(folder: Any, **more: Any) -> None:
    """Lists every file of a checkpoint's folder with its size and digest in `checksums.json`, and a digest of the list.

    Args:
        folder: of a checkpoint, finished otherwise; in a bucket too, where the digests are the bucket's own (MD5).
        more: what else is kept with them, JSON values.
    """
    files = _stored_entries(folder) if is_stored(folder) else _entries(folder)
    listing = {"schema": _SCHEMA, "files": files} | more
    text = json.dumps(listing | {_OWN: _digest_of(listing)}, indent=1) + "\n"
    if is_stored(folder):
        _store().write(str(folder / NAME), text.encode())
    else:
        write_atomically(folder / NAME, text)


def _entries(folder: pathlib.Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, _digests(paths), strict=True)
    }


def _stored_entries(folder: Any) -> dict[str, Any]:
    """Of files in a bucket: their digests as the bucket itself keeps them, so that none is read back."""
    found = {name: held for name, held in sorted(_store().listed(str(folder)).items()) if name != NAME}
    return {
        name: {"bytes": held.size, "md5": held.md5}
        if held.md5
        else {"bytes": held.size, "sha256": _read_digest(folder / name)}
        for name, held in found.items()
    }


def read_checksums(step: Any) -> dict[str, Any] | None:
    """What `write_checksums` wrote; None where there is nothing, or something that it did not write."""
    try:
        held = read_json(step / NAME)
        own = held.pop(_OWN, None)
        # Lists of the first schema have no digest of their own.
        sound = own == _digest_of(held) if held["schema"] == _SCHEMA else held["schema"] == 1 and own is None
        sound = sound and all(
            type(entry["bytes"]) is int and entry["bytes"] >= 0 and isinstance(_digest_in(entry), str)
            for entries in (held["files"], held.get("logs", {}))
            for entry in entries.values()
        )
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    return held if sound and held["files"] else None


def fault_of(step: Any, *, under: str = "", contents: bool = True) -> str | None:
    """What is wrong with a checkpoint's folder, None where it is what was written.

    Args:
        step: the folder, with checksums.
        under: only files whose path begins so.
        contents: whether the files are read; their presence and sizes alone are looked at else.

    Returns:
        A sentence that names the file.
    """
    held = read_checksums(step)
    if held is None:
        return f"it has no {NAME}, so it was not finished" if not (step / NAME).exists() else f"{NAME} is damaged"
    files: Mapping[str, Any] = {name: entry for name, entry in held["files"].items() if name.startswith(under)}
    fault = _stored_fault(step, files, contents) if is_stored(step) else _file_fault(step, files, contents)
    if fault is not None:
        return fault
    held_step = step_within(step)
    if held_step is not None and step.name.isdecimal() and held_step != int(step.name):
        return f"it holds step {held_step}"
    return None


def _file_fault(step: pathlib.Path, files: Mapping[str, Any], contents: bool) -> str | None:
    for name, entry in files.items():
        path = step / name
        if not path.is_file():
            return f"{name} is gone"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, {entry['bytes']} were written"
    if contents:
        try:
            digests = _digests(
                [step / name for name in files], ["md5" if "md5" in e else "sha256" for e in files.values()]
            )
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror or error}"
        for (name, entry), digest in zip(files.items(), digests, strict=True):
            if digest != _digest_in(entry):
                return f"{name} is not what was written"
    return None


def _stored_fault(step: Any, files: Mapping[str, Any], contents: bool) -> str | None:
    """As `_file_fault`, of files in a bucket, by its own list of them; read are those that were copied there."""
    found = _store().listed(str(step))
    for name, entry in files.items():
        if name not in found:
            return f"{name} is gone"
        if found[name].size != entry["bytes"]:
            return f"{name} has {found[name].size} bytes, {entry['bytes']} were written"
        if contents:
            known = found[name].md5 if "md5" in entry else None
            digest = known or _read_digest(step / name, "md5" if "md5" in entry else "sha256")
            if digest != _digest_in(entry):
                return f"{name} is not what was written"
    return None


def files_of(folder: Any) -> list[str]:
    """A line for each file below a folder, in the order of their names, which changes when the file does."""
    if is_stored(folder):
        return [f"{name} {held.size} {held.generation}" for name, held in sorted(_store().listed(str(folder)).items())]
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        lines.append(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    return lines


def step_within(step: Any) -> int | None:
    """The step that a checkpoint of a run says it is of, whatever its folder is called; None where it does not say."""
    try:
        found = read_json(step / "key" / "metadata").get("step")
    except UserError:
        return None
    return found if type(found) is int else None


def require_whole(step: Any, *, under: str = "", contents: bool = True) -> None:
    """Raises UserError where a checkpoint of a run is damaged or was not finished.

    One without checksums, in a run that has none at all, is another program's: nothing is known of it.

    Args:
        step: its folder, `RUN/checkpoints/STEP`.
        under: only files whose path begins so.
        contents: whether the files are read.
    """
    if not (step / NAME).exists() and not any(step.parent.glob(f"[0-9]*/{NAME}")):
        return  # (a bucket's steps are known by theirs: nobody comes here with another)
    fault = fault_of(step, under=under, contents=contents)
    if fault is not None:
        others = _whole_beside(step)
        way = f"; {step.parent.parent}@{others[-1]} is the last whole one" if others else ""
        raise UserError(f"{step}: damaged: {fault}{way}")


def identity_of(step: Any, under: str = "params/") -> str | None:
    """A digest of what a checkpoint's files hold, by their checksums; None where it has none."""
    held = read_checksums(step)
    if held is None:
        return None
    digest = hashlib.sha256()
    for entry in sorted(f"{name}:{_digest_in(e)}" for name, e in held["files"].items() if name.startswith(under)):
        digest.update(entry.encode())
    return digest.hexdigest()


@contextlib.contextmanager
def one_line(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever a reader of stored checkpoints raises into one line that names the checkpoint.

    Orbax and TensorStore have no common error: ValueError, KeyError, TypeError, FileNotFoundError and others stand for
    the same broken file.

    Raises:
        UserError: in place of any of them.
        ProcessLost: another process, which reads its part, is lost: no word of the file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        from jaxgeom import processes  # heavy, and what reads with others has loaded it

        if processes.tells_of_loss(error):
            raise processes.as_loss(error, where) from error
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: cannot be read: {type(error).__name__}: {said}") from error


def _whole_beside(step: Any) -> list[int]:
    """The steps of the same run whose files are there at their sizes."""
    others = [number for number in step_names(step.parent) if str(number) != step.name]
    return [number for number in others if fault_of(step.parent / str(number), contents=False) is None]


def _digest_of(listing: dict[str, Any]) -> str:
    """Of a list as it is read back, whatever order a tool may have brought its fields into."""
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def _digests(paths: list[pathlib.Path], kinds: Sequence[str] = ()) -> list[str]:
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return list(pool.map(_digest_of_file, paths, kinds or ["sha256"] * len(paths)))


def _digest_of_file(path: pathlib.Path, kind: str) -> str:
    if kind == "sha256":
        return sha256_of(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _read_digest(path: Any, kind: str = "sha256") -> str:
    return hashlib.new(kind, _store().read(str(path))).hexdigest()


def _digest_in(entry: Mapping[str, Any]) -> Any:
    """The digest that an entry of a list has: SHA-256, or MD5 of what was written in a bucket."""
    return entry["md5"] if "md5" in entry else entry["sha256"]


def _store() -> Any:
    """`buckets.store`, which is heavy and only needed for buckets."""
    from jaxgeom.buckets import store as found

    return found
