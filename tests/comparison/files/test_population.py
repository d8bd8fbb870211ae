"""Which matrices a checkpoint of any decoder family has."""

import numpy as np
import pytest

from jaxgeom.checkpoints import Tensor, open_checkpoint
from jaxgeom.comparison import CompareSettings, compare_checkpoints
from jaxgeom.comparison.files.population import parts_of
from jaxgeom.errors import UserError
from tests.comparison import disk

CONFIG = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3}


def tensor(name: str, *shape: int) -> tuple[Tensor, np.ndarray]:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Tensor(name, shape, "float32", lambda start, stop: array if start is None else array[start:stop]), array


@pytest.mark.parametrize(
    "name, module, layer",
    [
        ("model.layers.3.self_attn.q_proj.weight", "q", 3),
        ("model.layers.11.mlp.down_proj.weight", "down", 11),
        ("model.layers.0.mlp.experts.5.gate_proj.weight", "gate", 0),
        ("model.layers.0.block_sparse_moe.experts.5.w2.weight", "down", 0),
        ("model.language_model.layers.2.self_attn.o_proj.weight", "o", 2),
    ],
)
def test_linear_weights_are_matrices(name, module, layer):
    source, array = tensor(name, 6, 8)
    (part,) = parts_of(source, CONFIG)
    assert part.is_matrix and (part.module, part.layer, part.shape) == (module, layer, (6, 8))
    np.testing.assert_array_equal(part.read(source), array)


@pytest.mark.parametrize(
    "name, shape, group",
    [
        ("model.embed_tokens.weight", (10, 8), "embedding"), ("lm_head.weight", (10, 8), "head"),
        ("model.norm.weight", (8,), "norm"), ("model.layers.0.self_attn.q_norm.weight", (8,), "norm"),
        ("model.layers.0.post_attention_layernorm.weight", (8,), "norm"),
        ("model.layers.0.self_attn.q_proj.bias", (8,), "bias"),
        ("model.layers.0.mlp.gate.weight", (4, 8), "router"), ("something.else", (3,), "other"),
    ],
)  # fmt: skip
def test_everything_else_has_a_group(name, shape, group):
    (part,) = parts_of(tensor(name, *shape)[0], CONFIG)
    assert part.group == group and not part.is_matrix


