"""Eight simulated devices compute what one does, each with its part of the parameters."""

import dataclasses
import itertools
import math
import re
import types
import unittest.mock
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.attention import attend_cache, attend_cache_and_own
from jaxgeom.models.load import abstract_parameters
from jaxgeom.rollout import SamplingSettings, sample, sampler_programs
from jaxgeom.sharding import (
    batch_divisor,
    batch_sharding,
    make_mesh,
    parameter_shardings,
    partition_specs,
    platform_of,
    spread_rows,
)
from tests.tiny import tiny_params

CONFIG = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
MOE = dataclasses.replace(CONFIG, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX asks of a TPU to lay a mesh over it."""

    id: int
    coords: tuple[int, ...]
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"


def test_chips_of_a_slice_take_every_shape():
    """Also one whose axis is a part of one of the slice's, and of chips that are no box: less those of a teacher."""
    places = itertools.product(range(4), range(2), range(2))
    chips = [Chip(number, place[::-1]) for number, place in enumerate(places)]
    for count in (16, 15, 12, 1):
        for sizes in itertools.product(range(1, 17), repeat=4):
            if math.prod(sizes) == count:
                mesh = make_mesh(*sizes, devices=chips[:count])
                assert tuple(mesh.shape.values()) == sizes and {*mesh.devices.flat} == {*chips[:count]}


@pytest.mark.parametrize(
    ("config", "sizes", "platform"),
    [
        (CONFIG, (2, 2, 2, 1), None),
        (MOE, (1, 2, 2, 2), None),
        (MOE, (2, 4, 1, 1), None),
        (dataclasses.replace(MOE, num_experts=6), (1, 2, 1, 4), None),
        (CONFIG, (2, 2, 2, 1), "gpu"),
    ],
    ids=["dense", "experts", "experts by rows", "experts that do not divide", "gpu"],
)
def test_sharded_logits_gradients_and_samples_equal_unsharded(config, sizes, platform):
    mesh = make_mesh(*sizes)
    model = Qwen3(config, platform=platform)
    params = tiny_params(config)
    spread = Qwen3(config, mesh=mesh)
    sharded = jax.device_put(params, parameter_shardings(params, mesh))
    kernel = sharded["layers"]["attention"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size * sizes[1] * sizes[2] == kernel.size
    local = jax.device_put(jax.device_get(sharded), jax.devices()[0])
    tokens = np.random.default_rng(0).integers(0, 64, (8, 9)).astype(np.int32)

    @partial(jax.jit, static_argnums=0)
    def run(model, params, tokens):
        def loss(params):
            logits = model.apply({"params": params}, tokens)
            return jnp.mean(jnp.square(logits)), logits

        return jax.grad(loss, has_aux=True)(params)

    settings = SamplingSettings(3)
    with jax.set_mesh(mesh):
        gradient, logits = run(spread, sharded, jax.device_put(tokens, batch_sharding(mesh)))
        rollout = sample(spread, sharded, tokens.tolist(), range(8), settings, pad_id=0)
    want_gradient, want_logits = run(model, local, tokens)
    np.testing.assert_allclose(logits, want_logits, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, want_gradient)
    want = sample(model, local, tokens.tolist(), range(8), settings, pad_id=0)
    assert rollout.responses() == want.responses()


def test_decoding_moves_no_kernel():
    """Per token only products of the few rows go between devices, and the last of them are the logits."""
    mesh = make_mesh(2, 2, 2)
    config = dataclasses.replace(CONFIG, hidden_size=64, vocab_size=512)
    model = Qwen3(config, mesh=mesh)
    shapes = abstract_parameters(model)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        parameter_shardings(shapes, mesh),
    )
    programs = sampler_programs(model, params, SamplingSettings(9), rows=4, width=8, pad_id=0)
    function, arguments = programs["decode"]
    text = function.lower(*arguments).compile().as_text()
    moved = [
        math.prod(map(int, dims.split(",")))
        for line in text.splitlines()
        if (found := re.search(r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(", line))
        for dims in re.findall(r"\w\[([\d,]+)\]", found[1])
    ]
    # Logits of two rows, or half of them; next to them what is less than the smallest kernel, of 64·2·8 entries.
    assert moved and max(moved) <= 2 * 512 and sorted(moved)[-4] <= 4 * 64, sorted(moved)


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (2, 2, 2, 1)])
def test_the_compiler_finds_a_way_between_all_shardings(sizes, capfd):
    """Where it does not, it says so on stderr and keeps a whole copy of what it moves on every device."""
    mesh = make_mesh(*sizes)
    model = Qwen3(CONFIG, mesh=mesh)
    params = tiny_params(CONFIG)
    shardings = parameter_shardings(params, mesh)

    def loss(params, tokens):
        return jnp.mean(jnp.square(model.apply({"params": params}, tokens)))

    tokens = jax.device_put(np.zeros((8, 24), np.int32), batch_sharding(mesh))
    jax.jit(jax.grad(loss), out_shardings=shardings).lower(jax.device_put(params, shardings), tokens).compile()
    assert "rematerialization" not in capfd.readouterr().err


def test_what_does_not_divide_is_left_to_the_compiler():
    mesh, odd = make_mesh(2, 4), jnp.zeros((3, 5, 7))
    for x, place in ((odd, mesh), (jnp.zeros((8, 5, 8)), make_mesh(8)), (odd, None)):
        assert spread_rows(x, place) is x


def test_mesh_sizes_are_checked():
    assert make_mesh().shape["data"] == 8
    assert batch_divisor(make_mesh(2, -1, 2)) == 4 and batch_divisor(None) == 1
    for sizes in ((3, 1, 1, 1), (-1, -1, 1, 1), (0, 8, 1, 1), (-1, 3, 1, 1)):
        with pytest.raises(ValueError, match="mesh sizes"):
            make_mesh(*sizes)


def test_an_axis_that_the_mesh_has_not_is_left_out():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = partition_specs({"mlp": {"gate": {"kernel": jax.ShapeDtypeStruct((2, 4, 16, 8), jnp.float32)}}}, mesh)
    assert specs["mlp"]["gate"]["kernel"] == jax.sharding.PartitionSpec(None, None, "fsdp", None)


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(ValueError, match="adapter/kernel"):
        partition_specs({"adapter": {"kernel": jnp.zeros((2, 2))}}, make_mesh())


def test_the_platform_is_that_of_the_devices():
    mesh = make_mesh(1, 8, 1, 1)
    shapes = {"embed": {"embedding": jax.ShapeDtypeStruct((16, 8), jnp.float32)}}
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(shapes, mesh),
    )
    for place in (mesh, placed, jnp.zeros(3), np.zeros(3), None):
        assert platform_of(place) == "cpu"


def test_a_mesh_of_another_platform_than_the_default_is_believed():
    device = types.SimpleNamespace(platform="tpu", id=0)
    mesh = unittest.mock.Mock(spec=jax.sharding.Mesh, devices=np.array([[device]], object))
    array = types.SimpleNamespace(sharding=types.SimpleNamespace(device_set={device.id: device}.values()))
    assert jax.default_backend() == "cpu" and platform_of(mesh) == platform_of(array) == "tpu"
    with jax.default_device("tpu"):
        assert platform_of(None) == "tpu"


def test_arrays_inside_a_program_lie_nowhere():
    with pytest.raises(ValueError, match="inside jit"):
        jax.jit(lambda x: platform_of({"w": x}) and x)(jnp.zeros(2))


def test_a_token_reads_a_cache_that_its_own_key_is_not_in():
    """As one that it is written to: the same attention, with a row that sees nothing before it."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((3, 1, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    keys, values = (jnp.asarray(rng.standard_normal((3, 2, 6, 8)), jnp.float32) for _ in range(2))
    before = jnp.asarray([[True] * 4 + [False] * 2, [False] * 6, [False, True, True, True, False, False]])
    written = [cache.at[:, :, 4].set(new[:, 0]) for cache, new in ((keys, k), (values, v))]
    expected = attend_cache(q, *written, before.at[:, 4].set(True))
    np.testing.assert_allclose(attend_cache_and_own(q, k, v, keys, values, before), expected, rtol=1e-5, atol=1e-6)
