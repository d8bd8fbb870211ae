"""The PyTorch half of a sampled recipe: its own sampling with a KV cache, advantages, clipped loss and loop.

Written from the formulas of the papers, and not from this package's objectives, so that it can speak against them. What
judges text is shared: the prepared prompts, the tokenizer and the verifier.

References: DeepSeekMath (GRPO, arXiv 2402.03300); DAPO (arXiv 2503.14476); On the Geometry of On-Policy Distillation
(arXiv 2606.07082).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgeom.data.pipelines import Prompt
from jaxgeom.optimizers.settings import AdamWSettings
from jaxgeom.progress import Task
from jaxgeom.validation.torch_recipe import TorchOptimizer
from jaxgeom.validation.torch_side import torch_forward

_ROWS_AT_ONCE = 256  # of an evaluation

Judge = Callable[[Sequence[Prompt], Sequence[Sequence[int]]], tuple[np.ndarray, np.ndarray]]
"""Prompts and the tokens of answers to rewards and to whether each is right (1, 0 or NaN), float `[batch]`."""


@dataclass(frozen=True)
class SampledRecipe:
    """What the loop is told, in plain numbers.

    Attributes:
        objective: `rlvr` or `opd`.
        samples: Answers to one prompt.
        new_tokens: Of an answer, at most.
        stops: Tokens that end one.
        vocabulary: Tokens that are real, from 0; None: all.
        clip: ε_low, ε_high.
        optimizer: Of the recipe.
    """

    objective: str
    samples: int
    new_tokens: int
    stops: tuple[int, ...]
    vocabulary: int | None
    clip: tuple[float, float]
    optimizer: AdamWSettings


@dataclass(frozen=True)
class Scored:
    """Answers under a model, `[batch, longest answer]` each.

    Attributes:
        log_probs: Torch float32, nats, of the answers' tokens; what is past an answer's end means nothing.
        mask: Torch bool, True on the answers' tokens.
    """

    log_probs: Any
    mask: Any


def sample_torch(
    model: Any, prompts: Sequence[Sequence[int]], recipe: SampledRecipe, generator: Any = None
) -> list[list[int]]:
    """An answer to each prompt, token by token with a KV cache; greedy without a generator, else at temperature 1.

    Args:
        model: of `load_torch`.
        prompts: their tokens.
        recipe: its longest answer, stop tokens and vocabulary.
        generator: `torch.Generator` of the draws.

    Returns:
        The answers' tokens, the stop token included.
    """
    import torch

    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    stops = torch.tensor(recipe.stops)
    answers: list[list[int]] = [[] for _ in prompts]
    going = torch.ones(len(prompts), dtype=torch.bool)
    # What `transformers` calls its KV cache, by version.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = None
    with torch.no_grad():
        for _ in range(recipe.new_tokens):
            columns = tokens.shape[1]
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -columns:]
            out = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, **{name: cache})
            cache, logits = getattr(out, name), out.logits[:, -1].float()[:, : recipe.vocabulary]
            if generator is None:
                drawn = logits.argmax(-1)
            else:
                drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]
            for row in torch.nonzero(going)[:, 0].tolist():
                answers[row].append(int(drawn[row]))
            going = going & ~torch.isin(drawn, stops)
            if not going.any():
                break
            tokens, mask = drawn[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return answers


def score_torch(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], vocabulary: int | None = None
) -> Scored:
    """Log-probabilities of answers, one forward pass over prompts and answers, padded on the right; differentiable."""
    import torch

    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width, longest = max(map(len, whole)), max(map(len, answers))
    tokens, valid = np.zeros((len(whole), width), np.int64), np.zeros((len(whole), width), bool)
    places, mask = np.zeros((len(whole), longest), np.int64), np.zeros((len(whole), longest), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(whole[row])], valid[row, : len(whole[row])] = whole[row], True
        places[row, : len(answer)] = len(prompt) + np.arange(len(answer))
        mask[row, : len(answer)] = True
    # The logits at a place say what comes after it.
    logits = torch_forward(model, tokens, valid)[:, :-1, :vocabulary]
    picked = torch.log_softmax(logits, -1).gather(-1, torch.tensor(tokens[:, 1:])[..., None])[..., 0]
    return Scored(picked.gather(1, torch.tensor(places - 1).clamp(min=0)), torch.tensor(mask))


def grpo_torch(rewards: np.ndarray, samples: int) -> Any:
    """`(r − mean) / (std + 1e-6)` within each prompt's group, `[batch]` float32."""
    groups = np.asarray(rewards, np.float64).reshape(-1, samples)
    centred = groups - groups.mean(axis=1, keepdims=True)
    return _tensor((centred / (groups.std(axis=1, keepdims=True) + 1e-6)).reshape(-1))


