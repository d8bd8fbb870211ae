"""On-policy distillation: the student answers, a teacher says of every token of the answers what it thinks of it.

By the sampled-token reverse KL the advantage of a token is the teacher's log-probability minus the student's: the
teacher is read before the step alone, and what is kept of it are `[batch, time]` numbers. Any other divergence is a
loss that is differentiated in the step, which then reads the teacher too (see `scoring.sequence_divergences`).
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxgeom.data.buckets import bucket_rows
from jaxgeom.objectives import (
    constant_advantages,
    distillation_loss,
    grpo_advantages,
    k3_kl,
    matched_mix_weights,
    mix_advantages,
    opd_advantages,
    sparsify_tokens,
)
from jaxgeom.processes import whole
from jaxgeom.sharding import batch_divisor, mesh_of
from jaxgeom.training.distillation_checks import check_models
from jaxgeom.training.objectives.interface import Told, Tools
from jaxgeom.training.objectives.on_policy import OnPolicy, Placed, Rollout
from jaxgeom.training.rollouts import Actor, Answers
from jaxgeom.training.scoring import sequence_divergences
from jaxgeom.training.settings import OPDSettings
from jaxgeom.training.state import Batch, Frozen, on_mesh


@dataclass(frozen=True)
class OPD(OnPolicy):
    """See `Objective`.

    Raises:
        UserError: a top-k support of more tokens than the vocabulary has, or answers of several teachers.

    Attributes:
        has_twin: Whether some teacher has the parameters that the student begins with. Their gap is then exactly 0, as
            long as one program scores both.
    """

    settings: OPDSettings
    has_twin: bool = False

    def __post_init__(self) -> None:
        rows = self.student.vocabulary or self.student.config.vocab_size
        check_models(self.settings, rows, len(self.teachers))

    @property
    def clip_range(self) -> tuple[float, float]:
        """ε_low and ε_high; (1, ∞) for answers of the teacher, whose ratio is not clipped."""
        return (1.0, float("inf")) if not self.is_by_student else super().clip_range

    @property
    def is_by_student(self) -> bool:
        return self.settings.rollouts == "student"

    @property
    def _has_several(self) -> bool:
        return len(self.teachers) > 1

    @property
    def _is_mixed(self) -> bool:
        return self.settings.alpha < 1.0

    @property
    def _ranks_gaps(self) -> bool:
        return self.settings.keep_tokens < 1.0 and self.settings.keep_by == "gap"

    @property
    def _reads_student(self) -> bool:
        """Whether the student's log-probabilities are read beside a loss that is differentiated."""
        return not self.settings.is_differentiated or self._is_mixed or self._ranks_gaps

    @property
    def _credits_in_step(self) -> bool:
        """Whether the step credits the tokens, by its own log-probabilities and the teacher's."""
        return self.is_scored_in_step and not self.settings.is_differentiated

    @property
    def _takes_mean(self) -> bool:
        """Whether every token is credited with the mean |gap| of its rollout."""
        return self.settings.advantage == "constant" and self.settings.advantage_constant is None

    @property
    def is_scored_in_step(self) -> bool:
        is_exact = self.has_twin and not self.settings.is_differentiated
        # Of the whole rollout, where a step may see a part of it at a time.
        apart = self._takes_mean or self._ranks_gaps or self.is_matched or is_exact
        return super().is_scored_in_step and not apart

    def sampler(self, params: PyTree, frozen: Frozen) -> Actor:
        return Actor(self.student, params) if self.is_by_student else Actor(self.teachers[0], frozen.teachers[0])

    def scorers(self, params: PyTree, frozen: Frozen) -> dict[str, Actor]:
        settings, found = self.settings, {}
        if self._reads_student and not self.is_scored_in_step:
            found["score"] = Actor(self.student, params)
        if settings.support == "sampled" or self._ranks_gaps:
            actors = map(Actor, self.teachers, frozen.teachers)
            found |= {f"score.teacher{place}": actor for place, actor in enumerate(actors)}
        return found | self.referred(frozen)

    def step_inputs(self, frozen: Frozen) -> Frozen:
        return Frozen() if self.settings.support == "sampled" else Frozen(teachers=frozen.teachers)

    def fields_read(self) -> set[str]:
        settings, found = self.settings, super().fields_read()
        if settings.is_differentiated and not self._is_mixed:
            found -= {"old_log_probs", "advantages"}
        if self._credits_in_step:
            found -= {"advantages"}
        weighs = settings.is_differentiated or self._credits_in_step
        also = {
            "teacher_log_probs": weighs and settings.support == "sampled",
            "weights": weighs and settings.keep_tokens < 1.0,
            "teacher": self._has_several and settings.support != "sampled",
            "reward_advantages": not settings.is_differentiated
            and (self.is_matched or (self._credits_in_step and self._is_mixed)),
        }
        return found | {name for name, is_read in also.items() if is_read}

    def draw(self, params: PyTree, frozen: Frozen, tools: Tools, number: int) -> Rollout:
        return self.answered(params, frozen, tools, number)

    def learned_from(
        self, params: PyTree, frozen: Frozen, rollout: Rollout, key: Array
    ) -> tuple[Batch | None, dict[str, Any]]:
        settings, answers = self.settings, rollout.answers
        placed = self.placed(rollout)
        old = teacher = None
        metrics: dict[str, Any] = {}
        if self._reads_student:
            old, metrics = self.old_scores(params, placed)
        reference = self.reference_scores(frozen, placed)  # asked before the host may wait for the teachers
        which = _teachers_of(answers) if self._has_several else None
        if "score.teacher0" in self.scorers(params, frozen):
            teacher = self._taught(frozen, placed, answers, which)
        weights = _weights(settings, old, teacher, placed.response, key) if settings.keep_tokens < 1.0 else None
        reinforced = _of_answers(settings, answers.rewards, placed.response, weights) if self._is_mixed else None
        advantages = reinforced
        if not settings.is_differentiated and not self._credits_in_step:
            mixed = None if self._takes_mean else reinforced
            advantages = _credit(settings, old, teacher, placed.response, weights, mixed)
            metrics |= _gaps(old, teacher, placed.response)
        batch = Batch(
            tokens=placed.tokens,
            valid=placed.valid,
            loss_mask=placed.response,
            old_log_probs=old,
            advantages=advantages,
            teacher_log_probs=teacher,
            weights=weights,
            teacher=None if which is None or settings.support == "sampled" else on_mesh(which, self.mesh),
            reference_log_probs=reference,
            reward_advantages=reinforced,
            sampled_log_probs=placed.sampled_log_probs,
            response=placed.response,
        )
        return batch if self._takes_mean else self.read_by_step(batch), metrics

    def of_rollout(self, batch: Batch, metrics: dict[str, Any]) -> Batch:
        if not self._takes_mean:
            return batch
        size = metrics["gap_magnitude"]
        advantages = _times(self.settings, batch.advantages, size, batch.reward_advantages)
        return self.read_by_step(dataclasses.replace(batch, advantages=advantages))

    def _taught(self, frozen: Frozen, placed: Placed, answers: Answers, which: np.ndarray | None) -> Array:
        """Log-probabilities of the answers' tokens, each row's under its own teacher."""
        if which is None:
            return self.score_of("score.teacher0", Actor(self.teachers[0], frozen.teachers[0]), placed)
        asked = []
        for place, actor in enumerate(map(Actor, self.teachers, frozen.teachers)):
            mine = np.flatnonzero(which == place)
            if mine.size:
                # Few shapes, few compilations: some rows are scored twice.
                rows = np.resize(mine, bucket_rows(mine.size, batch_divisor(mesh_of(actor.params))))
                asked.append((mine, self.score_where_it_lies(actor, answers.tokens[rows], answers.valid[rows])))
        found = np.zeros(answers.tokens.shape, np.float32)
        for mine, scores in asked:
            found[mine] = whole(scores)[: mine.size]
        return on_mesh(found, self.mesh)

    @property
    def is_in_nats(self) -> bool:
        settings = self.settings
        # A temperature below 1 sharpens both distributions; weights of few tokens and a KL have a scale of theirs.
        plain = settings.temperature >= 1.0 and settings.keep_tokens == 1.0 and not settings.kl_coefficient
        return settings.is_differentiated and not self._is_mixed and plain

    @property
    def is_matched(self) -> bool:
        return self._is_mixed and self.settings.mix == "matched"

    def advantages(self, batch: Batch, log_probs: Array) -> Array:
        if batch.advantages is not None:
            return batch.advantages
        given = batch.teacher_log_probs, batch.response, batch.weights, batch.reward_advantages
        return _credit(self.settings, log_probs, *given)

    def of_whole_batch(self, batch: Batch, log_probs: Array) -> dict[str, Array]:
        found = super().of_whole_batch(batch, log_probs)
        return found | (_gaps(log_probs, batch.teacher_log_probs, batch.response) if self._credits_in_step else {})

    def loss(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, Told]:
        if not self.settings.is_differentiated:
            return super().loss(params, batch, frozen, denominator)
        loss, metrics, log_probs = self._distilled(params, batch, frozen, denominator)
        if self._is_mixed:
            of_rewards = dataclasses.replace(batch, reference_log_probs=None)
            reinforced, more = self.policy_loss(log_probs, of_rewards, denominator)
            loss, metrics = self.settings.alpha * loss + (1.0 - self.settings.alpha) * reinforced, metrics | more
        if batch.reference_log_probs is not None:
            distance, mean = distillation_loss(
                k3_kl(log_probs, batch.reference_log_probs),
                jnp.zeros_like(log_probs),
                batch.loss_mask,
                aggregate=self.settings.aggregate,
                denominator=denominator,
            )
            loss = loss + (self.settings.kl_coefficient or 0.0) * distance
            metrics["reference_kl"] = mean["divergence"]
        return loss, self.told(batch, metrics, log_probs)

    def losses(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, Told]:
        if self.settings.is_differentiated:
            taught, metrics, log_probs = self._distilled(params, batch, frozen, denominator)
            reinforced, more = self.policy_loss(log_probs, batch, denominator)
        else:
            log_probs, entropy = self.log_probs(params, batch, return_entropy=True)
            taught, more = self.policy_loss(log_probs, batch, denominator, entropy)
            of_rewards = dataclasses.replace(batch, advantages=batch.reward_advantages, reference_log_probs=None)
            reinforced, metrics = self.policy_loss(log_probs, of_rewards, denominator)
        return jnp.stack([taught, reinforced]), self.told(batch, metrics | more, log_probs)

    def matched(self, grads: tuple[PyTree, ...]) -> tuple[Array, dict[str, Array]]:
        taught, reinforced = grads
        norms = [optax.tree.norm(grad) for grad in grads]
        inner = jnp.asarray(optax.tree.vdot(taught, reinforced))
        weights = jnp.stack(matched_mix_weights(norms[0], norms[1], self.settings.alpha, inner=inner))
        names = "distillation", "reward"
        of_each = {f"grad_norm/{name}": norm for name, norm in zip(names, norms, strict=True)}
        return weights, of_each | {f"mix/{name}": weight for name, weight in zip(names, weights, strict=True)}

    def _distilled(
        self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array
    ) -> tuple[Array, dict[str, Array], Array]:
        """The divergence as a loss, its metrics, and the log-probabilities of the answers' tokens."""
        settings = self.settings
        of_step = {"temperature": settings.temperature, "mesh": self.mesh}
        if settings.support == "sampled":
            # log π_T(y) − log π_θ(y) on the teacher's own answers: the forward KL, sampled.
            log_probs, entropy = self.log_probs(params, batch, return_entropy=True)
            teacher = batch.teacher_log_probs
            values = teacher - log_probs
        else:
            found = sequence_divergences(
                self.student,
                params,
                self.teachers,
                frozen.teachers,
                batch.tokens,
                batch.valid,
                batch.teacher,
                divergence=settings.divergence,
                support=settings.support,
                k=settings.top_k,
                tail_bucket=settings.tail_bucket,
                beta=0.5 if settings.jsd_beta is None else settings.jsd_beta,
                **of_step,
            )
            values, log_probs, teacher, entropy = found
        loss, metrics = distillation_loss(
            values,
            log_probs - teacher,
            batch.loss_mask,
            weights=batch.weights,
            aggregate=settings.aggregate,
            denominator=denominator,
            entropy=entropy,
        )
        return loss, metrics, log_probs


