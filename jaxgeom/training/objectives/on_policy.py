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


class Placed(NamedTuple):
    """Answers on the device, `[batch, time]` each."""

    tokens: Array
    valid: Array
    response: Array
    sampled_log_probs: Array


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

    def scorers(self, params: PyTree, frozen: Frozen) -> dict[str, Actor]:
        return {"score": Actor(self.student, params)}

    def shape_of_batch(self, rows: Callable[..., Any]) -> Batch:
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

    def placed(self, rollout: Rollout) -> tuple[Placed, dict[str, Any]]:
        """Answers on the device, and the metrics of their length and of how they were sampled."""
        answers = rollout.answers
        arrays = on_mesh((answers.tokens, answers.valid, answers.response, answers.log_probs), self.mesh)
        length = float(answers.response.sum(axis=1).mean())
        return Placed(*arrays), rollout.metrics | {"response_length": length, "truncated": rollout.truncated}

    def scored(self, params: PyTree, placed: Placed) -> tuple[Array, dict[str, Any]]:
        """Log-probabilities under the policy as it is now, and the metric of how the sampler's differ by rounding."""
        old = score(self.student, params, placed.tokens, placed.valid, temperature=self.settings.temperature)
        if not self.is_by_student:
            return old, {}
        return old, {"sampler_mismatch": _largest_gap(old, placed.sampled_log_probs, placed.response)}

    def loss(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, dict[str, Array]]:
        log_probs = sequence_log_probs(
            self.student, params, batch.tokens, batch.valid, temperature=self.settings.temperature, mesh=self.mesh
        )
        return self.policy_loss(log_probs, batch, denominator)

    def policy_loss(self, log_probs: Array, batch: Batch, denominator: Array) -> tuple[Array, dict[str, Array]]:
        """The clipped policy gradient of a batch whose tokens have these log-probabilities."""
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
