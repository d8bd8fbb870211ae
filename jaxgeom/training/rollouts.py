"""From prompts to answers: sampled, decoded, verified; groups of them refilled until enough can be learned from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxgeom import processes
from jaxgeom.data.chat import pad_token, stop_tokens
from jaxgeom.data.pipelines import Prompt
from jaxgeom.models import Qwen3
from jaxgeom.rewards import Judge, Judged, Rewards
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.training.settings import OnPolicySettings

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
        rewards: float32 `[batch]`; NaN for a prompt that nothing judges an answer to.
        texts: The responses, decoded.
        prompts: The prompt of each row.
        parts: float32 `[batch]` by verifier, see `Judged.parts`.
        right: float32 `[batch]`, 1 where the row's own truth was met, NaN where it has none.
    """

    tokens: np.ndarray
    valid: np.ndarray
    response: np.ndarray
    log_probs: np.ndarray
    rewards: np.ndarray
    texts: list[str]
    prompts: list[Prompt]
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    right: np.ndarray | None = None

    def take(self, rows: np.ndarray | slice) -> "Answers":
        """Those at some places."""
        places = np.arange(len(self.texts))[rows]
        arrays = {name: getattr(self, name)[places] for name in _ARRAYS}
        return Answers(
            **arrays,
            texts=[self.texts[at] for at in places],
            prompts=[self.prompts[at] for at in places] if self.prompts else [],
            parts={name: part[places] for name, part in self.parts.items()},
            right=None if self.right is None else self.right[places],
        )


_ARRAYS = ("tokens", "valid", "response", "log_probs", "rewards")


