"""What answers are worth, as a run is told: verifiers by name, each with its weight. Help waits for no reader."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxgeom.errors import UserError

BUILT_IN = ("math", "code")
LARGEST_WEIGHT = 1e6
"""Rewards of up to 1e9, so weighted, have a mean square in float32."""
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class RewardPart(NamedTuple):
    """One verifier: `math`, `code`, or `module:function`, and what it is multiplied by."""

    name: str
    weight: float

    @property
    def is_built_in(self) -> bool:
        """Whether it judges by the right answer that a row has."""
        return self.name in BUILT_IN


def rewards_of(given: Sequence[str]) -> tuple[RewardPart, ...]:
    """The verifiers of a run; `math` and `code` with weight 1 where none is named.

    Args:
        given: `NAME` or `NAME=WEIGHT` each.

    Raises:
        UserError: a name that is none, or twice; a weight that is no finite number, or above 1e6; no weight but 0.

    >>> rewards_of(["math=0.5", "style:brief"])
    (RewardPart(name='math', weight=0.5), RewardPart(name='style:brief', weight=1.0))
    """
    if not given:
        return tuple(RewardPart(name, 1.0) for name in BUILT_IN)
    found: dict[str, RewardPart] = {}
    for entry in given:
        name, equals, text = entry.partition("=")
        if name not in BUILT_IN and not _FUNCTION.fullmatch(name):
            raise UserError(f"reward={entry}: {name!r} is neither math, code nor MODULE:FUNCTION")
        if name in found:
            raise UserError(f"reward={entry}: {name} is given twice")
        try:
            weight = float(text) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"reward={entry}: the weight {text!r} is no finite number")
        if abs(weight) > LARGEST_WEIGHT:
            raise UserError(f"reward={entry}: the weight {text!r} is above {LARGEST_WEIGHT:g}")
        found[name] = RewardPart(name, weight)
    if not any(part.weight for part in found.values()):
        raise UserError(f"reward={' '.join(given)}: every weight is 0: no answer is worth anything")
    return tuple(found.values())
