"""What RLVR and OPD share: answers scored by the policy that is trained, and the clipped policy gradient."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxgeom.objectives import loss_denominator, policy_gradient_loss
from jaxgeom.training.objectives.interface import Objective, Prepared, Tools
from jaxgeom.training.programs import score
from jaxgeom.training.rollouts import Actor, Answers, sample_groups, sampling_settings, truncated
from jaxgeom.training.scoring import sequence_log_probs
from jaxgeom.training.settings import OnPolicySettings
from jaxgeom.training.state import Batch, Frozen, on_mesh


class Rollout(NamedTuple):
    """Verified answers.

    Attributes:
        answers: On the host.
        metrics: Of how they were sampled.
        truncated: bool `[batch]`, which of them the limit on their length ended.
    """

    answers: Answers
    metrics: dict[str, Any]
    truncated: np.ndarray


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
    def rollouts_ahead(self) -> int:
        return self.settings.rollout_lag

    @property
    def is_by_student(self) -> bool:
        """Whether the policy that is trained answers."""
        return True

    def sampler(self, params: PyTree, frozen: Frozen) -> Actor:
        return Actor(self.student, params)

    def scorers(self, params: PyTree, frozen: Frozen) -> dict[str, Actor]:
        return {"score": Actor(self.student, params)} | self.referred(frozen)

    def referred(self, frozen: Frozen) -> dict[str, Actor]:
        """The run's start, by the name of its program, where a KL to it is taken."""
        reads = self.settings.kl_coefficient is not None
        return {"score.reference": Actor(self.student, frozen.reference)} if reads else {}

    def shape_of_batch(self, rows: Callable[..., Any]) -> Batch:
        plain, numbers = super().shape_of_batch(rows), rows(jnp.float32)
        reference = None if self.settings.kl_coefficient is None else numbers
        return dataclasses.replace(plain, old_log_probs=numbers, advantages=numbers, reference_log_probs=reference)

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
            self.settings, sampler, tools.rows, tools.tokenizer, tools.rewards, number, rounds=rounds, keep=keep
        )
        stops = sampling_settings(self.settings, tools.tokenizer, sampler).stop_tokens
        return Rollout(answers, metrics, truncated(answers, stops))

    def prepare(self, params: PyTree, frozen: Frozen, rollout: Rollout, number: int) -> Prepared:
        updates = self.settings.updates_per_rollout
        batches, found, tokens = [], [], []
        for place in range(updates):
            part = _part(rollout, self.settings.samples_per_prompt, place, updates)
            key = jax.random.fold_in(jax.random.key(self.settings.seed), number)
            batch, metrics = self.learned_from(params, frozen, part, jax.random.fold_in(key, place) if place else key)
            batches += [] if batch is None else [batch]
            found.append(metrics)
            tokens.append(float(part.answers.response.sum()))
        length = float(rollout.answers.response.sum(axis=1).mean())
        of_answers = {"response_length": length, "truncated": float(rollout.truncated.mean())}
        return Prepared(batches, rollout.metrics | of_answers | _joined(found, tokens), rollout.answers)

    @abc.abstractmethod
    def learned_from(
        self, params: PyTree, frozen: Frozen, rollout: Rollout, key: Array
    ) -> tuple[Batch | None, dict[str, Any]]:
        """What one step learns from its share of a rollout.

        Args:
            params: the student's, as they are now.
            frozen: parameters of teachers and reference.
            rollout: whole groups, `settings.batch_size` answers.
            key: of this share.

        Returns:
            The batch, None where there is nothing to learn from; metrics, means over the answers' tokens, scalars on
            the host or the device.
        """

    def placed(self, answers: Answers) -> Placed:
        """Answers on the device."""
        return Placed(*on_mesh((answers.tokens, answers.valid, answers.response, answers.log_probs), self.mesh))

    def reference_scores(self, frozen: Frozen, placed: Placed) -> Array | None:
        """Log-probabilities under the run's start; None where no KL to it is taken."""
        for actor in self.referred(frozen).values():
            return score(actor.model, actor.params, placed.tokens, placed.valid, temperature=self.settings.temperature)
        return None

    def scored(self, params: PyTree, placed: Placed) -> tuple[Array, dict[str, Any]]:
        """Log-probabilities under the policy as it is now, and the metric of how the sampler's differ by rounding."""
        old = score(self.student, params, placed.tokens, placed.valid, temperature=self.settings.temperature)
        if not self.is_by_student:
            return old, {}
        return old, {"sampler_mismatch": _largest_gap(old, placed.sampled_log_probs, placed.response)}

    def loss(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, dict[str, Array]]:
        return self.policy_loss(self.log_probs(params, batch), batch, denominator)

    def log_probs(self, params: PyTree, batch: Batch) -> Array:
        """Of a batch's tokens under the policy, differentiable."""
        return sequence_log_probs(
            self.student, params, batch.tokens, batch.valid, temperature=self.settings.temperature, mesh=self.mesh
        )

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
            reference_log_probs=batch.reference_log_probs,
            kl_coefficient=self.settings.kl_coefficient or 0.0,
        )

    def denominator(self, batch: Batch) -> Array:
        longest = float(self.settings.max_new_tokens)
        return loss_denominator(batch.loss_mask, aggregate=self.settings.aggregate, constant=longest)


def _part(rollout: Rollout, size: int, place: int, count: int) -> Rollout:
    """Every `count`-th group of `size` answers: those to learn from, which stand first, are shared out evenly."""
    if count == 1:
        return rollout
    rows = np.flatnonzero(np.arange(len(rollout.truncated)) // size % count == place)
    return Rollout(rollout.answers.take(rows), {}, rollout.truncated[rows])


def _joined(found: Sequence[dict[str, Any]], tokens: Sequence[float]) -> dict[str, Any]:
    """Metrics of the parts of a rollout, of all its tokens: means weighted, `sampler_mismatch` the largest."""
    if len(found) == 1:
        return found[0]
    shares = np.asarray(tokens, np.float32) / np.float32(sum(tokens))
    joined: dict[str, Any] = {
        name: sum(share * part[name] for share, part in zip(shares, found, strict=True)) for name in found[0]
    }
    if "sampler_mismatch" in joined:
        joined["sampler_mismatch"] = max(float(part["sampler_mismatch"]) for part in found)
    return joined


@jax.jit
def _largest_gap(one: Array, other: Array, mask: Array) -> Array:
    return jnp.max(jnp.where(mask, jnp.abs(one - other), 0.0))
