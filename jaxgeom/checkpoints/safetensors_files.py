"""Hugging Face directories: `config.json` and one or several `*.safetensors`, read by header and offset."""

import hashlib
import itertools
import json
import math
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
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
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(_MAX_HEADER_BYTES, size):
                raise UserError(f"{path}: not a safetensors file, or cut off within its header ({size} bytes)")
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is no JSON table of tensors)")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length, size, raw


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


def _tensors_of(path: pathlib.Path) -> tuple[dict[str, Tensor], bytes]:
    """The tensors of one file and its header's bytes; the whole layout is checked, nothing else is read."""
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
    filled = sorted((entry.first, entry.last, name) for name, entry in entries.items() if entry.last > entry.first)
    for (_, end, one), (begin, _, other) in itertools.pairwise(filled):
        if begin < end:
            raise UserError(f"{path}: not a safetensors file (tensors {one!r} and {other!r} overlap)")
    return tensors, raw


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; a `UserError` that names the file when it is missing or no JSON object."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def open_safetensors(directory: pathlib.Path, name: str) -> Checkpoint:
    """A Hugging Face directory as a checkpoint.

    With `model.safetensors.index.json` the files and names that it lists are read, otherwise every `*.safetensors`.

    Raises:
        UserError: no weights, a file that is missing, truncated or no safetensors, a tensor stored twice.
    """
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise UserError(f"{directory}: no config.json, so it is no Hugging Face directory")
    config = read_json(config_path)
    index_path = directory / "model.safetensors.index.json"
    listed: dict[str, str] | None = None
    if index_path.is_file():
        listed = read_json(index_path).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{index_path}: has no weight_map")
        files = [directory / file for file in sorted({str(file) for file in listed.values()})]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory}: holds no *.safetensors file")
    tensors: dict[str, Tensor] = {}
    fingerprint = hashlib.sha256()
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: missing, although {index_path.name} lists it")
        found, raw = _tensors_of(path)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise UserError(f"{path}: tensors stored in more than one file: {', '.join(twice)}")
        tensors |= found
        stat = path.stat()
        fingerprint.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns} ".encode() + raw)
    if listed is not None:
        absent = sorted(set(listed) - set(tensors))
        if absent:
            raise UserError(f"{index_path}: lists tensors that no file holds: {', '.join(absent)}")
        tensors = {key: tensor for key, tensor in tensors.items() if key in listed}
    if not tensors:
        raise UserError(f"{directory}: its safetensors hold no tensor")
    return Checkpoint(name, tensors, config=config, fingerprint=fingerprint.hexdigest())