def _teachers_of(answers: Answers) -> np.ndarray:
    """The place of each row's teacher, `[batch]`."""
    return np.array([prompt.teacher for prompt in answers.prompts], np.int32)


@partial(jax.jit, static_argnums=0)
def _credit(
    settings: OPDSettings,
    student: Any,
    teacher: Any,
    response: Array,
    weights: Array | None,
    reinforced: Array | None,
) -> Array:
    """Distillation's advantages, mixed with those of rewards where they are given and not mixed by their gradients; for
    a constant that the whole rollout decides those of 1.
    """
    if settings.advantage == "constant":
        constant = settings.advantage_constant
        advantages = constant_advantages(response, 1.0 if constant is None else constant)
    else:
        advantages = opd_advantages(student, teacher, response)
    if weights is not None:
        advantages = advantages * weights
    return _mixed(settings, advantages, reinforced)


@partial(jax.jit, static_argnums=0)
def _times(settings: OPDSettings, advantages: Array, size: Any, reinforced: Array | None) -> Array:
    """Advantages of 1 as those of a constant, mixed as `_credit` mixes them."""
    return _mixed(settings, advantages * size, reinforced)


def _mixed(settings: OPDSettings, advantages: Array, reinforced: Array | None) -> Array:
    if reinforced is None or settings.mix == "matched":
        return advantages
    return mix_advantages(advantages, reinforced, settings.alpha)


