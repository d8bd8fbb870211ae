"""Checksums of all that belongs to a checkpoint: damage is found before anything is read into a model."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxgeom.checkpoints import late_errors
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.runs import step_names
from jaxgeom.cores import usable_cores
from jaxgeom.errors import UserError
from jaxgeom.files import sha256_of, write_atomically

NAME = "checksums.json"
_SCHEMA, _OWN = 2, "sha256"

late_errors.hush_orbax()


def write_checksums(folder: pathlib.Path, **more: Any) -> None:
    """Lists every file of a checkpoint's folder with its size and digest in `checksums.json`, and a digest of the list.

    Args:
        folder: of a checkpoint, finished otherwise.
        more: what else is kept with them, JSON values.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    digests = _digests(paths)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    listing = {"schema": _SCHEMA, "files": files} | more
    write_atomically(folder / NAME, json.dumps(listing | {_OWN: _digest_of(listing)}, indent=1) + "\n")


def read_checksums(step: pathlib.Path) -> dict[str, Any] | None:
    """What `write_checksums` wrote; None where there is nothing, or something that it did not write."""
    try:
        held = read_json(step / NAME)
        own = held.pop(_OWN, None)
        # Lists of the first schema have no digest of their own.
        sound = own == _digest_of(held) if held["schema"] == _SCHEMA else held["schema"] == 1 and own is None
        sound = sound and all(
            type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
            for entries in (held["files"], held.get("logs", {}))
            for entry in entries.values()
        )
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    return held if sound and held["files"] else None


def fault_of(step: pathlib.Path, *, under: str = "", contents: bool = True) -> str | None:
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
    for name, entry in files.items():
        path = step / name
        if not path.is_file():
            return f"{name} is gone"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, {entry['bytes']} were written"
    if contents:
        try:
            digests = _digests([step / name for name in files])
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror or error}"
        for (name, entry), digest in zip(files.items(), digests, strict=True):
            if digest != entry["sha256"]:
                return f"{name} is not what was written"
    held_step = step_within(step)
    if held_step is not None and step.name.isdecimal() and held_step != int(step.name):
        return f"it holds step {held_step}"
    return None


def step_within(step: pathlib.Path) -> int | None:
    """The step that a checkpoint of a run says it is of, whatever its folder is called; None where it does not say."""
    try:
        found = read_json(step / "key" / "metadata").get("step")
    except UserError:
        return None
    return found if type(found) is int else None


def require_whole(step: pathlib.Path, *, under: str = "", contents: bool = True) -> None:
    """Raises UserError where a checkpoint of a run is damaged or was not finished.

    One without checksums, in a run that has none at all, is another program's: nothing is known of it.

    Args:
        step: its folder, `RUN/checkpoints/STEP`.
        under: only files whose path begins so.
        contents: whether the files are read.
    """
    if not (step / NAME).exists() and not any(step.parent.glob(f"[0-9]*/{NAME}")):
        return
    fault = fault_of(step, under=under, contents=contents)
    if fault is not None:
        others = _whole_beside(step)
        way = f"; {step.parent.parent}@{others[-1]} is the last whole one" if others else ""
        raise UserError(f"{step}: damaged: {fault}{way}")


def identity_of(step: pathlib.Path, under: str = "params/") -> str | None:
    """A digest of what a checkpoint's files hold, by their checksums; None where it has none."""
    held = read_checksums(step)
    if held is None:
        return None
    digest = hashlib.sha256()
    for entry in sorted(f"{name}:{e['sha256']}" for name, e in held["files"].items() if name.startswith(under)):
        digest.update(entry.encode())
    return digest.hexdigest()


@contextlib.contextmanager
def one_line(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever a reader of stored checkpoints raises into one line that names the checkpoint.

    Orbax and TensorStore have no common error: ValueError, KeyError, TypeError, FileNotFoundError and others stand for
    the same broken file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: cannot be read: {type(error).__name__}: {said}") from error


def _whole_beside(step: pathlib.Path) -> list[int]:
    """The steps of the same run whose files are there at their sizes."""
    others = [number for number in step_names(step.parent) if str(number) != step.name]
    return [number for number in others if fault_of(step.parent / str(number), contents=False) is None]


def _digest_of(listing: dict[str, Any]) -> str:
    """Of a list as it is read back, whatever order a tool may have brought its fields into."""
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def _digests(paths: list[pathlib.Path]) -> list[str]:
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return list(pool.map(sha256_of, paths))
