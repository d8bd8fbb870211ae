"""Whether two scalar expressions are equal, proved: no tolerance, no rounding.

Read by latex2sympy, which evaluates nothing; then numbers too large to be written out are refused before anything is
evaluated. Decimals are fractions here, so that 0.3333 is not 1/3. Numerical values only ever show that two expressions
differ; that they are equal is shown by algebra.
"""

import re
from itertools import product
from math import isfinite, log2, prod
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig

from .math_letters import shuffled
from .math_plain import RECURRING, no_arithmetic, recurring

_AS_IS = NormalizationConfig(
    basic_latex=False, units=False, malformed_operators=False, nits=False, boxed="none", equations=False
)
_READING = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_COMMANDS = frozenset(
    "frac sqrt pi cdot times binom lfloor rfloor lceil rceil infty sin cos tan cot sec csc arcsin arccos arctan "
    "sinh cosh tanh log ln lg exp sum prod int min max gcd alpha beta gamma delta epsilon varepsilon zeta eta "
    "theta lambda mu nu xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega "
    "circ cup det to lim".split()
)
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_MIXED = re.compile(r"(?<![\d}.)^_])(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}")
_PLAIN_MIXED = re.compile(r"(?<![\d}.)^_])(\d+) (\d+)/(\d+)(?!\d)")
_DEGREES = re.compile(r"(\d+|\\frac\{\d+\}\{\d+\})\^\\circ ?")
_UNREADABLE = re.compile(
    r"""\d\ \d | [}]\d | [A-Za-z]\d | \d_ | ['"&] | [A-Za-z]{4,} | \d\.\d+\.| \.\. | ,""", re.VERBOSE
)
_SUBSCRIPT = re.compile(r"([A-Za-z])_(?:\{\w+\}|\w)")
_DOUBLE_FACTORIAL = re.compile(r"(?<![\d.!}^_])(?:(\d{1,3})|\((\d{1,3})\))!!(?!!)")
# The real root of a negative number: sympy's is complex.
_ODD_ROOT = re.compile(r"\\sqrt ?\[(\d*[13579])\] ?\{-(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})\}")
# An exponent T is a variable, as any other: the grammar would transpose.
_EXPONENT_T = re.compile(r"\^\s*(?:\{\s*T\s*\}|T(?![A-Za-z_]))")
_FUNCTIONS = re.compile(r"\\[a-zA-Z]+")
_BINOMIAL = re.compile(r"\\binom(?![a-zA-Z])")
_LARGEST_BITS = 100_000
_LARGEST_SYMBOLIC = 200  # factors that a binomial of a variable may have
_SAMPLES = tuple(sympy.Rational(*pair) for pair in ((7, 5), (22, 9), (13, 17)))


def equal(ours: str, theirs: str) -> bool:
    r"""Whether two LaTeX expressions have the same value, for all values of their variables.

    Args:
        ours: scalar expressions in the spelling of `math_text.clean`; `"\x00ratio"` and `"\x00positive"` ask whether
            `theirs` is a constant other than 0, or a positive one.
        theirs: likewise.

    Returns:
        False as well where one cannot be read, is no number (1/0), or is too large to be computed.

    >>> equal(r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}")
    False
    >>> equal(r"\sqrt{8}", r"2\sqrt{2}")
    True
    """
    try:
        return _equal(ours, theirs)
    except TimeoutError:
        raise
    except Exception:  # sympy raises anything on what models write: not shown to be equal then
        return False


def _equal(ours: str, theirs: str) -> bool:
    if shuffled(ours, theirs):
        return False
    a = _evaluated(theirs if ours.startswith("\x00") else ours)
    if a is None or not _is_number(a):
        return False
    if ours.startswith("\x00"):
        ratio = sympy.cancel(sympy.together(a))
        return bool(ratio.is_number and _is_number(ratio) and ratio != 0 and (ratio.is_positive or ours == "\x00ratio"))
    b = _evaluated(theirs)
    if b is None or not _is_number(b):
        return False
    imaginary = sympy.Symbol("i")
    if a.free_symbols | b.free_symbols == {imaginary}:
        a, b = a.subs(imaginary, sympy.I), b.subs(imaginary, sympy.I)
    if a == b:
        return True
    if a.is_infinite or b.is_infinite:
        return False
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    return _equal_functions(a, b, symbols) if symbols else _equal_constants(a, b)


