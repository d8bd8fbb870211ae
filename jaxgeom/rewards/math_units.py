"""Units of answers: which ending of an answer is one, and when two answers with or without them are the same."""

import re
from collections.abc import Callable
from fractions import Fraction

from .math_unit_names import LENGTHS, SCALES, SPELLINGS, TIMES

UNKNOWN = "?"
"""What the unit begins with where words after a value are none: they may change it (`5 below zero`, `5 wrong`)."""

_QUOTED = re.compile(r'([^"]*[\d})a-zA-Z])\s*"([^"]+)"\s*(\^\{?-?\d\}?)?')
# A value without letters; then words, glued to it or after a space.
_VALUE = r'((?:\\(?:frac|sqrt|pi|cdot|times)(?![a-zA-Z])|[^a-zA-Z"\\])*[\d})])'
_PLAIN = re.compile(_VALUE + r"( ?)([a-zA-Z]+\.?(?:/[a-zA-Z]+)?(?: [a-zA-Z]+\.?(?:/[a-zA-Z]+)?){0,5})(\^\{?-?\d\}?)?")
# Symbols multiplied, one at least with a power: `m s^{-1}`, `kg\cdot m/s^2`.
_PRODUCT = re.compile(_VALUE + r" ((?:[a-zA-Z]+(?:\^\{?-?\d\}?)?(?: ?\\cdot | |/))+[a-zA-Z]+(?:\^\{?-?\d\}?)?)")
_CHINESE = re.compile(r"(.*\d) ?([\u4e00-\u9fff]{1,6})")
_SYMBOL = re.compile(r"([$€£¥₹])(.+)|(.+?)([$€£¥₹]|\\?%|\^\\circ ?(?:[CF])?)")
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?|-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_FACTOR = re.compile(r"(?:(square|sq|cubic|cu)(?:\. ?| ))?([^\W\d_]+(?: [^\W\d_]+)?)\.?(?:\^\{?(-?\d)\}?)?")
_ADJECTIVES = re.compile(r"^(?:different|distinct|possible|total)(?= )")
_PRODUCTS = {("N", "m"), ("kg", "m"), ("kW", "h")}
# Of letters alone no other quotient is taken for a unit: `2g/h` has variables.
_SECONDS = {"m/s", "m/s^2"}


def split_unit(s: str) -> tuple[str, str]:
    r"""An expression and its unit in one spelling; "" where it has none, "?" and the words where they are no unit.

    >>> split_unit('5"cm"^2')
    ('5', 'cm^2')
    >>> split_unit("90^\\circ")
    ('90', 'degree')
    >>> split_unit("5 million")
    ('5000000', '')
    >>> split_unit("5 below zero")
    ('5', '?below zero')
    """
    s = re.sub(r"^-\$", "$-", s.strip())
    if found := _SYMBOL.fullmatch(s):
        before, value_after, value_before, after = found.groups()
        value, mark = (value_after, before) if before else (value_before, after)
        mark = mark.replace("\\", "").replace("^circ", "°").replace(" ", "")
        # The degrees of `\sin 30^\circ` belong to the sine's argument.
        if not (mark.startswith("°") and re.search(r"\\(?!frac|pi|sqrt|cdot|times)[a-zA-Z]+", value)):
            inner, unit = split_unit(value)
            mark = SPELLINGS.get(mark, mark)
            if not unit or (before and unit == mark):
                return inner, mark
            return inner, unit if unit.startswith(UNKNOWN) else f"{UNKNOWN}{mark} {unit}"
    if found := re.fullmatch(r'(.*[^"])"\s*\(?(mod\s+\d+)\)?\s*"', s):
        return found.group(1).strip(), " ".join(found.group(2).split())
    if found := _QUOTED.fullmatch(s):
        value, name, power = found.groups()
        return _with_words(value.strip(), " ".join(name.split()).strip("."), power)
    if found := _CHINESE.fullmatch(s):
        return found.group(1), SPELLINGS.get(found.group(2), UNKNOWN + found.group(2))
    if found := _PLAIN.fullmatch(s):
        value, space, name, power = found.groups()
        unit = _unit(name + (power or ""))
        alone = len(name) > 1 and (unit is not None) and (len(max(re.split("[ /.]", name), key=len)) > 1)
        scaled = name.split()[0].casefold() in SCALES
        if alone or scaled or unit in _SECONDS or (space and any(map(_word, name.split()))):
            return _with_words(value.strip(), name, power)
    elif (found := _PRODUCT.fullmatch(s)) and "^" in found.group(2):
        value, name = found.groups()
        parts = re.split(r" ?\\cdot | |/|\^\{?-?\d\}?", name)
        unit = _unit(name)
        if unit is not None and (unit in _SECONDS or any(len(part) > 1 for part in parts)):
            return value.strip(), unit
    return s, ""


