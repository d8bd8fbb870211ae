"""From prompts to answers: sampled, decoded, verified; groups of them refilled until enough can be learned from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxgeom.data.chat import pad_token, stop_tokens
from jaxgeom.data.pipelines import Prompt
from jaxgeom.models import Qwen3
from jaxgeom.rewards import Truth, Verifier
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.training.settings import OnPolicySettings

Judge = Callable[[Sequence[str], Sequence[Truth]], Sequence[float]]

_OPENED = "<think>"
# Enough to hold the opening of a thought, in single characters too.
_LAST_TOKENS = 12


@dataclass(frozen=True)
class Actor:
    """A model that samples or scores: module, parameters."""

    model: Qwen3
    params: PyTree


@dataclass(frozen=True)
class Answers:
    """Sampled answers on the host, `[batch, time]` each; rows of one prompt stand together.

    Attributes:
        tokens: int32, left-padded prompt, then the response.
        valid: True on real tokens.
        response: True on sampled tokens, the stop token included.
        log_probs: float32, as the sampler computed them.
        rewards: float32 `[batch]`; NaN for a prompt without a right answer.
        texts: The responses, decoded.
        prompts: The prompt of each row.
    """

    tokens: np.ndarray
    valid: np.ndarray
    response: np.ndarray
    log_probs: np.ndarray
    rewards: np.ndarray
    texts: list[str]
    prompts: list[Prompt]


def sample_answers(
    actor: Actor,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    settings: SamplingSettings,
    verifier: Judge | None = None,
) -> Answers:
    """One sampled and verified answer to each prompt."""
    pad = pad_token(tokenizer, actor.model.config.vocab_size)
    rollout = sample(actor.model, actor.params, [p.tokens for p in prompts], seeds, settings, pad_id=pad)
    tokens, valid, response, log_probs = (
        np.asarray(x) for x in (rollout.tokens, rollout.valid, rollout.response_mask, rollout.log_probs)
    )
    texts = tokenizer.batch_decode(
        [row[mask].tolist() for row, mask in zip(tokens, response, strict=True)], skip_special_tokens=True
    )
    # A template may open the thought in the prompt; a response without its end is all thought then.
    judged = [_OPENED + text if _opens_thought(tokenizer, p) else text for p, text in zip(prompts, texts, strict=True)]
    rewards = _rewards(judged, prompts, verifier or Verifier())
    return Answers(tokens, valid, response, log_probs, rewards, texts, list(prompts))


def _rewards(texts: Sequence[str], prompts: Sequence[Prompt], judge: Judge) -> np.ndarray:
    """float32 `[batch]`, NaN where there is nothing to judge by."""
    rewards = np.full(len(texts), np.nan, np.float32)
    known = [(place, prompt.ground_truth) for place, prompt in enumerate(prompts) if prompt.ground_truth is not None]
    if known:
        rewards[[place for place, _ in known]] = judge([texts[p] for p, _ in known], [truth for _, truth in known])
    return rewards


def sampling_settings(settings: OnPolicySettings, tokenizer: Any, sampler: Actor) -> SamplingSettings:
    """The distribution that training samples from: temperature alone, nothing truncated."""
    return SamplingSettings(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        stop_tokens=stop_tokens(tokenizer, sampler.model.config.stop_tokens),
    )


def truncated_share(batches: Sequence[Answers], stops: Sequence[int]) -> float:
    """The share of answers that the limit on their length ended, and no stop token."""
    ended = [
        bool(np.isin(row[mask][-1:], stops).any())
        for answers in batches
        for row, mask in zip(answers.tokens, answers.response, strict=True)
    ]
    return 1.0 - float(np.mean(ended))


def _opens_thought(tokenizer: Any, prompt: Prompt) -> bool:
    return tokenizer.decode(list(prompt.tokens[-_LAST_TOKENS:])).rstrip().endswith(_OPENED)


def sample_groups(
    settings: OnPolicySettings,
    sampler: Actor,
    rows: Iterator[list[Prompt]],
    tokenizer: Any,
    verifier: Judge | None,
    number: int,
    *,
    rounds: int = 1,
    keep: Callable[[Answers], bool] | None = None,
) -> tuple[Answers, dict[str, float]]:
    """`prompts_per_step` groups of answers; those that are not kept are replaced by further rounds of sampling.

    Args:
        settings: of the run.
        sampler: who answers.
        rows: batches of `settings.prompts_per_step` prompts.
        tokenizer: of the sampler.
        verifier: texts and truths to rewards; `Verifier()` where None.
        number: of the step; with the run's seed it fixes every sample.
        rounds: at most so many.
        keep: whether a group is one to learn from; None keeps all.

    Returns:
        The answers, those of groups that are kept first, and the metrics `reward`, `informative_groups` and
        `sampling_rounds`, over all that were sampled.
    """
    size = settings.samples_per_prompt
    kept: list[Answers] = []
    spare: list[Answers] = []
    all_rewards: list[np.ndarray] = []
    sampling = sampling_settings(settings, tokenizer, sampler)
    for turn in range(rounds):
        repeated = [prompt for prompt in next(rows) for _ in range(size)]
        seeds = np.random.default_rng([settings.seed, number, turn]).integers(0, 2**31, len(repeated)).tolist()
        answers = sample_answers(sampler, tokenizer, repeated, seeds, sampling, verifier)
        all_rewards.append(answers.rewards)
        for group in _split(answers, size):
            (kept if keep is None or keep(group) else spare).append(group)
        if len(kept) >= settings.prompts_per_step:
            break
    chosen = (kept + spare)[: settings.prompts_per_step]
    rewards = np.concatenate(all_rewards)
    metrics = {"sampling_rounds": float(len(all_rewards))}
    judged = rewards[~np.isnan(rewards)]  # whole groups are
    if judged.size:
        metrics["reward"] = float(judged.mean())
        metrics["informative_groups"] = float(np.mean(np.ptp(judged.reshape(-1, size), axis=1) > 0))
    if judged.size < rewards.size:
        metrics["reward_count"] = float(judged.size)
    return _join(chosen), metrics


def _split(answers: Answers, size: int) -> list[Answers]:
    def part(start: int) -> Answers:
        rows = slice(start, start + size)
        return Answers(
            answers.tokens[rows],
            answers.valid[rows],
            answers.response[rows],
            answers.log_probs[rows],
            answers.rewards[rows],
            answers.texts[rows],
            answers.prompts[rows],
        )

    return [part(start) for start in range(0, len(answers.texts), size)]


def _join(groups: Sequence[Answers]) -> Answers:
    """Groups of one or several rounds as one; shorter ones are padded on the left, where padding is masked anyway."""
    width = max(group.tokens.shape[1] for group in groups)

    def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.pad(part, ((0, 0), (width - part.shape[1], 0))) for part in parts])

    return Answers(
        tokens=stack([group.tokens for group in groups]),
        valid=stack([group.valid for group in groups]),
        response=stack([group.response for group in groups]),
        log_probs=stack([group.log_probs for group in groups]),
        rewards=np.concatenate([group.rewards for group in groups]),
        texts=[text for group in groups for text in group.texts],
        prompts=[prompt for group in groups for prompt in group.prompts],
    )
