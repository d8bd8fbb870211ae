"""RLVR: GRPO, each answer credited with its verified reward relative to those of its group."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxgeom.objectives import grpo_advantages
from jaxgeom.training.objectives.interface import Prepared, Tools
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

    def prepare(self, params: PyTree, frozen: Frozen, rollout: Rollout, number: int) -> Prepared:
        placed, metrics = self.placed(rollout)
        old, mismatch = self.scored(params, placed)
        metrics |= mismatch
        mask = rollout.answers.response
        if self.settings.dynamic_filter:
            informative = np.ptp(self._groups(rollout), axis=1) > 0
            if not informative.any():
                return Prepared([], metrics, rollout.answers)
            mask = mask & np.repeat(informative, self.settings.samples_per_prompt)[:, None]
        batch = Batch(
            tokens=placed.tokens,
            valid=placed.valid,
            loss_mask=on_mesh(mask, self.mesh),
            old_log_probs=old,
            advantages=on_mesh(group_advantages(self._groups(rollout), mask.shape[1]), self.mesh),
        )
        return Prepared([batch], metrics, rollout.answers)

    def _groups(self, rollout: Rollout) -> np.ndarray:
        return rollout.answers.rewards.reshape(-1, self.settings.samples_per_prompt)


@partial(jax.jit, static_argnums=1)
def group_advantages(rewards: Array, time: int) -> Array:
    """GRPO's advantages of `[groups, samples]` rewards, shared by an answer's tokens: `[groups·samples, time]`."""
    return jnp.broadcast_to(grpo_advantages(rewards).reshape(-1, 1), (rewards.size, time))


def _informs(group: Answers) -> bool:
    return bool(np.ptp(group.rewards) > 0)
