"""What the loop asks of an objective: where a step's data comes from, what is prepared of it, and the loss."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxgeom.data.buckets import bucket_length
from jaxgeom.models import Qwen3
from jaxgeom.objectives import loss_denominator
from jaxgeom.rewards import Judge, Rewards
from jaxgeom.training.rollouts import Actor, Answers
from jaxgeom.training.state import Batch, Frozen


@contextlib.contextmanager
def _unmeasured() -> Iterator[Callable[[Any], Any]]:
    yield lambda _: None


class Tools(NamedTuple):
    """What the host brings to a rollout.

    Attributes:
        rows: Batches of the run's rows, endless: what `RunRows.batches` iterates over.
        tokenizer: Of the student.
        rewards: Judge answers.
        scoring: What scoring is done within, for who measures it: its value is called with the scores.
    """

    rows: Iterator[Any]
    tokenizer: Any = None
    rewards: Rewards | Judge | None = None
    scoring: Callable[[], contextlib.AbstractContextManager[Callable[[Any], Any]]] = _unmeasured


LARGEST = ("sampler_mismatch",)
"""Metrics that are maxima over the answers' tokens, and stay so where several rollouts or parts of one are joined."""


class Told(NamedTuple):
    """What a loss says of a batch or a part of it, beside its value; without gradient.

    Attributes:
        metrics: As `token_sums` takes them: "tokens", and means over so many, or none at all.
        log_probs: float32 `[batch, time]`, of the tokens by the forward pass, for `Objective.of_whole_batch`; None
            where that has no use for them.
    """

    metrics: dict[str, Float[Array, ""]]
    log_probs: Float[Array, "batch time"] | None = None


@dataclass(frozen=True)
class Prepared:
    """What one rollout gives.

    Attributes:
        batches: Of one optimizer step each, in their order; none where there is nothing to learn from.
        metrics: Numbers of the rollout, on the host or scalars on the device, logged with the first step.
        answers: What was sampled, for the log; None where nothing was.
    """

    batches: list[Batch]
    metrics: dict[str, Any] = field(default_factory=dict)
    answers: Answers | None = None


@dataclass(frozen=True)
class Objective(abc.ABC):
    """One objective of a run: static, without arrays; parameters are handed in.

    Attributes:
        settings: Of the run.
        student: The module that is trained.
        teachers: The modules whose parameters are `Frozen.teachers`.
        mesh: What parameters and batches are sharded over; None for one device.
    """

    settings: Any
    student: Qwen3
    teachers: tuple[Qwen3, ...] = ()
    mesh: jax.sharding.Mesh | None = None

    @abc.abstractmethod
    def draw(self, params: PyTree, frozen: Frozen, tools: Tools, number: int) -> Any:
        """The next rollout: rows of the data, or sampled and verified answers to them.

        Args:
            params: the student's, as they are now.
            frozen: parameters of teachers and reference.
            tools: of the host.
            number: of the step; with the run's seed it fixes every sample.
        """

    @abc.abstractmethod
    def prepare(self, params: PyTree, frozen: Frozen, rollout: Any, number: int) -> Prepared:
        """What one or several steps learn from a rollout: scored by its programs on the device.

        Args:
            params: the student's, as they are now.
            frozen: parameters of teachers and reference.
            rollout: what `draw` returned.
            number: of the step.
        """

    @abc.abstractmethod
    def loss(
        self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Told]:
        """Loss and metrics of a batch or a part of it, pure and differentiable in `params`.

        Args:
            params: the student's.
            batch: the part.
            frozen: what `step_inputs` leaves.
            denominator: the whole batch's; the losses of its parts add up.

        Returns:
            The loss, and what is to be told of it.
        """

    def of_whole_batch(self, batch: Batch, log_probs: Float[Array, "batch time"]) -> dict[str, Float[Array, ""]]:
        """Metrics that are no means over parts of a batch, within the step.

        Args:
            batch: all of it.
            log_probs: of its tokens, `Told.log_probs` of all its parts.
        """
        return {}

    @property
    def rollouts_ahead(self) -> int:
        """Rollouts that are drawn before those that are learned from."""
        return 0

    @property
    def is_in_nats(self) -> bool:
        """Whether the loss is a cross-entropy or a divergence, a mean over tokens of the model's own distribution: that
        of a guess is a measure of it. A policy gradient's has the scale of rewards, which may be any.
        """
        return False

    @property
    def is_matched(self) -> bool:
        """Whether the step differentiates `losses` one by one, and weighs their gradients by `matched`."""
        return False

    def losses(
        self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Float[Array, ""]
    ) -> tuple[Float[Array, " losses"], Told]:
        """The losses that a matched objective mixes, of a batch or a part of it; all else as of `loss`."""
        # asked for where `is_matched` alone, which says that the objective has its own
        raise NotImplementedError(f"{type(self).__name__} has one loss")

    def matched(self, grads: tuple[PyTree, ...]) -> tuple[Float[Array, " losses"], dict[str, Float[Array, ""]]]:
        """The weights of the gradients of `losses`, and metrics of the mixture.

        Args:
            grads: of each loss, as far as the run's confinement lets parameters move by them.
        """
        # asked for where `is_matched` alone, which says that the objective has its own
        raise NotImplementedError(f"{type(self).__name__} has one loss")

    def on_one_device(self) -> "Objective":
        """The same for one device's rows, where the program is split over the devices by hand."""
        alone = [model.clone(mesh=None) for model in (self.student, *self.teachers)]
        return dataclasses.replace(self, student=alone[0], teachers=tuple(alone[1:]), mesh=None)

    def sampler(self, params: PyTree, frozen: Frozen) -> Actor | None:
        """Who answers the prompts; None where nothing is sampled."""
        return None

    def scorers(self, params: PyTree, frozen: Frozen) -> dict[str, Actor]:
        """Who scores the answers before a step, by the names of their programs."""
        return {}

    def padded_length(self, longest: int) -> int:
        """Columns of a batch whose longest prompt, or demonstration, has so many tokens."""
        return bucket_length(longest)

    def shape_of_batch(self, rows: Callable[..., Any]) -> Batch:
        """A batch of shapes.

        Args:
            rows: the shape `[batch, time]` of a dtype, `[batch]` with `by_row`.
        """
        return Batch(tokens=rows(jnp.int32), valid=rows(jnp.bool_), loss_mask=rows(jnp.bool_))

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """What the loss of a whole batch is divided by: the tokens that are learned from."""
        return loss_denominator(batch.loss_mask)

    def step_inputs(self, frozen: Frozen) -> Frozen:
        """The part of `frozen` that the loss reads: nothing, unless an objective says so."""
        return Frozen()
