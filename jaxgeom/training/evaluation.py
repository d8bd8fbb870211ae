"""Held-out prompts: greedy accuracy, and what several sampled answers to each add, with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgeom.data.chat import stop_tokens
from jaxgeom.data.pipelines import Prompt
from jaxgeom.rewards import Judge, Rewards
from jaxgeom.rollout import SamplingSettings
from jaxgeom.training.rollouts import Actor, Answers, sample_answers, truncated

_REWARD = "held_out_reward"


def evaluate(
    actor: Actor,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int = 256,
    rewards: Rewards | Judge | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[float, list[Answers]]:
    """Share of the answers that are right, and the answers, batch by batch.

    Args:
        actor: model and parameters that answer.
        tokenizer: decodes the answers.
        prompts: with their ground truth.
        max_new_tokens: longest answer.
        batch_size: answers at a time.
        rewards: judge the answers, by `Rewards.counting`.
        samples: answers to each prompt, drawn; 0: one, greedy.
        temperature: of drawn answers.
        seed: of drawn answers, the same at every step of a run.

    Returns:
        The share in [0, 1] of those with a ground truth (NaN without any), and the answers in the order of the
        prompts, those to one prompt together.
    """
    settings = SamplingSettings(
        max_new_tokens=max_new_tokens,
        greedy=not samples,
        temperature=temperature,
        stop_tokens=stop_tokens(tokenizer, actor.model.config.stop_tokens),
    )
    judge = (rewards if isinstance(rewards, Rewards) else Rewards.of(rewards)).counting
    asked = [prompt for prompt in prompts for _ in range(samples or 1)]
    # A fourth word: a rollout's seeds have three.
    seeds = np.random.default_rng([seed, 0, 0, 1]).integers(0, 2**31, len(asked)).tolist()
    batches = []
    for start in range(0, len(asked), batch_size):
        part = slice(start, start + batch_size)
        batches.append(sample_answers(actor, tokenizer, asked[part], seeds[part], settings, judge))
    right = _right(batches)
    known = right[~np.isnan(right)]
    return float(known.mean(dtype=np.float64)) if known.size else math.nan, batches


def held_out_row(
    greedy: Sequence[Answers], drawn: Sequence[Answers], *, samples: int, stops: Sequence[int], name: str = ""
) -> dict[str, float]:
    """The numbers of one file of held-out prompts, for a log.

    Args:
        greedy: one answer to each prompt.
        drawn: `samples` answers to each, those to one prompt together; none where there are none.
        samples: of each prompt.
        stops: tokens that end an answer.
        name: of the file, after a slash in every key; "" for none.

    Returns:
        `accuracy` with its Wilson interval `accuracy_low`, `accuracy_high` and `accuracy_count`;
        `accuracy_truncated`, the share of answers that were cut; `avg@k`, the mean over prompts of the share of right
        answers, and `pass@j` for j = 1, 2, 4, … up to k with `_low` and `_high` (see `pass_at_k`, `mean_over_prompts`);
        `held_out_reward`, and by verifier, of greedy answers where a user's own verifier judges.
    """
    right = _right(greedy)
    known = ~np.isnan(right)
    cut = np.concatenate([truncated(answers, stops) for answers in greedy])
    row = {"accuracy_truncated": float(cut.mean())}
    if known.any():
        count = int(known.sum())
        row |= {"accuracy": float(right[known].mean(dtype=np.float64)), "accuracy_count": float(count)}
        row |= _ends("accuracy", wilson_interval(float(right[known].sum()), count))
    if drawn and known.any():
        each = _right(drawn).reshape(-1, samples)[known]
        row |= _over_prompts(f"avg@{samples}", each.mean(axis=1, dtype=np.float64))
        for k in _counts(samples):
            row |= _over_prompts(f"pass@{k}", pass_at_k(each.sum(axis=1), samples, k))
    names = {part for answers in greedy for part in answers.parts} - {"math", "code"}
    if names:
        row[_REWARD] = _mean([answers.rewards for answers in greedy])
        for part in sorted(names):
            row[f"{_REWARD}/{part}"] = _mean([answers.parts[part] for answers in greedy])
    return {f"{key}/{name}" if name else key: value for key, value in row.items()}


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row of `metrics.jsonl` is one of an evaluation, and not of a step."""
    return any(key.partition("/")[0] == "accuracy_truncated" for key in row) or "accuracy" in row


def pass_at_k(right: np.ndarray, samples: int, k: int) -> np.ndarray:
    """The chance that one of k answers is right, unbiased from `samples` of them of which some are.

        1 − C(n − c, k) / C(n, k)

    Args:
        right: `[prompts]`, c of each.
        samples: n.
        k: at most n.

    Returns:
        float64 `[prompts]`.

    Reference: Evaluating Large Language Models Trained on Code (arXiv 2107.03374).

    >>> import numpy as np
    >>> pass_at_k(np.array([0, 1, 4]), 4, 2).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.array([1.0 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in right])


def mean_over_prompts(values: np.ndarray, *, z: float = 1.96) -> tuple[float, float]:
    """An interval of the mean over prompts of numbers in [0, 1], 95 % by default.

    By the normal approximation, from the prompts' standard deviation. Where every prompt has 0, or every one 1, that
    says nothing, and Wilson's interval is taken; so it is where each has 0 or 1, of which it is the better one.

    Args:
        values: `[prompts]`.
        z: standard normal quantile of the coverage.

    Returns:
        Lower and upper end, in [0, 1].
    """
    count = len(values)
    if np.isin(values, (0.0, 1.0)).all() or np.ptp(values) == 0.0:
        return wilson_interval(float(values.sum()), count, z=z)
    half = z * float(values.std(ddof=1)) / math.sqrt(count)
    return max(0.0, float(values.mean()) - half), min(1.0, float(values.mean()) + half)


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
    # None of them and all of them: exactly 0 and 1, which the formula misses by rounding.
    return (
        max(0.0, centre - half) if successes > 0 else 0.0,
        min(1.0, centre + half) if successes < count else 1.0,
    )


def _right(batches: Sequence[Answers]) -> np.ndarray:
    """1 or 0 of every answer, NaN of those without a truth."""
    return np.concatenate([answers.right for answers in batches if answers.right is not None])


def _mean(values: Sequence[np.ndarray]) -> float:
    return float(np.nanmean(np.concatenate(values), dtype=np.float64))


def _counts(samples: int) -> list[int]:
    """1, 2, 4, … and `samples` itself."""
    powers = [1 << power for power in range(samples.bit_length())]
    return sorted({*powers, samples})


def _over_prompts(name: str, values: np.ndarray) -> dict[str, float]:
    return {name: float(values.mean())} | _ends(name, mean_over_prompts(values))


def _ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}
