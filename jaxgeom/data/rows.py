"""Rows on disk: JSON lines, a JSON array, either compressed by gzip, or parquet."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgeom.data.templates import RowError
from jaxgeom.errors import UserError, listed
from jaxgeom.files import refuse_pointer
from jaxgeom.plain_json import TwiceError, once, other_encoding, read_json_text, utf8_text

_ENDINGS = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row as the file has it.

    Attributes:
        number: From 0, over the rows.
        line: From 1, over the lines of the file; None where rows are no lines.
        content: The object, or what is wrong with it.
    """

    number: int
    line: int | None
    content: dict | RowError

    @property
    def place(self) -> str:
        """`row 4`, with the line where there is one."""
        return f"row {self.number}" + (f" (line {self.line})" if self.line is not None else "")


def read_row_file(path: str | Path) -> list[Row]:
    """All rows of a file; one that is no JSON object has an error in its place.

    Lines end at `\\n` alone: a text may hold any other separator. A byte-order mark, `\\r` before the `\\n` and blank
    lines are passed over.

    Args:
        path: `.jsonl` or `.json` (lines or one array; also compressed, `.gz`), or `.parquet`.

    Raises:
        UserError: the file is missing, empty, of another kind, or damaged as a whole.
    """
    path = Path(path)
    _require_file(path)
    data = path.read_bytes()
    if path.suffix.lower() == ".parquet" or data.startswith(b"PAR1"):
        rows = _parquet_rows(path, data)
    else:
        rows = _json_rows(path, _decompressed(path, data))
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        UserError: it is missing, or no file of rows by its name.
    """
    _require_file(Path(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(path: str | Path) -> list[dict]:
    """All rows of a file, see `read_row_file`.

    Args:
        path: `.jsonl` or `.json` (lines or one array; also compressed, `.gz`), or `.parquet`.

    Returns:
        One dict a row, in order.

    Raises:
        UserError: the file is missing, empty, of another kind, or a row is no JSON object (its number is named).
    """
    rows = []
    for row in read_row_file(path):
        if isinstance(row.content, RowError):
            raise UserError(f"{path}: {row.place}: {row.content}") from row.content
        rows.append(row.content)
    return rows


def write_jsonl(path: str | Path, rows: Sequence[dict]) -> None:
    """Writes rows as JSON lines.

    Args:
        path: written over where it is there.
        rows: JSON objects.
    """
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a directory; give a file of rows in it" if path.is_dir() else "is no regular file"
        raise UserError(f"{path}: {what if path.exists() else 'no such file'}")
    if not path.name.lower().endswith(_ENDINGS):
        raise UserError(f"{path}: expected a .jsonl or .parquet file (also .json, .jsonl.gz)")
    refuse_pointer(path)


def _decompressed(path: Path, data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip data: {error}") from error


def _json_rows(path: Path, data: bytes) -> list[Row]:
    encoding = other_encoding(data)
    if encoding is not None:
        raise UserError(f"{path}: {encoding}; save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    begin = data.lstrip()[:1]
    if begin == b"[":
        array = _array(data)
        if array is not None:
            return [Row(number, None, _as_object(value)) for number, value in enumerate(array)]
    rows: list[Row] = []
    for line, raw in enumerate(io.BytesIO(data), start=1):  # iterated by `\n` alone
        if raw.strip():
            rows.append(Row(len(rows), line, _parse(raw)))
    if rows and isinstance(rows[0].content, RowError):
        _refuse_whole(path, data, begin)
    return rows


def _refuse_whole(path: Path, data: bytes, begin: bytes) -> None:
    """Refuses a file whose first line is no row because its values are written over lines, or are a broken array."""
    text = data.decode("utf-8", "replace").lstrip()
    if begin == b"{":
        try:
            end = json.JSONDecoder().raw_decode(text)[1]
        except (ValueError, RecursionError):  # of the row itself, which is called bad
            return
        if "\n" in text[:end]:
            raise UserError(
                f"{path}: a JSON object over several lines; rows are an object a line, or an array of objects"
            )
    elif begin == b"[" and _value(text.split("\n", 1)[0].encode()) is None:
        try:
            utf8_text(data)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise UserError(f"{path}: an array that is cut off or broken: {error.msg} at {where}") from error
        except (ValueError, RecursionError):
            return


def _array(data: bytes) -> list[Any] | None:
    """The whole as one JSON array; None where it is none (lines that are arrays, say)."""
    value = _value(data)
    is_array = isinstance(value, list) and all(isinstance(entry, dict | RowError) for entry in value[:1])
    return value if is_array else None


def _value(data: bytes) -> Any:
    """The value; an object that has a name twice is an error in its place."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once_or_error)
    except (ValueError, RecursionError):
        return None


