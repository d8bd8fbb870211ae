"""Held-out accuracy: greedy answers to prompts, verified."""

import math
from collections.abc import Sequence
from typing import Any

from jaxgeom.data.chat import stop_tokens
from jaxgeom.data.pipelines import Prompt
from jaxgeom.rollout import SamplingSettings
from jaxgeom.training.rollouts import Actor, Answers, Judge, sample_answers


def evaluate(
    actor: Actor,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int = 256,
    verifier: Judge | None = None,
) -> tuple[float, list[Answers]]:
    """Share of the prompts whose greedy answer is verified, and the answers, batch by batch.

    Args:
        actor: model and parameters that answer.
        tokenizer: decodes the answers.
        prompts: with their ground truth.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        verifier: texts and truths to rewards.

    Returns:
        The share in [0, 1], and the answers in the order of the prompts.
    """
    settings = SamplingSettings(
        max_new_tokens=max_new_tokens, greedy=True, stop_tokens=stop_tokens(tokenizer, actor.model.config.stop_tokens)
    )
    batches = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        batches.append(sample_answers(actor, tokenizer, part, [0] * len(part), settings, verifier))
    correct = sum(float(answers.rewards.sum()) for answers in batches)
    return correct / len(prompts), batches


def wilson_interval(successes: float | int, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion, 95 % by default.

    Args:
        successes: out of `count`; means over repetitions may be fractions.
        count: trials, at least 1.
        z: standard normal quantile of the coverage.

    Returns:
        Lower and upper end, in [0, 1].

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