@jax.jit
def _gaps(student: Any, teacher: Any, response: Array) -> dict[str, Array]:
    """Means over the answers' tokens: the gap `log π_θ − log π_T`, and its magnitude."""
    gaps = -opd_advantages(student, teacher, response)
    count = jnp.maximum(jnp.sum(response), 1).astype(jnp.float32)
    return {"gap": jnp.sum(gaps) / count, "gap_magnitude": jnp.sum(jnp.abs(gaps)) / count}


@partial(jax.jit, static_argnums=0)
def _weights(settings: OPDSettings, student: Any, teacher: Any, response: Array, key: Any) -> Array:
    """Weights of the tokens that keep their signal; by rank of what is not scored where that is not asked for."""
    gap = student - teacher if settings.keep_by == "gap" else jnp.zeros(response.shape)
    method = "largest" if settings.keep_by == "gap" else settings.keep_by
    return sparsify_tokens(gap, response, fraction=settings.keep_tokens, method=method, key=key)


@partial(jax.jit, static_argnums=0)
def _of_answers(settings: OPDSettings, rewards: Array, response: Array, weights: Array | None) -> Array:
    """GRPO's advantages, shared by an answer's tokens, those that keep their signal."""
    groups = rewards.reshape(-1, settings.samples_per_prompt)
    advantages = grpo_advantages(groups, normalize=settings.normalize_by_std).reshape(-1, 1)
    shared = jnp.broadcast_to(advantages, response.shape)
    return shared if weights is None else shared * weights