def _once_or_error(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RowError:
    spoilt = next(filter(None, (_spoilt(value) for _, value in pairs)), None)
    if spoilt is not None:
        return spoilt
    try:
        return once(pairs)
    except TwiceError as error:
        return RowError(str(error))


def _spoilt(value: Any) -> RowError | None:
    """The error that stands in the place of an object, in lists however deep."""
    if isinstance(value, list):
        return next(filter(None, map(_spoilt, value)), None)
    return value if isinstance(value, RowError) else None


def _parse(raw: bytes) -> dict | RowError:
    try:
        return _as_object(read_json_text(utf8_text(raw)))
    except TwiceError as error:
        return RowError(str(error))
    except json.JSONDecodeError as error:
        return RowError(f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return RowError("nested too deeply")
    except ValueError as error:  # no UTF-8, or an integer of more digits than Python reads
        text = str(error)
        return RowError(text if text.startswith(("not UTF-8", "UTF-")) else f"not readable: {text.split(';')[0]}")


def _as_object(value: Any) -> dict | RowError:
    return value if isinstance(value, dict | RowError) else RowError(f"not a JSON object but {_kind(value)}")


def _kind(value: Any) -> str:
    return {list: "an array", str: "text", type(None): "null", bool: "true or false"}.get(type(value), "a number")


def _parquet_rows(path: Path, data: bytes) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    # What a damaged file makes Arrow raise is of several kinds, and their texts run over lines.
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a readable parquet file: {_first_line(error)}") from error
    contents = [content for batch in table.to_batches() for content in _arrow_rows(batch)]
    narrow = {field.name: field.type for field in table.schema if "float" in str(field.type)}
    if narrow:
        for content in contents:
            if isinstance(content, dict):
                content |= {name: _as_written(content[name], kind) for name, kind in narrow.items() if name in content}
    return [Row(number, None, content) for number, content in enumerate(contents)]


def _arrow_rows(batch: Any) -> list[dict | RowError]:
    """The rows without nulls: Arrow gives every struct the fields of all, so a null there says nothing."""
    import pyarrow

    try:
        return [_without_nulls(row) for row in batch.to_pylist()]
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # text that is no UTF-8, a date out of range
        if batch.num_rows == 1:
            return [RowError(f"{_unreadable(batch)}not readable: {_first_line(error)}")]
        return [row for place in range(batch.num_rows) for row in _arrow_rows(batch.slice(place, 1))]


def _unreadable(row: Any) -> str:
    """Which columns of a batch of one row cannot be read, as the beginning of a sentence."""
    import pyarrow

    bad = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError):
            bad.append(name)
    return f"column {listed([repr(name) for name in bad])}: " if bad else ""


def _as_written(value: Any, kind: Any) -> Any:
    """Numbers of 16 and 32 bits as the decimals that they stand for: a float32 0.1 is not 0.10000000149011612."""
    import pyarrow.types as types

    if types.is_struct(kind) and isinstance(value, dict):
        return {name: _as_written(entry, kind.field(name).type) for name, entry in value.items()}
    if (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)) and isinstance(value, list):
        return [_as_written(entry, kind.value_type) for entry in value]
    narrow = np.float32 if types.is_float32(kind) else np.float16 if types.is_float16(kind) else None
    return value if narrow is None or not isinstance(value, float) else float(str(narrow(value)))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n") or ["no message"])[0][:200]
