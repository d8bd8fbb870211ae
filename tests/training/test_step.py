"""The step against an independent one, and its independence of how the batch is cut and where it lies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings, adamw
from jaxgeom.sharding import batch_sharding, make_mesh, mesh_of, parameter_shardings
from jaxgeom.training import (
    Batch,
    RLVRSettings,
    SFTSettings,
    initial_state,
    make_train_step,
    objective_of,
    sequence_log_probs,
)
from tests.tiny import tiny_config, tiny_params

RATE = 1e-3
OPTIMIZER = AdamWSettings(learning_rate=RATE, weight_decay=0.1)
SFT = SFTSettings(steps=3, batch_size=16, optimizer=OPTIMIZER)
RLVR = RLVRSettings(steps=3, batch_size=16, optimizer=OPTIMIZER, samples_per_prompt=4)


@pytest.fixture(scope="module")
def model():
    return Qwen3(tiny_config())


@pytest.fixture(scope="module")
def params(model):
    return tiny_params(model.config)


def _batch(seed: int, *, on_policy: bool) -> Batch:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(3, 100, (16, 24)).astype(np.int32)
    lengths = generator.integers(6, 24, 16)
    valid = np.arange(24) < lengths[:, None]
    mask = valid & (np.arange(24) > 3)
    batch = Batch(tokens=jnp.asarray(tokens), valid=jnp.asarray(valid), loss_mask=jnp.asarray(mask))
    if not on_policy:
        return batch
    old = jnp.asarray(generator.normal(-4.7, 0.1, (16, 24)), jnp.float32)
    advantages = jnp.asarray(generator.normal(size=(16, 24)), jnp.float32)
    return batch.replace(old_log_probs=old, advantages=advantages)


@pytest.fixture(scope="module")
def prepare(model):
    """The step for some settings, compiled once for all tests, and a state of its own for each."""
    steps = {}

    def prepare(params, settings):
        optimizer = adamw(settings.optimizer, settings.steps)
        copy = jax.tree.map(jnp.array, params)  # a step donates its state
        state = initial_state(copy, optimizer)
        place = (settings, jax.tree.leaves(params)[0].sharding)
        if place not in steps:
            objective = objective_of(settings, model, mesh=mesh_of(params))
            steps[place] = make_train_step(objective, optimizer, state)
        return steps[place], state

    return prepare


log_probs_of = jax.jit(sequence_log_probs, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
    return model.apply({"params": params}, batch.tokens, valid=batch.valid)


def test_log_probs_are_those_of_the_whole_logits(model, params):
    batch = _batch(0, on_policy=False)
    got = log_probs_of(model, params, batch.tokens, batch.valid)
    logits = np.asarray(logits_of(model, params, batch), np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    wanted = np.take_along_axis(table[:, :-1], np.asarray(batch.tokens)[:, 1:, None], axis=-1)[..., 0]
    mask = np.asarray(batch.loss_mask)[:, 1:]
    np.testing.assert_allclose(np.asarray(got)[:, 1:][mask], wanted[mask], atol=2e-5)


def test_the_sft_step_is_adamw_on_the_mean_cross_entropy(model, params, prepare):
    step, state = prepare(params, SFT)
    batch = _batch(1, on_policy=False)

    def loss(tree):
        table = jax.nn.log_softmax(logits_of(model, tree, batch))
        picked = jnp.take_along_axis(table[:, :-1], batch.tokens[:, 1:, None], axis=-1)[..., 0]
        mask = batch.loss_mask[:, 1:].astype(jnp.float32)
        return -jnp.sum(picked * mask) / jnp.sum(mask)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    # At the first step Adam's bias-corrected moments are g and g²: the update has a closed form.
    wanted = jax.tree.map(lambda w, g: w - RATE * (g / (jnp.abs(g) + OPTIMIZER.eps) + 0.1 * w), params, grads)
    state, metrics = step(state, batch)
    np.testing.assert_allclose(float(metrics["loss"]), float(value), rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-4)
    # Adam divides by the root of the second moment: entries whose gradient is rounding noise move
    # by up to the rate.
    worst = jax.tree.map(lambda a, b: float(jnp.quantile(jnp.abs(a - b), 0.99)), state.params, wanted)
    assert max(jax.tree.leaves(worst)) < 0.01 * RATE
    assert int(state.step) == 1


@pytest.mark.parametrize("settings", [SFT, RLVR], ids=["sft", "rlvr"])
def test_the_gradient_does_not_depend_on_the_number_of_parts(params, prepare, settings):
    batch = _batch(2, on_policy=settings is RLVR)
    results = []
    for parts in (1, 4):
        step, state = prepare(params, dataclasses.replace(settings, micro_batches=parts))
        state, metrics = step(state, batch)
        results.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    np.testing.assert_allclose(*results, rtol=2e-5)


def _entropies(model, params, batch):
    """Of the distribution that each token was drawn from, float64 `[batch, time]`."""
    logits = np.asarray(model.apply({"params": params}, batch.tokens, valid=batch.valid), np.float64) / RLVR.temperature
    log_probs = log_softmax(logits, axis=-1)
    return np.pad(-np.sum(np.exp(log_probs) * log_probs, axis=-1)[:, :-1], ((0, 0), (1, 0)))


def test_metrics_are_those_of_all_tokens_whatever_the_number_of_parts(model, params, prepare):
    """Against float64 NumPy over the tokens of a ragged batch, of which one part has none at all."""
    batch = _batch(5, on_policy=True)
    mask = np.array(batch.loss_mask)
    mask[3::4] = False  # the rows of the last of four parts, and half of those of the second of two
    batch = batch.replace(loss_mask=jnp.asarray(mask))
    new = np.asarray(log_probs_of(model, params, batch.tokens, batch.valid), np.float64)[mask]
    old, advantages = (np.asarray(x, np.float64)[mask] for x in (batch.old_log_probs, batch.advantages))
    ratio = np.exp(new - old)
    low, high = (ratio < 1 - RLVR.clip_low) & (advantages < 0), (ratio > 1 + RLVR.clip_high) & (advantages > 0)
    wanted = {
        "tokens": mask.sum(),
        "ratio_mean": ratio.mean(),
        "clip_fraction": (low | high).mean(),
        "clip_fraction_low": low.mean(),
        "clip_fraction_high": high.mean(),
        "approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "advantage_mean": advantages.mean(),
        "entropy": _entropies(model, params, batch)[mask].mean(),
    }
    assert 0 < wanted["clip_fraction_low"] and 0 < wanted["clip_fraction_high"]
    for parts in (1, 2, 4):
        step, state = prepare(params, dataclasses.replace(RLVR, micro_batches=parts))
        _, metrics = step(state, batch)
        for name, value in wanted.items():
            np.testing.assert_allclose(float(metrics[name]), value, rtol=2e-5, atol=1e-6, err_msg=f"{name}, {parts}")
        assert set(metrics) == {*wanted, "loss", "grad_norm", "update_norm", "param_norm", "batch_tokens"}


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=["fsdp", "all"])
def test_a_sharded_step_is_the_step(params, prepare, sizes):
    batch = _batch(3, on_policy=True)
    step, state = prepare(params, RLVR)
    _, wanted = step(state, batch)
    mesh = make_mesh(*sizes)
    placed = jax.device_put(params, parameter_shardings(params, mesh))
    step, state = prepare(placed, RLVR)
    state, got = step(state, jax.device_put(batch, batch_sharding(mesh)))
    for name in ("loss", "grad_norm", "update_norm"):
        np.testing.assert_allclose(float(got[name]), float(wanted[name]), rtol=1e-4, err_msg=name)
    before, after = jax.tree.leaves(placed), jax.tree.leaves(state.params)
    assert all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(before, after, strict=True))


def test_a_rewarded_answer_becomes_likelier(model, params, prepare):
    batch = _batch(4, on_policy=True)
    old = log_probs_of(model, params, batch.tokens, batch.valid)
    signs = jnp.where(jnp.arange(16) % 2 == 0, 1.0, -1.0)[:, None]
    batch = batch.replace(old_log_probs=old, advantages=jnp.broadcast_to(signs, (16, 24)))
    step, state = prepare(params, RLVR)
    state, _ = step(state, batch)
    new = log_probs_of(model, state.params, batch.tokens, batch.valid)
    change = jnp.sum((new - old) * batch.loss_mask.astype(jnp.float32), axis=1)
    assert float(jnp.mean(change[::2])) > 0 > float(jnp.mean(change[1::2]))
