"""The module itself: causality, padding, attention, experts, dtypes, memory. PyTorch is the oracle in validation."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.models import Qwen3, Qwen3Config, abstract_parameters, hf_tensors, module_of, parameter_specs
from jaxgeom.models.attention import attend_cache, attend_chunked, attend_splash, causal_attention, resolve_attention
from jaxgeom.models.load import load_model
from jaxgeom.models.moe import mixture_of_experts
from jaxgeom.models.save import save_model
from jaxgeom.sharding import make_mesh, partition_specs
from tests.tiny import tiny_params

CONFIG = Qwen3Config(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip
FLOAT32 = 2e-6


@pytest.fixture(scope="module")
def params():
    # Larger than the usual start, so that attention is far from uniform.
    return jax.tree.map(lambda x: 6 * x if x.ndim > 2 else x, tiny_params(CONFIG))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, valid=None):
    return model.apply({"params": params}, tokens, valid=valid)


@pytest.fixture(scope="module", params=[None, "cpu"], ids=["general", "cpu"])
def dense(request, params):
    """Both forms of the layers, with the same parameters."""
    return Qwen3(CONFIG, platform=request.param), params


@pytest.fixture(scope="module")
def general(params):
    return Qwen3(CONFIG), params


def random_tokens(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, CONFIG.vocab_size, shape), jnp.int32)


def test_no_logit_depends_on_a_later_token(dense):
    model, params = dense
    x = jnp.asarray(np.random.default_rng(2).normal(size=(61, 32)), jnp.float32)

    @jax.jit
    def influence(embedding):
        def at(embedding):
            tree = {**params, "embed": {"embedding": embedding}}
            # Token i is row i, so the gradient's row says which positions a logit sees.
            return model.apply({"params": tree}, jnp.arange(7)[None])[0, 3].sum()

        return jnp.abs(jax.grad(at)(embedding)).sum(axis=1)

    seen = influence(x)
    assert (seen[:4] > 0).all() and (seen[4:] == 0).all()


@pytest.mark.parametrize("attention", ["plain", "chunked"])
def test_padding_on_either_side_changes_nothing(dense, attention):
    model, params = dense
    model = model.clone(attention=attention)
    tokens = random_tokens(1, 9)
    bare = forward(model, params, tokens)
    padded = jnp.concatenate([random_tokens(1, 4), tokens, random_tokens(1, 3)], axis=1)
    valid = jnp.asarray([[False] * 4 + [True] * 9 + [False] * 3])
    got = forward(model, params, padded, valid)
    np.testing.assert_allclose(got[:, 4:13], bare, atol=20 * FLOAT32)
    assert np.isfinite(got).all()


def reference_attention(q, k, v, valid):
    """Loops in numpy float64."""
    batch, time, heads, hd = q.shape
    out = np.zeros(q.shape)
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // k.shape[2])
            for t in range(time):
                keys = [s for s in range(t + 1) if valid[b, s]]
                if keys:
                    scores = np.asarray([q[b, t, h] @ k[b, s, group] for s in keys]) / np.sqrt(hd)
                    weights = np.exp(scores - scores.max())
                    out[b, t, h] = weights / weights.sum() @ np.stack([v[b, s, group] for s in keys])
    return out


@pytest.mark.parametrize(("chunk", "time"), [(None, 11), (4, 11), (4, 30), (16, 11)])
def test_attention_forms_equal_float64_loops(chunk, time):
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(2, time, heads, 8)) for heads in (4, 2, 2))
    valid = np.arange(time)[None] >= np.array([[0], [4]])
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    got = jax.jit(lambda *a: attend(*a, jnp.asarray(valid), chunk))(*arrays)
    np.testing.assert_allclose(np.where(valid[..., None, None], got, 0), reference_attention(q, k, v, valid), atol=2e-6)


def attend(q, k, v, valid, chunk):
    """In chunks of queries, or the plain form."""
    if chunk is not None:
        return attend_chunked(q, k, v, valid, chunk=chunk)
    return causal_attention(q, k, v, valid=valid, kind="plain")


@pytest.mark.parametrize("time", [33, 81])
def test_gradients_equal_plain_ones_over_several_blocks_and_chunks(time):
    rng = np.random.default_rng(4)
    arrays = [jnp.asarray(rng.normal(size=(1, time, heads, 8)), jnp.float32) for heads in (2, 1, 1)]
    valid = jnp.arange(time)[None] >= 5

    def gradients(chunk):
        def loss(*a):
            return jnp.sum(jnp.where(valid[..., None, None], jnp.sin(attend(*a, valid, chunk)), 0.0))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    for plain, got in zip(gradients(None), gradients(16), strict=True):
        # Sums of up to 81 float32 terms in another order.
        np.testing.assert_allclose(got, plain, rtol=2e-6, atol=5e-6)


def test_blocks_leave_out_scores_that_causality_hides():
    time, heads, hd = 256, 2, 16
    shape = jax.ShapeDtypeStruct((1, time, heads, hd), jnp.float32)

    def products(chunk):
        text = jax.jit(lambda q, k, v: attend(q, k, v, None, chunk)).lower(shape, shape, shape).compile().as_text()
        # Scores, by their last two axes: queries at a time and keys.
        return {int(n) for n in re.findall(rf"f32\[1,{heads},(?:\d+),(?:1,)?(\d+)\]", text)}

    assert products(None) >= {time} and products(32) >= {96, 192, 256}


def test_long_sequences_hold_no_square_of_scores():
    time, heads, hd = 2048, 4, 16
    shape = jax.ShapeDtypeStruct((1, time, heads, hd), jnp.float32)

    def scratch(chunk):
        gradient = jax.grad(lambda *a: jnp.sum(attend(*a, None, chunk)), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    square = heads * time * time * 4
    assert scratch(64) < square / 3 < square < scratch(None)


def test_attention_to_a_cache_is_that_of_the_last_column():
    rng = np.random.default_rng(8)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 9, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    valid = jnp.arange(9)[None] >= jnp.array([[0], [4]])
    whole = causal_attention(q, k, v, valid=valid, kind="plain")
    got = attend_cache(q[:, -1:], k.swapaxes(1, 2), v.swapaxes(1, 2), valid)
    np.testing.assert_allclose(got, whole[:, -1:], atol=2e-6)


def test_splash_kernel_interpreted_equals_plain():
    rng = np.random.default_rng(5)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 140, heads, 128)), jnp.float32) for heads in (2, 1, 1))
    got = jax.jit(lambda *a: attend_splash(*a, interpret=True))(q, k, v)
    np.testing.assert_allclose(got, causal_attention(q, k, v, valid=None, kind="plain"), atol=2e-5)


@pytest.mark.parametrize(("rows", "kv"), [(4, 2), (3, 1)])
def test_splash_kernel_works_on_each_devices_rows_and_heads(rows, kv):
    mesh = make_mesh(2, 2, 2, 1)
    rng = np.random.default_rng(7)
    q, k, v = (jnp.asarray(rng.normal(size=(rows, 128, heads, 128)), jnp.float32) for heads in (2, kv, kv))
    run = jax.jit(lambda *a: attend_splash(*a, mesh=mesh, interpret=True))
    spec = PartitionSpec(("data", "fsdp") if rows == 4 else None, None, "tensor" if kv == 2 else None)
    placed = jax.device_put((q, k, v), NamedSharding(mesh, spec))
    np.testing.assert_allclose(run(*placed), causal_attention(q, k, v, valid=None, kind="plain"), atol=2e-5)
    assert "all-gather" not in run.lower(*placed).compile().as_text()
    assert run(*placed).sharding.is_equivalent_to(NamedSharding(mesh, spec), 4)


def test_a_loaded_model_tells_the_kernels_of_its_mesh(general, tmp_path, monkeypatch):
    model, params = general
    save_model(tmp_path / "model", model.config, params)
    mesh, seen = make_mesh(2, 2, 2, 1), []

    def plain(q, k, v, segments, *, mesh):
        seen.append(mesh)
        return causal_attention(q, k, v, valid=None, kind="plain")

    monkeypatch.setattr("jaxgeom.models.attention.attend_splash", plain)
    loaded, sharded = load_model(tmp_path / "model", mesh=mesh)
    jax.eval_shape(loaded.clone(attention="splash").apply, {"params": sharded}, random_tokens(4, 8))
    assert seen and all(found == mesh for found in seen)


def test_forms_that_take_no_mask_see_the_real_tokens_first(general, monkeypatch):
    model, params = general
    # On this machine the kernel is the plain form: what is tested is the order of the columns around it.
    monkeypatch.setattr(
        "jaxgeom.models.attention.attend_splash",
        lambda q, k, v, segments, *, mesh: causal_attention(q, k, v, valid=None, kind="plain"),
    )
    tokens, valid = random_tokens(3, 10), np.ones((3, 10), bool)
    valid[1, :4], valid[2, 7:] = False, False
    kernel = forward(model.clone(attention="splash"), params, tokens, jnp.asarray(valid))
    plain = forward(model, params, tokens, jnp.asarray(valid))
    np.testing.assert_allclose(np.asarray(kernel)[valid], np.asarray(plain)[valid], atol=20 * FLOAT32)


@pytest.mark.parametrize(
    ("platform", "dtype", "time", "form"),
    [
        ("cpu", jnp.float32, 64, "plain"),
        ("cpu", jnp.float32, 4096, "chunked"),
        (None, jnp.bfloat16, 1024, "plain"),
        ("gpu", jnp.bfloat16, 64, "cudnn"),
        ("gpu", jnp.float32, 64, "plain"),
        ("tpu", jnp.float32, 64, "plain"),
        ("tpu", jnp.float32, 128, "splash"),
        ("tpu", jnp.bfloat16, 4096, "splash"),
    ],
)
def test_attention_form_is_chosen_by_platform_and_length(platform, dtype, time, form):
    assert resolve_attention("auto", platform=platform, dtype=dtype, time=time) == form
    assert resolve_attention("chunked", platform=platform, dtype=dtype, time=time) == "chunked"


def test_an_unknown_attention_form_is_named():
    with pytest.raises(ValueError, match="attention='flash'"):
        resolve_attention("flash", platform=None, dtype=jnp.float32, time=4)


@pytest.mark.parametrize(("platform", "for_cpus"), [("cpu", True), ("gpu", False), ("tpu", False), (None, False)])
def test_forms_for_cpus_are_chosen_by_the_models_platform_alone(platform, for_cpus):
    """The default backend is a CPU here, whatever the platform that a program is made for."""
    model = Qwen3(dataclasses.replace(CONFIG, head_dim=128), platform=platform)
    params, tokens = abstract_parameters(model), jax.ShapeDtypeStruct((1, 128), jnp.int32)
    traced = jax.jit(lambda p, t: model.apply({"params": p}, t, method="hidden_states")).trace(params, tokens)
    text = traced.lower(lowering_platforms=({"gpu": "cuda", None: "cpu"}.get(platform, platform),)).as_text()
    assert model.is_unrolled is for_cpus and ("stablehlo.while" not in text) is for_cpus
    assert ("tpu_custom_call" in text) is (platform == "tpu")


def test_deep_and_rematerialised_models_are_scanned_on_a_cpu_too():
    model = Qwen3(CONFIG, platform="cpu")
    assert not model.clone(remat=True).is_unrolled
    assert not model.clone(config=dataclasses.replace(CONFIG, num_hidden_layers=13)).is_unrolled


def test_a_model_is_loaded_for_the_platform_of_its_devices(general, tmp_path, monkeypatch):
    save_model(tmp_path / "model", CONFIG, general[1])
    assert load_model(tmp_path / "model")[0].platform == "cpu"
    mesh, asked = make_mesh(1, 8, 1, 1), []
    monkeypatch.setattr("jaxgeom.models.load.platform_of", lambda place: asked.append(place) or "tpu")
    model, _ = load_model(tmp_path / "model", mesh=mesh)
    assert asked == [mesh] and model.platform == "tpu" and not model.is_unrolled


def test_every_token_reaches_its_experts_when_all_choose_the_same():
    rng = np.random.default_rng(6)
    experts, dim, inner, tokens = 5, 8, 6, 12
    kernels = {name: rng.normal(size=(experts, dim, inner)) for name in ("gate", "up")}
    kernels["down"] = rng.normal(size=(experts, inner, dim))
    x = rng.normal(size=(tokens, dim))
    # One direction that every token shares sends all of them to experts 1 and 3.
    x[:, 0], router = 4.0, 0.01 * rng.normal(size=(dim, experts))
    router[0, [1, 3]] = 2.0
    want = np.zeros_like(x)
    for row, token in enumerate(x):
        probabilities = np.exp(token @ router) / np.exp(token @ router).sum()
        chosen = np.argsort(-probabilities)[:2]
        for expert in chosen:
            gate, up = token @ kernels["gate"][expert], token @ kernels["up"][expert]
            share = probabilities[expert] / probabilities[chosen].sum()
            want[row] += share * ((gate / (1 + np.exp(-gate)) * up) @ kernels["down"][expert])
    mlp = {name: {"kernel": jnp.asarray(value, jnp.float32)} for name, value in (kernels | {"router": router}).items()}
    mixture = jax.jit(functools.partial(mixture_of_experts, experts_per_token=2, normalize=True))
    got = mixture(jnp.asarray(x, jnp.float32), mlp)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_rematerialised_blocks_give_the_same_gradient(general):
    model, params = general
    tokens = random_tokens(2, 8)

    def gradient(model):
        def loss(params):
            return jnp.mean(jnp.square(model.apply({"params": params}, tokens)))

        return jax.jit(jax.grad(loss))(params)

    plain, recomputed = gradient(model), gradient(model.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, recomputed)


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_compute_dtype_is_the_modules_and_logits_are_float32(general, stored):
    model, params = general
    params = jax.tree.map(lambda x: x.astype(stored), params)
    narrow = model.clone(dtype=jnp.bfloat16)
    tokens = random_tokens(1, 5)
    hidden = jax.eval_shape(lambda p: narrow.apply({"params": p}, tokens, method="hidden_states"), params)
    assert hidden.dtype == jnp.bfloat16  # pyright: ignore[reportAttributeAccessIssue]
    logits = forward(narrow, params, tokens)
    assert logits.dtype == jnp.float32
    wide = forward(model, jax.tree.map(lambda x: x.astype(jnp.float32), params), tokens)
    assert float(jnp.max(jnp.abs(logits - wide))) < 0.03 * float(jnp.max(jnp.abs(wide)))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, attention_bias=True, tie_word_embeddings=True),
        dataclasses.replace(CONFIG, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    ],
)
def test_names_and_specs_cover_the_tree(config):
    abstract = abstract_parameters(Qwen3(config))

    def is_spec(x):
        return x is None or isinstance(x, MatrixSpec)

    specs = parameter_specs(config)
    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(abstract)
    sizes = {path: leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    assert sum(np.prod(tensor.shape) for tensor in hf_tensors(config)) == sum(sizes.values())
    for spec, leaf in zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(abstract), strict=True):
        if spec is not None:
            assert sorted((*spec.out, *spec.in_, *spec.batch)) == list(range(leaf.ndim))
    modules = {module_of(tensor.name) for tensor in hf_tensors(config)}
    assert {"q", "k", "v", "o", "gate", "up", "down", "embedding", "norm"} <= modules
    with pytest.raises(ValueError, match="conv.weight"):
        module_of("model.conv.weight")


def test_every_parameter_axis_has_a_rule():
    specs = partition_specs(abstract_parameters(Qwen3(CONFIG)), make_mesh(1, 2, 2, 2))
    assert specs["layers"]["attention"]["q"]["kernel"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs["embed"]["embedding"] == PartitionSpec(None, "fsdp")  # 61 rows do not split in 2
