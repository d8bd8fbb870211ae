"""Damage of the kinds that files meet: bytes lost, added and flipped, JSON values of other types and sizes."""

import json
import math
from typing import Any

from numpy.random import Generator

# What `json.dumps` cannot write stands as a word in the value and is put in its place in the text.
_DEEP, _DIGITS, _HUGE, _TWICE = "@deep@", "@digits@", "@huge@", "@twice@"
_RAW = {_DEEP: "[" * 3000 + "]" * 3000, _DIGITS: "9" * 5000, _HUGE: "1e999", _TWICE: '{"a": 1, "a": 2}'}

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**63, 10**30, 0.0, -0.5, 1.5, 80.5, 1e-320, 1e308,
    math.nan, math.inf, "", "x", "0", "16", "\ud800", "\u2028", "\x00", "../../x", "/etc/hostname", "a" * 10_000,
    [], {}, [None], ["a"], [0, -1], {"a": None}, [[[]]], *_RAW,
)  # fmt: skip


def pick(rng: Generator, options: Any) -> Any:
    """One of a sequence, as it is (NumPy would turn its elements into its own types)."""
    return options[int(rng.integers(len(options)))]


def damaged_bytes(rng: Generator, data: bytes) -> bytes:
    """A file's bytes after one accident."""
    at = int(rng.integers(len(data) + 1))
    size = int(rng.integers(1, 65))
    accident = int(rng.integers(8))
    if accident == 0:
        return data[:at]
    if accident == 1:
        return data + rng.bytes(size)
    if accident == 2:
        return data[:at] + rng.bytes(size) + data[at:]
    if accident == 3:
        return data[:at] + bytes(size) + data[at + size :]
    if accident == 4:
        return data[:at] + data[at + size :]
    if accident == 5:
        return pick(
            rng, (b"", b"null", b"{}", b"[]", b'"', b"\xff\xfe", b"\xef\xbb\xbf" + data, b"version 1", bytes(8))
        )
    flipped = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if flipped else 0):
        place = int(rng.integers(min(len(flipped), 2048) if accident == 6 else len(flipped)))
        flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, held in items for place in _places(held, (*path, key)))]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def damaged_value(rng: Generator, value: Any, odd: tuple[Any, ...] = ODD) -> Any:
    """A JSON value in which one value, or one key, is another."""
    value = json.loads(json.dumps(value))
    places = _places(value)
    # Deep and shallow places alike: most of a tokenizer's lie in its vocabulary.
    depth = pick(rng, sorted({len(place) for place in places}))
    path = pick(rng, [place for place in places if len(place) == depth])
    if not path:
        return pick(rng, odd)
    parent, key = _at(value, path[:-1]), path[-1]
    change = int(rng.integers(10))
    if change < 6:
        parent[key] = pick(rng, odd)
    elif change == 6:
        del parent[key]
    elif change == 7:
        parent[key] = json.loads(json.dumps(_at(value, pick(rng, places))))
    elif change == 8:
        parent[key] = [parent[key]]
    elif isinstance(parent, dict):
        parent[pick(rng, (f"{key}x", "", "model", "\ud800"))] = parent.pop(key)
    else:
        parent.insert(key, pick(rng, odd))
    return value


def json_text(value: Any) -> str:
    """JSON, with what only text can hold in its place."""
    text = json.dumps(value)
    for word, raw in _RAW.items():
        text = text.replace(f'"{word}"', raw)
    return text
