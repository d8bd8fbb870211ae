"""From prompts to batches: the gap, the filter, the controls."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from jaxgeom.data import arithmetic, chat
from jaxgeom.models import load_model
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.rewards import Rewards, Verifier
from jaxgeom.rewards.own import GivenRow, OwnReward
from jaxgeom.rollout import Rollout, SamplingSettings
from jaxgeom.training import Actor, Frozen, OPDSettings, RLVRSettings, objective_of, rollouts
from jaxgeom.training.objectives import Tools
from jaxgeom.training.rollouts import Answers, truncated
from tests import simulated
from tests.tiny import tiny_prompts, write_tiny_model
from tests.training.in_step import credited

COMMON = dict(
    steps=2, batch_size=16, optimizer=AdamWSettings(learning_rate=1e-3), max_new_tokens=8, samples_per_prompt=4
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Student, another model, tokenizer, prompts."""
    directory = tmp_path_factory.mktemp("models")
    student, other = (
        Actor(*load_model(write_tiny_model(directory / str(seed), seed=seed), dtype="float32")) for seed in (0, 1)
    )
    tokenizer = chat.load_tokenizer(directory / "0")
    rows = arithmetic.prompts(arithmetic.ArithmeticTask(), 24, seed=0)
    return student, other, tokenizer, tiny_prompts(rows, tokenizer)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, valid):
    return model.apply({"params": params}, tokens, valid=valid)


def _prompts(encoded, size=4):
    return itertools.cycle([encoded[i : i + size] for i in range(0, len(encoded), size)])


def collect(settings, student, teacher, tokenizer, prompts, *, step, verifier=None, **known):
    """One step's batch with what the step makes of it (None where there is none), its metrics and answers."""
    teachers = [] if teacher is None else [teacher]
    objective = objective_of(settings, student.model, [actor.model for actor in teachers])
    objective = dataclasses.replace(objective, **known)
    frozen = Frozen(teachers=tuple(actor.params for actor in teachers))
    drawn = objective.draw(student.params, frozen, Tools(prompts, tokenizer, verifier), step)
    prepared = objective.prepare(student.params, frozen, drawn, step)
    assert len(prepared.batches) <= 1
    if not prepared.batches:
        return None, prepared.metrics, prepared.answers
    batch, metrics = credited(objective, student.params, frozen, prepared.batches[0])
    return batch, prepared.metrics | metrics, prepared.answers


def _parity(texts, truths):
    """A verifier that has nothing to do with the task: half of the answers are right."""
    return [float(len(text) % 2) for text in texts]


def test_with_equal_weights_the_gap_is_exactly_zero(world):
    student, _, tokenizer, encoded = world
    twin = Actor(student.model, jax.tree.map(lambda leaf: leaf.copy(), student.params))
    batch, metrics, _ = collect(
        OPDSettings(**COMMON), student, twin, tokenizer, _prompts(encoded), step=0, has_twin=True
    )
    assert batch is not None and metrics["gap"] == 0.0
    np.testing.assert_array_equal(np.asarray(batch.advantages), 0.0)


def test_rewards_are_over_the_answers_that_can_be_judged(world):
    student, teacher, tokenizer, encoded = world
    some = [dataclasses.replace(prompt, ground_truth=None) if i % 2 else prompt for i, prompt in enumerate(encoded)]
    none = [dataclasses.replace(prompt, ground_truth=None) for prompt in encoded]
    settings = OPDSettings(**COMMON)
    batches = []
    for prompts, judged in ((encoded, None), (some, 8.0), (none, 0.0)):
        batch, metrics, answers = collect(
            settings, student, teacher, tokenizer, _prompts(prompts), step=0, verifier=_parity
        )
        batches.append(batch)
        assert metrics.get("reward_count") == judged and ("reward" in metrics) == (judged != 0.0)
        if judged != 0.0:
            known = [p.ground_truth is not None for p in answers.prompts]
            wanted = np.mean(_parity([text for text, one in zip(answers.texts, known, strict=True) if one], None))
            assert metrics["reward"] == pytest.approx(wanted)
    for batch in batches[1:]:  # the teacher's signal is the same
        np.testing.assert_array_equal(np.asarray(batch.advantages), np.asarray(batches[0].advantages))