def advantages_torch(recipe: SampledRecipe, student: Scored, teacher: Scored | None, rewards: np.ndarray | None) -> Any:
    """What every token is credited with: its answer's reward within its group, or `log π_T − log π_θ`."""
    if recipe.objective == "opd":
        assert teacher is not None
        return (teacher.log_probs - student.log_probs).detach()
    assert rewards is not None
    return grpo_torch(rewards, recipe.samples)[:, None].expand(student.log_probs.shape)


def policy_loss_torch(log_probs: Any, old: Any, advantages: Any, mask: Any, clip: tuple[float, float]) -> Any:
    """`−min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A)`, averaged over all tokens of the batch."""
    import torch

    ratio = torch.exp(log_probs - old.detach())
    clipped = ratio.clamp(1.0 - clip[0], 1.0 + clip[1])
    return -torch.minimum(ratio * advantages, clipped * advantages)[mask].mean()


def train_sampled(
    model: Any,
    teacher: Any,
    steps: Sequence[Sequence[Prompt]],
    recipe: SampledRecipe,
    judge: Judge | None,
    *,
    seed: int,
    evaluated: Sequence[Prompt] = (),
    evaluate_every: int = 0,
    task: Task | None = None,
) -> tuple[list[dict[str, float]], dict[int, float]]:
    """Trains a model in place on its own answers.

    Args:
        model: of `load_torch`, float32.
        teacher: the same of `opd`; None for `rlvr`.
        steps: the prompts of each step.
        recipe: the rest.
        judge: of answers; None where none can be judged.
        seed: of the draws.
        evaluated: prompts of the greedy accuracy; none, no accuracy.
        evaluate_every: steps between accuracies; before the first step and after the last there is always one.
        task: advanced by every step.

    Returns:
        A row a step, `loss`, `grad_norm` (before clipping), `learning_rate`, `response_length`, `prompt` (the number of
        the first), where there is a judge `reward`, with a teacher `gap` (mean of `log π_θ − log π_T`); and the
        accuracy by steps taken.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    stepper, rows = TorchOptimizer(model, recipe.optimizer, len(steps)), []
    accuracy = {0: accuracy_torch(model, evaluated, recipe, judge)} if evaluated and judge else {}
    for number, asked in enumerate(steps, 1):
        prompts = [prompt for prompt in asked for _ in range(recipe.samples)]
        texts = [prompt.tokens for prompt in prompts]
        answers = sample_torch(model, texts, recipe, generator)
        rewards = None if judge is None else judge(prompts, answers)[0]
        student = score_torch(model, texts, answers, recipe.vocabulary)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = score_torch(teacher, texts, answers, recipe.vocabulary)
        advantages = advantages_torch(recipe, student, taught, rewards)
        # The policy that answered is the one that learns: the old log-probabilities are its own, held fast.
        old = student.log_probs.detach()
        row = stepper.step(policy_loss_torch(student.log_probs, old, advantages, student.mask, recipe.clip))
        row |= {"response_length": float(np.mean([len(answer) for answer in answers])), "prompt": float(asked[0].row)}
        if rewards is not None and not np.isnan(rewards).all():
            row["reward"] = float(np.nanmean(rewards))
        if taught is not None:
            row["gap"] = float((old - taught.log_probs)[student.mask].mean())
        rows.append(row)
        if accuracy and (number == len(steps) or number % evaluate_every == 0):
            accuracy[number] = accuracy_torch(model, evaluated, recipe, judge)
        if task is not None:
            task.advance(1, " ".join(f"{key} {row[key]:.3g}" for key in ("loss", "reward", "gap") if key in row))
    return rows, accuracy


def accuracy_torch(model: Any, prompts: Sequence[Prompt], recipe: SampledRecipe, judge: Judge | None) -> float:
    """The share of prompts whose greedy answer is right, of those that have a truth."""
    assert judge is not None
    found = []
    for first in range(0, len(prompts), _ROWS_AT_ONCE):
        part = prompts[first : first + _ROWS_AT_ONCE]
        found.append(judge(part, sample_torch(model, [prompt.tokens for prompt in part], recipe))[1])
    return float(np.nanmean(np.concatenate(found), dtype=np.float64))


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.tensor(values.astype(np.float32))
