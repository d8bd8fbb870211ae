"""Safetensors files, read by header and offset; a layout that the format does not allow is refused."""

import json
import math
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgeom.checkpoints.plain_files import require_file
from jaxgeom.checkpoints.tensors import Tensor
from jaxgeom.errors import UserError

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_MAX_HEADER_BYTES = 100_000_000


class _Reader:
    """Reads one tensor's bytes, or some of its rows, from its offset in the file."""

    def __init__(self, path: pathlib.Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.name, self.offset, self.shape, self.dtype = path, name, offset, shape, dtype

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        shape, offset = self.shape, self.offset
        if start is not None and stop is not None:
            row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
            offset += start * row_bytes
            shape = (max(stop - start, 0), *shape[1:])
        count = int(np.prod(shape, dtype=np.int64))
        try:
            array = np.fromfile(self.path, self.dtype, count, offset=offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot read tensor {self.name!r}: {error.strerror or error}") from error
        if array.size != count:
            raise UserError(f"{self.path}: the file ends within tensor {self.name!r}: it is truncated")
        return array.reshape(shape)


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int, int, bytes]:
    """Entries of a safetensors file, where its data begins, the file's size, and the header's bytes."""
    size = require_file(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(_MAX_HEADER_BYTES, size):
                raise UserError(f"{path}: not a safetensors file, or cut off within its header ({size} bytes)")
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is no JSON table of tensors)")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length, size, raw


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, _ in pairs:
        name.encode()  # half of a surrogate pair, which JSON can spell, is a ValueError: no report could hold the name
    if len(table := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return table


class _Entry(NamedTuple):
    """What the header says of one tensor; offsets count from where the data begins."""

    code: str
    shape: tuple[int, ...]
    first: int
    last: int


def _entry_of(path: pathlib.Path, name: str, entry: Any) -> _Entry:
    """An entry whose numbers are whole and not negative; whether they fit each other and the file is not looked at."""
    try:
        code, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = isinstance(code, str) and all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not a safetensors file (entry of tensor {name!r} is malformed)")
    return _Entry(code, shape, first, last)


def tensors_of(path: pathlib.Path) -> tuple[dict[str, Tensor], bytes]:
    """The tensors of one file and its header's bytes; the whole layout is checked, nothing else is read.

    Args:
        path: the file.

    Returns:
        Tensors by stored name, which are read on request, and what identifies them: the header.

    Raises:
        UserError: no safetensors file, one that is cut off, or one whose tensors overlap or leave bytes between or
            after them (the format allows neither, and what lies there is nobody's).
    """
    header, start, size, raw = _read_header(path)
    entries = {name: _entry_of(path, name, entry) for name, entry in header.items()}
    expected = start + max((entry.last for entry in entries.values()), default=0)
    if size < expected:
        raise UserError(f"{path}: truncated: {size} bytes on disk, its header announces {expected}")
    tensors = {}
    for name, (code, shape, first, last) in entries.items():
        if code not in _DTYPES:
            raise UserError(f"{path}: tensor {name!r} has dtype {code}, which jaxgeom cannot read")
        dtype = np.dtype(_DTYPES[code])
        if last - first != math.prod(shape) * dtype.itemsize:
            raise UserError(
                f"{path}: tensor {name!r} of shape {list(shape)} and dtype {code} does not fit its {last - first} bytes"
            )
        tensors[name] = Tensor(name, shape, dtype.name, _Reader(path, name, start + first, shape, dtype))
    if size > expected:
        raise UserError(
            f"{path}: {size - expected} bytes after its last tensor: damaged, or written over a longer file"
        )
    filled = sorted((entry.first, entry.last, name) for name, entry in entries.items() if entry.last > entry.first)
    end, one = 0, ""
    for begin, last, other in filled:
        if begin < end:
            raise UserError(f"{path}: not a safetensors file (tensors {one!r} and {other!r} overlap)")
        if begin > end:
            raise UserError(
                f"{path}: not a safetensors file ({begin - end} bytes before tensor {other!r} are no tensor's)"
            )
        end, one = last, other
    return tensors, raw
