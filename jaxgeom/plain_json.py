"""JSON of users' files: text in UTF-8, and no name twice in one object with two values.

Python's reader, as most do, takes the last of two values silently. Which is meant cannot be told.
"""

import json
from typing import Any

# Those of four bytes first: the marks of two are their beginnings.
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Where there is no mark: JSON begins with a character of ASCII, and has another one or a blank after it.
_ZEROS: dict[tuple[int, ...], str] = {
    (0, 1, 1, 1): "UTF-32",
    (1, 1, 1, 0): "UTF-32",
    (0, 1, 0, 1): "UTF-16",
    (1, 0, 1, 0): "UTF-16",
}


class TwiceError(ValueError):
    """A name stands twice in one object, with different values."""


def other_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, where a file of JSON begins as one of them does, with a byte-order mark or without; else None.

    >>> other_encoding('{"a": 1}'.encode("utf-32")), other_encoding('[1]'.encode("utf-16-le")), other_encoding(b"{}")
    ('UTF-32', 'UTF-16', None)
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    return _ZEROS.get(tuple(int(byte == 0) for byte in data[:4]))


def utf8_text(data: bytes) -> str:
    """The text of a file of JSON.

    Raises:
        ValueError: it is in another encoding, which is named.
    """
    name = other_encoding(data)
    if name is not None:
        raise ValueError(f"{name}; save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(
            f"not UTF-8 text (byte 0x{byte:02x} at {error.start}: Latin-1 or Windows-1252, perhaps); save it as UTF-8"
        ) from error


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`; the same value twice does no harm.

    Raises:
        TwiceError: a name with different values.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        first: dict[str, Any] = {}
        for name, value in pairs:
            # As they are written: True is no 1, and 1 no 1.0.
            if repr(first.setdefault(name, value)) != repr(value):
                raise TwiceError(f"{name[:80]!r} stands twice in one object, with different values")
    return table


_decoder = json.JSONDecoder(object_pairs_hook=once)


def read_json_text(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        TwiceError: a name stands twice in one object, with different values.
        ValueError: it is no JSON (`json.JSONDecodeError`), or a number of more digits than Python reads.
        RecursionError: it is nested too deeply.
    """
    if text.startswith("\ufeff"):
        raise json.JSONDecodeError("Unexpected UTF-8 BOM", text, 0)
    return _decoder.decode(text)
