"""Losses and their gradients against PyTorch autograd and float64 numpy; exactness of accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.objectives import k3_kl, loss_denominator, policy_gradient_loss, sft_loss

FP32 = dict(rtol=2e-5, atol=1e-6)


def make(batch=6, time=7, seed=0):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(batch, time))
    new = old + 0.3 * rng.normal(size=(batch, time))
    mask = rng.random((batch, time)) < 0.6
    mask[0] = False
    return new, old, rng.normal(size=(batch, time)), mask


def jnps(*arrays):
    return tuple(jnp.asarray(a, bool if a.dtype == bool else jnp.float32) for a in arrays)


def reference_loss(torch, new, old, advantages, mask, low, high, aggregate, constant, reference=None, beta=0.0):
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - low if low is not None else None, 1 + high if high is not None else float("inf"))
    token = -torch.minimum(ratio * advantages, clipped * advantages)
    if reference is not None:
        token = token + beta * ((reference - new).exp() - (reference - new) - 1)
    weight = mask.double()
    if aggregate == "token":
        return (token * weight).sum() / weight.sum()
    rows = [r for r in range(len(mask)) if mask[r].any()]
    if aggregate == "sequence":
        return sum((token[r] * weight[r]).sum() / weight[r].sum() for r in rows) / len(rows)
    return (token * weight).sum() / (len(rows) * constant)


@pytest.mark.parametrize(
    ("aggregate", "clip"),
    [
        ("token", (0.2, 0.28)),
        ("sequence", (0.2, 0.28)),
        ("constant", (0.2, 0.28)),
        ("token", (None, None)),
        ("token", (1.0, 1.0)),
    ],
)
def test_policy_gradient_equals_pytorch(aggregate, clip):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    arrays = make()
    reference = arrays[1] + 0.1
    new = torch.tensor(arrays[0], requires_grad=True)
    rest = tuple(torch.tensor(a) for a in arrays[1:])
    constant = 9.0 if aggregate == "constant" else None
    expected = reference_loss(torch, new, *rest, *clip, aggregate, constant, torch.tensor(reference), 0.05)
    expected.backward()

    def objective(log_probs, *others):
        return policy_gradient_loss(
            log_probs,
            *others,
            clip_low=clip[0],
            clip_high=clip[1],
            aggregate=aggregate,
            constant=constant,
            reference_log_probs=jnp.asarray(reference, jnp.float32),
            kl_coefficient=0.05,
        )

    (loss, _), grad = jax.jit(jax.value_and_grad(objective, has_aux=True))(*jnps(*arrays))
    np.testing.assert_allclose(loss, expected.item(), **FP32)
    np.testing.assert_allclose(grad, new.grad.numpy(), **FP32)


def test_metrics_equal_numpy():
    new, old, advantages, mask = make()
    entropy = np.abs(np.random.default_rng(3).normal(size=new.shape))
    _, metrics = policy_gradient_loss(
        *jnps(new, old, advantages, mask), entropy=jnp.asarray(entropy, jnp.float32), reference_log_probs=jnps(old)[0]
    )
    ratio = np.exp(new - old)
    low, high = (ratio < 0.8) & (advantages < 0), (ratio > 1.28) & (advantages > 0)
    expected = {
        "tokens": mask.sum() * 1.0,
        "ratio_mean": ratio[mask].mean(),
        "clip_fraction": (low | high)[mask].mean(),
        "clip_fraction_low": low[mask].mean(),
        "clip_fraction_high": high[mask].mean(),
        "approx_kl": (ratio - 1 - np.log(ratio))[mask].mean(),
        "advantage_mean": advantages[mask].mean(),
        "entropy": entropy[mask].mean(),
        "reference_kl": (np.exp(old - new) - (old - new) - 1)[mask].mean(),
    }
    assert set(metrics) == set(expected) and 0 < expected["clip_fraction"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_clipped_tokens_have_no_gradient():
    old = jnp.zeros((1, 4))
    new = jnp.log(jnp.array([[0.5, 0.5, 2.0, 2.0]]))
    advantages = jnp.array([[1.0, -1.0, 1.0, -1.0]])
    grad = jax.grad(lambda x: policy_gradient_loss(x, old, advantages, jnp.ones((1, 4)))[0])(new)
    np.testing.assert_allclose(grad, [[-0.125, 0.0, 0.0, 0.5]], rtol=1e-6)


def test_one_advantage_for_a_sequence_is_shared_by_its_tokens():
    new, old, advantages, mask = jnps(*make())
    one = advantages[:, 0]
    spread = jnp.broadcast_to(one[:, None], new.shape)
    found, expected = (policy_gradient_loss(new, old, a, mask)[0] for a in (one, spread))
    assert float(found) == float(expected)


def test_sft_loss_equals_numpy_and_its_gradient_the_closed_form():
    log_probs, _, _, mask = make()
    loss, grad = jax.jit(jax.value_and_grad(sft_loss))(*jnps(log_probs, mask))
    np.testing.assert_allclose(loss, -log_probs[mask].mean(), **FP32)
    np.testing.assert_allclose(grad, np.where(mask, -1 / mask.sum(), 0.0), **FP32)
    assert float(sft_loss(jnp.ones((2, 2)), jnp.zeros((2, 2)))) == 0.0
    fractional = jnp.full((2, 2), 0.125)
    np.testing.assert_allclose(sft_loss(jnp.full((2, 2), -3.0), fractional), 3.0, rtol=1e-6)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_micro_batches_add_up_to_the_whole_batch(aggregate):
    arrays = jnps(*make(batch=8))
    options = {"aggregate": aggregate, "constant": 7.0}

    def policy(denominator, new, *rest):
        return policy_gradient_loss(new, *rest, **options, denominator=denominator)[0]

    def sft(denominator, new, _old, _advantages, mask):
        return sft_loss(new, mask, denominator=denominator)

    for objective in (policy, sft) if aggregate == "token" else (policy,):
        step = jax.jit(jax.value_and_grad(objective, 1))
        whole = step(None, *arrays)
        parts = [tuple(a[rows] for a in arrays) for rows in (slice(0, 4), slice(4, 8))]
        counts = [loss_denominator(p[3], **options) for p in parts]
        assert float(counts[0]) != float(counts[1])
        pieces = [step(jnp.asarray(sum(counts)), *p) for p in parts]
        np.testing.assert_allclose(sum(p[0] for p in pieces), whole[0], rtol=1e-6)
        np.testing.assert_allclose(jnp.concatenate([p[1] for p in pieces]), whole[1], rtol=1e-6)


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_padding_may_hold_anything(aggregate):
    new, old, advantages, mask = make()
    clean = jax.value_and_grad(lambda *a: policy_gradient_loss(*a, aggregate=aggregate)[0])(
        *jnps(new, old, advantages, mask)
    )
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        dirty = [np.where(mask, a, bad) for a in (new, old, advantages)]
        found, grad = jax.value_and_grad(
            lambda *a, bad=bad: policy_gradient_loss(
                *a, aggregate=aggregate, entropy=jnp.full(new.shape, bad), reference_log_probs=a[1]
            )[0]
        )(*jnps(*dirty, mask))
        np.testing.assert_array_equal(found, clean[0])
        np.testing.assert_array_equal(grad, clean[1])
        np.testing.assert_allclose(sft_loss(*jnps(dirty[0], mask)), -new[mask].mean(), **FP32)
    empty = policy_gradient_loss(*jnps(new, old, advantages, np.zeros_like(mask)), aggregate=aggregate)
    assert all(float(x) == 0.0 for x in jax.tree.leaves(empty))


def test_k3_is_unbiased_and_never_negative():
    p, q = (np.exp(x) / np.exp(x).sum() for x in np.random.default_rng(0).normal(size=(2, 12)))
    estimate = np.asarray(k3_kl(*jnps(np.log(p)[None], np.log(q)[None])))[0]
    assert (estimate >= 0).all()
    np.testing.assert_allclose((p * estimate).sum(), (p * np.log(p / q)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(k3_kl(*jnps(np.log(p)[None], np.log(p)[None])), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda r: k3_kl(jnp.zeros((1, 3)), r).sum())(jnp.ones((1, 3))), 0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clip_low": -0.1}, "clip_low"),
        ({"kl_coefficient": 0.1}, "reference"),
        ({"aggregate": "constant"}, "constant"),
        ({"advantages": jnp.zeros(3)}, "advantages"),
    ],
)
def test_refuses(options, says):
    arguments = {"advantages": jnp.zeros((2, 3))} | options
    with pytest.raises(Exception, match=says):
        policy_gradient_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), mask=jnp.ones((2, 3)), **arguments)
