"""What RLVR and OPD share: answers scored by the policy that is trained, and the clipped policy gradient."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxgeom.objectives import loss_denominator, policy_gradient_loss
from jaxgeom.training.objectives.interface import Objective, Tools
from jaxgeom.training.programs import score
from jaxgeom.training.rollouts import Actor, Answers, sample_groups, sampling_settings, truncated_share
from jaxgeom.training.scoring import sequence_log_probs
from jaxgeom.training.settings import OnPolicySettings
from jaxgeom.training.state import Batch, Frozen, on_mesh


class Rollout(NamedTuple):
    """Verified answers.

    Attributes:
        answers: On the host.
        metrics: Of how they were sampled.
        truncated: The share that the limit on their length ended.
    """

    answers: Answers
    metrics: dict[str, Any]
    truncated: float


class Scored(NamedTuple):
    """Answers on the device, `[batch, time]` each, and their log-probabilities under the policy that is trained."""

    tokens: Array
    valid: Array
    response: Array
    old_log_probs: Array


@dataclass(frozen=True)
class OnPolicy(Objective):
    """See `Objective`."""

    settings: OnPolicySettings

    @property
    def clip_range(self) -> tuple[float, float]:
        """ε_low and ε_high."""
        return self.settings.clip_low, self.settings.clip_high

    @property
    def is_by_student(self) -> bool:
        """Whether the policy that is trained answers."""
        return True

    def sampler(self, params: PyTree, frozen: Frozen) -> Actor:
        return Actor(self.student, params)

    def shape_of_batch(self, rows: Callable[[Any], Any]) -> Batch:
        plain, numbers = super().shape_of_batch(rows), rows(jnp.float32)
        return dataclasses.replace(plain, old_log_probs=numbers, advantages=numbers)

    def answered(
        self, params: PyTree, frozen: Frozen, tools: Tools, number: int, *, rounds: int = 1,
        keep: Callable[[Answers], bool] | None = None,
    ) -> Rollout:  # fmt: skip
        """The next groups of answers, see `sample_groups`.

        Args:
            params: the student's.
            frozen: parameters of teachers and reference.
            tools: of the host.
            number: of the step.
            rounds: of sampling, at most.
            keep: whether a group is one to learn from.
        """
        sampler = self.sampler(params, frozen)
        answers, metrics = sample_groups(
            self.settings, sampler, tools.rows, tools.tokenizer, tools.verifier, number, rounds=rounds, keep=keep
        )
        stops = sampling_settings(self.settings, tools.tokenizer, sampler).stop_tokens
        return Rollout(answers, metrics, truncated_share([answers], stops))

    def scored(self, params: PyTree, rollout: Rollout) -> tuple[Scored, dict[str, Any]]:
        """Answers under the policy as it is now, and the metrics of length, truncation and the sampler's rounding."""
        answers = rollout.answers
        tokens, valid, response, sampled = on_mesh(
            (answers.tokens, answers.valid, answers.response, answers.log_probs), self.mesh
        )
        old = score(self.student, params, tokens, valid, temperature=self.settings.temperature)
        metrics = rollout.metrics | {
            "response_length": float(answers.response.sum(axis=1).mean()),
            "truncated": rollout.truncated,
        }
        if self.is_by_student:
            metrics["sampler_mismatch"] = _largest_gap(old, sampled, response)
        return Scored(tokens, valid, response, old), metrics

    def loss(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, dict[str, Array]]:
        log_probs = sequence_log_probs(
            self.student, params, batch.tokens, batch.valid, temperature=self.settings.temperature, mesh=self.mesh
        )
        clip_low, clip_high = self.clip_range
        return policy_gradient_loss(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.loss_mask,
            clip_low=clip_low,
            clip_high=clip_high,
            aggregate=self.settings.aggregate,
            denominator=denominator,
        )

    def denominator(self, batch: Batch) -> Array:
        longest = float(self.settings.max_new_tokens)
        return loss_denominator(batch.loss_mask, aggregate=self.settings.aggregate, constant=longest)


@jax.jit
def _largest_gap(one: Array, other: Array, mask: Array) -> Array:
    return jnp.max(jnp.where(mask, jnp.abs(one - other), 0.0))
