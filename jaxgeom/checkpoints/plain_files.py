"""Files that a checkpoint's directory names, opened only where they are files: no pipe, device or path elsewhere."""

import pathlib
import stat
from typing import Any

from jaxgeom.buckets.places import is_stored
from jaxgeom.errors import UserError
from jaxgeom.files import refuse_pointer
from jaxgeom.plain_json import TwiceError, read_json_text, utf8_text

_MAX_JSON_BYTES = 200_000_000
_POINTER_BYTES = 1024  # the most that a pointer of Git LFS has


def require_file(path: pathlib.Path) -> int:
    """Refuses what is no regular file (a pipe would wait for ever); links to one are followed.

    Returns:
        Its size in bytes.

    Raises:
        UserError: it is not there, or of another kind.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is no regular file")
    if 0 < found.st_size < _POINTER_BYTES:
        try:
            refuse_pointer(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found.st_size


def is_there(path: pathlib.Path) -> bool:
    """Whether the directory has an entry of that name, a broken link included: then it is meant, and said to be bad."""
    return path.is_symlink() or path.exists()


def read_json(path: Any) -> dict[str, Any]:
    """A JSON object from a file, here or in a bucket; a `UserError` that names it when it is missing or no object."""
    content = _content(path)
    try:
        value = read_json_text(utf8_text(content))
    except TwiceError as error:
        raise UserError(f"{path}: {error}: which is meant cannot be told") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def _content(path: Any) -> bytes:
    if is_stored(path):
        from jaxgeom.buckets import store  # heavy, and only needed for buckets

        try:
            return store.read(str(path))  # a bucket that cannot be read says nothing of the file
        except FileNotFoundError as error:
            raise UserError(f"{path}: cannot be read: there is no such object") from error
    if require_file(path) > _MAX_JSON_BYTES:
        raise UserError(f"{path}: too large for a JSON file of a checkpoint")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def in_directory(index: pathlib.Path, file: Any) -> pathlib.Path:
    """The file of the index's own directory that an index names.

    Raises:
        UserError: a name that leads elsewhere (`../`, an absolute path, a folder), or that is no name.
    """
    if not isinstance(file, str) or not file or "\0" in file or pathlib.PurePath(file).name != file or "\\" in file:
        raise UserError(f"{index}: names {file!r}, which is no file of this directory")
    return index.parent / file
