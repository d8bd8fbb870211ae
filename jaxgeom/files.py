"""Writing files so that a reader, or a kill, never meets a part of one; and what their content is told apart by."""

import errno
import functools
import hashlib
import os
import pathlib
import tempfile

from jaxgeom.errors import UserError

TEMPORARY = r"\.{name}\.\w{{8}}"
"""What a file is called while it is written, as a regular expression with the (escaped) name to put in."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POINTER = b"version https://git-lfs.github.com/"
_FULL_WORDS = ("no space left", "disk quota exceeded", "file too large")


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


def refuse_pointer(path: pathlib.Path) -> None:
    """Refuses what Git leaves in a clone in the place of a large file.

    Raises:
        UserError: the file is a pointer of Git LFS.
    """
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{path}: a pointer of Git LFS in the place of the file: fetch it by `git lfs pull`")


def sha256_of(path: pathlib.Path) -> str:
    """Digest of a file's bytes, in hexadecimal; read once a process as long as size and time of change stay.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    return _sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=65_536)
def _sha256(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk (or the user's share of it) is full, in whatever form a library says so."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(word in str(seen).lower() for word in _FULL_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def full_disk(where: str | os.PathLike[str]) -> UserError:
    """What is said of a full disk."""
    return UserError(f"{where}: the disk is full; what was finished before is kept, run the same command again")


def as_user_error(error: OSError, where: str | os.PathLike[str]) -> UserError:
    """A clear line for a folder that cannot be written to, or for the file in it that is in the way."""
    if is_full(error):
        return full_disk(where)
    path = error.filename2 or error.filename
    inside = isinstance(path, str) and pathlib.Path(where).absolute() in pathlib.Path(path).absolute().parents
    return UserError(f"{path if inside else where}: cannot be written to: {error.strerror or error}")
