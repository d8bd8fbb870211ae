"""What a run has in hand for its next steps: what is left of a rollout, and rollouts that were drawn ahead.

With a lag of n the rollout of a step is drawn n rollouts before, with the parameters of then, and waits here: staleness
costs no second copy of the parameters. What is learned from is a pure function of what is in hand, so that a checkpoint
that holds it resumes exactly.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgeom.training.objectives import Prepared
from jaxgeom.training.objectives.interface import LARGEST
from jaxgeom.training.state import Batch


@dataclasses.dataclass(frozen=True)
class Stock:
    """Batches in hand, in order.

    Attributes:
        batches: Of the rollout that is being learned from.
        ahead: Of later ones; none for a rollout with nothing to learn from.
    """

    batches: tuple[Batch, ...] = ()
    ahead: tuple[tuple[Batch, ...], ...] = ()

    def for_step(self, number: int, lag: int, draw: Callable[[int], Prepared]) -> tuple["Stock", Prepared]:
        """The stock before a step, drawn from where a rollout is used up.

        Args:
            number: of the step.
            lag: rollouts that are drawn ahead.
            draw: prepares the rollout of a number, with the parameters as they are.

        Returns:
            The stock, whose first batch is the step's (none: the step has nothing to learn from), and metrics and
            answers of what was drawn: means over several rollouts, as at the start of a run with a lag.
        """
        if self.batches:
            return self, Prepared([])
        # Later steps have larger numbers, so that no rollout's samples are another's.
        drawn = [draw(number + place) for place in range(len(self.ahead), lag + 1)]
        batches, *ahead = *self.ahead, *(tuple(rollout.batches) for rollout in drawn)
        return Stock(batches, tuple(ahead)), Prepared([], _joined([one.metrics for one in drawn]), drawn[-1].answers)

    def after_step(self) -> "Stock":
        """The stock without the batch that was learned from."""
        return dataclasses.replace(self, batches=self.batches[1:])

    def packed(self) -> list[Batch]:
        """The batches as one list, for a checkpoint; with rollouts ahead an empty batch ends each rollout."""
        if not self.ahead:
            return list(self.batches)
        return [batch for rollout in (self.batches, *self.ahead) for batch in (*rollout, _END)]

    @classmethod
    def unpacked(cls, held: Sequence[Batch], place: Callable[[Batch], Batch]) -> "Stock":
        """The inverse of `packed`.

        Args:
            held: batches on the host.
            place: puts one on the devices.
        """
        rollouts: list[tuple[Batch, ...]] = [()]
        for batch in held:
            if len(batch.tokens):
                rollouts[-1] += (place(batch),)
            else:
                rollouts.append(())
        first, *ahead = rollouts if len(rollouts) == 1 else rollouts[:-1]
        return cls(first, tuple(ahead))


_END = Batch(*(np.zeros((0, 0), kind) for kind in (np.int32, np.bool_, np.bool_)))


def _joined(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of several rollouts: means over those that have them, but for what is `LARGEST`."""
    if len(found) == 1:
        return found[0]
    joined = {}
    for name in dict.fromkeys(name for metrics in found for name in metrics):
        values = [float(one[name]) for one in found if name in one]
        joined[name] = max(values) if name in LARGEST else float(np.mean(values))
    return joined