def _evaluated(text: str) -> Any:
    """The expression's value, or None where it cannot be read or is too large."""
    expression = _parsed(text)
    if expression is None or _bits(expression) > _LARGEST_BITS:
        return None
    value = expression.doit()
    return value if isinstance(value, sympy.Expr) else None


def _parsed(text: str) -> Any:
    if no_arithmetic(text):
        return None
    text = RECURRING.sub(lambda m: "\\frac{{{}}}{{{}}}".format(*recurring(m).as_integer_ratio()), text)
    text = _DOUBLE_FACTORIAL.sub(lambda m: str(prod(range(int(m[1] or m[2]), 0, -2))), text)
    if "!!" in text:
        return None
    text = _EXPONENT_T.sub("^{1T}", text)
    text = _ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", text)
    text = _DECIMAL.sub(lambda m: f"\\frac{{{int(m[1] + m[2])}}}{{1{'0' * len(m[2])}}}", text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", _PLAIN_MIXED.sub(r"(\1+\\frac{\2}{\3})", text))
    text = re.sub(r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac ?(\d)\s*\{", r"\\frac{\1}{", re.sub(r"(\\frac\{[^{}]*\}) ?(\d)(?!\d)", r"\1{\2}", text))
    text = re.sub(r"\\sqrt ?(\d|[a-zA-Z])(?![\d.])", r"\\sqrt{\1}", text)
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = re.sub(r"(?<=\d)(?=\()|(?<=\))(?=[\w(\\])", r"\\cdot ", text)
    names = _FUNCTIONS.findall(text)
    if not set(name[1:] for name in names) <= _COMMANDS:
        return None
    letters = re.sub(r"\\[a-zA-Z]+(?:_(?:\{\w+\}|\w))?", " ", text)
    if _UNREADABLE.search(_SUBSCRIPT.sub(r"\1", letters)):
        return None
    # The grammar computes binomials of numbers while it reads them.
    return None if _has_large_binomial(text) else _converted(text)


def _converted(text: str) -> Any:
    try:
        expression = latex2sympy(text, normalization_config=_AS_IS, conversion_config=_READING)
    except Exception:  # the grammar raises bare exceptions on what it cannot read
        return None
    return expression if isinstance(expression, sympy.Expr) else None


def _has_large_binomial(text: str) -> bool:
    """Whether a binomial has more bits than are computed; those inside others are looked at first."""
    for found in reversed(list(_BINOMIAL.finditer(text))):
        upper = _group(text, found.end())
        lower = None if upper is None else _group(text, upper[1])
        if upper is None or lower is None:
            return True
        n, k = _converted(upper[0]), _converted(lower[0])
        if n is None or k is None or _binomial_bits(n, k) > _LARGEST_BITS:
            return True
    return False


def _group(text: str, begin: int) -> tuple[str, int] | None:
    """The content of the braces that begin here, and the place after them."""
    begin = len(text) - len(text[begin:].lstrip())
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth <= 0:
            return (text[begin + 1 : place], place + 1) if text[begin] == "{" else None
    return None


def _binomial_bits(n: Any, k: Any) -> float:
    """An upper bound, roughly, of log2 of (|n| + k)^k / k!, with the digits of an n that is no integer."""
    above, below = _magnitude(n), _magnitude(k)
    if n.free_symbols or k.free_symbols:
        return max(_bits(n), _bits(k)) if n.free_symbols and below <= _LARGEST_SYMBOLIC else float("inf")
    if not isfinite(above) or not isfinite(below):
        return float("inf")
    if n.is_Integer and 0 <= below <= above and not n.is_negative:
        below = min(below, above - below)
    fraction = 0.0 if n.is_integer else below * _bits(n)
    return _bits(n) + below * log2(3 * (above + below) / max(below, 1) + 1) + fraction


def _bits(expression: Any) -> float:
    """An upper bound, roughly, of the bits that the exact value takes; infinite where it cannot be bounded."""
    if expression.is_Integer or expression.is_Rational:
        return float(int(expression.p).bit_length() + int(expression.q).bit_length())
    parts = [_bits(part) for part in expression.args]
    if isinstance(expression, sympy.Pow):
        base, exponent = expression.args
        if exponent.free_symbols or (base.free_symbols and exponent.is_Rational):
            return max(parts) if not exponent.is_Integer or abs(exponent) < 200 else float("inf")
        size = _magnitude(exponent)
        return max(parts[0], 1.0) * size if size > 1 else parts[0]
    if isinstance(expression, sympy.factorial | sympy.gamma):
        size = _magnitude(expression.args[0])
        return size * log2(size + 2) if size < 1e6 else float("inf")
    if isinstance(expression, sympy.binomial):
        return _binomial_bits(*expression.args)
    if isinstance(expression, sympy.Sum | sympy.Product):
        return float("inf") if max(parts, default=0) > 16 else sum(parts)
    return sum(parts, 1.0)


def _magnitude(expression: Any) -> float:
    """Roughly how large a number is, as a float, without computing it exactly."""
    if _bits(expression) > 2000:
        return float("inf")
    try:
        return float(abs(expression.doit().evalf(5)))
    except (TypeError, ValueError, OverflowError):
        return 1.0 if expression.free_symbols else float("inf")


def _is_number(value: Any) -> bool:
    return not value.has(sympy.nan, sympy.zoo)


def _far_apart(a: Any, b: Any) -> bool | None:
    """True where the numerical values differ beyond all doubt, False where they agree to 30 digits, None unknown."""
    x, y, d = a.evalf(30), b.evalf(30), (a - b).evalf(30, maxn=2000)
    if not (d.is_number and x.is_number and y.is_number and d.is_finite and x.is_finite and y.is_finite):
        return None
    return bool(abs(d) > sympy.Float(10) ** -25 * max(abs(x), abs(y)))


def _equal_constants(a: Any, b: Any) -> bool:
    if a.is_Rational and b.is_Rational:
        return a == b
    if _far_apart(a, b):
        return False
    return _zero(a - b)


def _zero(difference: Any) -> bool:
    """Whether algebra shows that this is 0."""
    if difference == 0 or sympy.expand(difference) == 0:
        return True
    if sympy.simplify(difference) == 0:
        return True
    if difference.is_number and difference.is_algebraic and sympy.count_ops(difference) < 30:
        x = sympy.Symbol("x")
        return sympy.minimal_polynomial(difference, x) == x
    return False


def _equal_functions(a: Any, b: Any, symbols: list[Any]) -> bool:
    """Equal on every orthant on which both are real; where one is real and the other is not, they differ."""
    orthants = list(product((1, -1), repeat=len(symbols))) if len(symbols) <= 4 else [(1,) * len(symbols)]
    real = []
    for signs in orthants:
        both = True
        for shift in range(2):
            samples = [sign * (_SAMPLES[(i + shift) % 3] + i) for i, sign in enumerate(signs)]
            points = dict(zip(symbols, samples, strict=True))
            x, y = a.subs(points), b.subs(points)
            if not _is_number(x) or not _is_number(y):
                both = False
            elif x.is_extended_real is False and y.is_extended_real is False:
                both = False
            elif _far_apart(x, y):
                return False
        if both:
            real.append(signs)
    if not real:
        return False
    if _zero(sympy.cancel(sympy.together(a - b)) if (a - b).is_rational_function(*symbols) else a - b):
        return True
    if len(symbols) > 4:
        return False
    for signs in real:
        names = [sign * sympy.Symbol(f"p_{symbol}", positive=True) for symbol, sign in zip(symbols, signs, strict=True)]
        positive = dict(zip(symbols, names, strict=True))
        if not _zero(a.subs(positive) - b.subs(positive)):
            return False
    return True
