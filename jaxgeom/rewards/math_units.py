"""Units of answers: which ending of an answer is one, and when two answers with or without them are the same."""

import re
from collections.abc import Callable

_SPELLINGS = {
    "%": "% percent percentage pct",
    "degree": "° deg degree degrees ^\\circ",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ml": "ml mL milliliter milliliters",
    "l": "l L liter liters litre litres",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "cup": "cup cups",
    "man": "man men",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "mph": "mph",
    "dollar": "$ dollar dollars USD usd",
    "cent": "¢ cent cents",
    "euro": "€ euro euros EUR",
    "pound sterling": "£ GBP",
    "Hz": "Hz hertz",
    "N": "N newton newtons",
    "J": "J joule joules",
    "W": "W watt watts",
    "V": "V volt volts",
}
_ONE_SPELLING = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
# Words after a number that are no unit but part of the value, or join it to something else.
_NO_UNIT = frozenset(
    "and or not to over plus minus times divided mod than less more least most about approximately equals equal is "
    "are hundred thousand million billion trillion dozen pair half halves third thirds quarter quarters tenth tenths "
    "squared cubed factorial choose infinity infinite negative positive pi root sqrt power prime base if when where "
    "either except between through until point double twice triple lakh crore score gross with without".split()
)
_QUOTED = re.compile(r'([^"]*[\d})a-zA-Z])\s*"([^"]+)"\s*(\^\{?\d\}?)?')
# A value without letters; then words, glued to it or after a space.
_PLAIN = re.compile(
    r'((?:\\(?:frac|sqrt|pi|cdot|times)(?![a-zA-Z])|[^a-zA-Z"\\])*[\d})])( ?)'
    r"([a-zA-Z]+(?:/[a-zA-Z]+)?(?: [a-zA-Z]+){0,3})(\^\{?\d\}?)?"
)
_SYMBOL = re.compile(r"([$€£¥])(.+)|(.+?)([$€£¥]|\\?%|\^\\circ ?(?:[CF])?)")


def split_unit(s: str) -> tuple[str, str]:
    r"""An expression and its unit in one spelling; "" where it has none.

    >>> split_unit('5"cm"^2')
    ('5', 'cm^2')
    >>> split_unit("90^\\circ")
    ('90', 'degree')
    >>> split_unit("5 million")
    ('5 million', '')
    """
    s = s.strip()
    if found := _SYMBOL.fullmatch(s):
        before, value_after, value_before, after = found.groups()
        value, mark = (value_after, before) if before else (value_before, after)
        mark = mark.replace("\\", "").replace("^circ", "°").strip()
        # The degrees of `\sin 30^\circ` belong to the sine's argument.
        if not (mark.startswith("°") and re.search(r"\\(?!frac|pi|sqrt|cdot|times)[a-zA-Z]+", value)):
            inner, unit = split_unit(value) if mark == "$" else (value, "")
            return inner, _ONE_SPELLING.get(mark, mark) if not unit or unit == "dollar" else f"{mark} {unit}"
    if found := re.fullmatch(r'(.*[^"])"\s*\(?(mod\s+\d+)\)?\s*"', s):
        return found.group(1).strip(), " ".join(found.group(2).split())
    if found := _QUOTED.fullmatch(s):
        value, name, power = found.groups()
        name = name.strip().strip(".").strip()
        if _may_be_unit(name.split()) and re.fullmatch(r"[A-Za-z./^0-9 '²³-]+", name):
            return value.strip(), _spelt(name, power)
    elif found := _PLAIN.fullmatch(s):
        value, space, name, power = found.groups()
        if (_known(name) or (space and all(_noun(word) or _known(word) for word in name.split()))) and len(name) > 1:
            if _may_be_unit(name.split()):
                return value.strip(), _spelt(name, power)
    return s, ""


def same_unit(ours: str, our_unit: str, theirs: str, their_unit: str, equal: Callable[[str, str], bool]) -> bool:
    """Whether two values are the same, each with its unit or "" where it has none.

    A unit that one side leaves out is no matter; two that differ are. `p %` is p or p/100 to a side without one, `d°`
    is d or the angle in radians.
    """
    if our_unit and their_unit:
        return our_unit == their_unit and equal(ours, theirs)
    unit, of, bare = (our_unit, ours, theirs) if our_unit else (their_unit, theirs, ours)
    if equal(ours, theirs):
        return True
    if unit == "%":
        return equal(of, f"100({bare})")
    return unit == "degree" and "\\pi" in bare and equal(f"\\frac{{({of})\\pi}}{{180}}", bare)


def _known(name: str) -> bool:
    return all(part in _ONE_SPELLING for part in name.split("/"))


def _noun(word: str) -> bool:
    """Not a product of variables: `3 abc` is no three abc."""
    return len(word) >= 4 and re.search("[aeiou]", word) is not None


def _may_be_unit(named: list[str]) -> bool:
    return 0 < len(named) <= 4 and not any(word.casefold() in _NO_UNIT for word in named)


def _spelt(name: str, power: str | None) -> str:
    words = re.split(r"([\s/]+)", name)
    one = "".join(_ONE_SPELLING.get(word, word if word.isspace() else _singular(word)) for word in words)
    one = re.sub(r"\b(?:square|sq\.?) (\S+)", r"\1^2", re.sub(r"\b(?:cubic|cu\.?) (\S+)", r"\1^3", one))
    return one.replace("²", "^2").replace("³", "^3") + (power or "").replace("{", "").replace("}", "")


def _singular(word: str) -> str:
    word = word.casefold()
    return word.removesuffix("s") if len(word) > 3 else word
