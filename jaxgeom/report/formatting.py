"""How numbers, and the names of what they measure, are written on every page, figure and terminal."""

import math
from collections.abc import Iterable

from ..diagnostics.statistics import FURTHER, HEADLINE, KIND_LABELS, STATISTICS, Statistic, split_key
from ..diagnostics.statistics import statistic as table_entry

MODULES = ("q", "k", "v", "o", "gate", "up", "down", "router", "embedding", "head", "norm")

METHOD_LABELS = {"sft_anchor": "SFT", "opd": "OPD", "rlvr": "RLVR", "sft_continued": "SFT continued"}

_OTHERS = {
    "accuracy": Statistic("accuracy", "held-out accuracy", "right answers/answers", "What was learned.", unit="share"),
    "parameters": Statistic("parameters", "parameters", "n", "Entries of a matrix.", unit="count", is_setting=True),
}  # what pages print beside the statistics of the table


def statistic(key: str) -> Statistic:
    """The table's entry of `key`, or one made from the key itself where the table does not know it."""
    return table_entry(key) or _OTHERS.get(key) or Statistic(key, key.replace("_", " "), "", "")


def is_headline(key: str) -> bool:
    """Whether a statistic is shown before every other one, in a command's tables."""
    entry = table_entry(key)
    return entry is not None and entry.headline


def headline_of(command: str) -> tuple[str, ...]:
    """The statistics that the tables of a command show before every other one."""
    return tuple(key for key in HEADLINE if command in STATISTICS[key].commands)


def in_order(keys: set[str]) -> list[str]:
    """Keys in the order of the table, those that it does not have after the others."""
    return [key for key in STATISTICS if key in keys] + sorted(keys.difference(STATISTICS))


def base_key(key: str) -> tuple[str, str]:
    """A column's statistic, and what of it: `value`, `null`, `excess`, `z`, or those of the rounding null.

    >>> base_key("overlap_low_profile_null"), base_key("jaccard_rounding_z")
    (('overlap_low', 'null'), ('jaccard', 'rounding z'))
    """
    base, kind, what = split_key(key)
    return base, f"rounding {what}" if kind == "rounding" else what


def column_label(key: str) -> str:
    """The label of a column of the per-matrix table: the statistic, and which of value, null, excess or z it is."""
    base, kind, _ = split_key(key)
    what = base_key(key)[1]
    if what == "value":
        return statistic(base).label
    return f"{statistic(base).label}: {what}" + (f" ({KIND_LABELS[kind]})" if kind and kind != "rounding" else "")


def further_nulls_say(keys: Iterable[str]) -> str:
    """What the nulls beside the first one of some statistics are, for the caption of a table; "" where none has one."""
    said = {kind: null.says for key in keys for kind, null in statistic(key).further.items()}
    kept = [f"{KIND_LABELS[kind]}, {said[kind]}" for kind in FURTHER if kind in said]
    return f"Further nulls where there are any: {'; '.join(kept)}." if kept else ""


def population_words(count: int | None, of: int | None, *, noun: str = "matrices") -> str:
    """`n = 12 of 14 matrices`: how many a mean is over, and of how many; empty where it is not known."""
    if count is None:
        return ""
    return f"n = {format_count(count)}" + (f" of {format_count(of)} {noun}" if of is not None else f" {noun}")


def population_noun(key: str) -> str:
    """What a statistic's mean is over."""
    return "tensors" if statistic(key).counted else "matrices"


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def format_number(value: float | int | None, *, digits: int = 3) -> str:
    """Three significant digits, with a power of ten outside 1e-3 to 1e5: `0.0123`, `7.70×10⁻⁵`; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -3 <= exponent < 5:
        text = f"{value:.{max(digits - 1 - exponent, 0)}f}"
    else:
        text = f"{value / 10.0**exponent:.{digits - 1}f}×10{str(exponent).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


def format_value(key: str, value: float | int | None, *, signed: bool = False) -> str:
    """`value` of the statistic `key` as a reader wants it: `46.3 %`, `1.23°`, `7.70×10⁻⁵`; `signed` for an excess."""
    if value is None or not math.isfinite(value):
        return "–"
    unit = statistic(split_key(key)[0]).unit
    if unit == "share":
        percent = 100.0 * value
        if abs(percent) < 1e-9:  # what rounding leaves of a difference of shares
            percent = 0.0
        small = 0 < abs(percent) < 0.1
        text = format_number(percent, digits=2) if small else f"{percent:.1f}".replace("-", "−")
        text += " pp" if signed else " %"
    elif unit == "deg":
        text = format_number(value, digits=2 if signed else 3) + "°"
    elif unit == "count":
        text = f"{value:.0f}"
    else:
        text = format_number(value, digits=2 if signed else 3)
    return f"+{text}" if signed and value > 0 and not text.startswith("0.0 pp") else text


def format_count(value: float | int | None) -> str:
    """A whole number, its thousands apart: `18 432`."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")
