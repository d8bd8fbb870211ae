"""The entries of lists, tuples and sets, where a comma may be one of thousands (`(1,000,2)`); unions; determinants."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from .math_plain import number

_OPEN, _CLOSE = "([{", ")]}"
_TAIL = re.compile(r"\d{3}(?![\d,])")
_HEAD = re.compile(r"(?:.*[^\d.,])?[1-9]\d{0,2}", re.DOTALL)
UNREADABLE = "\\unreadable"
"""What stands before entries of which nobody can say what they are; they equal nothing but what is written so."""

End = tuple[Fraction | float, bool]
"""An end of an interval, and whether it belongs to it."""


def split(s: str, separators: str | tuple[str, ...]) -> list[str]:
    """Parts between separators that stand outside all brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(s):
        if depth == 0:
            mark = next((mark for mark in separators if s.startswith(mark, at)), None)
            if mark is not None and not (len(mark) > 1 and s[at + len(mark) :][:1].isalpha()):
                parts.append(s[start:at].strip())
                at += len(mark)
                start = at
                continue
        depth += (s[at] in _OPEN) - (s[at] in _CLOSE)
        at += 1
    parts.append(s[start:].strip())
    return parts


def entries(s: str) -> list[str]:
    """Parts between commas and semicolons outside of brackets; three digits that begin with 0 are no number alone.

    They belong to what stands before them (`1,000,2` is 1000 and 2). Where that can be done in several ways, or in
    none, nobody can say what is meant, and the whole is one entry, which nothing reads.

    >>> entries("1,000,2"), entries("1,234"), entries("2,500,000")
    (['1000', '2'], ['1', '234'], ['\\\\unreadable{2,500,000}'])
    """
    parts = split(s, ",;")
    if len(parts) == 1 or not any(part.startswith("0") and _TAIL.match(part) for part in parts):
        return parts
    glued = _glued(s, parts)
    return [f"{UNREADABLE}{{{s}}}"] if glued is None else glued


def _glued(s: str, parts: list[str]) -> list[str] | None:
    """The one way in which the parts are entries, or None."""
    bare, at = [False], 0
    for before, part in zip(parts, parts[1:], strict=False):
        at = s.index(before, at) + len(before)
        # A comma of thousands has no space on either side.
        bare.append(s.startswith("," + part, at))
    ways: list[list[str]] = [[]]
    for part, joined in zip(parts, bare, strict=True):
        tail = _TAIL.match(part) is not None
        longer = []
        for way in ways:
            if not (tail and part.startswith("0")):
                longer.append([*way, part])
            if tail and joined and way and _HEAD.fullmatch(re.sub(r",\d{3}", "", way[-1])):
                longer.append([*way[:-1], f"{way[-1]},{part}"])
        ways = longer
        if len(ways) > 8:
            return None
    return [re.sub(r"(?<=\d),(?=\d{3})", "", entry) for entry in ways[0]] if len(ways) == 1 else None


def merged(intervals: Sequence[tuple[End, End]]) -> list[tuple[End, End]]:
    """The same union of intervals without overlaps, in order: `[1, 3]` and `[2, 4]` are `[1, 4]`."""
    found: list[tuple[End, End]] = []
    for low, high in sorted(intervals, key=lambda interval: (interval[0][0], not interval[0][1])):
        if low[0] > high[0] or (low[0] == high[0] and not (low[1] and high[1])):
            continue
        if found and (low[0] < found[-1][1][0] or (low[0] == found[-1][1][0] and (low[1] or found[-1][1][1]))):
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def end(expression: str, belongs: bool) -> End | None:
    """An end of an interval, where it is a number or infinite."""
    infinite = {"\\infty": float("inf"), "+\\infty": float("inf"), "-\\infty": float("-inf")}.get(expression)
    if infinite is not None:
        return infinite, False
    value = number(expression)
    return None if value is None else (value, belongs)


def determinant(rows: Sequence[Sequence[str]]) -> str | None:
    """The determinant of a matrix of numbers, five rows at most; None for any other."""
    if not 0 < len(rows) <= 5 or any(len(row) != len(rows) for row in rows):
        return None
    values = [[number(cell) for cell in row] for row in rows]
    known = [[value for value in row if value is not None] for row in values]
    if any(len(row) != len(rows) for row in known):
        return None
    value = sum(_products(known), Fraction(0))
    sign = "-" if value < 0 else ""
    whole = value.denominator == 1
    return sign + (str(abs(value.numerator)) if whole else f"\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}")


def _products(rows: list[list[Fraction]]) -> Iterator[Fraction]:
    """The signed products of Leibniz' formula."""
    if len(rows) == 1:
        yield rows[0][0]
        return
    for column, value in enumerate(rows[0]):
        below = [row[:column] + row[column + 1 :] for row in rows[1:]]
        for product in _products(below):
            yield (-1) ** column * value * product