@pytest.mark.parametrize(
    "name, shape, config, group",
    [
        ("model.layers.0.block_sparse_moe.gate.weight", (4, 8), {"num_local_experts": 4}, "router"),  # Mixtral
        ("model.layers.0.block_sparse_moe.gate.weight", (4, 8), {}, "router"),
        ("model.layers.0.ffn.gate.weight", (6, 8), {"n_routed_experts": 6}, "router"),
        ("model.layers.0.ffn.gate.weight", (16, 8), {"n_routed_experts": 6}, "matrices"),
        ("model.layers.0.ffn.gate.weight", (16, 8), {}, "matrices"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", (4, 8), {}, "router"),  # Granite
        ("model.layers.0.mlp.shared_expert.gate_proj.weight", (4, 8), {"num_experts": 4}, "matrices"),
    ],
)
def test_a_router_is_no_gate_projection(name, shape, config, group):
    (part,) = parts_of(tensor(name, *shape)[0], config)
    assert part.group == group and part.shape == shape


@pytest.mark.parametrize("name, shape", [("mlp.gate_up_proj.weight", (9, 8)), ("mlp.experts.gate_up_proj", (3, 9, 8))])
def test_gate_and_up_of_unequal_size_are_refused(name, shape):
    with pytest.raises(UserError, match="does not split into gate and up"):
        parts_of(tensor(f"model.layers.0.{name}", *shape)[0], CONFIG)


def test_fused_attention_is_split_by_heads():
    source, array = tensor("model.layers.0.self_attn.qkv_proj.weight", 24, 8)
    parts = parts_of(source, CONFIG)
    assert [part.name[-3:] for part in parts] == ["[q]", "[k]", "[v]"] and [part.shape[0] for part in parts] == [
        12,
        6,
        6,
    ]
    np.testing.assert_array_equal(np.concatenate([part.read(source) for part in parts]), array)
    with pytest.raises(UserError, match="does not split"):
        parts_of(tensor("model.layers.0.self_attn.qkv_proj.weight", 25, 8)[0], CONFIG)
    with pytest.raises(UserError, match="num_attention_heads"):
        parts_of(source, None)


def test_interleaved_attention_is_split_per_head():
    source, array = tensor("gpt_neox.layers.1.attention.query_key_value.weight", 24, 8)
    q, k, v = (part.read(source) for part in parts_of(source, {"num_attention_heads": 4}))
    heads = array.reshape(4, 3, 2, 8)
    for index, piece in enumerate((q, k, v)):
        np.testing.assert_array_equal(piece, heads[:, index].reshape(8, 8))


def test_fused_gate_and_up():
    source, array = tensor("model.layers.0.mlp.gate_up_proj.weight", 12, 8)
    gate, up = parts_of(source, CONFIG)
    assert (gate.module, up.module) == ("gate", "up")
    np.testing.assert_array_equal(np.concatenate([gate.read(source), up.read(source)]), array)


@pytest.mark.parametrize("swapped", [False, True])
def test_stacked_experts_are_single_matrices(swapped):
    """`[expert, 2·inner, hidden]` and `[expert, hidden, 2·inner]` give the same gate and up, `[out, in]`."""
    source, array = tensor("model.layers.0.mlp.experts.gate_up_proj", *((3, 8, 10) if swapped else (3, 10, 8)))
    parts = parts_of(source, CONFIG)
    assert [part.name.rsplit(".", 1)[1] for part in parts][:3] == [
        "gate_up_proj[0,gate]",
        "gate_up_proj[0,up]",
        "gate_up_proj[1,gate]",
    ]
    for part in parts:
        matrix = array[part.expert].T if swapped else array[part.expert]
        np.testing.assert_array_equal(part.read(source), matrix[:5] if part.module == "gate" else matrix[5:])
    down, stacked = tensor("model.layers.0.mlp.experts.down_proj", *((3, 5, 8) if swapped else (3, 8, 5)))
    for part in parts_of(down, CONFIG):
        assert part.shape == (8, 5) and part.module == "down"
        np.testing.assert_array_equal(part.read(down), stacked[part.expert].T if swapped else stacked[part.expert])


@pytest.mark.parametrize("swapped", [False, True])
def test_square_stacks_lie_as_the_others_of_their_layer(swapped):
    """gate_up_proj of a hidden size of twice the inner one is square: down_proj, which is not, tells."""
    source, array = tensor("model.layers.0.mlp.experts.gate_up_proj", 3, 8, 8)
    down = "model.layers.0.mlp.experts.down_proj"
    shapes = {source.name: (3, 8, 8), down: (3, 4, 8) if swapped else (3, 8, 4)}
    for part in parts_of(source, CONFIG, shapes):
        matrix = array[part.expert].T if swapped else array[part.expert]
        np.testing.assert_array_equal(part.read(source), matrix[:4] if part.module == "gate" else matrix[4:])
    square, held = tensor(down, 3, 8, 8)
    for part in parts_of(square, CONFIG, {down: (3, 8, 8), source.name: (3, 8, 16) if swapped else (3, 16, 8)}):
        np.testing.assert_array_equal(part.read(square), held[part.expert].T if swapped else held[part.expert])
    for shapes in ({}, {source.name: (3, 8, 8), down: (3, 8, 8)}):
        with pytest.raises(UserError, match="are square, and no other stack beside it"):
            parts_of(source, CONFIG, shapes)


def test_experts_of_gpt_oss_are_turned_and_their_gate_and_up_alternate():
    config = {"model_type": "gpt_oss", "hidden_size": 8, "intermediate_size": 8}
    source, array = tensor("model.layers.0.mlp.experts.gate_up_proj", 2, 8, 16)
    parts = parts_of(source, config)
    assert [part.module for part in parts] == ["gate", "up"] * 2 and {part.shape for part in parts} == {(8, 8)}
    np.testing.assert_array_equal(parts[2].read(source), array[1, :, 0::2].T)
    np.testing.assert_array_equal(parts[3].read(source), array[1, :, 1::2].T)
    source, array = tensor("model.layers.0.mlp.experts.down_proj", 2, 8, 8)
    np.testing.assert_array_equal(parts_of(source, config)[1].read(source), array[1].T)


def test_attention_is_q_k_v_o_of_every_layer_fused_ones_too(tmp_path):
    rng = np.random.default_rng(0)
    fused = {
        "model.embed_tokens.weight": (90, 40),
        "model.layers.0.self_attn.qkv_proj.weight": (96, 40),
        "model.layers.0.self_attn.qkv_proj.bias": (96,),
        "model.layers.0.self_attn.o_proj.weight": (40, 48),
        "model.layers.0.self_attn.q_norm.weight": (12,),
        "model.layers.0.mlp.gate_up_proj.weight": (144, 40),
        "model.layers.0.mlp.down_proj.weight": (40, 72),
    }
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in fused.items()}
    pair = [
        open_checkpoint(disk.write(tmp_path / name, side))
        for name, side in (("a", weights), ("b", disk.moved(weights, 1e-2)))
    ]
    settings = CompareSettings(suite="fast", population="attention")
    report = compare_checkpoints(*pair, settings)
    assert [row["module"] for row in report.matrices] == ["q", "k", "v", "o"] and not report.parameters
    held = 96 * 40 + 40 * 48
    total = sum(w.size for w in weights.values())
    assert report.coverage["stable_rank"] == {"parameters": held / total, "matrices": 4}
    assert report.coverage["sparsity_bf16"]["parameters"] == held / total
    assert report.settings["population"] == "attention"
    assert len(compare_checkpoints(*pair, CompareSettings(suite="fast")).matrices) == 7
    with pytest.raises(UserError, match="population = 'attention': leaves no parameter"):
        compare_checkpoints(*pair, CompareSettings(population="attention", include="mlp"))
