"""The published figures that are drawn as marks behind the user's own."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

_FAMILY = {"SFT": "sft", "OPD": "opd", "GRPO": "rlvr", "DAPO": "rlvr", "RL": "rlvr", "RLVR": "rlvr"}
METHOD_FAMILY = {"sft_anchor": "sft", "sft_continued": "sft", "opd": "opd", "rlvr": "rlvr"}
CONTROLLED = "2606.07082"
"""The paper whose controlled comparison of the three methods is drawn with filled marks."""

PUBLISHED_FRACTION = 0.3  # the masks' share of the entries behind the published overlaps


_DRAWN = ("visible_sparsity", "absolute_sparsity_1e-5", "low_magnitude_overlap")


class Reference(NamedTuple):
    """One published number: `value` is a share; `controlled` marks those of the three-way comparison."""

    source: str
    model: str
    family: str
    value: float
    controlled: bool


@cache
def references(metric: str) -> tuple[Reference, ...]:
    """The published shares of `metric` (`visible_sparsity`, `absolute_sparsity_1e-5`, `low_magnitude_overlap`)."""
    found = []
    with (Path(__file__).parent / "published.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] == metric and row["unit"] == "percent":
                controlled = row["note"].startswith(("controlled", "alpha"))
                family = _FAMILY[row["method"]]
                found.append(Reference(row["source"], row["final"], family, float(row["value"]) / 100, controlled))
    return tuple(found)


@cache
def published_sources() -> tuple[str, ...]:
    """The arXiv numbers of the papers whose values are drawn, in the order of the table."""
    return tuple(dict.fromkeys(r.source for metric in _DRAWN for r in references(metric)))
