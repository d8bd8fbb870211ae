"""Learning rates between two checkpoints: the scale against which a path is diffusion or drift."""

import dataclasses
import math
from typing import Any

from jaxgeom.errors import UserError


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """Learning rates of the optimizer steps between W0 and the checkpoints of a trajectory.

    Attributes:
        rates: one for every step, or one per step of the run from step 1 on; 0 for a step that changed nothing.
        source: where they are from, as the report says it.
        initial_step: the step of the run at which W0 stands.

    Raises:
        UserError: a rate that is no finite number of at least 0.
    """

    rates: float | tuple[float, ...]
    source: str
    initial_step: int = 0

    def __post_init__(self) -> None:
        for rate in self.rates if isinstance(self.rates, tuple) else (self.rates,):
            if not (math.isfinite(rate) and rate >= 0):
                raise UserError(f"learning_rate = {rate!r}: a finite number of at least 0 is needed")

    def sums(self, step: int) -> tuple[float, float]:
        """`Σ lr` and `√Σ lr²` over the steps from W0 to a checkpoint; `lr·T` and `lr·√T` for a constant rate.

        Args:
            step: the checkpoint's.

        Raises:
            UserError: a step before W0's, or one whose rates are unknown.
        """
        count = step - self.initial_step
        if count < 0:
            raise UserError(f"step {step} lies before the initial checkpoint's step {self.initial_step}")
        if not isinstance(self.rates, tuple):
            return self.rates * count, self.rates * math.sqrt(count)
        if step > len(self.rates):
            raise UserError(f"{self.source}: rates of {len(self.rates)} steps, but a checkpoint at step {step}")
        taken = self.rates[self.initial_step : step]
        return math.fsum(taken), math.sqrt(math.fsum(rate * rate for rate in taken))

    def to_json(self, steps: list[int]) -> dict[str, Any]:
        """Source, and both sums at each checkpoint."""
        sums = [self.sums(step) for step in steps]
        return {
            "source": self.source,
            "initial_step": self.initial_step,
            "sum": [total for total, _ in sums],
            "root_sum_of_squares": [root for _, root in sums],
        }
