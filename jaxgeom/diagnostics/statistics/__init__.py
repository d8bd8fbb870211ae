"""The one table of statistics: what each number is called, defined, averaged and compared with.

Reports, figures, console, findings, `measure` and the documentation read it; a new statistic is one entry here and one
function beside it.
"""

import dataclasses
import functools
import re

from .between import BETWEEN
from .changes import CHANGES
from .entry import KINDS as KINDS
from .entry import Null as Null
from .entry import Statistic as Statistic
from .path import EARLY as EARLY
from .path import PATH
from .path import early_place as early_place
from .sources import SOURCES as SOURCES
from .sources import Source as Source
from .spectrum import SPECTRUM

STATISTICS: dict[str, Statistic] = {entry.key: entry for entry in (*CHANGES, *SPECTRUM, *PATH, *BETWEEN)}
"""Every entry by key, in the order in which tables show them; a family by its key with a part in capitals."""

CHEAP: tuple[str, ...] = tuple(entry.key for entry in STATISTICS.values() if entry.cheap)
"""Statistics that need no decomposition of a whole matrix, families by their key in capitals."""

FURTHER: tuple[str, ...] = tuple(dict.fromkeys(kind for entry in STATISTICS.values() for kind in entry.further))
"""Kinds of nulls beside the first one: `<name>_<kind>_null`, `_excess`, `_z`."""

KIND_LABELS = {"profile": "scale profile", "permutation": "permuted", "rounding": "rounding null"}
"""What tables call the nulls beside the first one."""

COMPARED: tuple[str, ...] = tuple(entry.key for entry in STATISTICS.values() if entry.compared)
"""Statistics by which methods are compared."""

HEADLINE: tuple[str, ...] = ("relative_norm", *(
    entry.key for entry in STATISTICS.values() if entry.headline and entry.key != "relative_norm"
))  # fmt: skip
"""Statistics that tables show before every other one: first the size of the update, which the others follow."""

_PART = re.compile(r"[A-Z]{3,}|(?<=_)K$")
_FAMILIES = {
    entry.key: (re.compile(_PART.sub(r"(.+)", re.escape(entry.key))), found[0])
    for entry in STATISTICS.values()
    if (found := _PART.search(entry.key))
}
"""Per family the pattern of its members' keys, and the part in capitals that stands for what tells them apart."""


@functools.lru_cache(maxsize=1024)
def statistic(key: str) -> Statistic | None:
    """The entry of a statistic's key, a member of a family (`energy_top_16`) by its family's.

    Args:
      key: a key without `_null`, `_excess` or `_z`.

    Returns:
      The entry, with the member's own key, label and definition; None where the table does not know it.

    >>> statistic("energy_top_16").label
    'energy in the 16 leading directions'
    >>> statistic("sparsity_rms_0.001").counted
    True
    """
    if key in STATISTICS and key not in _FAMILIES:
        return STATISTICS[key]
    for family, (pattern, part) in _FAMILIES.items():
        if found := pattern.fullmatch(key):
            entry, own = STATISTICS[family], found[1]
            words = {field: re.sub(rf"\b{part}\b", own, getattr(entry, field)) for field in ("label", "definition")}
            return dataclasses.replace(entry, key=key, **words)
    return None


def is_counted(key: str) -> bool:
    """Whether a statistic's mean is over every parameter, weighted by their number."""
    entry = statistic(key)
    return entry is not None and entry.counted


def bounds_of(key: str) -> tuple[float | None, float | None]:
    """The least and the largest value that a statistic can have, None where there is none."""
    entry = statistic(key)
    return (None, None) if entry is None else entry.bounds


@functools.lru_cache(maxsize=4096)
def split_key(key: str) -> tuple[str, str, str]:
    """A key of a report's row as statistic, kind of null, and what of it: "value", "null", "excess" or "z".

    >>> split_key("overlap_low_profile_z")
    ('overlap_low', 'profile', 'z')
    >>> split_key("nss_null"), split_key("nss")
    (('nss', '', 'null'), ('nss', '', 'value'))
    """
    for what in KINDS:
        if key.endswith(f"_{what}") and key not in STATISTICS:
            name = key.removesuffix(f"_{what}")
            kind = next((kind for kind in FURTHER if name.endswith(f"_{kind}") and statistic(name) is None), "")
            return name.removesuffix(f"_{kind}") if kind else name, kind, what
    return key, "", "value"


def statistics_of(command: str, suite: str = "full") -> tuple[Statistic, ...]:
    """The entries that a command's report has, in order, settings of statistics among them."""
    return tuple(entry for entry in STATISTICS.values() if command in entry.commands and suite in entry.suites)


def null_forms(command: str, suite: str = "full") -> dict[str, str]:
    """What every null of a command's report is and in which form it was had, as `settings.null_forms` says it."""
    forms: dict[str, str] = {}
    for entry in statistics_of(command, suite):
        null = entry.null_in(command)
        if null is not None:
            forms[entry.key] = null.described
        if command != "trajectory":
            further = {kind: one for kind, one in entry.further.items() if suite in one.suites}
            forms |= {f"{entry.key}_{kind}": one.described for kind, one in further.items()}
    return forms
