"""The one rule by which a value is called above, below or about its null, in captions, sentences and figures alike.

A value is told apart from its null where the mean z over its matrices is beyond ±2 and, of three or more seeds, the
95 % interval over them does not hold the null. Where fewer than half of them have a z and there is no such interval, it
has to be off by two percentage points (shares) or by a tenth (everything else).
"""

from enum import Enum

from .formatting import format_number, format_value, statistic
from .reading import Cell

BEYOND = 2.0
"""The mean z from which on a value is told apart from its null."""

RULE = (
    "“More” and “less than chance” are said where the mean z over the matrices is beyond ±2 and, of three or more "
    "seeds, the 95 % interval does not hold the null; where fewer than half of them have a z, from two percentage "
    "points (shares) or a tenth (other numbers) on. Anything nearer is called about its null."
)
"""The rule in words, for the page."""


class Verdict(Enum):
    """How a value stands to its null; the text is what captions call it."""

    LESS = "less than chance"
    ALIKE = "about as chance gives"
    MORE = "more than chance"


def verdict(key: str, own: Cell) -> Verdict | None:
    """How a value stands to its null, None where one of the two is undefined.

    Args:
        key: the statistic.
        own: value, null and excess of one population, with z and seeds where there are any.
    """
    if own.value is None or own.null is None or own.excess is None:
        return None
    apart = abs(own.excess) > 1e-9 * max(abs(own.value), abs(own.null))  # else a difference of rounding
    several = own.low is not None and own.high is not None and (own.seeds or 0) > 2
    few = own.count is not None and own.z_count is not None and 2 * own.z_count < own.count
    z = None if few else own.z
    if z is not None:
        apart &= abs(z) >= BEYOND
    if several:
        assert own.low is not None and own.high is not None
        apart &= not own.low <= own.null <= own.high
    if z is None and not several:
        apart &= abs(own.excess) >= (0.02 if statistic(key).unit == "share" else 0.1 * abs(own.null))
    if not apart:
        return Verdict.ALIKE
    return Verdict.MORE if own.excess > 0 else Verdict.LESS


def beside_words(key: str, own: Cell, *, null: str = "null") -> str:
    """`null 31.2 %, excess +0.012 pp, z 4.1`: what stands beside a value; empty where it has no null.

    Args:
        key: the statistic.
        own: its cell.
        null: what the null is called.
    """
    if own.null is None:
        return ""
    parts = [f"{null} {format_value(key, own.null)}"]
    if own.excess is not None:
        parts.append(f"excess {format_value(key, own.excess, signed=True)}")
    if own.z is not None:
        some = own.z_count is not None and own.count is not None and own.z_count < own.count
        parts.append(f"z {z_text(own.z)}" + (f" of {own.z_count}" if some else ""))
    return ", ".join(parts)


def z_text(z: float) -> str:
    """A mean z: one decimal, none from ten on."""
    return (f"{z:.0f}" if abs(z) >= 10 else f"{z:.1f}").replace("-", "−").replace("−0.0", "0.0")


def ratio_words(key: str, own: Cell) -> str:
    """How a value stands to a positive null: `1.4 times its null`, `about its null`; empty where it cannot be said."""
    said = verdict(key, own)
    if said is None or own.value is None or own.null is None or own.null <= 0:
        return ""
    if said is Verdict.ALIKE:
        return "about its null"
    ratio = own.value / own.null
    near = abs(ratio - 1) < 0.1
    return f"{format_number(ratio, digits=4 if abs(ratio - 1) < 0.01 else 3 if near else 2)} times its null"
