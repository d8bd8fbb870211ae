"""One row's truth, whatever its kind, and the verifier that a run uses for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .code import code_rewards, require_isolation
from .code_tests import CodeTests
from .math_answers import verify_batch
from .truths import GroundTruth

Truth = GroundTruth | CodeTests
"""What a response is judged by: the answer, several answers of which one is enough, or the tests of a program."""


def stored(truth: Truth | None) -> Any:
    """A truth as JSON; `restored` reads it."""
    return {"tests": truth.to_json()} if isinstance(truth, CodeTests) else truth


def restored(value: Any) -> Truth | None:
    """The truth that `stored` wrote."""
    if isinstance(value, dict):
        return CodeTests.from_json(value["tests"])
    return tuple(value) if isinstance(value, list) else value


def logged(truth: Truth | None) -> str | list[str] | None:
    """A truth as it stands in a log of samples."""
    if isinstance(truth, CodeTests):
        return truth.summary()
    return list(truth) if isinstance(truth, tuple) else truth


@dataclass(frozen=True)
class Verifier:
    """Responses and truths to rewards.

    Attributes:
        allow_unisolated_code: Programs may run without bubblewrap where that is not to be had.
        code_timeout: Seconds of wall time for one test of a program.
    """

    allow_unisolated_code: bool = False
    code_timeout: float = 10.0

    def require(self, truths: Sequence[Truth]) -> None:
        """Whether all of these can be judged on this machine: said before a run rather than in it.

        Raises:
            UserError: programs are to be run, and bubblewrap is not to be had.
        """
        if any(isinstance(truth, CodeTests) for truth in truths):
            require_isolation(allow_unisolated=self.allow_unisolated_code)

    def __call__(self, texts: Sequence[str], truths: Sequence[Truth]) -> list[float]:
        """1.0 or 0.0 for each response, in order.

        Raises:
            ValueError: texts and truths differ in number.
        """
        if len(texts) != len(truths):
            raise ValueError(f"Verifier: {len(texts)} texts but {len(truths)} truths")
        rewards = [0.0] * len(texts)
        code = [i for i, truth in enumerate(truths) if isinstance(truth, CodeTests)]
        answers = [i for i, truth in enumerate(truths) if not isinstance(truth, CodeTests)]
        judged = verify_batch([texts[i] for i in answers], [t for t in truths if not isinstance(t, CodeTests)])
        ran = code_rewards(
            [texts[i] for i in code],
            [truth for truth in truths if isinstance(truth, CodeTests)],
            allow_unisolated=self.allow_unisolated_code,
            timeout=self.code_timeout,
        )
        for places, values in ((answers, judged), (code, ran)):
            for place, value in zip(places, values, strict=True):
                rewards[place] = value
        return rewards
