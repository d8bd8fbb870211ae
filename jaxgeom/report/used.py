"""Which k, K and rank a statistic was taken at, in words: what was asked for, and where it was capped."""

import re
from typing import Any

from ..comparison.files.summary import settings_used

_SETTINGS = (
    (re.compile(r"angle_(left|right)_(mean|max)_deg"), "angle_k", "k"),
    (re.compile(r"sim_.*|subspace_similarity"), "subspace_k", "K"),
    (re.compile(r"hill"), "hill_k", "k"),
    (re.compile(r"overlap_principal"), "mask_rank", "rank"),
    (re.compile(r"projection_(?:joint|left|right)(.*)"), "projection{}_k", "k"),
)
_CAPPED_BELOW = ("angle_k", "subspace_k")  # at min(m, n) − 1, so that there is a next direction


def used_words(report: dict[str, Any], key: str) -> str:
    """`k = 31, capped at min(m, n) − 1 (512 asked for)`, `k = 1 to 3`: at what a statistic was taken; "" if unknown.

    Args:
        report: the content of a report or a trajectory.
        key: the statistic.
    """
    setting, letter = _setting_of(key)
    by_value = {int(value): count for value, count in _used(report).get(setting, {}).items()}
    if not by_value:
        return ""
    low, high = min(by_value), max(by_value)
    words = f"{letter} = {low}" if low == high else f"{letter} = {low} to {high}"
    asked = _asked(report, setting)
    capped = sum(count for value, count in by_value.items() if asked is not None and value < asked)
    if not capped:
        return words
    where = "" if capped == sum(by_value.values()) else f" in {capped} of {sum(by_value.values())} matrices"
    cap = "min(m, n) − 1" if setting in _CAPPED_BELOW else "min(m, n)"
    return f"{words}, capped at {cap}{where} ({asked} asked for)"


def capped_angles(report: dict[str, Any]) -> tuple[str, ...]:
    """What a reader of the angles has to know of their k: a sentence, with a warning where it is capped; or nothing."""
    words = used_words(report, "angle_left_mean_deg")
    if not words:
        return ()
    if "capped" not in words:
        return (f"Angles are those of the {words} leading directions.",)
    return (
        f"Angles are those of {words}: a subspace of all directions but one can hardly turn, and its angles say little "
        "of the leading ones; take a smaller angle_k.",
    )


def _setting_of(key: str) -> tuple[str, str]:
    for pattern, setting, letter in _SETTINGS:
        if found := pattern.fullmatch(key):
            return setting.format(*found.groups()), letter
    return "", ""


def _settings(report: dict[str, Any]) -> dict[str, Any]:
    """Of the measurement; a study has them under `measure`."""
    settings = report.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    return settings["measure"] if isinstance(settings.get("measure"), dict) else settings


def _used(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """As the report says it, else by its rows."""
    used = _settings(report).get("used")
    if isinstance(used, dict):
        return used
    rows = report.get("matrices")
    return settings_used([row for row in rows if isinstance(row, dict)]) if isinstance(rows, list) else {}


def _asked(report: dict[str, Any], setting: str) -> int | None:
    value = _settings(report).get(setting)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
