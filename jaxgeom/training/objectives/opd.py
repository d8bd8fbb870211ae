"""On-policy distillation: the student answers, a teacher scores every token of the answers.

By the sampled-token reverse KL, the advantage of a token is the teacher's log-probability minus the student's. The
teacher is then read before the step alone: what is kept of it are `[batch, time]` numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxgeom.objectives import grpo_advantages, mix_advantages, opd_advantages, sparsify_tokens
from jaxgeom.training.objectives.interface import Prepared, Tools
from jaxgeom.training.objectives.on_policy import OnPolicy, Rollout
from jaxgeom.training.programs import score
from jaxgeom.training.rollouts import Actor
from jaxgeom.training.settings import OPDSettings
from jaxgeom.training.state import Batch, Frozen


@dataclass(frozen=True)
class OPD(OnPolicy):
    """See `Objective`."""

    settings: OPDSettings

    @property
    def clip_range(self) -> tuple[float, float]:
        """ε_low and ε_high; (1, ∞) for answers of the teacher, whose ratio is not clipped."""
        return (1.0, float("inf")) if not self.is_by_student else super().clip_range

    @property
    def is_by_student(self) -> bool:
        return self.settings.rollouts == "student"

    def sampler(self, params: PyTree, frozen: Frozen) -> Actor:
        return Actor(self.student, params) if self.is_by_student else Actor(self.teachers[0], frozen.teachers[0])

    def scorers(self, frozen: Frozen) -> dict[str, Actor]:
        actors = map(Actor, self.teachers, frozen.teachers)
        return {f"score.teacher{place}": actor for place, actor in enumerate(actors)}

    def draw(self, params: PyTree, frozen: Frozen, tools: Tools, number: int) -> Rollout:
        return self.answered(params, frozen, tools, number)

    def prepare(self, params: PyTree, frozen: Frozen, rollout: Rollout, number: int) -> Prepared:
        settings = self.settings
        scored, metrics = self.scored(params, rollout)
        teacher = score(
            self.teachers[0], frozen.teachers[0], scored.tokens, scored.valid, temperature=settings.temperature
        )
        key = jax.random.fold_in(jax.random.key(settings.seed), number)
        advantages, gap = _credit(
            settings, scored.old_log_probs, teacher, scored.response, rollout.answers.rewards, key
        )
        batch = Batch(
            tokens=scored.tokens,
            valid=scored.valid,
            loss_mask=scored.response,
            old_log_probs=scored.old_log_probs,
            advantages=advantages,
        )
        return Prepared([batch], metrics | {"gap": gap}, rollout.answers)


@partial(jax.jit, static_argnums=0)
def _credit(
    settings: OPDSettings, student: Array, teacher: Array, response: Array, rewards: Array, key: Any
) -> tuple[Array, Array]:
    """Advantages, and the mean gap `log π_θ − log π_T` of the answers' tokens."""
    advantages = opd_advantages(student, teacher, response)
    count = jnp.maximum(jnp.sum(response), 1).astype(jnp.float32)
    gap = -jnp.sum(advantages) / count
    if settings.alpha < 1.0:
        grpo = grpo_advantages(rewards.reshape(-1, settings.samples_per_prompt)).reshape(-1)
        advantages = mix_advantages(advantages, grpo, settings.alpha)
    if settings.keep_tokens < 1.0:
        kind = "largest" if settings.keep_by == "gap" else "random"
        weights = sparsify_tokens(student - teacher, response, fraction=settings.keep_tokens, method=kind, key=key)
        advantages = advantages * weights
    return advantages, gap
