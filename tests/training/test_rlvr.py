"""RLVR and the mixtures with it: a step's loss and gradient against PyTorch, from the logits of every model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3
from jaxgeom.objectives import soft_overlong_penalty, sparsify_tokens
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import ConfineSettings, Frozen, OPDSettings, RLVRSettings, objective_of
from jaxgeom.training.confinement import Confinement
from jaxgeom.training.objectives.on_policy import Rollout
from jaxgeom.training.rollouts import Answers
from jaxgeom.training.state import TrainState
from jaxgeom.training.step import train_step
from tests.tiny import tiny_config, tiny_params
from tests.training.bases import random_confinement
from tests.training.by_logits import logits_of, pulled_back
from tests.training.in_step import credited

COMMON = dict(
    steps=2, batch_size=8, max_new_tokens=6, samples_per_prompt=4, optimizer=AdamWSettings(learning_rate=1e-3)
)
FORMS = {
    "two updates, KL to the start": dict(updates_per_rollout=2, kl_coefficient=0.3, clip_low=0.05, clip_high=0.1),
    "no std, overlong masked, sequences": dict(
        updates_per_rollout=2, normalize_by_std=False, overlong="mask", aggregate="sequence", dynamic_filter=False
    ),
    "overlong penalised, constant": dict(
        updates_per_rollout=2, overlong="penalty", overlong_buffer=4, aggregate="constant", temperature=0.7
    ),
}


@pytest.fixture(scope="module")
def world():
    """A module; parameters of the policy that answered, of the policy now, of the start; 16 answers, their logits."""
    model = Qwen3(tiny_config(num_hidden_layers=1))
    old, start, noise = (tiny_params(model.config, seed=seed) for seed in (0, 1, 2))
    now = jax.tree.map(lambda a, b: a + 0.1 * b, old, noise)
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, 16)
    valid = np.arange(10) < 4 + lengths[:, None]
    rewards = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1], np.float32)
    answers = Answers(
        tokens=rng.integers(3, 100, (16, 10)).astype(np.int32),
        valid=valid,
        response=valid & (np.arange(10) >= 4),
        log_probs=np.zeros((16, 10), np.float32),
        rewards=rewards,
        texts=[""] * 16,
        prompts=[],
    )
    arrays = jnp.asarray(answers.tokens), jnp.asarray(valid)
    tables = [np.asarray(logits_of(model, tree, *arrays), np.float64) for tree in (now, old, start)]
    return model, (now, old, start), Rollout(answers, {}, lengths == 6), tables


def picked(torch, settings, answers, table):
    """Log-probabilities of the tokens, `[batch, time − 1]`."""
    log_probs = torch.log_softmax(table / settings.temperature, -1)[:, :-1]
    return log_probs.gather(-1, torch.tensor(answers.tokens.astype(np.int64))[:, 1:, None])[..., 0]


def averaged(torch, settings, per_token, mask):
    per_token = per_token * mask
    rows = mask.any(1)
    if settings.aggregate == "sequence":
        return (per_token.sum(1)[rows] / mask.sum(1)[rows]).mean()
    return per_token.sum() / (mask.sum() if settings.aggregate == "token" else rows.sum() * settings.max_new_tokens)


def clipped(torch, settings, new, old, advantages):
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages)


def by_torch(torch, settings, rollout, tables, place):
    """Loss, its gradient by the logits, mean KL to the start and the share of clipped tokens, of one update."""
    answers = rollout.answers
    rows = (np.arange(16) // 4) % 2 == place
    groups = answers.rewards.astype(np.float64).reshape(-1, 4)
    kept = np.repeat((groups.max(1) > groups.min(1)) | (not settings.dynamic_filter), 4) & rows
    if settings.overlong == "mask":
        kept &= ~rollout.truncated
    if settings.overlong == "penalty":
        lengths = answers.response.sum(1)
        limit, buffer = settings.max_new_tokens, settings.overlong_buffer
        penalty = np.select(
            [lengths <= limit - buffer, lengths <= limit], [0.0, (limit - buffer - lengths) / buffer], -1.0
        )
        groups = groups + penalty.reshape(-1, 4)
    advantages = groups - groups.mean(1, keepdims=True)
    if settings.normalize_by_std:
        advantages = advantages / (groups.std(1, keepdims=True) + 1e-6)
    advantages = torch.tensor(advantages.reshape(-1, 1))
    mask = torch.tensor(answers.response & kept[:, None])[:, 1:]
    now = torch.tensor(tables[0], requires_grad=True)
    new, old, start = (picked(torch, settings, answers, table) for table in (now, *map(torch.tensor, tables[1:])))
    kl = (start - new).exp() - (start - new) - 1
    per_token = clipped(torch, settings, new, old, advantages) + (settings.kl_coefficient or 0.0) * kl
    loss = averaged(torch, settings, per_token, mask)
    loss.backward()
    ratio = (new - old).exp().detach()
    cut = ((ratio > 1 + settings.clip_high) & (advantages > 0)) | ((ratio < 1 - settings.clip_low) & (advantages < 0))
    return loss.item(), now.grad.numpy(), kl.detach()[mask].mean().item(), cut[mask].double().mean().item()


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=3e-6), found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_of_every_update_equal_pytorch(world, form):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    model, (now, old, start), rollout, tables = world
    settings = RLVRSettings(**COMMON | FORMS[form])
    objective = objective_of(settings, model)
    prepared = objective.prepare(old, Frozen(reference=start), rollout, 0)
    assert len(prepared.batches) == 2

    @jax.jit
    def differentiated(params, batch):
        return jax.value_and_grad(objective.loss, has_aux=True)(params, batch, Frozen(), objective.denominator(batch))

    for place, batch in enumerate(prepared.batches):
        loss, cotangent, kl, cut = by_torch(torch, settings, rollout, tables, place)
        tokens, valid = jnp.asarray(rollout.answers.tokens), jnp.asarray(rollout.answers.valid)
        (found, (metrics, _)), grads = differentiated(now, batch)
        np.testing.assert_allclose(float(found), loss, rtol=1e-4, atol=1e-6)
        close(grads, pulled_back(model, now, tokens, valid, jnp.asarray(cotangent, jnp.float32)))
        np.testing.assert_allclose(float(metrics["clip_fraction"]), cut, atol=1e-6)
        assert ("reference_kl" in metrics) == (settings.kl_coefficient is not None)
        if "reference_kl" in metrics:
            assert cut > 0.1
            np.testing.assert_allclose(float(metrics["reference_kl"]), kl, rtol=1e-4)


def test_groups_to_learn_from_are_shared_out_and_an_empty_share_is_no_update(world):
    model, (_, old, _), rollout, _ = world
    rewards = np.zeros(16, np.float32)
    for learned, updates in (((0, 1), 2), ((0,), 1), ((), 0)):
        rewards[:] = 0.0
        rewards[[4 * group for group in learned]] = 1.0
        some = rollout._replace(answers=dataclasses.replace(rollout.answers, rewards=rewards.copy()))
        prepared = objective_of(RLVRSettings(**COMMON, updates_per_rollout=2), model).prepare(old, Frozen(), some, 0)
        assert len(prepared.batches) == updates
        for batch in prepared.batches:
            assert np.asarray(batch.loss_mask).any(axis=1).reshape(-1, 4).any(axis=1).sum() == 1
    assert prepared.metrics["response_length"] == pytest.approx(rollout.answers.response.sum(1).mean())
    assert prepared.metrics["truncated"] == pytest.approx(rollout.truncated.mean())


def test_the_logged_penalty_is_a_mean_over_answers_whatever_they_are_shared_out_to(world):
    model, (_, old, _), rollout, _ = world
    lengths = rollout.answers.response.sum(1)
    wanted = np.clip((2 - lengths) / 4, -1, 0).mean()  # from 2 of the 6 tokens on, over the last 4
    by_share = [lengths[(np.arange(16) // 4) % 2 == place].sum() for place in (0, 1)]
    assert by_share[0] != by_share[1]  # else a mean over tokens would be the same
    for updates, size in ((1, 16), (2, 8)):
        told = dict(overlong="penalty", overlong_buffer=4, updates_per_rollout=updates, batch_size=size)
        prepared = objective_of(RLVRSettings(**COMMON | told), model).prepare(old, Frozen(), rollout, 0)
        assert prepared.metrics["overlong_penalty"] == pytest.approx(wanted)


def test_answers_that_were_all_cut_are_nothing_to_learn_from(world):
    model, (_, old, _), rollout, _ = world
    settings = RLVRSettings(**COMMON | dict(overlong="mask", batch_size=16))
    cut = rollout._replace(truncated=np.ones(16, bool))
    assert objective_of(settings, model).prepare(old, Frozen(), cut, 0).batches == []


@pytest.mark.parametrize("form", [dict(), dict(support="full", micro_batches=2)], ids=["sampled", "full"])
def test_a_matched_mixture_has_the_norm_of_distillation_and_the_shares_asked_for(world, form):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    model, (now, old, teacher), rollout, tables = world
    settings = OPDSettings(**COMMON | form | dict(batch_size=16, alpha=0.25, mix="matched"))
    objective = objective_of(settings, model, [model])
    frozen = Frozen(teachers=(teacher,))
    (batch,) = objective.prepare(old, frozen, rollout, 0).batches
    answers = rollout.answers
    mask = torch.tensor(answers.response)[:, 1:]
    groups = answers.rewards.astype(np.float64).reshape(-1, 4)
    grpo = torch.tensor(
        ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-6)).reshape(-1, 1)
    )
    arrays = jnp.asarray(answers.tokens), jnp.asarray(answers.valid)
    grads, losses = [], []
    for kind in ("distillation", "reward"):
        table = torch.tensor(tables[0], requires_grad=True)
        new, before, taught = (picked(torch, settings, answers, one) for one in (table, *map(torch.tensor, tables[1:])))
        if kind == "reward":
            per_token = clipped(torch, settings, new, before, grpo)
        elif settings.support == "sampled":
            per_token = clipped(torch, settings, new, before, taught - before)
        else:
            log_p, log_q = (torch.log_softmax(one, -1)[:, :-1] for one in (table, torch.tensor(tables[2])))
            per_token = (log_p.exp() * (log_p - log_q)).sum(-1)
        loss = averaged(torch, settings, per_token, mask)
        loss.backward()
        losses.append(loss.item())
        grads.append(pulled_back(model, now, *arrays, jnp.asarray(table.grad.numpy(), jnp.float32)))
    flat = [np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(one)]) for one in grads]
    norms = [np.linalg.norm(one) for one in flat]
    mixed = 0.25 * flat[0] + 0.75 * norms[0] / norms[1] * flat[1]
    scale = norms[0] / np.linalg.norm(mixed)
    optimizer = optax.sgd(1.0)
    state = TrainState(step=jnp.int32(0), params=now, opt_state=optimizer.init(now))
    after, metrics = jax.jit(train_step(objective, optimizer))(state, batch, objective.step_inputs(frozen))
    moved = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, now, after.params)
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    np.testing.assert_allclose(found, scale * mixed, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(float(metrics["grad_norm"]), norms[0], rtol=1e-4)
    for name, norm, weight in zip(
        ("distillation", "reward"), norms, (0.25 * scale, 0.75 * scale * norms[0] / norms[1]), strict=True
    ):
        np.testing.assert_allclose(float(metrics[f"grad_norm/{name}"]), norm, rtol=1e-4)
        np.testing.assert_allclose(float(metrics[f"mix/{name}"]), weight, rtol=1e-3)
    wanted = 0.25 * scale * losses[0] + 0.75 * scale * norms[0] / norms[1] * losses[1]
    np.testing.assert_allclose(float(metrics["loss"]), wanted, rtol=1e-3, atol=1e-6)


def test_the_null_of_a_teachers_signal_and_the_first_tokens(world):
    model, (_, old, teacher), rollout, tables = world
    frozen, response = Frozen(teachers=(teacher,)), rollout.answers.response

    def advantages(**changes):
        objective = objective_of(OPDSettings(**COMMON | dict(batch_size=16) | changes), model, [model])
        prepared = objective.prepare(old, frozen, rollout, 0)
        batch, metrics = credited(objective, old, frozen, prepared.batches[0])
        return np.asarray(batch.advantages), prepared.metrics | metrics

    gaps, metrics = advantages()
    magnitude = np.abs(gaps[response]).mean()
    np.testing.assert_allclose(float(metrics["gap_magnitude"]), magnitude, rtol=1e-5)
    warm, _ = advantages(temperature=0.7)  # of both models, or the gap is no gap of the sampled distributions
    wanted = log_softmax(tables[2] / 0.7, -1) - log_softmax(tables[1] / 0.7, -1)
    wanted = np.take_along_axis(wanted[:, :-1], rollout.answers.tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(warm[:, 1:], np.where(response[:, 1:], wanted, 0.0), rtol=1e-3, atol=1e-4)
    null, _ = advantages(advantage="constant")
    np.testing.assert_allclose(null, np.where(response, -magnitude, 0.0), rtol=1e-5)
    null, _ = advantages(advantage="constant", advantage_constant=0.5)
    np.testing.assert_array_equal(null, np.where(response, -0.5, 0.0))
    first, _ = advantages(keep_tokens=0.5, keep_by="first")
    lengths = response.sum(1)
    count = np.maximum(1, np.floor(0.5 * lengths + 0.5)).astype(int)
    kept = response & (np.cumsum(response, axis=1) <= count[:, None])
    np.testing.assert_allclose(first, np.where(kept, gaps * (lengths / count)[:, None], 0.0), rtol=1e-5)


def test_the_first_tokens_are_those_of_the_response():
    mask = jnp.array([[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    found = sparsify_tokens(jnp.zeros((3, 6)), mask, fraction=0.5, method="first")
    np.testing.assert_allclose(found, [[0, 2, 2, 0, 0, 0], [1.5, 1.5, 0, 0, 0, 0], [0] * 6])


def test_the_soft_penalty_of_long_answers():
    found = soft_overlong_penalty(np.array([1, 12, 13, 14, 16, 20]), limit=16, buffer=4)
    np.testing.assert_allclose(found, [0, 0, -0.25, -0.5, -1, -1])


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (RLVRSettings, {"updates_per_rollout": 0}, "updates_per_rollout=0"),
        (RLVRSettings, {"rollout_lag": -1}, "rollout_lag=-1"),
        (RLVRSettings, {"kl_coefficient": -0.1}, "kl_coefficient=-0.1"),
        (RLVRSettings, {"kl_coefficient": float("nan")}, "kl_coefficient=nan"),
        (RLVRSettings, {"overlong": "penalty"}, "overlong_buffer=None: overlong=penalty needs"),
        (RLVRSettings, {"overlong_buffer": 4}, "overlong_buffer=4: overlong=keep has none"),
        (RLVRSettings, {"overlong": "penalty", "overlong_buffer": 7}, "overlong_buffer=7: must be between 1 and 6"),
        (RLVRSettings, {"reward": ("nothing",)}, "reward=nothing"),
        (RLVRSettings, {"eval_samples": -1}, "eval_samples=-1"),
        (RLVRSettings, {"eval_temperature": 0.0}, "eval_temperature=0.0"),
        (OPDSettings, {"mix": "matched"}, "mix=matched: .* alpha=1.0"),
        (OPDSettings, {"mix": "matched", "alpha": 0.5, "kl_coefficient": 0.1}, "kl_coefficient=0.1: mix=matched"),
        (OPDSettings, {"keep_by": "first"}, "keep_by=first: all tokens are kept"),
        (OPDSettings, {"advantage": "constant", "support": "full"}, "advantage=constant: support=full"),
        (OPDSettings, {"advantage_constant": 1.0}, "advantage_constant=1.0: nothing reads it"),
        (OPDSettings, {"advantage": "constant", "advantage_constant": 0.0}, "advantage_constant=0.0: must be positive"),
        (OPDSettings, {"rollouts": "teacher", "kl_coefficient": 0.0}, "kl_coefficient=0.0: rollouts=teacher"),
        (OPDSettings, {"rollouts": "teacher", "rollout_lag": 1}, "rollout_lag=1: rollouts=teacher"),
    ],
)
def test_what_settings_have_no_use_for_is_refused_by_name(kind, change, says):
    with pytest.raises(UserError, match=says):
        kind(**COMMON | change)


@pytest.mark.parametrize("form", ["gradients", "updates", "coordinates", "mask"])
def test_a_confined_mixture_is_matched_where_parameters_can_move(world, form):
    """Norms of the two gradients in the subspace or mask alone, in float64 NumPy, whatever form confines the run."""
    model, (now, old, teacher), rollout, _ = world
    settings = OPDSettings(**COMMON | dict(batch_size=16, alpha=0.25, mix="matched"))
    objective = objective_of(settings, model, [model])
    frozen = Frozen(teachers=(teacher,))
    (batch,) = objective.prepare(old, frozen, rollout, 0).batches
    confinement = random_confinement(model.config, now, "updates" if form == "mask" else form)
    if form == "mask":
        rng = np.random.default_rng(0)
        masks = jax.tree.map(lambda basis, leaf: None if basis is None else jnp.asarray(rng.random(leaf.shape) < 0.1),
                             confinement.trees, now, is_leaf=lambda node: node is None)  # fmt: skip
        confinement = Confinement(ConfineSettings(confine="mask", mask="random"), masks, confinement.specs)
    _, pull = jax.vjp(lambda p: objective.losses(p, batch, Frozen(), objective.denominator(batch))[0], now)
    parts = []
    for one in np.eye(2, dtype=np.float32):
        flat = []
        for held, leaf in zip(
            jax.tree.leaves(confinement.trees, is_leaf=lambda node: node is None),
            jax.tree.leaves(pull(jnp.asarray(one))[0]), strict=True,
        ):  # fmt: skip
            if held is not None:
                gradient, held = np.asarray(leaf, np.float64), np.asarray(held)
                seen = gradient[held] if form == "mask" else held[0].T @ gradient.reshape(held.shape[1], -1)
                flat.append(np.ravel(seen))
        parts.append(np.concatenate(flat))
    norms = [np.linalg.norm(part) for part in parts]
    optimizer = confinement.wrap(optax.sgd(1.0))
    state = TrainState(step=jnp.int32(0), params=now, opt_state=optimizer.init(now))
    step = jax.jit(train_step(objective, optimizer, confinement))
    _, metrics = step(state, batch, dataclasses.replace(objective.step_inputs(frozen), start=now))
    found = [float(metrics[f"grad_norm/{name}"]) for name in ("distillation", "reward")]
    np.testing.assert_allclose(found, norms, rtol=1e-4)
    weights = [float(metrics[f"mix/{name}"]) for name in ("distillation", "reward")]
    np.testing.assert_allclose(weights[1] * norms[1] / (weights[0] * norms[0]), 3.0, rtol=1e-3)
    # The sum has the norm of distillation alone, and is what the step moves by: SGD at rate 1.
    for name in ("grad_norm", "update_norm"):
        np.testing.assert_allclose(float(metrics[name]), norms[0], rtol=2e-3)