def same_unit(ours: str, our_unit: str, theirs: str, their_unit: str, equal: Callable[[str, str], bool]) -> bool:
    """Whether two values are the same, each with its unit or "" where it has none.

    A unit that one side leaves out is no matter, words that are no unit are; two that differ are. `p %` is p or p/100
    to a side without one, `d°` is d or the angle in radians. A letter is the unit that it may be where the right
    answer says so (`5 m` for `5 meters`).
    """
    if their_unit and not our_unit:
        letter = re.fullmatch(r"(.*[\d})]) ?([a-zA-Z])", ours)
        if letter is not None and SPELLINGS.get(letter[2]) == their_unit:
            return equal(letter[1], theirs)
    if our_unit and their_unit:
        return our_unit == their_unit and equal(ours, theirs)
    unit, of, bare = (our_unit, ours, theirs) if our_unit else (their_unit, theirs, ours)
    if unit.startswith(UNKNOWN):
        return False
    if equal(ours, theirs):
        return True
    if unit == "%":
        return equal(of, f"100({bare})")
    return unit == "degree" and "\\pi" in bare and equal(f"\\frac{{({of})\\pi}}{{180}}", bare)


def _word(word: str) -> bool:
    """Not a product of variables: `3 abc` is no three abc."""
    return len(word) >= 4 or (len(word) > 1 and word.casefold() in SPELLINGS)


def _with_words(value: str, name: str, power: str | None) -> tuple[str, str]:
    """A value and the words after it; a scale (`3.5 million`) is multiplied out."""
    first, _, rest = name.partition(" ")
    if first.casefold() in SCALES and not power:
        scaled = _scaled(value, SCALES[first.casefold()])
        unit = _unit(rest) if rest else ""
        if scaled is not None and unit is not None and rest.partition(" ")[0].casefold() not in SCALES:
            return scaled, unit
    unit = _unit(name + (power or ""))
    return value, UNKNOWN + " ".join((name + (power or "")).split()).casefold() if unit is None else unit


def _scaled(value: str, scale: int) -> str | None:
    if not _DECIMAL.fullmatch(value) or len(value) > 40:
        return None
    product = Fraction(value.replace(",", "")) * scale
    if product.denominator == 1:
        return str(product)
    return f"{'-' * (product < 0)}\\frac{{{abs(product.numerator)}}}{{{product.denominator}}}"


def _unit(name: str) -> str | None:
    """The unit's one spelling, or None where these words are none: `cm^2`, `m s^-1`, `apple`."""
    name = _ADJECTIVES.sub("", name.replace("²", "^2").replace("³", "^3")).strip()
    name = re.sub(r"\bper cent\b", "%", name, flags=re.IGNORECASE)
    over = re.split(r" ?/ ?| per ", name)
    if len(over) > 3:
        return None
    powers: dict[str, int] = {}
    for sign, group in zip((1, -1, -1), over, strict=False):
        factors = _factors(group)
        if factors is None:
            return None
        for unit, power in factors:
            powers[unit] = powers.get(unit, 0) + sign * power
    above = [f"{unit}^{power}" if power != 1 else unit for unit, power in sorted(powers.items()) if power > 0]
    below = [f"{unit}^{-power}" if power != -1 else unit for unit, power in sorted(powers.items()) if power < 0]
    return "/".join([" ".join(above), *below]) if above else None


def _factors(group: str) -> list[tuple[str, int]] | None:
    group = group.strip()
    if one := _factor(group):
        return [one]
    parts = re.split(r" ?\\cdot | ", group)
    # Words do not multiply: `5 apples boxes` is no unit.
    if len(parts) > 4 or not ("^" in group or tuple(parts) in _PRODUCTS):
        return None
    if any(len(re.sub(r"[^a-zA-Z].*", "", part)) > 3 for part in parts):
        return None
    factors = [_factor(part) for part in parts]
    known = dict(factor for factor in factors if factor is not None)
    return list(known.items()) if len(known) == len(parts) else None


def _factor(text: str) -> tuple[str, int] | None:
    if text == "%":
        return "%", 1
    found = _FACTOR.fullmatch(text)
    if found is None:
        return None
    shape, name, power = found.groups()
    unit = SPELLINGS.get(name) or (SPELLINGS.get(name.casefold()) if len(name) > 3 else None)
    if unit is None:
        return None
    if "^" in unit:
        return (unit[:-2], int(unit[-1])) if not (shape or power) else None
    if not (shape or power):
        return unit, 1
    if unit in LENGTHS and not (shape and power):
        return unit, {"s": 2, "c": 3}[shape[0]] if shape else int(power)
    return (unit, int(power)) if not shape and (unit in TIMES or int(power) < 0) else None
