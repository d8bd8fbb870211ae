"""One command at a time in an output directory: a file with host and process, got past when that process is dead."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxgeom.buckets.places import refuse_collapsed
from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error
from jaxgeom.owned_files import is_text_of_others

NAME = ".lock"
SILENCE = 180.0
"""Seconds without a sign of life after which a process on another host counts as dead."""

_SIGN = 15.0


@contextlib.contextmanager
def locked(directory: pathlib.Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a directory for this process; the directory is made where it is not there.

    The kernel's own lock on the file tells whether its process lives, also where process numbers are another
    container's. Where a file system does not share such locks between hosts, a living process touches the file every
    few seconds.

    Args:
        directory: where the file `.lock` is put, and taken away in the end; so is a new directory that stayed empty.
        say: told where the lock of a dead process is got past.

    Raises:
        UserError: a living process holds it (its host and number are named), or the directory cannot be written to.
    """
    path = directory / NAME
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path, say)
    except OSError as error:
        _remove_empty(made)
        raise as_user_error(error, directory) from error
    ended = threading.Event()
    threading.Thread(target=_signs_of_life, args=(descriptor, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                path.unlink()
        os.close(descriptor)
        _remove_empty(made)


def _remove_empty(folders: list[pathlib.Path]) -> None:
    """Takes away new folders that stayed empty, from the innermost out."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def refuse_if_held(directory: pathlib.Path) -> None:
    """Refuses a directory that a living process holds; writes nothing.

    A look ahead of long preparations: `locked` decides.

    Raises:
        UserError: it is held, or is a URL that became a path.
    """
    refuse_collapsed(directory)
    try:
        descriptor = os.open(directory / NAME, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(directory / NAME, _read(descriptor)) from None
    except OSError:
        return
    finally:
        os.close(descriptor)


def _take(path: pathlib.Path, say: Callable[[str], None] | None) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # a link leads to a file of others
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_still(descriptor, path):
                    os.close(descriptor)
                    continue
                held = _read(descriptor)
                if not held and is_text_of_others(path):
                    raise UserError(f"{path}: is no lock of jaxgeom's; move it away, or choose another directory")
                if held.get("host") not in (None, socket.gethostname()) and _age(path) < SILENCE:
                    raise _refusal(path, held)
                if held and say is not None:
                    say(f"{path.parent}: the process {_who(held)} that held it is gone; going on")
                me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                os.ftruncate(descriptor, 0)
                try:
                    os.pwrite(descriptor, json.dumps(me).encode(), 0)
                except OSError:  # a full disk
                    path.unlink(missing_ok=True)
                    raise
                return descriptor
            raise _refusal(path, _read(descriptor))
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _is_still(descriptor: int, path: pathlib.Path) -> bool:
    """Whether the file that was locked is the one that stands there: its holder removes it when it ends."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    try:
        held = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) and {"host", "pid"} <= held.keys() else {}


def _age(path: pathlib.Path) -> float:
    """Seconds since the file was touched, by the clock of the file system that holds it."""
    probe = path.with_name(f"{NAME}.{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _signs_of_life(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(_SIGN):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _who(held: dict[str, Any]) -> str:
    return f"{held.get('pid', 'unknown')} on {held.get('host', 'unknown')}"


def _refusal(path: pathlib.Path, held: dict[str, Any]) -> UserError:
    since = f", since {held['since']}" if "since" in held else ""
    return UserError(
        f"{path.parent}: process {_who(held)} works in this directory{since}; wait for it, stop it, or choose another"
    )
