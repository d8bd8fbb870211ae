"""Reading and writing Hugging Face directories: streamed, to any sharding, and refused where they are wrong."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, load_model, save_model
from jaxgeom.models.load import _put_slice
from jaxgeom.sharding import make_mesh
from tests.tiny import tiny_params

CONFIG = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    params = tiny_params(CONFIG)
    source = tmp_path_factory.mktemp("tokenizer")
    (source / "tokenizer.json").write_text("{}")
    save_model(directory, CONFIG, params, tokenizer_from=source)
    return directory, params


def test_round_trip_is_exact_and_copies_the_tokenizer(written):
    directory, params = written
    model, again = load_model(directory)
    assert model.config == CONFIG and (directory / "tokenizer.json").is_file()
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_parameters_land_on_their_shards(written):
    directory, params = written
    mesh = make_mesh(1, 2, 2, 2)
    _, sharded = load_model(directory, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, params, sharded)
    gate = sharded["layers"]["mlp"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.shape == (3, 2, 16, 8)


def test_a_mesh_of_explicit_axes_is_refused(written):
    with pytest.raises(UserError, match="type Auto"):
        load_model(written[0], mesh=make_mesh(1, 2, 2, 2, axis_type=jax.sharding.AxisType.Explicit))


def test_bfloat16_files_and_parameters(written, tmp_path):
    directory, params = written
    save_model(tmp_path, CONFIG, params, dtype="bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    model, narrow = load_model(tmp_path, dtype="bfloat16", compute_dtype="float32")
    assert model.dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b), params, narrow)
    _, wide = load_model(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b), narrow, wide)


def test_host_memory_stays_at_a_few_tensors(tmp_path):
    config = Qwen3Config(
        vocab_size=1024, hidden_size=256, intermediate_size=1024, num_hidden_layers=10, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    params = tiny_params(config)
    save_model(tmp_path, config, params)
    load_model(tmp_path)  # what tracing and compiling allocate is not the model
    tracemalloc.start()
    _, loaded = load_model(tmp_path)
    jax.block_until_ready(loaded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = 1024 * 256 * 4
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 30 * largest
    assert peak < 3 * largest


def test_placing_an_expert_gathers_no_leaf():
    mesh = make_mesh(fsdp=2, expert=4)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "expert", "fsdp", None))
    one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "fsdp", None))
    leaf = jax.ShapeDtypeStruct((4, 16, 128, 256), jnp.float32, sharding=whole)
    part = jax.ShapeDtypeStruct((1, 1, 128, 256), jnp.float32, sharding=one)
    compiled = _put_slice.lower(leaf, part, jax.ShapeDtypeStruct((4,), jnp.int32), jnp.dtype("float32")).compile()
    used = compiled.memory_analysis()
    shard = 4 * 4 * 64 * 256 * 4
    assert used.alias_size_in_bytes == shard and used.temp_size_in_bytes < shard / 4
    assert "all-gather" not in compiled.as_text()


def damaged(directory, target, change):
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.norm.weight"), r"missing: model\.norm\.weight"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "not of this architecture: extra"),
        (lambda t: t.update({f"model.layers.{'7' * 5000}.x": np.zeros(2, np.float32)}), "tensors of 4 layers"),
        (lambda t: t.update({"model.norm.weight": np.zeros(33, np.float32)}), r"model\.norm\.weight.*\[33\].*\[32\]"),
        (lambda t: t.update({"model.norm.weight": np.zeros(32, np.int32)}), r"model\.norm\.weight.*int32"),
    ],
)
def test_wrong_tensors_are_named(written, tmp_path, change, named):
    with pytest.raises(UserError, match=named):
        load_model(damaged(written[0], tmp_path, change))


def poisoned(name, *values):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[: len(values)] = values

    return change


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.layers.1.mlp.experts.3.down_proj.weight", "model.norm.weight"],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_are_not_finite_are_named_and_counted(written, tmp_path, name, sharded):
    directory = damaged(written[0], tmp_path, poisoned(name, np.nan, np.inf, 1.0, -np.inf))
    with pytest.raises(UserError, match=rf"{name}.* has 3 of \d+ entries that are NaN or infinite"):
        load_model(directory, mesh=make_mesh(1, 2, 2, 2) if sharded else None)


def test_weights_that_overflow_the_dtype_asked_for_are_named(written, tmp_path):
    directory = damaged(written[0], tmp_path, poisoned("model.norm.weight", 1e6))
    load_model(directory)
    with pytest.raises(UserError, match=r"model\.norm\.weight.* has 1 of 32 .*float16"):
        load_model(directory, dtype="float16")
    with pytest.raises(UserError, match="dtype='int8'"):
        load_model(directory, dtype="int8")


def test_a_tied_head_must_be_the_embedding(tmp_path):
    config = dataclasses.replace(CONFIG, num_experts=0, tie_word_embeddings=True)
    params = tiny_params(config)
    save_model(tmp_path, config, params)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params, load_model(tmp_path)[1])
    tensors["lm_head.weight"][5, :2] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight differs from the embedding"):
        load_model(tmp_path)


def test_a_weight_that_the_stored_dtype_cannot_hold_is_not_written(tmp_path):
    config = dataclasses.replace(CONFIG, num_experts=0)
    params = tiny_params(config)
    params["norm"]["scale"] = params["norm"]["scale"].at[2].set(3.4e38)
    save_model(tmp_path, config, params)
    with pytest.raises(UserError, match=r"model\.norm\.weight: 1 of 32 entries are NaN or infinite as bfloat16"):
        save_model(tmp_path, config, params, dtype="bfloat16")


def test_a_truncated_file_is_named(written, tmp_path):
    for file in written[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors"):
        load_model(tmp_path)


def test_shards_carry_an_index(written, tmp_path):
    save_model(tmp_path, CONFIG, written[1], max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in tmp_path.glob("*.safetensors")}
    jax.tree.map(np.testing.assert_array_equal, written[1], load_model(tmp_path)[1])


def without_first(weight_map):
    del weight_map["model.norm.weight"]


def elsewhere(weight_map):
    weight_map["model.norm.weight"] = "model-00001-of-00002.safetensors"


def absent_file(weight_map):
    weight_map["model.norm.weight"] = "model-00009-of-00002.safetensors"


def outside(weight_map):
    weight_map["model.norm.weight"] = "../model.safetensors"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_first, r"index\.json: does not list tensors that its files hold: model\.norm\.weight"),
        (elsewhere, r"index\.json: lists tensor 'model\.norm\.weight' in model-00001.*but model-00002.*holds it"),
        (absent_file, r"model-00009-of-00002\.safetensors: missing, although .*index\.json lists it"),
        (outside, r"index\.json: names '\.\./model\.safetensors', which is no file of this directory"),
        (lambda weight_map: weight_map.clear(), r"index\.json: has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(written, tmp_path, change, named):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(written[1]))
    save_model(tmp_path, CONFIG, written[1], max_shard_bytes=size // 2 + 10_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=named):
        load_model(tmp_path)


def test_files_that_the_index_does_not_list_are_not_read(written, tmp_path):
    save_model(tmp_path, CONFIG, written[1], max_shard_bytes=20_000)
    save_file({"other": np.zeros(2, np.float32)}, tmp_path / "consolidated.safetensors")
    load_model(tmp_path)
