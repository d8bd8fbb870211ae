"""AdamW and its schedules against PyTorch and closed forms, under strict dtype promotion."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings, adamw, learning_rate_schedule


def params_and_gradients(steps=5):
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
        "norm": {"scale": np.ones((2, 3))},
    }
    draws = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(steps)]
    return params, draws


@pytest.mark.parametrize(("decay", "clip_norm"), [("all", None), ("matrices", 0.5)])
def test_equals_pytorch_over_fifty_steps(decay, clip_norm):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    settings = AdamWSettings(
        1e-2, b1=0.9, b2=0.98, eps=1e-15, weight_decay=0.1, decay=decay, clip_norm=clip_norm, warmup_fraction=0.4
    )
    params, gradients = params_and_gradients(50)
    leaves, structure = jax.tree.flatten(params)
    decays = [True] * 3 if decay == "all" else [False, True, False]  # bias, kernel, scale
    tensors = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    groups = [{"params": [t], "weight_decay": 0.1 if d else 0.0} for t, d in zip(tensors, decays, strict=True)]
    oracle = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-15)

    transform = adamw(settings, 50)
    ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = transform.init(ours)

    @jax.jit
    def step(params, state, gradients):
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for index, gradient in enumerate(gradients):
        for group in oracle.param_groups:
            group["lr"] = 1e-2 * min((index + 1) / 20, 1.0)
        for tensor, leaf in zip(tensors, jax.tree.leaves(gradient), strict=True):
            tensor.grad = torch.tensor(leaf)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors, clip_norm)
        oracle.step()
        ours, state = step(ours, state, jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient))
    for a, b in zip(jax.tree.leaves(ours), tensors, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(ours) == structure


def test_decay_mask_may_be_given():
    params, _ = params_and_gradients()
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    chosen = {"dense": {"kernel": False, "bias": True}, "norm": {"scale": False}}
    transform = adamw(AdamWSettings(0.5, weight_decay=0.1, decay="matrices"), 3, matrices=chosen)
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.05 * params["dense"]["bias"], rtol=1e-6)
    np.testing.assert_array_equal(updates["dense"]["kernel"], 0.0)


def test_cosine_schedule_has_its_closed_form():
    settings = AdamWSettings(1e-5, schedule="cosine", learning_rate_end=1e-6, warmup_fraction=0.1)
    rates = np.asarray(jax.jit(jax.vmap(learning_rate_schedule(settings, 100)))(jnp.arange(120)))
    expected = [
        1e-5 * (n + 1) / 10 if n < 10 else 1e-6 + 9e-6 * 0.5 * (1 + math.cos(math.pi * min((n - 10) / 90, 1.0)))
        for n in range(120)
    ]
    np.testing.assert_allclose(rates, expected, rtol=2e-5)


def test_constant_schedule_and_one_step_runs():
    assert float(learning_rate_schedule(AdamWSettings(0.25), 1)(0)) == 0.25
    all_warmup = learning_rate_schedule(AdamWSettings(1.0, schedule="cosine", warmup_fraction=1.0), 4)
    np.testing.assert_allclose([all_warmup(n) for n in range(4)], [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("b1", 1.0),
        ("eps", -1e-8),
        ("weight_decay", math.inf),
        ("warmup_fraction", 1.5),
        ("clip_norm", 0.0),
    ],
)
def test_settings_refuse(field, value):
    with pytest.raises(UserError, match=field):
        AdamWSettings(**({"learning_rate": 1e-3} | {field: value}))


def test_floor_above_the_peak_is_refused():
    with pytest.raises(UserError, match="learning_rate_end"):
        AdamWSettings(1e-5, schedule="cosine", learning_rate_end=1e-4)
