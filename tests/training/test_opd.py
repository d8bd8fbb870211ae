"""Every form of on-policy distillation: the step's loss and gradient against PyTorch, and what is refused and why."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import Frozen, OPDSettings, initial_state, make_optimizer, make_train_step, objective_of
from jaxgeom.training.objectives.on_policy import Rollout
from jaxgeom.training.rollouts import Answers
from tests.tiny import tiny_config, tiny_params
from tests.training.by_logits import logits_of, pulled_back

COMMON = dict(
    steps=2, batch_size=8, max_new_tokens=6, samples_per_prompt=4, optimizer=AdamWSettings(learning_rate=1e-3)
)
FORMS = {
    "full forward, some tokens": dict(support="full", divergence="forward", aggregate="sequence", keep_tokens=0.5),
    "full jsd, mixed": dict(support="full", divergence="jsd", jsd_beta=0.25, alpha=0.25),
    "teacher's top": dict(support="teacher-top-k", top_k=3, temperature=0.7),
    "student's top, renormalised": dict(support="student-top-k", top_k=4, tail_bucket=False),
    "sampled forward": dict(divergence="forward", rollouts="teacher"),
}
IN_PARTS = "teacher's top"


@pytest.fixture(scope="module")
def world():
    """A student, a teacher of another size, and eight answers."""
    models = [Qwen3(tiny_config(num_hidden_layers=1)), Qwen3(tiny_config(num_hidden_layers=1, hidden_size=48))]
    params = [tiny_params(model.config, seed=seed) for seed, model in enumerate(models)]
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, 8)
    valid = np.arange(10) < 4 + lengths[:, None]
    answers = Answers(
        tokens=rng.integers(3, 100, (8, 10)).astype(np.int32),
        valid=valid,
        response=valid & (np.arange(10) >= 4),
        log_probs=np.zeros((8, 10), np.float32),
        rewards=np.array([1, 0, 0, 1, 0, 0, 0, 1], np.float32),
        texts=[""] * 8,
        prompts=[],
    )
    arrays = jnp.asarray(answers.tokens), jnp.asarray(valid)
    tables = [np.asarray(logits_of(*one, *arrays), np.float64) for one in zip(models, params, strict=True)]
    return models, params, answers, tables


def by_torch(torch, settings, answers, tables):
    """Loss, and its gradient by the student's logits, from the logits of both."""
    student = torch.tensor(tables[0], requires_grad=True)
    log_p, log_q = (torch.log_softmax(z / settings.temperature, -1)[:, :-1] for z in (student, torch.tensor(tables[1])))
    tokens, mask = (torch.tensor(x)[:, 1:] for x in (answers.tokens.astype(np.int64), answers.response.astype(float)))
    picked, teacher = (table.gather(-1, tokens[..., None])[..., 0] for table in (log_p, log_q))
    p, q = log_p.exp(), log_q.exp()
    if settings.top_k:
        index = torch.topk((q if settings.support == "teacher-top-k" else p).detach(), settings.top_k, -1).indices
        p, q = p.gather(-1, index), q.gather(-1, index)
        if settings.tail_bucket:
            p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
        else:
            p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)

    def kl(one, other):
        return (one * (one / other).log()).sum(-1)

    beta = settings.jsd_beta or 0.5
    middle = beta * q + (1 - beta) * p
    if settings.support == "sampled":
        values = teacher - picked
    else:
        jsd = beta * kl(q, middle) + (1 - beta) * kl(p, middle)
        values = {"reverse": kl(p, q), "forward": kl(q, p), "jsd": jsd}[settings.divergence]
    gap = (picked - teacher).detach().numpy()
    weights = np.ones_like(gap)
    if settings.keep_tokens < 1.0:
        for row, of_answer in enumerate(mask.numpy() > 0):
            places = np.flatnonzero(of_answer)
            count = max(1, int(np.floor(settings.keep_tokens * len(places) + 0.5)))
            weights[row] = 0.0
            weights[row, places[np.argsort(-gap[row, places])][:count]] = len(places) / count
    per_token = values * torch.tensor(weights)
    if settings.alpha < 1.0:
        groups = answers.rewards.reshape(-1, 4)
        advantages = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-6)
        ratio = (picked - picked.detach()).exp()
        per_token = settings.alpha * per_token - (1 - settings.alpha) * ratio * torch.tensor(advantages.reshape(-1, 1))
    summed = per_token * mask
    if settings.aggregate == "sequence":
        loss = (summed.sum(1) / mask.sum(1)).mean()
    else:
        loss = summed.sum() / mask.sum()
    loss.backward()
    mean = float((values.detach() * mask).sum() / mask.sum())
    return float(loss.detach()), student.grad.numpy(), mean, float((gap * mask.numpy()).sum() / mask.sum())


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_equal_pytorch(world, form):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    models, params, answers, tables = world
    settings = OPDSettings(**COMMON | FORMS[form])
    loss, cotangent, divergence, gap = by_torch(torch, settings, answers, tables)
    tokens, valid = jnp.asarray(answers.tokens), jnp.asarray(answers.valid)
    expected = pulled_back(models[0], params[0], tokens, valid, jnp.asarray(cotangent, jnp.float32))
    frozen = Frozen(teachers=(params[1],))
    objective = objective_of(settings, models[0], models[1:])
    (batch,) = objective.prepare(params[0], frozen, Rollout(answers, {}, np.zeros(8, bool)), 0).batches
    inputs = objective.step_inputs(frozen)
    if form != IN_PARTS:

        @jax.jit
        def differentiated(tree, batch, inputs):
            denominator = objective.denominator(batch)
            return jax.value_and_grad(objective.loss, has_aux=True)(tree, batch, inputs, denominator)

        (found, (metrics, _)), grads = differentiated(params[0], batch, inputs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=2e-6), grads, expected)
    else:  # the compiled step, in two parts: its state is donated, its teacher is not
        objective = objective_of(dataclasses.replace(settings, micro_batches=2), models[0], models[1:])
        optimizer = make_optimizer(settings, params[0])
        state = initial_state(jax.tree.map(jnp.array, params[0]), optimizer)
        _, metrics = make_train_step(objective, optimizer, state)(state, batch, inputs)
        found = metrics["loss"]
        norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(expected)))
        np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-4)
        assert set(metrics) == {
            "tokens",
            "divergence",
            "entropy",
            "sampler_mismatch",
            "sampler_mismatch_mean",
            "gap",
            "loss",
            "grad_norm",
            "update_norm",
            "param_norm",
            "batch_tokens",
        }
        assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    np.testing.assert_allclose(float(found), loss, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(float(metrics["divergence"]), divergence, rtol=2e-5)
    np.testing.assert_allclose(float(metrics["gap"]), gap, rtol=2e-5)


def test_the_advantage_form_takes_no_teacher_into_the_step(world):
    models, params, _, _ = world
    objective = objective_of(OPDSettings(**COMMON), models[0], models[1:])
    assert objective.step_inputs(Frozen(teachers=(params[1],))) == Frozen()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"signal": "loss"}, "signal=loss: .* sampled gap .* mean over samples is zero"),
        ({"support": "teacher-top-k", "top_k": 4, "signal": "advantage"}, "signal=advantage: .* gradient is zero"),
        ({"support": "full", "signal": "advantage"}, "signal=advantage: .* support=full .* gradient is zero"),
        (
            {"support": "student-top-k", "top_k": 1, "tail_bucket": False},
            "top_k=1, tail_bucket=False: .* is 0 whatever",
        ),
        ({"support": "student-top-k"}, "top_k=None: support=student-top-k needs a number"),
        ({"support": "student-top-k", "top_k": 0}, "top_k=0: support=student-top-k needs a number"),
        ({"top_k": 4}, "top_k=4: support=sampled has no top-k"),
        ({"support": "full", "tail_bucket": False}, "tail_bucket=False: support=full has no top-k"),
        ({"divergence": "jsd"}, "divergence=jsd: support=sampled has no samples of the mixture"),
        ({"divergence": "forward"}, "divergence=forward: the student's own tokens .* --rollouts teacher"),
        ({"divergence": "forward", "rollouts": "teacher", "signal": "advantage"}, "signal=advantage: the forward KL"),
        ({"support": "full", "jsd_beta": 0.5}, "jsd_beta=0.5: divergence=reverse has none"),
        ({"support": "full", "divergence": "jsd", "jsd_beta": 1.0}, "jsd_beta=1.0: must be strictly between"),
    ],
)
def test_what_would_teach_nothing_is_refused_by_name(change, says):
    with pytest.raises(UserError, match=says):
        OPDSettings(**COMMON | change)


def test_a_support_beyond_the_vocabulary_is_refused(world):
    models, _, _, _ = world
    with pytest.raises(UserError, match="top_k=113: the vocabulary has 112 tokens"):
        objective_of(OPDSettings(**COMMON, support="teacher-top-k", top_k=113), models[0], models[1:])
