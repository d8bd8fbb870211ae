"""What the log of a run says about the run as a whole, where its numbers would mislead."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgeom.training.evaluation import is_evaluation
from jaxgeom.training.settings import OPDSettings, RLVRSettings, RunSettings

_EXPLODED = 10.0
_MUST_BE_FINITE = {
    "loss": "the loss is",
    "grad_norm": "the gradient is",
    "update_norm": "the update is",
    "param_norm": "the weights are",
}
_SHOWN = ("loss", "reward", "gap", "grad_norm", "response_length", "truncated")


def truncated_evaluation(share: float, settings: RunSettings, stops: Sequence[int]) -> str | None:
    """A sentence where no answer of an evaluation came to its end.

    Args:
        share: of the answers that the limit on their length ended.
        settings: of the run.
        stops: tokens that would have ended an answer.
    """
    if share < 1.0:
        return None
    return (
        f"every held-out answer was cut at {settings.max_new_tokens} tokens (--max-new-tokens), none ended with a stop"
        f" token ({', '.join(map(str, stops)) or 'there is none'}): the accuracy is that of unfinished answers"
    )


def float32_on_accelerator(platform: str | None, compute_dtype: str) -> str | None:
    """A sentence where a run is as exact as on a CPU, and pays for it.

    Args:
        platform: of the devices.
        compute_dtype: of the run.
    """
    if platform not in ("gpu", "tpu") or compute_dtype != "float32":
        return None
    return f"products are float32 ones on this {platform}; --compute-dtype bfloat16 takes a fraction of their time"


def cannot_go_on(row: Mapping[str, float], vocabulary: int) -> str | None:
    """What is wrong with a step from which nothing can be learned any more; None where nothing is.

    A loss of more than ten times what a guess among all tokens costs, and an update larger than the weights themselves,
    are as lost as NaN: both say so steps before that comes.

    Args:
        row: the numbers of the step.
        vocabulary: tokens that the model tells apart.
    """
    for name, said in _MUST_BE_FINITE.items():
        if not np.isfinite(row.get(name, 0.0)):
            return f"{said} {'NaN' if np.isnan(row[name]) else 'infinite'}"
    limit = _EXPLODED * math.log(vocabulary)
    if abs(row.get("loss", 0.0)) > limit:
        return f"the loss is {row['loss']:.3g}, beyond {limit:.3g}, ten times that of guessing"
    if row.get("update_norm", 0.0) > row.get("param_norm", math.inf) > 0.0:
        update, weights = row["update_norm"], row["param_norm"]
        digits = next((n for n in range(3, 17) if f"{update:.{n}g}" != f"{weights:.{n}g}"), 17)
        return f"the update's norm is {update:.{digits}g}, larger than the weights' {weights:.{digits}g}"
    return None


def last_numbers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The last numbers of a finished run in one sentence, from the rows of its `metrics.jsonl`; none without rows.

    >>> evaluated, geometry = {"step": 0, "accuracy": 0.25, "accuracy_count": 8.0}, {"step": 3, "geometry/nss": 0.1}
    >>> last_numbers([evaluated, {"step": 3, "loss": 1.5, "seconds": 2.0}, geometry])
    ['step 3: loss 1.5; held-out accuracy 0.25 over 8 prompts at step 0']
    """
    said = []
    steps = _steps(rows)
    if steps:
        shown = [f"{key} {steps[-1][key]:.4g}" for key in _SHOWN if key in steps[-1]]
        said.append(f"step {steps[-1]['step']}: {', '.join(shown) or 'nothing to learn from'}")
    evaluated = [row for row in rows if is_evaluation(row)]
    for key in evaluated[-1] if evaluated else ():
        if key.partition("/")[0] == "accuracy":
            said.append(_accuracy([row for row in evaluated if key in row], key.partition("/")[2]))
    return ["; ".join(said)] if said else []


def _accuracy(rows: Sequence[dict[str, Any]], name: str) -> str:
    """The last accuracy over a file of held-out prompts, and the first."""
    key, count = (f"{word}/{name}" if name else word for word in ("accuracy", "accuracy_count"))
    last, first = rows[-1], rows[0]
    before = "" if last is first else f" ({first[key]:.4g} at step {first['step']})"
    what = f"held-out accuracy{f' ({name})' if name else ''} {last[key]:.4g} over {last.get(count, 0):.0f} prompts"
    return f"{what} at step {last['step']}{before}"


