"""What an answer is worth: one verifier or several, weighted and added up, each kept on its own too."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxgeom.errors import UserError

from .code_tests import CodeTests
from .own import GivenRow, OwnReward
from .verifier import Truth, Verifier

Judge = Callable[[Sequence[str], Sequence[Truth]], Sequence[float]]
"""Responses and truths to rewards."""


class Judged(NamedTuple):
    """Rewards of answers, float32 `[batch]`, NaN where there is nothing to judge by.

    Attributes:
        total: The weighted sum.
        parts: What each verifier said, unweighted, by its name.
        right: Whether the row's own answer or tests were met, as 0 or 1: what accuracy counts.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    right: np.ndarray


@dataclass(frozen=True)
class Rewards:
    """Answers to what they are worth.

    Attributes:
        verifier: Judges by the truths of rows.
        weights: Of `math` (rows with an answer) and of `code` (rows with tests); one that is missing judges none.
        own: The user's functions, each with its weight.
        is_told_apart: Whether the parts are of interest beside the sum.
    """

    verifier: Judge
    weights: Mapping[str, float]
    own: tuple[tuple[OwnReward, float], ...] = ()
    is_told_apart: bool = False

    @classmethod
    def of(cls, verifier: Judge | None = None) -> "Rewards":
        """Those of one verifier, whatever the kind of truth."""
        return cls(verifier or Verifier(), {"math": 1.0, "code": 1.0})

    @property
    def counting(self) -> "Rewards":
        """The same, which say of every row with a truth whether it was met, be that worth anything or not."""
        return dataclasses.replace(self, weights={"math": 0.0, "code": 0.0, **self.weights})

    def require(self, truths: Sequence[Truth | None], place: Callable[[int], str]) -> None:
        """Whether every row with a truth is judged by something.

        Args:
            truths: of the rows.
            place: file and number of the row at an index.

        Raises:
            UserError: naming the first row that nothing judges.
        """
        for index, truth in enumerate(truths):
            if not self.own and truth is not None and _kind(truth) not in self.weights:
                kind, given = _kind(truth), " ".join(self.weights)
                raise UserError(f"{place(index)}: judged by {kind}, and reward={given} does not; give --reward {kind}")

    def __call__(
        self, texts: Sequence[str], truths: Sequence[Truth | None], rows: Sequence[GivenRow | None] | None = None
    ) -> Judged:
        """What each answer is worth.

        Args:
            texts: answers.
            truths: of the rows that they answer; None for a row without.
            rows: as their files have them; needed for the user's functions alone.
        """
        nothing = np.full(len(texts), np.nan, np.float32)
        right, parts = nothing.copy(), {}
        known = [(at, truth) for at, truth in enumerate(truths) if truth is not None and _kind(truth) in self.weights]
        if known:
            right[[at for at, _ in known]] = self.verifier([texts[at] for at, _ in known], [one for _, one in known])
        for name in self.weights:
            mine = [at for at, truth in known if _kind(truth) == name]
            if mine:
                parts[name] = nothing.copy()
                parts[name][mine] = right[mine]
        for reward, _ in self.own:
            given = [row for row in rows or () if row is not None]
            parts[reward.name] = np.array(reward(texts, given), np.float32)
        weights = dict(self.weights) | {reward.name: weight for reward, weight in self.own}
        total = sum((weights[name] * np.nan_to_num(part) for name, part in parts.items()), np.zeros_like(nothing))
        is_judged = np.zeros(len(texts), bool)
        for part in parts.values():
            is_judged |= ~np.isnan(part)
        return Judged(np.where(is_judged, total, np.nan).astype(np.float32), parts, right)


def _kind(truth: Truth) -> str:
    return "code" if isinstance(truth, CodeTests) else "math"