def test_the_opd_advantage_is_the_teachers_log_prob_minus_the_students(world):
    student, teacher, tokenizer, encoded = world
    batch, metrics, _ = collect(OPDSettings(**COMMON), student, teacher, tokenizer, _prompts(encoded), step=0)
    mask = np.asarray(batch.loss_mask)

    def log_probs(actor):
        logits = np.asarray(forward(actor.model, actor.params, batch.tokens, batch.valid), np.float64)
        table = logits - logits.max(-1, keepdims=True)
        table -= np.log(np.exp(table).sum(-1, keepdims=True))
        picked = np.take_along_axis(table[:, :-1], np.asarray(batch.tokens)[:, 1:, None], -1)[..., 0]
        return np.pad(picked, ((0, 0), (1, 0)))

    wanted = np.where(mask, log_probs(teacher) - log_probs(student), 0.0)
    np.testing.assert_allclose(np.asarray(batch.advantages), wanted, atol=5e-5)
    np.testing.assert_allclose(metrics["gap"], -wanted.sum() / mask.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(batch.old_log_probs)[mask], log_probs(student)[mask], atol=5e-5)


def test_the_sampler_and_the_scorer_agree(world):
    student, teacher, tokenizer, encoded = world
    _, metrics, _ = collect(OPDSettings(**COMMON), student, teacher, tokenizer, _prompts(encoded), step=3)
    assert metrics["sampler_mismatch"] < 1e-4


def test_the_same_step_samples_the_same_and_another_step_does_not(world):
    student, teacher, tokenizer, encoded = world
    settings = OPDSettings(**COMMON)
    texts = [
        collect(settings, student, teacher, tokenizer, _prompts(encoded), step=step)[2].texts for step in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_grpo_advantages_are_normalised_within_the_group(world):
    student, _, tokenizer, encoded = world
    settings = RLVRSettings(**COMMON, dynamic_filter=False)
    batch, _, answers = collect(settings, student, None, tokenizer, _prompts(encoded), step=1, verifier=_parity)
    rewards = answers.rewards.reshape(-1, 4).astype(np.float64)
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(batch.advantages)[:, 0], wanted.ravel(), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(batch.loss_mask), answers.response)


def by_rank(texts, rows):
    """What an answer is worth beside the others to its prompt: the share of them that is shorter."""
    lengths = np.array([len(text) for text in texts])
    names = np.array([row["name"] for row in rows])
    return [float(np.mean(lengths[names == name] < length)) for length, name in zip(lengths, names, strict=True)]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_answers_to_one_prompt_are_judged_by_one_process(world, monkeypatch, count):
    """Also where no number of answers to each divides them: a verifier may compare those of a prompt."""
    student, _, tokenizer, encoded = world
    prompts = [
        dataclasses.replace(prompt, given=GivenRow(f"row {at}", {"name": at})) for at, prompt in enumerate(encoded[:5])
    ]
    repeated = [prompt for prompt in prompts for _ in range(6)]
    tokens = np.random.default_rng(count).integers(40, 90, (30, 9)).astype(np.int32)
    response = np.arange(9) < np.random.default_rng(0).integers(1, 10, (30, 1))
    drawn = Rollout(tokens, response, response, np.zeros((30, 9), np.float32), 0)
    monkeypatch.setattr(rollouts, "sample", lambda *_, **__: drawn)
    rewards = Rewards(Verifier(), {}, ((OwnReward("by_rank", by_rank), 1.0),))

    def judged(_=0):
        answers = rollouts.sample_answers(
            student, tokenizer, repeated, range(30), SamplingSettings(max_new_tokens=9), rewards
        )
        return answers.rewards.tolist(), answers.texts

    alone = judged()
    assert len(set(alone[0])) > 3
    with simulated.several(count) as wire:
        assert simulated.in_each(wire, judged) == [alone] * count


