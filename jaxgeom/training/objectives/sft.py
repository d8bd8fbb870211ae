"""Supervised fine-tuning: the mean cross-entropy on the assistant's tokens of demonstrations."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxgeom.objectives import sft_loss
from jaxgeom.training.objectives.interface import Objective, Prepared, Told, Tools
from jaxgeom.training.scoring import sequence_log_probs
from jaxgeom.training.settings import SFTSettings
from jaxgeom.training.state import Batch, Frozen, on_mesh


@dataclass(frozen=True)
class SFT(Objective):
    """See `Objective`: a rollout is a batch of demonstrations, arrays by name."""

    settings: SFTSettings

    @property
    def is_in_nats(self) -> bool:
        return True

    def draw(self, params: PyTree, frozen: Frozen, tools: Tools, number: int) -> dict[str, np.ndarray]:
        return next(tools.rows)

    def prepare(self, params: PyTree, frozen: Frozen, rollout: dict[str, np.ndarray], number: int) -> Prepared:
        tokens = float(rollout["loss_mask"].sum())
        return Prepared([on_mesh(Batch(**rollout), self.mesh)], {"target_tokens": tokens})

    def padded_length(self, longest: int) -> int:
        return longest if self.settings.packing else super().padded_length(longest)

    def shape_of_batch(self, rows: Callable[[Any], Any]) -> Batch:
        shape = super().shape_of_batch(rows)
        return dataclasses.replace(shape, segments=rows(jnp.int32)) if self.settings.packing else shape

    def loss(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, Told]:
        log_probs = sequence_log_probs(
            self.student, params, batch.tokens, batch.valid, mesh=self.mesh, segments=batch.segments
        )
        return sft_loss(log_probs, batch.loss_mask, denominator=denominator), Told({})
