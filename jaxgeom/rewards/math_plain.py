"""What needs no algebra: numbers, letters of multiple choice, words."""

import re
from fractions import Fraction

_CHOICE = re.compile(r'"?\(([A-Za-z])\)"?(.*)|"?([A-Za-z])(?:[).:]"?(.*))?"?', re.DOTALL)
_POWER = re.compile(
    r"(?:(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})|(?:(\d+(?:\.\d+)?)\\(?:times|cdot) ?)?10\^(?:\{([+-]?\d{1,4})\}|(\d)))"
)
RECURRING = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar) ?(?:\{(\d+)\}|(\d))"
    r"|(\\dot ?(?:\{\d\}|\d)(?:\d*\\dot ?(?:\{\d\}|\d))?))(?![\d.\\])"
)
"""A recurring decimal: `0.\\overline{3}`, `0.1\\dot{6}`, `0.\\dot{1}4285\\dot{7}`."""

_DATED = re.compile(
    r"(?<![\d./])(?:\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})|\d{4}/\d{1,2}/\d{1,2}|0\d+/\d+|\d+/0\d+)(?![\d./])"
    r"|\(\d{3}\) ?(?:\\cdot )?\d{3}-\d{4}|(?<![\d:.])\d{1,2}:[0-5]\d(?!\d)|:[^:]*:"
)
_HYPHENED = re.compile(r"(?<![\w.}^)*/-])\d+(?:-\d+)+(?![\w.^!*/(\\{])")
# "(B) is not right", "(B) wrong"; but "(B) False" may be what the choice says.
_DENIED = re.compile(
    r"\W*(?:(?:is|was|seems|must be)\b.*\b(?:wrong|incorrect|false|untrue|not|impossible)"
    r"|isn't|wasn't|is not|was not|wrong|incorrect|untrue)\b",
    re.IGNORECASE | re.DOTALL,
)
_SHORT = frozenset(
    "yes no odd up all any one two six ten dne red sun mon tue wed thu fri sat "
    "jan feb mar apr may jun jul aug sep oct nov dec day".split()
)


def choice(s: str) -> tuple[str, str] | None:
    """The letter of a multiple-choice answer (`B`, `(b)`, `B) 12`) and what follows it; None where it is none."""
    found = _CHOICE.fullmatch(s)
    if found is None:
        return None
    letter, rest = (found.group(1), found.group(2)) if found.group(1) else (found.group(3), found.group(4) or "")
    if _DENIED.match(rest):
        return None
    # "(B) and (C)" or "A. B": more than one is named.
    if re.search(r"\([A-Za-z]\)|(?<![A-Za-z\\])[A-Z](?![A-Za-z])", rest) or re.match(r"\s*[-+*/^_=,]", rest):
        return None
    return letter.upper(), rest.strip()


def words(s: str) -> str | None:
    """An answer that is words alone, in one spelling; None for anything with a digit or a sign in it.

    Upper or lower case is no matter in words of four letters and more, in short ones that are known (`YES`), in text.
    `abC` may be a product, and is no word.
    """
    plain = re.sub(r'["\s]+', " ", s).strip().strip(".!")
    if not re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", plain):
        return None
    each = re.split(r"[ '-]", plain)
    name = plain.casefold()
    if max(map(len, each)) >= 4 or '"' in s or len(each) > 1 and max(map(len, each)) == 3:
        return name
    return name if name in _SHORT or not plain.isascii() else None


def number(s: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed or scientific number, or of digits in a base."""
    if len(s) > 400 or not s.isascii():
        return None
    sign = -1 if s.startswith("-") else 1
    s = s.removeprefix("-").removeprefix("+")
    if re.fullmatch(r"\d+(?:\.\d*)?|\.\d+|[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|[1-9]\d{0,2}(?: \d{3})+(?:\.\d*)?", s):
        return sign * Fraction(s.replace(",", "").replace(" ", "").removesuffix(".") or "0")
    if found := re.fullmatch(r"(?:(\d+) ?)?(?:\\frac\{?(-?\d+)\}?\{(-?\d+)\}|(?:(?<= )|^)(0|[1-9]\d*)/([1-9]\d*))", s):
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
    if found := RECURRING.fullmatch(s):
        return sign * recurring(found)
    if (base := base_of(s)) is not None:
        digits = s.partition("_")[0]
        if 2 <= base <= 36 and all(int(digit) < base for digit in digits):
            return sign * Fraction(int(digits, base))
    return None


def base_of(s: str) -> int | None:
    """The base in which a number is written (`12_8`), or None where none is said."""
    found = re.fullmatch(r"[-+]?\d+_(?:\{(\d{1,3})\}|(\d))", s)
    return int(found.group(1) or found.group(2)) if found else None


def recurring(found: re.Match[str]) -> Fraction:
    """The value of a match of `RECURRING`: `0.1\\overline{6}` is 1/6."""
    whole, once, *forms = found.groups()
    again = next(re.sub(r"\D", "", form) for form in forms if form)
    first = Fraction(int(whole + once or "0"), 10 ** len(once))
    return first + Fraction(int(again), 10 ** len(once) * (10 ** len(again) - 1))


def no_arithmetic(s: str) -> bool:
    """Whether this may be a date, a time, a telephone number or the like (`2020-12-25`, `12:30`, `555-1234`, `1:2:3`).

    Such are the same only as they are written. `5-6` and `2/3/4` are arithmetic.
    """
    return _DATED.search(s) is not None or any(_numbered(chain) for chain in _HYPHENED.findall(s))


def _numbered(chain: str) -> bool:
    parts = chain.split("-")
    if any(len(part) > 1 and part.startswith("0") for part in parts):
        return True
    return len(chain) - len(parts) + 1 >= (6 if len(parts) == 2 else 5)
