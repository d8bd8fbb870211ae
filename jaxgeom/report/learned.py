"""Which runs of a study learned nothing, and what that leaves of their method; which of its numbers are undefined.

What is said of a seed is true of that seed.
"""

from typing import Any

from ..diagnostics.statistics import COMPARED
from .formatting import statistic
from .reading import cell, compared_cell, label_of, methods_of, number, seeds_of


def nothing_learned(report: dict[str, Any]) -> list[str]:
    """A sentence for every run of a study that learned nothing: what happened, what to change, what it is left out of.

    Args:
        report: the content of a study's `report.json`.
    """
    said = []
    for name, method in methods_of(report).items():
        left = [str(seed.get("seed")) for seed in seeds_of(method)]
        for idle in seeds_of(method, learned=False):
            who = f"{label_of(name, method)}, seed {idle.get('seed')}"
            rest = (
                f"Its numbers are in no mean, order, pair or figure: {label_of(name, method)} is told by "
                f"seed{'s' if len(left) > 1 else ''} {', '.join(left)} alone."
                if left
                else f"{label_of(name, method)} has no seed that learned, so every statistic of it is undefined."
            )
            said.append(f"{who} LEARNED NOTHING: {idle['learned_nothing']}. {rest}")
    return said


def seeds_note(method: dict[str, Any]) -> str:
    """What stands by a method's name where not all of its seeds count: `learned nothing`, `without seed 1`; or ""."""
    idle = [str(seed.get("seed")) for seed in seeds_of(method, learned=False)]
    if not idle:
        return ""
    return f"without seed {', '.join(idle)}" if seeds_of(method) else "learned nothing"


def without_seeds(report: dict[str, Any]) -> list[str]:
    """The labels of the methods no seed of which learned anything."""
    methods = methods_of(report)
    return [label_of(n, m) for n, m in methods.items() if seeds_of(m, learned=False) and not seeds_of(m)]


def undefined_numbers(report: dict[str, Any]) -> str:
    """Which statistics by which methods are compared have no value, in which method or seed of it, and why."""
    parts = []
    for name, method in methods_of(report).items():
        summary, seeds = method.get("summary") or {}, seeds_of(method)
        for key in [k for k in COMPARED if k in summary and compared_cell(report, name, k).value is None]:
            by_seed = {seed.get("seed"): cell(seed.get("summary"), key).value for seed in seeds}
            missing = [seed for seed, value in by_seed.items() if value is None]
            who, why = label_of(name, method), statistic(key).undefined
            if number(cell(summary, key).value) is not None or (by_seed and not missing):
                why = "no matrix has it in every method and seed"
            elif missing and len(missing) < len(by_seed):
                who += f", seed {', '.join(map(str, missing))}"
            parts.append(f"{statistic(key).label} of {who} ({why})")
    return f"Undefined: {'; '.join(parts)}." if parts else ""
