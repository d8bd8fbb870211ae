"""Advantages against float64 numpy, by enumeration, and by property."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgeom.objectives import (
    grpo_advantages,
    informative_groups,
    matched_mix_weights,
    mix_advantages,
    opd_advantages,
    policy_gradient_loss,
    sparsify_tokens,
)

FP32 = dict(rtol=1e-5, atol=1e-6)


def test_grpo_uses_the_population_standard_deviation():
    rewards = np.random.default_rng(0).normal(size=(5, 8))
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=0, keepdims=True) + 1e-6)
    found = jax.jit(grpo_advantages)(jnp.asarray(rewards, jnp.float32))
    np.testing.assert_allclose(found, expected, **FP32)
    plain = grpo_advantages(jnp.asarray(rewards, jnp.float32), normalize=False)
    np.testing.assert_allclose(plain, rewards - rewards.mean(1, keepdims=True), **FP32)


@pytest.mark.parametrize("right", [1, 4, 7])
def test_grpo_of_binary_rewards_has_its_closed_form(right):
    rewards = np.zeros((1, 8), np.float32)
    rewards[0, :right] = 1
    p = right / 8
    found = np.asarray(grpo_advantages(jnp.asarray(rewards)))[0]
    np.testing.assert_allclose(found[:right], math.sqrt((1 - p) / p), rtol=1e-4)
    np.testing.assert_allclose(found[right:], -math.sqrt(p / (1 - p)), rtol=1e-4)


def test_groups_of_equal_rewards_are_exactly_zero_and_filtered():
    rewards = jnp.array([[0.1] * 7, [0, 1, 0, 0, 0, 0, 0], [1.0] * 7], jnp.float32)
    assert informative_groups(rewards).tolist() == [False, True, False]
    found = grpo_advantages(rewards)
    np.testing.assert_array_equal(found[0], 0.0)
    np.testing.assert_array_equal(found[2], 0.0)


def test_opd_is_minus_the_gap_inside_the_mask_and_zero_outside():
    student = jnp.array([[0.0, -1.0, -2.0, jnp.nan]])
    teacher = jnp.array([[0.0, -1.5, -0.5, -jnp.inf]])
    found = opd_advantages(student, teacher, jnp.array([[0, 1, 1, 0]]))
    np.testing.assert_array_equal(found, [[0.0, -0.5, 1.5, 0.0]])
    np.testing.assert_array_equal(opd_advantages(student, student, jnp.array([[1, 1, 1, 0]])), 0.0)


def test_nothing_flows_back_through_the_sampled_gap():
    mask = jnp.ones((2, 3), bool)
    args = jnp.linspace(-3.0, -1.0, 6).reshape(2, 3), jnp.linspace(-1.0, -4.0, 6).reshape(2, 3)
    for grad in jax.grad(lambda s, t: jnp.sum(opd_advantages(s, t, mask) ** 2), (0, 1))(*args):
        np.testing.assert_array_equal(grad, 0.0)


def test_expected_policy_gradient_is_the_gradient_of_the_exact_reverse_kl():
    """Enumerates a vocabulary of 6: sequence v has token v, weighted by its probability."""
    student = jax.random.normal(jax.random.key(0), (6,))
    teacher = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (6,)))
    probs = jax.nn.softmax(student)
    mask = jnp.stack([jnp.zeros(6), probs], axis=1)

    def columns(logits):
        return jnp.pad(jax.nn.log_softmax(logits)[:, None], ((0, 0), (1, 0)))

    old = columns(student)
    advantages = opd_advantages(old, columns(teacher), mask)
    found = jax.grad(lambda z: policy_gradient_loss(columns(z), old, advantages, mask, denominator=jnp.ones(()))[0])(
        student
    )
    p = np.exp(np.asarray(student, np.float64))
    p /= p.sum()
    gap = np.log(p) - np.asarray(teacher, np.float64)
    np.testing.assert_allclose(found, p * (gap - (p * gap).sum()), rtol=1e-4, atol=1e-6)
    # And that of the sampled gap itself is zero in the mean, which is why it is refused.
    naive = jax.grad(lambda z: jnp.sum(probs * (jax.nn.log_softmax(z) - teacher)))(student)
    np.testing.assert_allclose(naive, 0.0, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.05, 0.0])
def test_raw_mixture(alpha):
    opd = np.random.default_rng(0).normal(size=(4, 5))
    grpo = np.random.default_rng(1).normal(size=4)
    expected = alpha * opd + (1 - alpha) * grpo[:, None]
    opd_, grpo_ = jnp.asarray(opd, jnp.float32), jnp.asarray(grpo, jnp.float32)
    np.testing.assert_allclose(mix_advantages(opd_, grpo_, alpha), expected, **FP32)
    spread = jnp.broadcast_to(grpo_[:, None], (4, 5))
    np.testing.assert_allclose(mix_advantages(opd_, spread, alpha), expected, **FP32)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(-2, 2), st.integers(0, 2**31 - 1))
def test_matched_mixture_has_the_norm_and_the_shares_that_it_promises(alpha, log_ratio, seed):
    rng = np.random.default_rng(seed)
    g_opd, g_grpo = rng.normal(size=20), rng.normal(size=20) * 10**log_ratio
    norms = jnp.float32(np.linalg.norm(g_opd)), jnp.float32(np.linalg.norm(g_grpo))
    w_opd, w_grpo = matched_mix_weights(*norms, alpha, inner=jnp.float32(g_opd @ g_grpo))
    mixed = np.linalg.norm(float(w_opd) * g_opd + float(w_grpo) * g_grpo)
    np.testing.assert_allclose(mixed, np.linalg.norm(g_opd), rtol=1e-3)
    share = float(w_opd) * np.linalg.norm(g_opd) / (float(w_grpo) * np.linalg.norm(g_grpo))
    np.testing.assert_allclose(share, alpha / (1 - alpha), rtol=1e-3)
    advantages = jnp.ones((2, 3)), jnp.full((2,), 2.0)
    expected = float(w_opd) + 2 * float(w_grpo)
    np.testing.assert_allclose(mix_advantages(*advantages, alpha, weights=(w_opd, w_grpo)), expected, rtol=1e-5)


def test_matched_mixture_without_informative_groups_is_distillation():
    w_opd, w_grpo = matched_mix_weights(jnp.float32(3.0), jnp.float32(0.0), 0.25, inner=jnp.float32(0.0))
    assert float(w_grpo) == 0.0
    np.testing.assert_allclose(w_opd, 1.0, rtol=1e-6)


def sparsify_oracle(gap, mask, fraction):
    out = np.zeros(gap.shape)
    for row in range(gap.shape[0]):
        response = np.flatnonzero(mask[row])
        if response.size:
            count = max(1, math.floor(fraction * response.size + 0.5))
            kept = sorted(response, key=lambda t: (-gap[row, t], t))[:count]
            out[row, kept] = response.size / count
    return out


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0.25, 0.5, 1.0]), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_sparsified_tokens_are_those_with_the_largest_signed_gap(fraction, density, seed):
    rng = np.random.default_rng(seed)
    gap = rng.integers(-3, 4, (3, 9)).astype(np.float32)  # small integers: many ties, both signs
    mask = rng.random((3, 9)) < density
    found = sparsify_tokens(jnp.asarray(gap), jnp.asarray(mask), fraction=fraction)
    np.testing.assert_allclose(found, sparsify_oracle(gap, mask, fraction), rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), mask.sum(1), rtol=1e-6)


def test_random_sparsification_is_uniform_and_keeps_the_full_weight():
    mask = jnp.array([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    draw = jax.jit(
        jax.vmap(lambda key: sparsify_tokens(jnp.zeros((3, 6)), mask, fraction=0.5, method="random", key=key))
    )
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 1000)))
    np.testing.assert_allclose(drawn.sum(-1), np.broadcast_to([4.0, 2.0, 0.0], (1000, 3)))
    assert set(np.unique(drawn)) == {0.0, 2.0}
    # Each weight is 2 with probability one half: mean 1, standard error 1/sqrt(1000) = 0.032.
    np.testing.assert_allclose(drawn.mean(0), np.asarray(mask), atol=5 * 0.032)


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 1.5}, {"fraction": 0.5, "method": "random"}])
def test_sparsification_refuses(options):
    with pytest.raises(ValueError, match="fraction|key"):
        sparsify_tokens(jnp.zeros((1, 2)), jnp.ones((1, 2)), **options)
