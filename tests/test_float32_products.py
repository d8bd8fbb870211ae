"""Float32 is float32 on accelerators too: read from the programs that are lowered for them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3, Qwen3Config, abstract_parameters
from jaxgeom.rollout import SamplingSettings
from jaxgeom.rollout.sampling import sampler_programs
from jaxgeom.training.scoring import sequence_log_probs

CONFIG = Qwen3Config(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip
TOKENS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


def products(traced, platform):
    """`(operands, precision)` of every product of a traced program."""
    text = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()
    found = []
    for line in text.splitlines():
        if "stablehlo.dot_general" in line:
            precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
            found.append((re.search(r": \(tensor<[\dx]*(\w+)>", line).group(1), precision and precision.group(1)))
    return found


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_a_step_and_of_sampling(platform, dtype):
    model = Qwen3(CONFIG, dtype=dtype, platform=platform, attention="plain")
    params, valid = abstract_parameters(model), jax.ShapeDtypeStruct((2, 16), bool)
    gradient = jax.jit(jax.grad(lambda p, t, v: jnp.sum(sequence_log_probs(model, p, t, v))))
    found = products(gradient.trace(params, TOKENS, valid), platform)
    for function, arguments in sampler_programs(model, params, SamplingSettings(4), rows=2, width=8, pad_id=0).values():
        found += products(function.trace(*arguments), platform)
    wide, narrow = ([precision for operands, precision in found if operands == kind] for kind in ("f32", "bf16"))
    if dtype == jnp.float32:
        assert len(wide) > 20 and set(wide) == {"HIGHEST"} and not narrow
    else:
        assert len(narrow) > 20 and "HIGHEST" not in narrow


def test_what_the_user_set_stands():
    model, arguments = Qwen3(CONFIG, platform="tpu"), (jax.ShapeDtypeStruct((1, 4), jnp.int32),)
    params = abstract_parameters(model)
    with jax.default_matmul_precision("high"):
        traced = jax.jit(lambda p, t: model.apply({"params": p}, t)).trace(params, *arguments)
        assert {precision for _, precision in products(traced, "tpu")} == {"HIGH"}


def test_numbers_of_a_cpu_stay_as_they_were():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for _ in range(2))
    np.testing.assert_array_equal(jnp.matmul(x, y), jnp.matmul(x, y, precision="highest"))