def test_groups_without_variance_are_refilled_then_masked(world):
    student, _, tokenizer, encoded = world
    wanted = {prompt.ground_truth for prompt in encoded[:4]}

    def verifier(texts, truths):
        # Only the first four prompts have groups with variance; the others are always wrong.
        return [float(i % 2) if truth in wanted else 0.0 for i, truth in enumerate(truths)]

    settings = RLVRSettings(**COMMON, refills=1)
    mixed = itertools.cycle([encoded[0:2] + encoded[8:10], encoded[2:4] + encoded[10:12]])
    batch, metrics, answers = collect(settings, student, None, tokenizer, mixed, step=0, verifier=verifier)
    assert metrics["sampling_rounds"] == 2
    assert {prompt.ground_truth for prompt in answers.prompts} == wanted
    assert bool(np.asarray(batch.loss_mask).any(axis=1).all())
    batch, metrics, _ = collect(
        dataclasses.replace(settings, refills=0), student, None, tokenizer, mixed, step=0, verifier=verifier
    )
    assert metrics["sampling_rounds"] == 1
    learned = np.asarray(batch.loss_mask).any(axis=1).reshape(-1, 4)
    np.testing.assert_array_equal(learned.all(axis=1), [True, True, False, False])


def test_nothing_to_learn_from_gives_no_batch(world):
    student, _, tokenizer, encoded = world
    settings = RLVRSettings(**COMMON, refills=1)
    batch, metrics, _ = collect(
        settings, student, None, tokenizer, _prompts(encoded), step=0, verifier=lambda texts, truths: [0.0] * len(texts)
    )
    assert batch is None and metrics["informative_groups"] == 0.0


def test_controls_of_distillation(world):
    student, teacher, tokenizer, encoded = world

    def run(**changes):
        settings = OPDSettings(**(COMMON | changes))
        return collect(settings, student, teacher, tokenizer, _prompts(encoded), step=2, verifier=_parity)

    plain, _, answers = run()
    kept, _, _ = run(keep_tokens=0.25)
    lengths = answers.response.sum(axis=1)
    count = (np.asarray(kept.advantages) != 0).sum(axis=1)
    np.testing.assert_array_equal(count, np.maximum(1, np.floor(lengths * 0.25 + 0.5)))
    mixed, _, _ = run(alpha=0.25)
    rewards = answers.rewards.reshape(-1, 4).astype(np.float64)
    grpo = ((rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-6)).ravel()
    wanted = 0.25 * np.asarray(plain.advantages) + 0.75 * grpo[:, None]
    mask = np.asarray(plain.loss_mask)
    np.testing.assert_allclose(np.asarray(mixed.advantages)[mask], wanted[mask], atol=1e-5)
    _, metrics, off_policy = run(rollouts="teacher")
    assert "sampler_mismatch" not in metrics and off_policy.texts != answers.texts


@pytest.mark.parametrize("apart", [False, True])
def test_scores_are_asked_for_before_the_answers_are_judged_and_are_the_same(world, apart):
    student, teacher, tokenizer, encoded = world
    settings = OPDSettings(**COMMON, keep_tokens=0.5 if apart else 1.0)
    objective = objective_of(settings, student.model, [teacher.model])
    frozen, order = Frozen(teachers=(teacher.params,)), []

    @contextlib.contextmanager
    def scoring():
        order.append("asked")
        yield lambda scores: order.append(sorted(scores))

    def judge(texts, truths):
        order.append("judged")
        return _parity(texts, truths)

    drawn = objective.draw(student.params, frozen, Tools(_prompts(encoded), tokenizer, judge, scoring), 2)
    assert order == ["asked", ["score", "score.teacher0"] if apart else ["score.teacher0"], "judged"]
    batches = [
        objective.prepare(student.params, frozen, rollout, 2).batches[0]
        for rollout in (drawn, drawn._replace(ahead=None))
    ]
    for one, other in zip(*map(jax.tree.leaves, batches), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_answer_is_truncated_unless_a_stop_token_is_its_last():
    tokens = np.array([[7, 7, 5, 2, 0], [7, 7, 2, 5, 0], [7, 7, 5, 5, 3], [2, 2, 0, 0, 0]], np.int32)
    response = np.array([[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    blank = np.zeros(tokens.shape, np.float32)
    answers = Answers(tokens, response, response, blank, np.zeros(4, np.float32), [""] * 4, [])
    np.testing.assert_array_equal(truncated(answers, (2, 3)), [False, True, False, True])
