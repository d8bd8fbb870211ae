"""Where a plan's numbers are written: tried before minutes of compiling, and never over what is no plan."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error, write_atomically

_OWN = {"schema", "command", "programs", "hbm_bytes"}


def require_place(path: Path) -> None:
    """Tries what `write_numbers` will do.

    Args:
        path: of a file that is not there, of an earlier plan, or of a pipe or device.

    Raises:
        UserError: no file can be written there, or another's stands there.
    """
    try:
        if path.is_dir():
            raise UserError(f"--json {path}: no file can be written there: it is a directory")
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise UserError(f"--json {path}: no file can be written there")
            return
        if path.exists() and not _is_own(path):
            raise UserError(f"--json {path}: another file is there that holds no plan, and nothing is overwritten")
        handle, tried = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
    text = json.dumps(numbers, indent=1) + "\n"
    try:
        if _is_stream(path):
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
        else:
            write_atomically(path, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise as_user_error(error, path) from None


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
