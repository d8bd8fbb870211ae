"""However eight devices are laid out, a run computes what one device does: loss, gradient, step, answers, geometry."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxgeom.diagnostics import measure
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.names import spectral_specs
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.optimizers.leaves import own_copy
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.sharding import AXES, make_mesh, parameter_shardings
from jaxgeom.training import Batch, SFTSettings, initial_state, make_optimizer, make_train_step, objective_of
from jaxgeom.training.state import on_mesh
from tests.tiny import tiny_params

DENSE = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=4, initializer_range=0.1,
)  # fmt: skip
MOE = dataclasses.replace(DENSE, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
MODELS = {"dense": DENSE, "moe": MOE}
ROWS, LENGTH, RATE = 8, 16, 1e-2
STATISTICS = ("relative_norm", "sparsity_bf16", "stable_rank")
SETTINGS = SFTSettings(steps=1, batch_size=ROWS, optimizer=AdamWSettings(learning_rate=RATE), max_length=LENGTH)


def every_factorisation(expert):
    """Sizes of data, fsdp, tensor, expert that multiply to eight."""
    sizes = itertools.product((1, 2, 4, 8), repeat=4)
    return [found for found in sizes if math.prod(found) == 8 and (expert or found[3] == 1)]


def rows_of(packed):
    """Padded on the right, or two sequences a row; the first token of each is not learned from."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 64, (ROWS, LENGTH)).astype(np.int32)
    ends = generator.integers(LENGTH // 2, LENGTH, ROWS)[:, None]
    place = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    if packed:
        learned = (place > 0) & (place != ends)
        return Batch(tokens, np.ones_like(learned), learned, segments=(place >= ends).astype(np.int32))
    return Batch(tokens, place < ends, (place > 0) & (place < ends))


def geometry_of(layers, whole):
    """What is measured: all matrices of the layers, or two, which is a smaller program."""
    if whole:
        return {name: layers[name] for name in ("attention", "mlp")}
    return {"q": layers["attention"]["q"], "down": layers["mlp"]["down"]}


def computed(name, sizes, packed, sampled):
    """What a run on a mesh computes, on the host; without sizes, on one device."""
    config = dataclasses.replace(MODELS[name], tie_word_embeddings=not packed)
    mesh = make_mesh(*(sizes or (1, 1, 1, 1)), devices=jax.devices()[: math.prod(sizes or (1,))])
    params = tiny_params(config)
    params = jax.device_put(params, parameter_shardings(params, mesh))
    model = Qwen3(config, platform="cpu", mesh=mesh)
    settings = dataclasses.replace(SETTINGS, packing=packed)
    objective, optimizer = objective_of(settings, model, [], mesh), make_optimizer(settings, params)
    # A copy: the step takes its state's own buffers.
    state = initial_state(own_copy(params), optimizer)
    found = {}
    if sampled:
        answers = sample(
            model, params, [[3, 1, 4], [1, 5], [9, 2, 6, 5]], range(3), SamplingSettings(4, greedy=True), pad_id=0
        )
        found["answers"] = answers.responses()
    after, metrics = make_train_step(objective, optimizer, state)(state, on_mesh(rows_of(packed), mesh))
    specs = spectral_specs(config)
    of_layers = [geometry_of(tree["layers"], sampled) for tree in (params, after.params, specs)]
    measured = jax.jit(partial(measure, specs=of_layers[2], statistics=STATISTICS))(*of_layers[:2])
    moment = optax.tree.get(after.opt_state, "mu")
    found |= {"loss": metrics["loss"], "moment": moment, "params": after.params, "measured": measured}
    return jax.device_get(found)


@pytest.fixture(scope="module")
def alone():
    """Of one device, each asked for once."""
    held = {}

    def get(name, packed, sampled):
        key = name, packed, sampled
        if key not in held:
            held[key] = computed(name, None, packed, sampled)
        return held[key]

    return get


def compared(alone, name, sizes, packed, sampled):
    want, found = alone(name, packed, sampled), computed(name, sizes, packed, sampled)
    assert found.get("answers") == want.get("answers")
    np.testing.assert_allclose(found["loss"], want["loss"], rtol=1e-5)
    gradients = [jax.tree.map(lambda leaf: leaf / 0.1, one["moment"]) for one in (found, want)]  # (1 − b1)·g
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), *gradients)

    def same_step(mine, theirs, gradient):
        # Adam's first step is the rate times the gradient's sign: where that is all rounding, so is the step.
        sure = np.abs(gradient) > 1e-3 * largest
        np.testing.assert_allclose(mine[sure], theirs[sure], rtol=1e-5, atol=1e-2 * RATE)
        np.testing.assert_allclose(mine, theirs, atol=2.1 * RATE)

    jax.tree.map(same_step, found["params"], want["params"], gradients[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3), found["measured"], want["measured"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "packed"), [("dense", (2, 2, 2, 1), True), ("moe", (1, 2, 2, 2), False)], ids=["dense", "moe"]
)
def test_two_layouts_compute_what_one_device_does(alone, name, sizes, packed):
    compared(alone, name, sizes, packed, sampled=False)


LAYOUTS = [
    *(("dense", sizes, place % 2 == 0) for place, sizes in enumerate(every_factorisation(False))),
    *(("moe", sizes, place % 2 == 0) for place, sizes in enumerate(every_factorisation(True)) if sizes[3] > 1),
    ("moe", (2, 2, 2, 1), True),
]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "sizes", "packed"),
    LAYOUTS,
    ids=[f"{name}-{'x'.join(map(str, sizes))}-{'packed' if packed else 'padded'}" for name, sizes, packed in LAYOUTS],
)
def test_every_layout_computes_what_one_device_does(alone, name, sizes, packed):
    """Every layout once, for brevity: those that split experts by a mixture, the others by a dense model, one by both.

    In turn of packed rows with an unembedding of its own, and of padded rows with that of the embedding.
    """
    compared(alone, name, sizes, packed, sampled=True)


def test_every_layout_is_there():
    assert {sizes for _, sizes, _ in LAYOUTS} == set(every_factorisation(True)) and len(AXES) == 4
    assert len(every_factorisation(True)) == 20 and len(every_factorisation(False)) == 10
    assert {(name, packed) for name, _, packed in LAYOUTS} == {*itertools.product(("dense", "moe"), (True, False))}
