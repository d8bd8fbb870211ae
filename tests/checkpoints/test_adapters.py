"""LoRA adapters as checkpoints: base + scale·BA, from PEFT's files, against NumPy in float64."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxgeom.checkpoints import adapter_config, open_checkpoint
from jaxgeom.checkpoints.adapters import require_base_is_read
from jaxgeom.comparison import CompareSettings, compare_checkpoints
from jaxgeom.errors import UserError
from jaxgeom.models import load_model
from tests.comparison import disk
from tests.tiny import write_tiny_model

RANK = 3
ADAPTED = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight")
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "../own_base", "r": RANK, "lora_alpha": 6}


def base_weights():
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in disk.weights().items()}


def pairs(names=ADAPTED, prefix="base_model.model."):
    rng, found = np.random.default_rng(3), {}
    for name in names:
        out, in_ = disk.weights()[name].shape
        stem = prefix + name.removesuffix(".weight")
        found[f"{stem}.lora_A.weight"] = rng.standard_normal((RANK, in_)).astype(np.float32) * 0.01
        found[f"{stem}.lora_B.weight"] = rng.standard_normal((out, RANK)).astype(np.float32)
    return found


def write_adapter(directory, tensors, config=CONFIG):
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def base(tmp_path):
    return disk.write(tmp_path / "own_base", base_weights())


def update(tensors, name, scale):
    stem = "base_model.model." + name.removesuffix(".weight")
    return scale * tensors[f"{stem}.lora_B.weight"].astype(np.float64) @ tensors[f"{stem}.lora_A.weight"]


@pytest.mark.parametrize(
    ("change", "scales"),
    [
        ({}, (2.0, 2.0)),
        ({"use_rslora": True}, (6 / np.sqrt(3), 6 / np.sqrt(3))),
        ({"alpha_pattern": {"down_proj": 9}}, (2.0, 3.0)),
        ({"r": 8, "rank_pattern": {"q_proj": 3, "down_proj": 3}}, (2.0, 2.0)),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 3}}, (1.0, 2.0)),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 64}}, (64 / 3, 2.0)),
        ({"alpha_pattern": {"^layers.0.self_attn.q_proj": 64, r"model\.layers\.\d+\.mlp.*": 9}}, (2.0, 3.0)),
    ],
)
def test_an_adapter_is_its_base_and_the_product(base, tmp_path, change, scales):
    tensors = pairs()
    checkpoint = open_checkpoint(write_adapter(tmp_path / "adapter", tensors, CONFIG | change))
    assert set(checkpoint) == set(base_weights()) and checkpoint.config == disk.CONFIG
    for name, scale in zip(ADAPTED, scales, strict=True):
        want = base_weights()[name].astype(np.float64) + update(tensors, name, scale)
        np.testing.assert_allclose(checkpoint[name].read(), want, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(checkpoint[name].read_rows(5, 11), checkpoint[name].read()[5:11])
    untouched = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(checkpoint[untouched].read(), base_weights()[untouched])
    assert checkpoint.adapter is not None and checkpoint.adapter["rank"] == RANK


def test_a_report_says_that_the_update_has_the_adapters_rank(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pairs())
    settings = CompareSettings(angle_k=4, mask_rank=4, include="proj")
    report = compare_checkpoints(open_checkpoint(base), open_checkpoint(adapter), settings)
    rows = {row["name"]: row for row in report.matrices}
    sigma = np.linalg.svd(update(pairs(), ADAPTED[0], 2.0), compute_uv=False)
    assert rows[ADAPTED[0]]["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)
    assert rows[ADAPTED[0]]["participation_ratio"] <= RANK
    assert rows["model.layers.1.self_attn.q_proj.weight"]["sparsity_stored"] == 1
    assert report.inputs["final"]["adapter"]["update"] == "scale*BA, of rank 3 at most"
    assert any("a LoRA adapter on" in note for note in report.coverage["notes"])


def test_a_report_says_where_the_adapters_base_is_not_what_it_is_measured_from(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pairs())
    other = {name: value.astype(np.float32) + 0.5 * (value.ndim == 2) for name, value in base_weights().items()}
    settings = CompareSettings(angle_k=4, mask_rank=4, include="q_proj")
    for initial, is_base in ((base, True), (disk.write(tmp_path / "other", other), False)):
        report = compare_checkpoints(open_checkpoint(initial), open_checkpoint(adapter), settings)
        said = [note for note in report.coverage["notes"] if "its base" in note]
        assert bool(said) != is_base
        assert report.inputs["final"]["adapter"]["update"].endswith("at most") == is_base
    assert "is not" in said[0] and "base_files" not in report.inputs["final"]["adapter"]


def test_a_base_that_nothing_reads_is_refused(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pairs())
    require_base_is_read(base, (base, adapter))
    require_base_is_read(None, (base,))
    with pytest.raises(UserError, match=f"base={base}: nothing reads it: no LoRA adapter is among the checkpoints"):
        require_base_is_read(base, (base, "run@3"))


def test_embeddings_and_tensors_stored_whole(base, tmp_path):
    rng = np.random.default_rng(4)
    tensors = pairs() | {
        "base_model.model.model.embed_tokens.lora_embedding_A": rng.standard_normal((RANK, disk.VOCAB)).astype("f4"),
        "base_model.model.model.embed_tokens.lora_embedding_B": rng.standard_normal((disk.HIDDEN, RANK)).astype("f4"),
        "base_model.model.lm_head.weight": rng.standard_normal((disk.VOCAB, disk.HIDDEN)).astype("f4"),
    }
    checkpoint = open_checkpoint(write_adapter(tmp_path / "adapter", tensors))
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    want = base_weights()["model.embed_tokens.weight"].astype("f8") + 2 * (tensors[name + "B"] @ tensors[name + "A"]).T
    np.testing.assert_allclose(checkpoint["model.embed_tokens.weight"].read(), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(checkpoint["lm_head.weight"].read(), tensors["base_model.model.lm_head.weight"])


def test_the_base_is_named_or_given(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pairs(), CONFIG | {"base_model_name_or_path": "Toy/Toy-1B"})
    with pytest.raises(UserError, match="a LoRA adapter whose base 'Toy/Toy-1B' is no directory here; .*--base DIR"):
        open_checkpoint(adapter)
    assert set(open_checkpoint(adapter, base=base)) == set(base_weights())
    with pytest.raises(UserError, match="is a LoRA adapter itself"):
        open_checkpoint(adapter, base=adapter)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "an adapter of type 'IA3'"),
        ({"use_dora": True}, "LoRA adapter with use_dora"),
        ({"r": 8, "use_rslora": True}, "r=8, but its file holds matrices of rank 3 for .*: one of the two is stale"),
        ({"r": 8, "rank_pattern": {"q_proj": 3}}, "r=8, but .* of rank 3 for 'model.layers.1.mlp.down_proj'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern=2, but .* of rank 3 for 'model.layers.0.self_attn.q_proj'"),
        ({"init_lora_weights": "pissa_niter_4"}, "LoRA adapter begun by 'pissa_niter_4'"),
        ({"lora_alpha": "16"}, "lora_alpha='16' is no number"),
        ({"alpha_pattern": {"q_proj": 3, "*.down_proj": 9}}, r"alpha_pattern has the key '\*.down_proj', which is no"),
        ({"rank_pattern": {"(q_proj": 3}}, r"rank_pattern has the key '\(q_proj', which is no regular expression"),
        ({"alpha_pattern": [3]}, r"alpha_pattern=\[3\] is no mapping"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000.* is no number"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "LoRA adapter with layer_replication"),
        ({"target_parameters": ["experts.down_proj"]}, "LoRA adapter with target_parameters"),
        (
            {"target_modules": ["q_proj"]},
            r"target_modules=\['q_proj'\] leaves out .*mlp.down_proj, which its file adapts",
        ),
        ({"target_modules": ".*q_proj"}, "leaves out .*down_proj"),
        (
            {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0]},
            "layers_to_transform.* leaves out .*1.mlp",
        ),
        (
            {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1},
            "leaves out .*layers.0.self_attn.q_proj",
        ),
        ({"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["down_proj"]}, "leaves out .*down_proj"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, which its file does not store"),
        ({"target_modules": 3}, "target_modules=3 is no list"),
    ],
)
def test_other_kinds_of_adapters_are_one_line(base, tmp_path, config, words):
    with pytest.raises(UserError, match=words):
        open_checkpoint(write_adapter(tmp_path / "adapter", pairs(), CONFIG | config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(next(iter(t))), "has lora_B, lora_A and lora_B are needed"),
        (
            lambda t: t.update({"base_model.model.model.layers.9.x.lora_A.weight": np.ones((3, 4), "f4")}),
            "does not have",
        ),
        (lambda t: t.update({next(iter(t)): np.ones((RANK, 7), "f4")}), r"A \[3, 7\] and B .* do not fit the base's"),
        (lambda t: t.update({"other": np.ones(3, "f4")}), "tensor 'other' is none of a LoRA adapter"),
        (lambda t: t.clear(), "no lora_A"),
        (
            lambda t: [t.update({name.replace(".weight", ".sft.weight"): t.pop(name)}) for name in list(t)],
            "has the adapter's name 'sft' in it",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_one_line(base, tmp_path, change, words):
    tensors = pairs()
    change(tensors)
    with pytest.raises(UserError, match=words):
        open_checkpoint(write_adapter(tmp_path / "adapter", tensors))


def test_a_pattern_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_config, "_SECONDS", 0.1)
    config = adapter_config.AdapterConfig(tmp_path, CONFIG | {"alpha_pattern": {"(a|aa)+x": 3}})
    with pytest.raises(UserError, match=r"alpha_pattern has the key .* is not matched against .* within 0.1 s"):
        config.scale("a" * 100, RANK)
    assert adapter_config.AdapterConfig(tmp_path, CONFIG | {"alpha_pattern": {"(.*)*x": 3}}).scale("q_proj", 3) == 2


def test_a_configuration_that_fits_its_file(base, tmp_path):
    fits = CONFIG | {"target_modules": ["q_proj", "down_proj"], "fan_in_fan_out": True, "layers_to_transform": [0, 1]}
    checkpoint = open_checkpoint(write_adapter(tmp_path / "adapter", pairs(), fits))
    # As PEFT does for a linear layer, square ones too: the flag is passed over, and what is not adapted said.
    want = base_weights()[ADAPTED[0]].astype(np.float64) + update(pairs(), ADAPTED[0], 2.0)
    np.testing.assert_allclose(checkpoint[ADAPTED[0]].read(), want, rtol=1e-6, atol=1e-9)
    assert any("fan_in_fan_out is passed over" in note for note in checkpoint.notes)
    assert any("target_modules names 2 modules that its file does not adapt" in note for note in checkpoint.notes)
    everything = CONFIG | {"target_modules": "all-linear"}
    assert len(open_checkpoint(write_adapter(tmp_path / "all", pairs(), everything)).notes) == 1


def test_a_convolution_of_gpt2_lies_the_other_way(tmp_path):
    rng, name = np.random.default_rng(2), "transformer.h.0.attn.c_attn"
    weight = rng.standard_normal((6, 18)).astype("f4")  # [in, out]
    disk.write(tmp_path / "own_base", {f"{name}.weight": weight}, {"model_type": "gpt2"})
    a, b = rng.standard_normal((RANK, 6)).astype("f4"), rng.standard_normal((18, RANK)).astype("f4")
    held = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    for flag in (False, True):
        adapter = write_adapter(tmp_path / "adapter", held, CONFIG | {"fan_in_fan_out": flag})
        want = weight + 2 * (b.astype("f8") @ a).T
        np.testing.assert_allclose(open_checkpoint(adapter)[f"{name}.weight"].read(), want, rtol=1e-6)


def test_a_head_of_its_own_over_a_tied_base_is_told(tmp_path):
    weights = base_weights()
    head = weights.pop("lm_head.weight").astype(np.float32)
    disk.write(tmp_path / "own_base", weights, disk.CONFIG | {"tie_word_embeddings": True})
    adapter = write_adapter(tmp_path / "adapter", pairs() | {"base_model.model.lm_head.weight": head})
    with pytest.raises(UserError, match="is a head of its own, but the head of .* is its embedding"):
        open_checkpoint(adapter)


def test_a_wrapper_that_was_not_merged_is_one_line(tmp_path):
    name = ADAPTED[0].removesuffix(".weight")
    wrapped = {f"base_model.model.{one}": value for one, value in base_weights().items() if one != ADAPTED[0]}
    wrapped[f"base_model.model.{name}.base_layer.weight"] = base_weights()[ADAPTED[0]]
    wrapped |= {one.replace(".weight", ".default.weight"): value for one, value in pairs(ADAPTED[:1]).items()}
    with pytest.raises(UserError, match="holds a LoRA adapter beside the weights that it was not merged into"):
        open_checkpoint(disk.write(tmp_path / "wrapped", wrapped))


def test_an_adapter_beside_a_whole_model_is_not_read(base):
    write_adapter(base, pairs())
    checkpoint = open_checkpoint(base)
    assert checkpoint.adapter is None and "adapter_model.safetensors" in checkpoint.notes[0]


def test_a_model_is_loaded_from_an_adapter(tmp_path):
    base = write_tiny_model(tmp_path / "own_base")
    name = "base_model.model.model.layers.1.mlp.up_proj"
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((RANK, 32)).astype("f4"), rng.standard_normal((48, RANK)).astype("f4")
    adapter = write_adapter(tmp_path / "adapter", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    said = []
    merged, plain = (load_model(path, say=said.append)[1]["layers"]["mlp"]["up"]["kernel"] for path in (adapter, base))
    np.testing.assert_allclose(merged[1] - plain[1], 2 * (b.astype("f8") @ a).T, atol=1e-5)
    np.testing.assert_array_equal(merged[0], plain[0])
    assert any("a LoRA adapter on" in one for one in said)
