"""What needs no algebra: numbers, letters of multiple choice, words."""

import re
from fractions import Fraction

_CHOICE = re.compile(r'"?\(([A-Za-z])\)"?(.*)|"?([A-Za-z])(?:[).:]"?(.*))?"?', re.DOTALL)
_POWER = re.compile(
    r"(?:(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})|(?:(\d+(?:\.\d+)?)\\(?:times|cdot) ?)?10\^(?:\{([+-]?\d{1,4})\}|(\d)))"
)


def choice(s: str) -> str | None:
    """The letter of a multiple-choice answer (`B`, `(b)`, `B) 12`), or None where that is not what it is."""
    found = _CHOICE.fullmatch(s)
    if found is None:
        return None
    letter, rest = (found.group(1), found.group(2)) if found.group(1) else (found.group(3), found.group(4) or "")
    # "(B) and (C)" or "A. B": more than one is named.
    if re.search(r"\([A-Za-z]\)|(?<![A-Za-z\\])[A-Z](?![A-Za-z])", rest) or re.match(r"\s*[-+*/^_=,]", rest):
        return None
    return letter.upper()


def words(s: str) -> str | None:
    """An answer that is words alone, in one spelling; None for anything with a digit or a sign in it."""
    plain = re.sub(r'["\s]+', " ", s).strip().strip(".!").casefold()
    if not re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", plain):
        return None
    longest = max(map(len, re.split(r"[ '-]", plain)))
    return plain if longest >= 3 or plain in ("no", "up") or '"' in s else None


def number(s: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed or scientific number, or of digits in a base."""
    if len(s) > 400 or not s.isascii():
        return None
    sign = -1 if s.startswith("-") else 1
    s = s.removeprefix("-").removeprefix("+")
    if re.fullmatch(r"\d+(?:\.\d*)?|\.\d+|\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d{1,3}(?: \d{3})+(?:\.\d*)?", s):
        return sign * Fraction(s.replace(",", "").replace(" ", "").removesuffix(".") or "0")
    if found := re.fullmatch(r"(?:(\d+) ?)?(?:\\frac\{?(-?\d+)\}?\{(-?\d+)\}|(?:(?<= )|^)(\d+)/(\d+))", s):
        whole, *rest = found.groups()
        above, below = (int(part) for part in rest if part is not None)
        if below == 0 or (whole is not None and (above < 0 or below < 0)):
            return None
        return sign * (int(whole or 0) + Fraction(above, below))
    if found := re.fullmatch(r"\\frac(\d)(\d)|\\frac (\d) ?(\d)", s):
        above, below = (int(part) for part in found.groups() if part is not None)
        return sign * Fraction(above, below) if below else None
    if found := _POWER.fullmatch(s):
        plain, mantissa, *exponents = (found.group(i) for i in (1, 3, 2, 4, 5))
        exponent = int(next(e for e in exponents if e is not None))
        return sign * Fraction(plain or mantissa or "1") * Fraction(10) ** exponent
    if found := re.fullmatch(r"(\d+)_(?:\{(\d+)\}|(\d))", s):
        digits, base = found.group(1), int(found.group(2) or found.group(3))
        if 2 <= base <= 36 and all(int(digit) < base for digit in digits):
            return sign * Fraction(int(digits, base))
    return None
