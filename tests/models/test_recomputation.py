"""What a block keeps for its gradient: the products, and nothing that is cheap to compute again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3, Qwen3Config
from tests.tiny import tiny_params

DENSE = Qwen3Config(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip
MOE = Qwen3Config(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 24)).astype(np.int32)


def loss(model, params):
    return jnp.mean(jnp.square(model.apply({"params": params}, jnp.asarray(TOKENS))))


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_gradients_are_those_of_blocks_that_keep_all_or_nothing(config, monkeypatch):
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, tiny_params(config))
    gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    light, recomputed = gradient(Qwen3(config), params), gradient(Qwen3(config, remat=True), params)
    monkeypatch.setattr("jaxgeom.models.qwen3.keep_products", lambda function: function)
    whole = jax.jit(jax.grad(functools.partial(loss, Qwen3(config))))(params)
    for other in (recomputed, whole):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), light, other)


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_what_waits_for_the_backward_pass_is_products_inputs_and_attention(config, monkeypatch):
    """Counted in the traced program: what the forward scan stacks, a layer and token, in numbers."""

    def stacked(model):
        traced = jax.make_jaxpr(lambda p: jax.vjp(functools.partial(loss, model), p)[1])(tiny_params(config))
        (scan,) = [one for one in traced.jaxpr.eqns if one.primitive.name == "scan"]
        outputs = [var.aval for var in scan.outvars]
        return sum(out.size / (3 * TOKENS.size) for out in outputs if out.shape[:1] == (3,))  # not what is carried

    light = stacked(Qwen3(config))
    monkeypatch.setattr("jaxgeom.models.qwen3.keep_products", lambda function: function)
    whole = stacked(Qwen3(config))
    # Of `DENSE` a token: the block's input 32, the products of q 64, k and v 32 each, o 32, gate and up 48 each; beside
    # them queries, keys, values and attention's own (scores of 24 columns, a few times over).
    products = 32 + 64 + 2 * 32 + 32 + (2 * 48 if config is DENSE else 2 * (2 * 24 + 32) + 4)
    assert products < light < 0.75 * whole
