"""Where a plan's numbers are written: tried before minutes of compiling, and never over what is no plan."""

import fcntl
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error, write_atomically

_OWN = {"schema", "command", "programs", "hbm_bytes"}
_OPEN = re.compile(r"/dev/(stdout|stderr)|(?:/dev/fd|/proc/self/fd)/(\d{1,9})")


def require_place(path: Path) -> None:
    """Tries what `write_numbers` will do.

    Args:
        path: of a file that is not there, of an earlier plan, of a pipe or device, or of what this process has open
            (`/dev/stdout`, `/dev/fd/3`), to which a file is a stream too.

    Raises:
        UserError: no file can be written there, or another's stands there.
    """
    try:
        number = _descriptor(path)
        if number is not None:
            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise UserError(f"--json {path}: no file can be written there: it is open to be read")
            return
        if path.is_dir():
            raise UserError(f"--json {path}: no file can be written there: it is a directory")
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise UserError(f"--json {path}: no file can be written there")
            return
        if path.exists() and not _is_own(path):
            raise UserError(f"--json {path}: another file is there that holds no plan, and nothing is overwritten")
        target = _target(path)
        handle, tried = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise UserError(f"--json {path}: no file can be written there: {error.strerror or error}") from None
    os.close(handle)
    os.unlink(tried)


def write_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Writes them as JSON: a file whole or not at all, to a pipe or a device (`/dev/stdout`) as it is.

    Args:
        path: one that `require_place` took.
        numbers: what `to_json` made.

    Raises:
        UserError: the place has gone, or the disk is full.
    """
    text, number = json.dumps(numbers, indent=1) + "\n", _descriptor(path)
    try:
        if number is not None:
            sys.stdout.flush()  # what was said before stands before
            with open(os.dup(number), "w", encoding="utf-8") as stream:
                stream.write(text)
        elif _is_stream(path):
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
        else:
            write_atomically(_target(path), text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise as_user_error(error, path) from None


def _descriptor(path: Path) -> int | None:
    """What this process has open by that name: a file that is opened anew, or replaced, loses what is written to it."""
    found = _OPEN.fullmatch(os.path.abspath(path))
    if found is None:
        return None
    return int(found[2]) if found[1] is None else {"stdout": 1, "stderr": 2}[found[1]]


def _target(path: Path) -> Path:
    """What is replaced: the file, not a link to it."""
    return Path(os.path.realpath(path))


def _is_stream(path: Path) -> bool:
    """Whether something other than a file or a folder is there: to be written to, not replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_own(path: Path) -> bool:
    """Whether a file is a plan's, or empty."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if text else dict.fromkeys(_OWN)
    except ValueError:  # no JSON, or no text
        return False
    return isinstance(found, dict) and _OWN <= found.keys()
