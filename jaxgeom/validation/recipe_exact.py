"""The first answers of a sampled recipe, scored by both sides: what is compared to rounding, before chance parts them.

Ours draws its first rollout as `jaxgeom train` does. PyTorch gets the tokens alone, and computes log-probabilities,
advantages, loss and gradient from the formulas. Loss and gradient norm of our side are those that the run itself logs
at its first step.

At a first step the ratio is 1 and no clip does anything, and where no answer is right no reward teaches. So both sides
also score the same answers with rewards drawn at random and with old log-probabilities moved by normal noise.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgeom.data.pipelines import Prompt
from jaxgeom.models import hf_tensors
from jaxgeom.progress import Reporter
from jaxgeom.training.inputs import RunInputs
from jaxgeom.training.objectives import Tools
from jaxgeom.training.objectives.on_policy import OnPolicy
from jaxgeom.training.ready import make_ready
from jaxgeom.training.rollouts import judge_answers
from jaxgeom.training.rows import RunRows
from jaxgeom.training.settings import OnPolicySettings
from jaxgeom.validation import torch_sampled, torch_side
from jaxgeom.validation.checks import Check, by_name, worst_tensor
from jaxgeom.validation.recipe_runs import norm, relative
from jaxgeom.validation.tolerances import RECIPE_TOLERANCES, ROUNDINGS
from jaxgeom.validation.torch_sampled import SampledRecipe

_NOISE = 0.3  # nats, standard deviation: about half of the ratios leave [0.8, 1.28]


@dataclass(frozen=True)
class Step:
    """What one side makes of a batch of answers.

    Attributes:
        log_probs: Of the answers' tokens, an array an answer.
        advantages: The same.
        loss: Of the batch.
        gradients: By Hugging Face name.
    """

    log_probs: list[np.ndarray]
    advantages: list[np.ndarray]
    loss: float
    gradients: dict[str, np.ndarray]


@dataclass(frozen=True)
class FirstAnswers:
    """Our first rollout and what ours makes of it.

    Attributes:
        prompts: Of each answer.
        answers: Their tokens.
        rewards: Drawn at random, 0 or 1, `[batch]`.
        noise: What old log-probabilities are moved by, an array an answer.
        first: Of the step as the run takes it.
        moved: Of the step with these rewards and this noise.
        rows: Tokenizer, prompts and rewards of the run.
        recipe: For the PyTorch side.
        names: Hugging Face names of the parameters.
    """

    prompts: list[Prompt]
    answers: list[list[int]]
    rewards: np.ndarray
    noise: list[np.ndarray]
    first: Step
    moved: Step
    rows: RunRows
    recipe: SampledRecipe
    names: list[str]

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of answers by their tokens, and whether each is right: the package's verifier, for both sides."""
        texts = self.rows.tokenizer.batch_decode([list(one) for one in answers], skip_special_tokens=True)
        found = judge_answers(self.rows.tokenizer, prompts, texts, self.rows.rewards)
        return found.total, found.right


