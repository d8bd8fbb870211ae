"""What RLVR and OPD share: answers scored by the policy that is trained, and the clipped policy gradient."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxgeom import processes
from jaxgeom.objectives import loss_denominator, policy_gradient_loss
from jaxgeom.sharding import mesh_of, platform_of
from jaxgeom.training.objectives.interface import LARGEST, Objective, Prepared, Told, Tools
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
        ahead: The same answers on the device, with the scores that were asked for before they were verified; None where
            nothing was.
    """

    answers: Answers
    metrics: dict[str, Any]
    truncated: np.ndarray
    ahead: "Placed | None" = None


class Placed(NamedTuple):
    """Answers on the device, `[batch, time]` each.

    Attributes:
        tokens: int32 ids.
        valid: True on real tokens.
        response: True on sampled ones.
        sampled_log_probs: As the sampler computed them.
        host: `tokens` and `valid` on the host, from where they go to a teacher's own devices.
        scores: Log-probabilities by the name of the scorer, on its devices; one that is missing has not been asked yet.
    """

    tokens: Array
    valid: Array
    response: Array
    sampled_log_probs: Array
    host: tuple[np.ndarray, np.ndarray]
    scores: Mapping[str, Array] = MappingProxyType({})


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

    @property
    def is_scored_in_step(self) -> bool:
        """Whether no pass of its own scores the answers under the policy that is trained.

        Where that policy answered and learns from its answers in one step alone, it is the old policy too: the ratio is
        1, and its log-probabilities are those of the step's own forward pass.
        """
        return self.is_by_student and self.settings.updates_per_rollout == 1 and self.settings.rollout_lag == 0

    def sampler(self, params: PyTree, frozen: Frozen) -> Actor:
        return Actor(self.student, params)

    def scorers(self, params: PyTree, frozen: Frozen) -> dict[str, Actor]:
        return ({} if self.is_scored_in_step else {"score": Actor(self.student, params)}) | self.referred(frozen)

    def referred(self, frozen: Frozen) -> dict[str, Actor]:
        """The run's start, by the name of its program, where a KL to it is taken."""
        reads = self.settings.kl_coefficient is not None
        return {"score.reference": Actor(self.student, frozen.reference)} if reads else {}

    def fields_read(self) -> set[str]:
        """What the step reads of a batch beside its tokens and masks, by name."""
        scored = {"sampled_log_probs", "response"} if self.is_scored_in_step else {"old_log_probs"}
        return (
            scored | {"advantages"} | ({"reference_log_probs"} if self.settings.kl_coefficient is not None else set())
        )

    def read_by_step(self, batch: Batch) -> Batch:
        """A batch without what the step does not read."""
        held = {"tokens", "valid", "loss_mask"} | self.fields_read()
        return dataclasses.replace(batch, **dict.fromkeys(vars(batch).keys() - held))

    def shape_of_batch(self, rows: Callable[..., Any]) -> Batch:
        plain, numbers = super().shape_of_batch(rows), rows(jnp.float32)
        named: dict[str, Any] = dict.fromkeys(self.fields_read(), numbers)
        others = {"response": rows(jnp.bool_), "teacher": rows(jnp.int32, by_row=True)}
        return dataclasses.replace(plain, **named | {name: others[name] for name in others.keys() & named})

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
        sampler, ahead = self.sampler(params, frozen), []

        def score_ahead(drawn: Answers) -> None:
            with tools.scoring() as until:
                ahead.append(self.scored_ahead(params, frozen, drawn))
                until(ahead[0].scores)

        # Which answers are learned from together must not hang on their rewards.
        is_settled = keep is None and self.settings.updates_per_rollout == 1 and len(self.teachers) < 2
        answers, metrics = sample_groups(
            self.settings, sampler, tools.rows, tools.tokenizer, tools.rewards, number, rounds=rounds, keep=keep,
            before=score_ahead if is_settled else None,
        )  # fmt: skip
        stops = sampling_settings(self.settings, tools.tokenizer, sampler).stop_tokens
        return Rollout(answers, metrics, truncated(answers, stops), ahead[0] if ahead else None)

    def scored_ahead(self, params: PyTree, frozen: Frozen, answers: Answers) -> Placed:
        """Answers on the device and their scores, which it works on while the host judges the answers."""
        placed = self.placed(Rollout(answers, {}, np.zeros(0, bool)))
        scorers = self.scorers(params, frozen)
        return placed._replace(scores={name: self._asked(actor, placed) for name, actor in scorers.items()})

    def score_of(self, name: str, actor: Actor, placed: Placed) -> Array:
        """Log-probabilities of answers under a scorer, brought here from devices of its own where it has some."""
        found = placed.scores[name] if name in placed.scores else self._asked(actor, placed)
        # Not before they are read: over several processes the hosts wait for them.
        return found if self._is_here(actor) else on_mesh(found, self.mesh)

    def score_where_it_lies(self, actor: Actor, tokens: np.ndarray, valid: np.ndarray) -> Array:
        """Log-probabilities under a model, on its devices, of tokens that go there from the host."""
        given = on_mesh((tokens, valid), mesh_of(actor.params))
        return _in_turn(score(actor.model, actor.params, *given, temperature=self.settings.temperature))

    def _asked(self, actor: Actor, placed: Placed) -> Array:
        if not self._is_here(actor):
            return self.score_where_it_lies(actor, *placed.host)
        found = score(actor.model, actor.params, placed.tokens, placed.valid, temperature=self.settings.temperature)
        return _in_turn(found)

    def _is_here(self, actor: Actor) -> bool:
        """Whether a model lies where the student does."""
        return mesh_of(actor.params) == self.mesh

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
        metrics = rollout.metrics | self.of_answers(rollout) | _joined(found, tokens)
        return Prepared([self.of_rollout(batch, metrics) for batch in batches], metrics, rollout.answers)

    def of_rollout(self, batch: Batch, metrics: dict[str, Any]) -> Batch:
        """A batch, given the numbers of the whole rollout that it is a share of."""
        return batch

    def of_answers(self, rollout: Rollout) -> dict[str, float]:
        """Means over the answers of a whole rollout, each counting once however long it is."""
        length = float(rollout.answers.response.sum(axis=1).mean())
        return {"response_length": length, "truncated": float(rollout.truncated.mean())}

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

    def placed(self, rollout: Rollout) -> Placed:
        """Answers on the device."""
        if rollout.ahead is not None:
            return rollout.ahead
        answers = rollout.answers
        host = answers.tokens, answers.valid
        return Placed(*on_mesh((*host, answers.response, answers.log_probs), self.mesh), host=host)

    def reference_scores(self, frozen: Frozen, placed: Placed) -> Array | None:
        """Log-probabilities under the run's start; None where no KL to it is taken."""
        for name, actor in self.referred(frozen).items():
            return self.score_of(name, actor, placed)
        return None

    def old_scores(self, params: PyTree, placed: Placed) -> tuple[Array | None, dict[str, Any]]:
        """Log-probabilities under the policy as it is now, and how the sampler's differ from them; nothing where both
        are left to the step.
        """
        if self.is_scored_in_step:
            return None, {}
        old = self.score_of("score", Actor(self.student, params), placed)
        return old, _mismatch(old, placed.sampled_log_probs, placed.response) if self.is_by_student else {}

    def loss(self, params: PyTree, batch: Batch, frozen: Frozen, denominator: Array) -> tuple[Array, Told]:
        log_probs, entropy = self.log_probs(params, batch, return_entropy=True)
        loss, metrics = self.policy_loss(log_probs, batch, denominator, entropy)
        return loss, self.told(batch, metrics, log_probs)

    def told(self, batch: Batch, metrics: dict[str, Array], log_probs: Array) -> Told:
        """Metrics of a part, with its log-probabilities where `of_whole_batch` reads them."""
        return Told(metrics, None if batch.sampled_log_probs is None else jax.lax.stop_gradient(log_probs))

    def of_whole_batch(self, batch: Batch, log_probs: Array) -> dict[str, Array]:
        return _mismatch(log_probs, batch.sampled_log_probs, batch.response)

    def advantages(self, batch: Batch, log_probs: Array) -> Array:
        """What a part's tokens are credited with, where the policy gives them these log-probabilities."""
        return batch.advantages

    def log_probs(self, params: PyTree, batch: Batch, *, return_entropy: bool = False) -> Any:
        """Of a batch's tokens under the policy, differentiable; with the entropy where that is asked for."""
        of_step = {"temperature": self.settings.temperature, "mesh": self.mesh, "return_entropy": return_entropy}
        return sequence_log_probs(self.student, params, batch.tokens, batch.valid, **of_step)

    def policy_loss(
        self, log_probs: Array, batch: Batch, denominator: Array, entropy: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """The clipped policy gradient of a batch whose tokens have these log-probabilities."""
        clip_low, clip_high = self.clip_range
        return policy_gradient_loss(
            log_probs,
            log_probs if batch.old_log_probs is None else batch.old_log_probs,
            self.advantages(batch, log_probs),
            batch.loss_mask,
            clip_low=clip_low,
            clip_high=clip_high,
            aggregate=self.settings.aggregate,
            denominator=denominator,
            entropy=entropy,
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
    """Metrics of the parts of a rollout, of all its tokens: means weighted, and what is `LARGEST`."""
    if len(found) == 1:
        return found[0]
    shares = np.asarray(tokens, np.float32) / np.float32(sum(tokens))
    joined: dict[str, Any] = {
        name: sum(share * part[name] for share, part in zip(shares, found, strict=True)) for name in found[0]
    }
    return joined | {name: max(float(part[name]) for part in found) for name in LARGEST if name in joined}


@jax.jit
def _in_turn(found: Array) -> Array:
    """`found`, waited for where several processes exchange through Gloo: it mixes up programs of different devices."""
    if processes.count() == 1 or isinstance(found, jax.core.Tracer):
        return found
    return jax.block_until_ready(found) if platform_of(found) == "cpu" else found


def _mismatch(scored: Array, sampled: Array, response: Array) -> dict[str, Array]:
    """How the sampler's log-probabilities differ by rounding, at most and on average over the answers' tokens."""
    gaps = jnp.where(response, jnp.abs(scored - sampled), 0.0)
    mean = jnp.sum(gaps) / jnp.maximum(jnp.sum(response), 1).astype(jnp.float32)
    return {"sampler_mismatch": jnp.max(gaps), "sampler_mismatch_mean": mean}
