"""Scoring on a mesh: the numbers of one device, and what the compiled program moves between devices."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.sharding import batch_sharding, make_mesh, mesh_of, parameter_shardings
from jaxgeom.training import scoring
from jaxgeom.training.programs import score
from jaxgeom.training.scoring import sequence_divergences, sequence_log_probs
from tests.tiny import tiny_params

CONFIG = Qwen3Config(
    vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip
TIME = 256


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    # As if the logits were too many to be held: chunks of 4 columns of 8 rows, of 32 columns of one.
    monkeypatch.setattr(scoring, "_WHOLE_LOGITS", 0)
    monkeypatch.setattr(scoring, "_CHUNK_TOKENS", 32)


def gradient(model, mesh):
    def loss(params, tokens, valid):
        return jnp.mean(sequence_log_probs(model, params, tokens, valid, temperature=0.9, mesh=mesh))

    return jax.value_and_grad(loss)


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (8, TIME)).astype(np.int32)
    return jnp.asarray(tokens), jnp.asarray(np.arange(TIME)[None] >= rng.integers(0, TIME // 2, (8, 1)))


@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (2, 2, 2, 1)], ids=["fsdp", "mixed"])
@pytest.mark.parametrize("tied", [False, True])
def test_eight_devices_give_the_numbers_of_one(sizes, tied):
    mesh = make_mesh(*sizes)
    model = Qwen3(dataclasses.replace(CONFIG, tie_word_embeddings=tied))
    params = tiny_params(model.config)
    sharded = jax.device_put(params, parameter_shardings(params, mesh))
    local = jax.device_put(jax.device_get(sharded), jax.devices()[0])
    assert mesh_of(sharded) == mesh and mesh_of(local) is None
    placed = [jax.device_put(x, batch_sharding(mesh)) for x in batch()]
    found, expected = jax.jit(gradient(model, mesh))(sharded, *placed), jax.jit(gradient(model, None))(local, *batch())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    np.testing.assert_allclose(score(model, sharded, *placed), score(model, local, *batch()), rtol=1e-5, atol=1e-5)


def test_a_divergence_on_eight_devices_is_that_of_one_and_two_teachers_keep_their_rows():
    """Values and gradients, in chunks, each row's teacher chosen inside the program."""
    mesh = make_mesh(2, 2, 2, 1)
    config = dataclasses.replace(CONFIG, vocab_size=64, hidden_size=32, head_dim=8)
    models = [Qwen3(config), Qwen3(dataclasses.replace(config, hidden_size=16))]
    trees = [tiny_params(model.config, seed=seed) for seed, model in enumerate(models)]
    tokens, valid = (x[:, :64] for x in batch())
    rows = tokens % 64, valid.at[:, 0].set(True), jnp.arange(8) % 2

    def loss(trees, tokens, valid, which, *, mesh):
        found = sequence_divergences(
            models[0], trees[0], models[::-1], trees[::-1], tokens, valid, which, mesh=mesh,
            divergence="forward", support="student-top-k", k=4,
        )  # fmt: skip
        return jnp.mean(jnp.where(valid, found.divergence, 0.0)), found

    def differentiated(mesh):
        return jax.jit(jax.value_and_grad(partial(loss, mesh=mesh), has_aux=True))

    placed = [jax.device_put(tree, parameter_shardings(tree, mesh)) for tree in trees]
    (_, found), grads = differentiated(mesh)(placed, *(jax.device_put(x, batch_sharding(mesh)) for x in rows))
    (_, wanted), expected = differentiated(None)(trees, *rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)
    of_self = np.asarray(found.divergence)[1::2]
    assert np.abs(of_self).max() < 1e-5 < np.asarray(found.divergence)[::2].mean()


def test_the_unembedding_is_gathered_once_in_bfloat16_and_its_gradient_scattered_once_in_float32(tmp_path):
    """Read from the partitioned program: later passes of the CPU compiler widen bfloat16 to float32."""
    mesh = make_mesh(1, 8, 1, 1)
    model = Qwen3(CONFIG, dtype=jnp.bfloat16)
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    shardings = parameter_shardings(abstract, mesh)
    arguments = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    rows = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)) for x in batch()]
    step = jax.jit(gradient(model, mesh), out_shardings=(None, shardings))
    options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    # A program from the cache is not compiled, and leaves nothing to read.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compiled = step.lower(arguments, *rows).compile(compiler_options=options)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    (partitioned,) = tmp_path.glob("*after_spmd-partitioning*")
    kinds = "all-gather|all-reduce|reduce-scatter"
    moved = re.findall(rf"= (\w+)\[(?:64,512|512,64|8,512)\]\S* ({kinds})\(", partitioned.read_text())
    assert ("bf16", "all-gather") in moved and ("f32", "reduce-scatter") in moved
    assert not {("bf16", "all-reduce"), ("bf16", "reduce-scatter")} & set(moved)
    # Its float32 master is gathered for nobody: no number of it is read.
    whole = re.findall(rf"= \w+\[(?:64,512|512,64)\]\S* ({kinds})\(", compiled.as_text())
    assert whole == ["all-gather"]
    in_entry = [
        name.startswith("ENTRY")
        for name, body in re.findall(r"^(\S+).*?\{\n(.*?)^\}", compiled.as_text(), re.M | re.S)
        for shapes in re.findall(rf"= (.*?) (?:{kinds})\(", body)
        if re.search(r"\[(64,512|512,64|8,512)\]", shapes)
    ]
    # None is within the loop over chunks.
    assert len(in_entry) >= 2 and all(in_entry)


@pytest.mark.parametrize(
    ("rows", "mesh", "chunk"), [(8, (1, 8), 1024), (16, (4, 2), 512), (8, None, 128), (64, None, 16), (4096, None, 1)]
)
def test_a_device_puts_as_many_tokens_through_the_unembedding_at_once_however_many_rows_it_has(
    rows, mesh, chunk, monkeypatch
):
    monkeypatch.undo()
    assert scoring._chunk((rows, 8192), 1 << 17, None if mesh is None else make_mesh(*mesh)) == chunk
    assert scoring._chunk((8, 512), 1 << 14, None) == 512  # 256 MiB of logits are held whole
