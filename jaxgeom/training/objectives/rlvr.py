"""RLVR: GRPO, each answer credited with its verified reward relative to those of its group."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxgeom.objectives import grpo_advantages, soft_overlong_penalty
from jaxgeom.training.objectives.interface import Tools
from jaxgeom.training.objectives.on_policy import OnPolicy, Rollout
from jaxgeom.training.rollouts import Answers
from jaxgeom.training.settings import RLVRSettings
from jaxgeom.training.state import Batch, Frozen, on_mesh


@dataclass(frozen=True)
class RLVR(OnPolicy):
    """See `Objective`."""

    settings: RLVRSettings

    def draw(self, params: PyTree, frozen: Frozen, tools: Tools, number: int) -> Rollout:
        if not self.settings.dynamic_filter:
            return self.answered(params, frozen, tools, number)
        rounds = 1 + self.settings.refills
        return self.answered(params, frozen, tools, number, rounds=rounds, keep=_informs)

    def learned_from(
        self, params: PyTree, frozen: Frozen, rollout: Rollout, key: Array
    ) -> tuple[Batch | None, dict[str, Any]]:
        settings, answers = self.settings, rollout.answers
        placed = self.placed(rollout)
        old, metrics = self.old_scores(params, placed)
        rewards, teaches = answers.rewards.astype(np.float64), np.ones(len(answers.rewards), bool)
        if settings.dynamic_filter:
            teaches = np.repeat(np.ptp(self._groups(answers.rewards), axis=1) > 0, settings.samples_per_prompt)
        if settings.overlong == "mask":
            teaches = teaches & ~rollout.truncated
        if (penalty := self._penalty(answers)) is not None:
            rewards = rewards + penalty
        if not teaches.any():
            return None, metrics
        mask = answers.response & teaches[:, None]
        groups = self._groups(rewards.astype(np.float32))
        batch = Batch(
            tokens=placed.tokens,
            valid=placed.valid,
            loss_mask=on_mesh(mask, self.mesh),
            old_log_probs=old,
            advantages=on_mesh(group_advantages(groups, mask.shape[1], settings.normalize_by_std), self.mesh),
            reference_log_probs=self.reference_scores(frozen, placed),
            sampled_log_probs=placed.sampled_log_probs,
            response=placed.response,
        )
        return self.read_by_step(batch), metrics

    def of_answers(self, rollout: Rollout) -> dict[str, float]:
        penalty = self._penalty(rollout.answers)
        return super().of_answers(rollout) | ({} if penalty is None else {"overlong_penalty": float(penalty.mean())})

    def _penalty(self, answers: Answers) -> np.ndarray | None:
        """What every answer loses by its length, float64 `[batch]`; None where nothing is taken off."""
        settings = self.settings
        if settings.overlong_buffer is None:
            return None
        lengths = answers.response.sum(axis=1)
        return soft_overlong_penalty(lengths, limit=settings.max_new_tokens, buffer=settings.overlong_buffer)

    def _groups(self, rewards: np.ndarray) -> np.ndarray:
        return rewards.reshape(-1, self.settings.samples_per_prompt)


@partial(jax.jit, static_argnums=(1, 2))
def group_advantages(rewards: Array, time: int, normalize: bool = True) -> Array:
    """GRPO's advantages of `[groups, samples]` rewards, shared by an answer's tokens: `[groups·samples, time]`."""
    return jnp.broadcast_to(grpo_advantages(rewards, normalize=normalize).reshape(-1, 1), (rewards.size, time))


def _informs(group: Answers) -> bool:
    return bool(np.ptp(group.rewards) > 0)
