"""Writing files so that a reader, or a kill, never meets a part of one."""

import errno
import os
import pathlib
import tempfile

from jaxgeom.errors import UserError


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:  # an interrupt too leaves no half of a file; it is raised again
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def as_user_error(error: OSError, where: str | os.PathLike[str]) -> UserError:
    """A clear line for a folder that cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{where}: the disk is full; what was measured before is kept, run the same command again")
    return UserError(f"{where}: cannot be written to: {error.strerror or error}")
