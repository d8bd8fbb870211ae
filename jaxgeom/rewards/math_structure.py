"""What an answer is (a number, a list, an interval, an equation, a word) and when two of them are the same.

Only the parts are compared by algebra: which bracket, how many, in which order is judged here, exactly.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from .math_entries import UNREADABLE, End, determinant, end, entries, merged, split
from .math_letters import reordered
from .math_text import closing
from .math_units import same_unit, split_unit

Equal = Callable[[str, str], bool]
"""Whether two scalar expressions have the same value."""

_LONGEST_SET = 60
_OPEN, _CLOSE = "([{", ")]}"
_RELATIONS = "=<>≤≥≠≈∈"
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
_NAME = re.compile(
    r"""(?:\\angle|\\triangle|\\vec|\\overline|\\mathbf|\\mathrm)?\s*\{?\s*
        (?:[A-Za-z]|[A-Z]{2,4}|\\[a-zA-Z]+|"[^"]*"|[A-Za-z]{3,})'*
        (?:_(?:\{[^{}]*\}|\w))?(?:\^\\circ)?\s*\}?'*(?:\([A-Za-z0-9,+\-\\ ]*\))?""",
    re.VERBOSE,
)
_NEGATIVE = re.compile(r'^"?\s*(?:negative|minus)\s*"?\s*(?=[\d.\\$])', re.IGNORECASE)
_SENTENCE = re.compile(
    r'^"?\s*(?:so,?\s*)?the\s+(?:final\s+)?(?:answer|value|result|solution)s?\s*(?:is|are)?:?\s*"?', re.I
)
_MATRIX = re.compile(r"\\begin\{([pbBv]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_AND_OR = re.compile(r'"[ ,]*(?:and|or)[ ,]*"|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])', re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """An answer as a tree.

    Attributes:
        kind: scalar, list, tuple (any brackets), set, union, relation, matrix.
        text: A scalar's expression; a tuple's two brackets; a relation's signs; a matrix' shape.
        parts: What it is made of.
        unit: A scalar's unit, in one spelling.
    """

    kind: str
    text: str = ""
    parts: tuple["Answer", ...] = ()
    unit: str = ""


def read(s: str) -> Answer:
    """The tree of an answer in the spelling of `clean`."""
    s = _SENTENCE.sub("", s, count=1) if not _SENTENCE.fullmatch(s) else s
    s = _NEGATIVE.sub("-", _bare(s), count=1)
    if found := _MATRIX.fullmatch(s):
        return _matrix(found.group(1), found.group(2))
    if not _grouped(s):
        parts = entries(_AND_OR.sub(lambda m: ";" if _outside(s, m.start()) else m.group(), s))
        if len(parts) > 1:
            return _listed([read(part) for part in parts])
        s = parts[0]
    parts = split(s, ("\\cup",))
    if len(parts) > 1:
        return Answer("union", parts=tuple(read(part) for part in parts))
    sides, signs = _sides(s)
    if signs:
        return _relation(sides, signs)
    if s in ("\\mathbb{R}", "\\R"):
        return read("(-\\infty,\\infty)")
    if s in ("\\emptyset", "\\{\\}"):
        return Answer("set")
    if s.startswith("\\{") and s.endswith("\\}") and closing(s, 1) == len(s) - 1:
        return Answer("set", parts=tuple(read(p) for p in entries(s[2:-2])))
    if s[:1] in ("(", "[") and closing(s, 0) == len(s) - 1:
        inner = entries(s[1:-1])
        if len(inner) > 1 or s[0] == "[":
            return Answer("tuple", s[0] + s[-1], tuple(read(p) for p in inner))
    for sign in ("\\pm", "±"):
        if s.count(sign) == 1 and _outside(s, s.index(sign)):
            before, after = s.split(sign)
            return Answer("list", parts=(read(f"{before}+{after}" if before else after), read(f"{before}-{after}")))
    value, unit = split_unit(s)
    return Answer("scalar", _bare(value), unit=unit)


def same(ours: Answer, theirs: Answer, equal: Equal) -> bool:
    """Whether an answer is the right one.

    Args:
        ours: the response's.
        theirs: the right one.
        equal: judges two scalar expressions.

    Returns:
        True only where every part is the same.
    """
    if theirs.kind == "relation" and ours.kind != "relation":
        theirs = _solved(theirs, equal)
    elif ours.kind == "relation" and theirs.kind != "relation":
        ours = _solved(ours, equal)
    if ours.kind == theirs.kind == "relation":
        return _same_relation(ours, theirs, equal)
    if ours.kind == theirs.kind == "scalar":
        return same_unit(ours.text, ours.unit, theirs.text, theirs.unit, equal)
    kinds = {ours.kind, theirs.kind}
    if "union" in kinds:
        a, b = _numerical(ours), _numerical(theirs)
        if a is not None and b is not None:
            return a == b
    if kinds == {"list", "tuple"}:
        pair = ours if ours.kind == "tuple" else theirs
        return pair.text == "()" and _in_order(ours, theirs, equal)
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _in_any_order(ours, theirs, equal)
    if len(kinds) == 1:
        return ours.text == theirs.text and _in_order(ours, theirs, equal)
    one = next((x for x in (ours, theirs) if x.kind == "set" and len(x.parts) == 1), None)
    if one is not None:
        other = theirs if one is ours else ours
        return other.kind == "scalar" and same(one.parts[0], other, equal)
    return False


def _same_relation(ours: Answer, theirs: Answer, equal: Equal) -> bool:
    if len(ours.parts) == len(theirs.parts) and ours.text == theirs.text and _in_order(ours, theirs, equal):
        return True
    a, b = _interval(ours), _interval(theirs)
    if a is not None and b is not None:
        return a[0] == b[0] and same(a[1], b[1], equal)
    if len(ours.parts) != 2 or len(theirs.parts) != 2:
        return False
    if _FLIPPED.get(ours.text) == theirs.text:
        ours = replace(ours, text=theirs.text, parts=ours.parts[::-1])
    if ours.text != theirs.text or any(part.kind != "scalar" or part.unit for part in ours.parts + theirs.parts):
        return False
    if any(reordered(a.text, b.text) for a in ours.parts for b in theirs.parts):
        return False
    if ours.text in "=≠" and equal("\x00ratio", _quotient(ours, theirs)):
        return True
    return ours.text in "<>≤≥" and equal("\x00positive", _quotient(ours, theirs))


def _quotient(ours: Answer, theirs: Answer) -> str:
    (a, b), (c, d) = (tuple(part.text for part in answer.parts) for answer in (ours, theirs))
    return f"\\frac{{({a})-({b})}}{{({c})-({d})}}"


def _solved(relation: Answer, equal: Equal) -> Answer:
    """A relation as the value or the set that it gives: `x = 5` is 5, `1 < x < 2` is an interval."""
    sides, signs = relation.parts, relation.text
    if set(signs) == {"="}:
        named = [is_name(side) for side in sides]
        rest = [side for side, name in zip(sides, named, strict=True) if not name]
        if not rest:
            return sides[-1]
        # `5 = 6` is not 6: the sides of a chain must agree.
        if all(same(side, rest[-1], equal) for side in rest[:-1]) and (named[0] or named[-1] or len(rest) > 1):
            return rest[-1]
        return relation
    if signs == "≈":
        return sides[1] if is_name(sides[0]) else sides[0]
    if set(signs) <= {"=", "≈"} and is_name(sides[0]):
        return sides[1]
    if signs == "∈" and is_name(sides[0]):
        return sides[1]
    interval = _interval(relation)
    return interval[1] if interval else relation


def is_name(answer: Answer) -> bool:
    """Whether this is what a value is given a name by: `x`, `f(x)`, `AB`, `(x, y)`, a word."""
    if answer.kind == "tuple":
        return answer.text == "()" and all(is_name(part) for part in answer.parts)
    if answer.kind != "scalar":
        return False
    text = answer.text + answer.unit
    if text in ("e", "i", "\\pi", "\\infty", "\\emptyset"):
        return False
    return _NAME.fullmatch(text) is not None


def _interval(relation: Answer) -> tuple[str, Answer] | None:
    """The variable and the interval of `x > 3` or `1 < x ≤ 2`; None for other relations."""
    sides, signs = relation.parts, relation.text
    if not signs or any(sign not in "<>≤≥≠" for sign in signs) or any(side.kind != "scalar" for side in sides):
        return None
    if len(sides) == 2:
        if is_name(sides[1]) and not is_name(sides[0]):
            sides, signs = sides[::-1], _FLIPPED.get(signs, signs)
        if not is_name(sides[0]) or is_name(sides[1]):
            return None
        low, high = Answer("scalar", "-\\infty"), Answer("scalar", "\\infty")
        if signs == "≠":
            below, above = Answer("tuple", "()", (low, sides[1])), Answer("tuple", "()", (sides[1], high))
            return sides[0].text, Answer("union", parts=(below, above))
        if signs in "<≤":
            return sides[0].text, Answer("tuple", "(" + (")" if signs == "<" else "]"), (low, sides[1]))
        return sides[0].text, Answer("tuple", ("(" if signs == ">" else "[") + ")", (sides[1], high))
    if len(sides) != 3 or not is_name(sides[1]) or "≠" in signs:
        return None
    if signs[0] in ">≥":
        sides, signs = sides[::-1], "".join(_FLIPPED[sign] for sign in signs[::-1])
    if any(sign not in "<≤" for sign in signs):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return sides[1].text, Answer("tuple", brackets, (sides[0], sides[2]))


def _listed(parts: list[Answer]) -> Answer:
    """A list; `x = 1, y = 2` is a pair, `x = 1, x = 2` and `x = 1, 2` the two values of x, `x < 1 or x > 2` a union."""
    assigned = [p.kind == "relation" and p.text == "=" and len(p.parts) == 2 and is_name(p.parts[0]) for p in parts]
    if all(assigned):
        names = [part.parts[0].text for part in parts]
        values = tuple(part.parts[1] for part in parts)
        if len(set(names)) == 1:
            return Answer("list", parts=values)
        if len(set(names)) == len(names):
            ordered = sorted(zip(names, values, strict=True), key=lambda pair: pair[0])
            return Answer("tuple", "()", tuple(value for _, value in ordered))
    elif assigned[0] and all(part.kind in ("scalar", "tuple") for part in parts[1:]):
        return Answer("list", parts=(parts[0].parts[1], *parts[1:]))
    if any(part.kind == "list" for part in parts):  # `\\pm 1, \\pm 2`
        flat = (part.parts if part.kind == "list" else (part,) for part in parts)
        return Answer("list", parts=tuple(one for several in flat for one in several))
    intervals = [_interval(part) if part.kind == "relation" else None for part in parts]
    if all(intervals) and len({interval[0] for interval in intervals if interval}) == 1:
        return Answer("union", parts=tuple(interval[1] for interval in intervals if interval))
    return Answer("list", parts=tuple(parts))


def _relation(sides: list[str], signs: str) -> Answer:
    return Answer("relation", signs, tuple(read(side) for side in sides))


def _matrix(bracket: str, body: str) -> Answer:
    rows = [[cell.strip() for cell in row.split("&")] for row in body.rstrip("\\ ").split("\\\\")]
    if bracket == "v":
        return Answer("scalar", determinant(rows) or f"\\begin{{vmatrix}}{body}")
    return Answer("matrix", "x".join(str(len(row)) for row in rows), tuple(read(cell) for row in rows for cell in row))


def _numerical(union: Answer) -> list[tuple[End, End]] | None:
    """An interval, or a union of them, between numbers, without overlaps; None for any other answer."""
    intervals = []
    for part in union.parts if union.kind == "union" else (union,):
        if part.kind != "tuple" or len(part.parts) != 2 or any(x.kind != "scalar" or x.unit for x in part.parts):
            return None
        low, high = (end(x.text, bracket in "[]") for x, bracket in zip(part.parts, part.text, strict=True))
        if low is None or high is None:
            return None
        intervals.append((low, high))
    return merged(intervals)


def _in_order(ours: Answer, theirs: Answer, equal: Equal) -> bool:
    if len(ours.parts) != len(theirs.parts):
        return False
    return all(same(a, b, equal) for a, b in zip(ours.parts, theirs.parts, strict=True))


def _in_any_order(ours: Answer, theirs: Answer, equal: Equal) -> bool:
    if len(ours.parts) != len(theirs.parts):
        return False
    if len(ours.parts) > _LONGEST_SET:
        return _in_order(ours, theirs, equal)
    left = list(theirs.parts)
    for part in ours.parts:
        found = next((i for i, other in enumerate(left) if part == other), None)
        if found is None:
            found = next((i for i, other in enumerate(left) if same(part, other, equal)), None)
        if found is None:
            return False
        del left[found]
    return True


def _bare(s: str) -> str:
    """Without brackets or quotes around the whole that say nothing."""
    s = s.strip()
    while len(s) > 1:
        inside = entries(s[1:-1]) if s[0] + s[-1] in ("{}", "()") and closing(s, 0) == len(s) - 1 else []
        if len(inside) == 1 and not inside[0].startswith(UNREADABLE):
            s = s[1:-1].strip()
        elif s[0] == s[-1] == '"' and s.count('"') == 2:
            s = s[1:-1].strip()
        else:
            return s
    return s


def _grouped(s: str) -> bool:
    return re.fullmatch(r"[-+$€£]*[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?(?:[^,;]*)", s) is not None


def _outside(s: str, position: int) -> bool:
    inside = s[:position]
    return sum(map(inside.count, _OPEN)) == sum(map(inside.count, _CLOSE))


def _sides(s: str) -> tuple[list[str], str]:
    sides = split(s, tuple(_RELATIONS))
    if len(sides) == 1:
        return sides, ""
    signs, depth = "", 0
    for c in s:
        depth += (c in _OPEN) - (c in _CLOSE)
        signs += c if depth == 0 and c in _RELATIONS else ""
    return sides, signs