def sample_answers(
    actor: Actor,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    settings: SamplingSettings,
    rewards: Rewards | Judge | None = None,
    before: Callable[[Answers], None] | None = None,
) -> Answers:
    """One sampled and verified answer to each prompt; `Rewards.of(rewards)` judges where it is not `Rewards`.

    `before` is called with the answers before they are judged: what it asks of the devices is done meanwhile.
    """
    pad = pad_token(tokenizer, actor.model.config.vocab_size)
    rollout = sample(actor.model, actor.params, [p.tokens for p in prompts], seeds, settings, pad_id=pad)
    tokens, valid, response, log_probs = (
        np.asarray(x) for x in (rollout.tokens, rollout.valid, rollout.response_mask, rollout.log_probs)
    )
    if before is not None:
        unjudged = np.full(len(prompts), np.nan, np.float32)
        before(Answers(tokens, valid, response, log_probs, unjudged, [], list(prompts)))

    def read() -> tuple[list[str], Judged]:
        mine = _own_rows(prompts)
        ids = [row[mask].tolist() for row, mask in zip(tokens[mine], response[mine], strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts, judge_answers(tokenizer, prompts[mine], texts, rewards)

    said = processes.of_all(read)
    total, parts, right = _joined_judged([judged for _, judged in said])
    texts = [text for texts, _ in said for text in texts]
    return Answers(tokens, valid, response, log_probs, total, texts, list(prompts), parts, right)


def _own_rows(prompts: Sequence[Prompt]) -> slice:
    """Of the answers to these prompts those that this process judges: all to one, which a verifier may compare."""
    starts = [at for at, prompt in enumerate(prompts) if at == 0 or prompt is not prompts[at - 1]]
    mine = processes.share_of(len(starts))
    first, last = ([*starts, len(prompts)][at] for at in (mine.start, mine.stop))
    return slice(first, last)


def judge_answers(
    tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[str], rewards: Rewards | Judge | None = None
) -> Judged:
    """What decoded answers are worth, one to each prompt; `Rewards.of(rewards)` judges where it is not `Rewards`."""
    # A template may open the thought in the prompt; a response without its end is all thought then.
    ends = [prompt.tokens[-_LAST_TOKENS:] for prompt in prompts]
    opened = {end: _opens_thought(tokenizer, end) for end in dict.fromkeys(ends)}  # a prompt has several answers
    judged = [_OPENED + text if opened[end] else text for end, text in zip(ends, texts, strict=True)]
    judge = rewards if isinstance(rewards, Rewards) else Rewards.of(rewards)
    return judge(judged, [prompt.ground_truth for prompt in prompts], [p.given for p in prompts])


def _joined_judged(found: Sequence[Judged]) -> Judged:
    """What several processes have judged, as one; a verifier that had nothing to say to some is NaN there."""
    if len(found) == 1:
        return found[0]
    names = dict.fromkeys(name for judged in found for name in judged.parts)
    blank = [np.full(len(judged.total), np.nan, np.float32) for judged in found]
    parts = {
        name: np.concatenate([judged.parts.get(name, none) for judged, none in zip(found, blank, strict=True)])
        for name in names
    }
    total, right = (np.concatenate([getattr(judged, name) for judged in found]) for name in ("total", "right"))
    return Judged(total, parts, right)


def sampling_settings(settings: OnPolicySettings, tokenizer: Any, sampler: Actor) -> SamplingSettings:
    """The distribution that training samples from: temperature alone, nothing truncated."""
    return SamplingSettings(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        stop_tokens=stop_tokens(tokenizer, sampler.model.config.stop_tokens),
    )


def truncated(answers: Answers, stops: Sequence[int]) -> np.ndarray:
    """bool `[batch]`: the answers that the limit on their length ended, and no stop token."""
    columns = answers.response.shape[1]
    last = columns - 1 - np.argmax(answers.response[:, ::-1], axis=1)  # of the answer's tokens; any one of an empty one
    stopped = np.isin(np.take_along_axis(answers.tokens, last[:, None], axis=1)[:, 0], stops)
    return ~(stopped & answers.response.any(axis=1))


def _opens_thought(tokenizer: Any, end: Sequence[int]) -> bool:
    return tokenizer.decode(list(end)).rstrip().endswith(_OPENED)


def sample_groups(
    settings: OnPolicySettings,
    sampler: Actor,
    rows: Iterator[list[Prompt]],
    tokenizer: Any,
    rewards: Rewards | Judge | None,
    number: int,
    *,
    rounds: int = 1,
    keep: Callable[[Answers], bool] | None = None,
    before: Callable[[Answers], None] | None = None,
) -> tuple[Answers, dict[str, float]]:
    """`prompts_per_rollout` groups of answers; those that are not kept are replaced by further rounds of sampling.

    Args:
        settings: of the run.
        sampler: who answers.
        rows: batches of `settings.prompts_per_rollout` prompts.
        tokenizer: of the sampler.
        rewards: judge the answers; `Rewards.of(None)` where None.
        number: of the rollout; with the run's seed it fixes every sample.
        rounds: at most so many.
        keep: whether a group is one to learn from; None keeps all.
        before: called with the answers of a round before they are judged.

    Returns:
        The answers, those of groups that are kept first, and the metrics `reward`, `informative_groups` and
        `sampling_rounds`, over all that were sampled; by verifier `reward/NAME` where they are told apart or there
        are several.
    """
    size = settings.samples_per_prompt
    kept: list[Answers] = []
    spare: list[Answers] = []
    sampled: list[Answers] = []
    sampling = sampling_settings(settings, tokenizer, sampler)
    for turn in range(rounds):
        repeated = [prompt for prompt in next(rows) for _ in range(size)]
        seeds = np.random.default_rng([settings.seed, number, turn]).integers(0, 2**31, len(repeated)).tolist()
        answers = sample_answers(sampler, tokenizer, repeated, seeds, sampling, rewards, before)
        sampled.append(answers)
        if keep is None:  # all of them, and in one piece
            kept.append(answers)
            break
        for group in (answers.take(slice(at, at + size)) for at in range(0, len(answers.texts), size)):
            (kept if keep(group) else spare).append(group)
        if len(kept) >= settings.prompts_per_rollout:
            break
    chosen = (kept + spare)[: settings.prompts_per_rollout]
    return _join(chosen), {"sampling_rounds": float(len(sampled))} | _reward_metrics(
        sampled, size, told_apart=isinstance(rewards, Rewards) and rewards.is_told_apart
    )


def _reward_metrics(sampled: Sequence[Answers], size: int, *, told_apart: bool) -> dict[str, float]:
    """Means over all answers of a rollout that were judged, whatever was learned from."""
    metrics = {}
    rewards = np.concatenate([answers.rewards for answers in sampled])
    judged = rewards[~np.isnan(rewards)]  # whole groups are
    if judged.size:
        metrics["reward"] = float(judged.mean())
        metrics["informative_groups"] = float(np.mean(np.ptp(judged.reshape(-1, size), axis=1) > 0))
    if judged.size < rewards.size:
        metrics["reward_count"] = float(judged.size)
    names = dict.fromkeys(name for answers in sampled for name in answers.parts)
    for name in names if told_apart or len(names) > 1 else ():
        said = np.concatenate([answers.parts[name] for answers in sampled if name in answers.parts])
        metrics[f"reward/{name}"] = float(np.nanmean(said))
    return metrics


def _join(groups: Sequence[Answers]) -> Answers:
    """Groups of one or several rounds as one; shorter ones are padded on the left, where padding is masked anyway."""
    if len(groups) == 1:
        return groups[0]
    width = max(group.tokens.shape[1] for group in groups)

    def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.pad(part, ((0, 0), (width - part.shape[1], 0))) for part in parts])

    names = dict.fromkeys(name for group in groups for name in group.parts)
    blank = np.full(groups[0].rewards.shape, np.nan, np.float32)
    return Answers(
        tokens=stack([group.tokens for group in groups]),
        valid=stack([group.valid for group in groups]),
        response=stack([group.response for group in groups]),
        log_probs=stack([group.log_probs for group in groups]),
        rewards=np.concatenate([group.rewards for group in groups]),
        texts=[text for group in groups for text in group.texts],
        prompts=[prompt for group in groups for prompt in group.prompts],
        parts={name: np.concatenate([group.parts.get(name, blank) for group in groups]) for name in names},
    )