def closing_remarks(rows: Sequence[dict[str, Any]], settings: RunSettings) -> list[str]:
    """Sentences about the steps of a finished run, from the rows of its `metrics.jsonl`.

    Args:
        rows: of all steps.
        settings: of the run.

    Returns:
        None, for a run of which there is nothing to say.
    """
    said = []
    sampled = [row["truncated"] for row in rows if "truncated" in row]
    if sampled and min(sampled) >= 1.0:
        said.append(
            f"in all {len(sampled)} rollouts every sampled answer was cut at {settings.max_new_tokens} tokens"
            " (--max-new-tokens): the model never came to the end of one"
        )
    skipped = sum(1 for row in rows if row.get("skipped"))
    if skipped and learned_nothing(rows, settings) is None:
        whole = " with an answer that was not cut (overlong=mask)" if _masks(settings) else ""
        said.append(
            f"{skipped} of {settings.steps} steps had nothing to learn from: no group of answers{whole} had differing"
            " rewards"
        )
    return said


def learned_nothing(rows: Sequence[dict[str, Any]], settings: RunSettings) -> str | None:
    """Why a finished run learned nothing and what to change.

    Nothing is learned where no step had a gradient or moved a weight, and where rewards alone teach and no answer ever
    had another than the rest of its group: a KL to the start and weight decay move the weights then, and teach nothing.

    Args:
        rows: of its `metrics.jsonl`.
        settings: of the run.

    Returns:
        What happened, in how many steps, and the way out; None for a run in which some step did learn.
    """
    steps = _steps(rows)
    if len(steps) < settings.steps or not (all(map(_is_idle, steps)) or _is_unrewarded(steps, settings)):
        return None
    happened, change = _what_happened(steps, settings)
    moved = any(row.get("update_norm") for row in steps)
    pulled = "the KL to the start and weight decay" if any(row.get("grad_norm") for row in steps) else "weight decay"
    left = f"{pulled} alone moved the weights" if moved else "the weights are those that the run began with"
    return f"in all {len(steps)} steps {happened}, so {left}. To change: {change}"


def _steps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of optimizer steps; a log has others too, of evaluations and of the geometry."""
    return [row for row in rows if row.get("skipped") or "loss" in row]


def _is_idle(row: dict[str, Any]) -> bool:
    return bool(row.get("skipped")) or row.get("grad_norm") == 0.0 or row.get("update_norm") == 0.0


def _is_unrewarded(steps: Sequence[dict[str, Any]], settings: RunSettings) -> bool:
    """Whether rewards are all that teaches, and every answer of every group had the same one."""
    if not isinstance(settings, RLVRSettings) or not settings.kl_coefficient:
        return False  # without a KL such steps have no gradient, which is seen by itself
    told = [row["informative_groups"] for row in steps if "informative_groups" in row]
    # All answers at the limit, or all short of the buffer, are penalized alike.
    alike = all(row.get("overlong_penalty", 0.0) in (0.0, -1.0) for row in steps)
    return bool(told) and not any(told) and alike


def _masks(settings: RunSettings) -> bool:
    return isinstance(settings, RLVRSettings) and settings.overlong == "mask"


def _what_happened(steps: Sequence[dict[str, Any]], settings: RunSettings) -> tuple[str, str]:
    """What kept every step from learning, and what to change."""
    sampled = [row["truncated"] for row in steps if "truncated" in row]
    idle = any(row.get("skipped") or row.get("grad_norm") == 0.0 for row in steps)
    if not idle and not _is_unrewarded(steps, settings):
        return "the update was exactly zero at a learning rate of 0", "the learning rate, or a shorter warm-up"
    if isinstance(settings, OPDSettings) and all(row.get("gap") == 0.0 for row in steps):
        return "teacher and student gave every answer the same probability", "another --teacher"
    if _masks(settings) and sampled and min(sampled) >= 1.0:
        return "every answer was cut, and overlong=mask leaves those out", "a larger --max-new-tokens"
    if isinstance(settings, RLVRSettings) and not any(row.get("informative_groups") for row in steps):
        rewards = [row["reward"] for row in steps if "reward" in row]  # of the first step of each rollout
        reward = sum(rewards) / max(1, len(rewards))
        happened = (
            f"the {settings.samples_per_prompt} answers to a prompt never had different rewards"
            f" (mean reward {reward:.2g})"
        )
        if reward == 0.0:
            return happened, (
                "no answer was ever right: easier prompts, a start that solves some of them (train sft first), a larger"
                " --max-new-tokens, or truths that the verifier can match (samples.jsonl shows answers beside them)"
            )
        if reward == 1.0:
            return happened, "every answer was right: harder prompts"
        return happened, "a larger --samples-per-prompt, a higher --temperature, or prompts that are solved sometimes"
    return "the gradient was exactly zero", "data whose targets the model does not predict with certainty already"
