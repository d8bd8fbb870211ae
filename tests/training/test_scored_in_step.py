"""Answers that the step itself scores: as with a pass of its own before it, and as PyTorch has the formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.sharding import make_mesh, parameter_shardings
from jaxgeom.training import Frozen, OPDSettings, RLVRSettings, initial_state, make_optimizer, objective_of
from jaxgeom.training.objectives.on_policy import OnPolicy, Rollout
from jaxgeom.training.objectives.opd import OPD
from jaxgeom.training.rollouts import Answers
from jaxgeom.training.state import TrainState
from jaxgeom.training.step import train_step
from jaxgeom.training.teachers import are_equal
from tests.tiny import tiny_config, tiny_params
from tests.training import runs
from tests.training.bases import random_confinement
from tests.training.by_logits import logits_of, pulled_back

COMMON = dict(
    steps=2, batch_size=16, max_new_tokens=6, samples_per_prompt=4, optimizer=AdamWSettings(learning_rate=1e-3)
)
FORMS = {
    "rlvr, some groups": RLVRSettings(**COMMON, temperature=0.7),
    "rlvr, in parts": RLVRSettings(**COMMON, overlong="mask", dynamic_filter=False, micro_batches=4),
    "opd, in parts": OPDSettings(**COMMON, micro_batches=4, aggregate="sequence"),
    "opd, mixed and the first tokens": OPDSettings(
        **COMMON, alpha=0.25, keep_tokens=0.5, keep_by="first", micro_batches=2
    ),
    "opd, a constant": OPDSettings(**COMMON, advantage="constant", advantage_constant=0.3, temperature=0.7),
    "opd full, mixed": OPDSettings(**COMMON, support="full", alpha=0.25),
}


@pytest.fixture(scope="module")
def world():
    """A module, parameters of student and teacher, 16 answers, the logits of both."""
    model = Qwen3(tiny_config(num_hidden_layers=1))
    params, teacher = (tiny_params(model.config, seed=seed) for seed in (0, 1))
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, 16)
    valid = np.arange(10) < 4 + lengths[:, None]
    response = valid & (np.arange(10) >= 4)
    answers = Answers(
        tokens=rng.integers(3, 100, (16, 10)).astype(np.int32),
        valid=valid,
        response=response,
        log_probs=np.where(response, rng.normal(-4.7, 0.5, (16, 10)), 0.0).astype(np.float32),
        rewards=np.array([1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1], np.float32),
        texts=[""] * 16,
        prompts=[],
    )
    arrays = jnp.asarray(answers.tokens), jnp.asarray(valid)
    tables = [np.asarray(logits_of(model, tree, *arrays), np.float64) for tree in (params, teacher)]
    return model, params, teacher, Rollout(answers, {}, lengths == 6), tables


def stepped(settings, world, *, confinement=None, mesh=None):
    """The gradient of a step, and everything that is logged of it; and the names of the programs that score."""
    model, params, teacher, rollout, _ = world
    teachers = [model] if settings.is_taught else []
    frozen = Frozen(teachers=(teacher,) if settings.is_taught else ())
    if mesh is not None:
        place = parameter_shardings(params, mesh)
        params, frozen = jax.device_put(params, place), Frozen(teachers=(jax.device_put(teacher, place),))
    objective = objective_of(settings, model.clone(mesh=mesh), [one.clone(mesh=mesh) for one in teachers], mesh)
    prepared = objective.prepare(params, frozen, rollout, 0)
    (batch,) = prepared.batches
    inputs = objective.step_inputs(frozen)
    if confinement is None:
        optimizer = optax.sgd(1.0)
        state = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))
    else:
        optimizer = make_optimizer(settings, params, confinement)
        state, inputs = initial_state(params, optimizer), dataclasses.replace(inputs, start=params)
    after, metrics = jax.jit(train_step(objective, optimizer, confinement))(state, batch, inputs)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params)
    return moved, {name: float(value) for name, value in (prepared.metrics | metrics).items()}, objective


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_that_of_a_scoring_pass_before_it(world, form, monkeypatch):
    settings = FORMS[form]
    found, metrics, objective = stepped(settings, world)
    assert "score" not in objective.scorers(None, Frozen(teachers=(None,)))
    for kind in (OnPolicy, OPD):
        monkeypatch.setattr(kind, "is_scored_in_step", property(lambda self: False))
    wanted, said, objective = stepped(settings, world)
    assert "score" in objective.scorers(None, Frozen(teachers=(None,)))
    assert metrics.keys() == said.keys() and {"sampler_mismatch", "sampler_mismatch_mean"} < said.keys()
    for name, value in said.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert said["grad_norm"] > 1e-3
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), found, wanted)


def test_the_mismatch_is_over_all_answers_whatever_is_learned_from(world):
    """In float64; of the four groups one has equal rewards, and its largest difference is that of all."""
    model, params, teacher, rollout, tables = world
    answers = dataclasses.replace(rollout.answers, log_probs=rollout.answers.log_probs.copy())
    answers.log_probs[5, 4] -= 9.0
    shifted = tables[0] - tables[0].max(-1, keepdims=True)
    table = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = np.take_along_axis(table[:, :-1], answers.tokens[:, 1:, None], -1)[..., 0]
    gaps = np.abs(picked - answers.log_probs[:, 1:])[answers.response[:, 1:]]
    settings = RLVRSettings(**COMMON, micro_batches=2)
    _, metrics, _ = stepped(settings, (model, params, teacher, rollout._replace(answers=answers), tables))
    assert metrics["tokens"] < len(gaps)
    np.testing.assert_allclose(metrics["sampler_mismatch"], gaps.max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["sampler_mismatch_mean"], gaps.mean(), rtol=1e-5)


@pytest.mark.parametrize("form", ["rlvr, some groups", "opd, mixed and the first tokens"])
def test_loss_and_gradient_equal_pytorch(world, form):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    model, params, _, rollout, tables = world
    settings, answers = FORMS[form], rollout.answers
    now = torch.tensor(tables[0], requires_grad=True)
    tokens = torch.tensor(answers.tokens.astype(np.int64))[:, 1:, None]
    new, taught = (
        torch.log_softmax(one / settings.temperature, -1)[:, :-1].gather(-1, tokens)[..., 0]
        for one in (now, torch.tensor(tables[1]))
    )
    groups = answers.rewards.astype(np.float64).reshape(-1, 4)
    graded = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-6)
    advantages, mask = torch.tensor(graded.reshape(-1, 1)), torch.tensor(answers.response[:, 1:])
    if settings.is_taught:
        lengths = answers.response.sum(1, keepdims=True)
        kept = np.maximum(1, np.floor(0.5 * lengths + 0.5))
        weights = torch.tensor((np.cumsum(answers.response, 1) <= kept) * lengths / kept)[:, 1:]
        advantages = weights * (0.25 * (taught - new).detach() + 0.75 * advantages)
    else:
        mask = mask & torch.tensor(np.repeat(np.ptp(groups, axis=1) > 0, 4))[:, None]
    loss = -((new - new.detach()).exp() * advantages)[mask].mean()
    loss.backward()
    arrays = jnp.asarray(answers.tokens), jnp.asarray(answers.valid)
    wanted = pulled_back(model, params, *arrays, jnp.asarray(now.grad.numpy(), jnp.float32))
    found, metrics, _ = stepped(settings, world)
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=3e-6), found, wanted)


def test_where_every_device_sums_its_own_coordinates_the_numbers_are_the_same(world):
    model, params, *_ = world
    confinement = random_confinement(model.config, params, "coordinates")
    settings = OPDSettings(**COMMON, micro_batches=2, confine=confinement.settings)
    _, wanted, _ = stepped(settings, world, confinement=confinement)
    _, found, _ = stepped(settings, world, confinement=confinement, mesh=make_mesh(4, 1, 1, devices=jax.devices()[:4]))
    assert found.keys() == wanted.keys() >= {"gap", "gap_magnitude", "sampler_mismatch"}
    for name in found.keys() - {"leakage", "leakage_max"}:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)


ALONE = {
    "rlvr, two updates": RLVRSettings(**COMMON, updates_per_rollout=2),
    "rlvr, answers of before": RLVRSettings(**COMMON, rollout_lag=1),
    "the teacher answers": OPDSettings(**COMMON, rollouts="teacher"),
    "tokens by their gap": OPDSettings(**COMMON, keep_tokens=0.5),
    "a constant of the rollout's own": OPDSettings(**COMMON, advantage="constant"),
    "matched": OPDSettings(**COMMON, alpha=0.5, mix="matched"),
}


@pytest.mark.parametrize("form", ALONE)
def test_what_a_step_cannot_know_is_scored_before_it(world, form):
    model, params, teacher, _, _ = world
    objective = objective_of(ALONE[form], model, [model] if ALONE[form].is_taught else [])
    assert "score" in objective.scorers(params, Frozen(teachers=(teacher,)))
    batch = objective.shape_of_batch(lambda dtype, by_row=False: dtype)
    assert batch.old_log_probs is not None and batch.advantages is not None and batch.sampled_log_probs is None


def test_a_teacher_that_the_student_begins_as_is_known(world):
    model, params, teacher, _, _ = world
    twin = jax.device_put(params, parameter_shardings(params, make_mesh(2, 2, 2)))
    assert are_equal(params, twin) and not are_equal(params, teacher)
    nudged = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].multiply(1 + 1e-7), params)
    assert not are_equal(params, nudged)
    assert not are_equal(params, params | {"embed": jax.tree.map(lambda leaf: leaf[::-1], params["embed"])})
    assert not are_equal(params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    assert not are_equal(params, tiny_params(tiny_config(num_hidden_layers=1, hidden_size=48)))
    objective = dataclasses.replace(objective_of(OPDSettings(**COMMON), model, [model]), has_twin=True)
    assert list(objective.scorers(params, Frozen(teachers=(params,)))) == ["score", "score.teacher0"]


WITH_ENTROPY = {
    "full": OPDSettings(**COMMON, support="full", micro_batches=2),
    "top-k": OPDSettings(**COMMON, support="teacher-top-k", top_k=4),
    "full, mixed": OPDSettings(**COMMON, support="full", alpha=0.5),
    "matched": OPDSettings(**COMMON, alpha=0.5, mix="matched"),
    "full, matched": OPDSettings(**COMMON, support="full", alpha=0.5, mix="matched"),
}


@pytest.mark.parametrize("form", WITH_ENTROPY)
def test_entropy_and_mismatch_are_logged_whatever_teaches(world, form):
    *_, rollout, tables = world
    _, metrics, objective = stepped(WITH_ENTROPY[form], world)
    table = tables[0] - np.log(np.exp(tables[0]).sum(-1, keepdims=True))
    response = rollout.answers.response[:, 1:]
    picked = np.take_along_axis(table[:, :-1], rollout.answers.tokens[:, 1:, None], -1)[..., 0]
    entropy = -(np.exp(table) * table).sum(-1)[:, :-1]
    np.testing.assert_allclose(metrics["entropy"], entropy[response].mean(), rtol=1e-5)
    gaps = np.abs(picked - rollout.answers.log_probs[:, 1:])[response]
    np.testing.assert_allclose(metrics["sampler_mismatch"], gaps.max(), rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_a_constant_is_that_of_the_whole_rollout_in_each_of_its_updates(world, alpha):
    model, params, teacher, rollout, tables = world
    common = COMMON | {"batch_size": 8}
    settings = OPDSettings(**common, advantage="constant", updates_per_rollout=2, alpha=alpha)
    prepared = objective_of(settings, model, [model]).prepare(params, Frozen(teachers=(teacher,)), rollout, 0)
    logs = [table - np.log(np.exp(table).sum(-1, keepdims=True)) for table in tables]
    gap = np.take_along_axis(logs[0] - logs[1], np.roll(rollout.answers.tokens, -1, 1)[..., None], -1)[..., 0][:, :-1]
    size = np.abs(gap[rollout.answers.response[:, 1:]]).mean()
    groups = rollout.answers.rewards.astype(np.float64).reshape(4, 4)
    graded = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-6)
    for place, batch in enumerate(prepared.batches):
        mask = np.asarray(batch.loss_mask)
        shared = np.broadcast_to(graded[place::2].reshape(-1, 1), mask.shape)
        wanted = (-alpha * size + (1 - alpha) * shared)[mask]
        np.testing.assert_allclose(np.asarray(batch.advantages)[mask], wanted, rtol=1e-4, atol=1e-5)


def test_a_run_with_itself_for_a_teacher_has_no_gap_and_does_not_move(tmp_path, jaxgeom):
    """Were the gap rounding alone, Adam would make whole steps of it."""
    inputs = runs.write_inputs(tmp_path)
    options = (
        "--steps",
        2,
        "--batch-size",
        8,
        "--samples-per-prompt",
        4,
        "--max-new-tokens",
        3,
        "--weight-decay",
        0,
        "--lr",
        1e-3,
    )
    said = jaxgeom(
        "train", "opd", "--model", inputs / "model", "--teacher", inputs / "model", "--data",
        inputs / "prompts.jsonl", "--out", tmp_path / "run", *options,
    )  # fmt: skip
    assert said.status == 0, said.err
    steps = [row for row in runs.logged(tmp_path / "run") if "gap" in row]
    assert [(row["gap"], row["update_norm"]) for row in steps] == [(0.0, 0.0)] * 2
    assert "another --teacher" in said.out
    options = (*options, "--support", "full")
    said = jaxgeom(
        "train", "opd", "--model", inputs / "model", "--teacher", inputs / "model", "--data",
        inputs / "prompts.jsonl", "--out", tmp_path / "full", *options,
    )  # fmt: skip
    assert said.status == 0 and f"teacher {inputs / 'model'} has the parameters that the student" in said.out + said.err