def first_answers(run: OnPolicySettings, inputs: RunInputs, reporter: Reporter) -> FirstAnswers:
    """Draws the first rollout of a run as the run will, and learns from it without a step; writes nothing.

    Args:
        run: of the first seed.
        inputs: what it reads.
        reporter: where to say what is odd.

    Raises:
        UserError: model, teacher or rows that cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = make_ready(run, inputs, Path(folder) / "run", reporter, force=False, kept_rows=None)
    assert ready is not None  # no run is there
    objective, params, frozen = ready.objective, ready.params, ready.frozen
    assert isinstance(objective, OnPolicy)
    tools = Tools(ready.rows.batches(run), ready.rows.tokenizer, ready.rows.rewards)
    rollout = objective.draw(params, frozen, tools, 0)
    generator = np.random.default_rng([run.seed, 17])
    rewards = generator.integers(0, 2, len(rollout.answers.texts)).astype(np.float32)
    rewards[:2] = 0, 1  # some group always teaches
    by_chance = rollout._replace(answers=dataclasses.replace(rollout.answers, rewards=rewards))
    noise = (_NOISE * generator.standard_normal(rollout.answers.tokens.shape)).astype(np.float32)
    given, held = objective.step_inputs(frozen), rollout.answers

    @jax.jit
    def learned(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            loss, told = objective.loss(params, batch, given, objective.denominator(batch))
            log_probs = batch.old_log_probs if told.log_probs is None else told.log_probs
            return loss, (log_probs, objective.advantages(batch, log_probs))

        return jax.value_and_grad(loss, has_aux=True)(params)

    def step(rollout: Any, noise: np.ndarray | None) -> Step:
        (batch,) = objective.prepare(params, frozen, rollout, 0).batches
        (loss, (log_probs, advantages)), gradients = learned(params, batch)
        if noise is not None:
            moved = jax.device_put(np.asarray(log_probs) + noise, log_probs.sharding)
            (loss, _), gradients = learned(params, dataclasses.replace(batch, old_log_probs=moved))
        return Step(
            _by_answer(log_probs, held.response), _by_answer(advantages, held.response), float(loss),
            by_name(ready.model, gradients),
        )  # fmt: skip

    prompts, answers = held.prompts, [row[mask].tolist() for row, mask in zip(held.tokens, held.response, strict=True)]
    recipe = SampledRecipe(
        objective=run.objective, samples=run.samples_per_prompt, new_tokens=run.max_new_tokens, stops=ready.rows.stops,
        vocabulary=objective.student.vocabulary, clip=(run.clip_low, run.clip_high), optimizer=run.optimizer,
    )  # fmt: skip
    names = [tensor.name for tensor in hf_tensors(ready.model.config)]
    return FirstAnswers(
        prompts, answers, rewards, _by_answer(noise, held.response), step(rollout, None), step(by_chance, noise),
        ready.rows, recipe, names,
    )  # fmt: skip


def compare_first(
    ours: FirstAnswers, logged: Mapping[str, float | int], reference: Any, teacher: Any = None
) -> list[Check]:
    """The rows of the table that are compared to rounding, with PyTorch against itself, rows turned, beside each.

    Args:
        ours: of `first_answers`.
        logged: what the run says of its first step.
        reference: the model of `load_torch`, at its start.
        teacher: of `opd`, likewise.
    """
    rewards = ours.judge(ours.prompts, ours.answers)[0]
    checks = []
    is_graded = ours.recipe.objective == "rlvr"
    moved = "first answers, chance rewards and moved ratio" if is_graded else "first answers, moved ratio"
    for name, mine, given, noise in (
        ("first answers", ours.first, rewards, None),
        (moved, ours.moved, ours.rewards, ours.noise),
    ):
        one, other = (_theirs(ours, given, noise, reference, teacher, turned) for turned in (False, True))
        (errors, worst), (nulls, _) = _errors(mine, one), _errors(other, one)
        if noise is None:
            scale = _magnitude(one.advantages)
            errors["loss"] = abs(logged["loss"] - one.loss) / scale
            errors["grad_norm"] = relative(logged["grad_norm"], norm(one.gradients))
            nulls["grad_norm"] = relative(norm(other.gradients), norm(one.gradients))
        for key, label in _LABELS.items():
            is_repeated = noise is not None and (key == "log_probs" or (key == "advantages" and not is_graded))
            if is_repeated or key not in errors:
                continue
            limit = max(RECIPE_TOLERANCES["sampled"][key], ROUNDINGS * nulls[key])
            where = worst if key == "gradients" else ""
            checks.append(Check(f"{name}: {label}", errors[key], limit, where, nulls[key]))
    return checks


_LABELS = {
    "log_probs": "log-probs",
    "advantages": "advantages",
    "loss": "loss",
    "grad_norm": "gradient norm",
    "gradients": "gradients, worst tensor",
}


def _theirs(
    ours: FirstAnswers, rewards: np.ndarray, noise: list[np.ndarray] | None, reference: Any, teacher: Any, turned: bool
) -> Step:
    """What PyTorch makes of the tokens; with `turned`, of the answers the other way round, in our order again."""
    import torch

    turn = slice(None, None, -1) if turned else slice(None)
    prompts, answers = [prompt.tokens for prompt in ours.prompts][turn], ours.answers[turn]
    recipe = ours.recipe
    reference.zero_grad()
    student = torch_sampled.score_torch(reference, prompts, answers, recipe.vocabulary)
    taught = None
    if teacher is not None:
        with torch.no_grad():
            taught = torch_sampled.score_torch(teacher, prompts, answers, recipe.vocabulary)
    advantages = torch_sampled.advantages_torch(recipe, student, taught, rewards[turn].copy())
    old = student.log_probs.detach().clone()
    for row, moved in enumerate(noise[turn] if noise is not None else ()):
        old[row, : len(moved)] += torch.tensor(moved)
    loss = torch_sampled.policy_loss_torch(student.log_probs, old, advantages, student.mask, recipe.clip)
    loss.backward()
    mask = student.mask.numpy()
    log_probs, credit = (_by_answer(one.detach().numpy(), mask)[turn] for one in (student.log_probs, advantages))
    return Step(log_probs, credit, float(loss.detach()), torch_side.torch_gradients(reference, ours.names))


def _errors(ours: Step, theirs: Step) -> tuple[dict[str, float], str]:
    """The errors by their names in `_LABELS`, and the tensor whose gradient differs most."""
    floor = 1e-6 * max(norm(theirs.gradients), 1e-30)
    gradients, worst = worst_tensor(ours.gradients, theirs.gradients, floor)
    errors = {
        "log_probs": _largest(ours.log_probs, theirs.log_probs),
        "advantages": _largest(ours.advantages, theirs.advantages),
        "loss": abs(ours.loss - theirs.loss) / _magnitude(theirs.advantages),
        "gradients": gradients,
    }
    return errors, worst


def _by_answer(values: Any, mask: np.ndarray) -> list[np.ndarray]:
    """The values of each answer's tokens."""
    return [row[held] for row, held in zip(np.asarray(values), mask, strict=True)]


def _largest(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return float(np.max([np.max(np.abs(a - b)) for a, b in zip(ours, theirs, strict=True)]))


def _magnitude(advantages: list[np.ndarray]) -> float:
    """The mean size of a token's advantage: what a loss, a mean of both signs that may cancel, is compared to."""
    return max(float(np.mean(np.abs(np.concatenate(advantages)))), 1e-30)
