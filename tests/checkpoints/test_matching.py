"""One model stored in different ways is one model: compared, loaded, counted once."""

import json

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, between_runs, compare_checkpoints, trajectory_checkpoints
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, hf_tensors, load_model, save_model
from tests.comparison import disk
from tests.tiny import tiny_config, tiny_params

FAST = CompareSettings(suite="fast", subspace_k=4)
TIED = disk.CONFIG | {"tie_word_embeddings": True}


def tied_weights(seed=0):
    tensors = disk.weights(seed)
    del tensors["lm_head.weight"]
    return tensors


def with_head(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}


def without_model(tensors):
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def with_prefix(tensors):
    return {f"module._orig_mod.{name}": value for name, value in tensors.items()}


def wrapped(tensors):
    return {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}


def with_buffers(tensors):
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32) for i in range(2)}
    return tensors | buffers | {"model.rotary_emb.inv_freq": np.ones(6, np.float32)}


def opened(directory, tensors, config=TIED):
    return open_checkpoint(disk.write(directory, tensors, config))


def numbers(report):
    return {
        row["name"]: {k: v for k, v in row.items() if k != "name"} for row in [*report.matrices, *report.parameters]
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The pair as both sides store it alike, and its report."""
    folder = tmp_path_factory.mktemp("plain")
    initial, final = tied_weights(), disk.moved(tied_weights(), 1e-3)
    first, second = opened(folder / "a", initial), opened(folder / "b", final)
    return first, second, final, compare_checkpoints(first, second, FAST)


@pytest.mark.parametrize("stored", [with_head, without_model, with_prefix, wrapped, with_buffers])
def test_how_a_side_is_stored_changes_no_number(plain, tmp_path, stored):
    first, _, final, want = plain
    report = compare_checkpoints(first, opened(tmp_path / "b", stored(final)), FAST)
    assert numbers(report) == numbers(want) and report.summary == want.summary
    assert report.coverage["notes"] and "notes" not in want.coverage


def test_the_other_side_too_and_three_of_them(plain, tmp_path):
    first, second, final, want = plain
    stored = opened(tmp_path / "b", wrapped(with_head(final)))
    swapped = compare_checkpoints(stored, first, FAST)
    assert swapped.summary["relative_norm"]["count"] == want.summary["relative_norm"]["count"]
    assert all(".language_model." in row["name"] for row in swapped.matrices)
    curve = trajectory_checkpoints(first, [(1, second), (2, stored)], FAST)["summary"]["stable_rank"]["mean"]
    assert curve[0] == curve[1] == pytest.approx(want.summary["stable_rank"]["mean"])
    shared = between_runs(first, second, stored, FAST)
    assert shared["summary"]["jaccard"]["mean"] == 1 and shared["coverage"]["notes"]


def test_the_digest_is_that_of_what_is_stored(plain, tmp_path):
    first, _, final, _ = plain
    stored = opened(tmp_path / "b", wrapped(final))
    report = compare_checkpoints(first, stored, FAST)
    assert report.inputs["final"]["sha256"] == stored.sha256()


def test_a_head_of_its_own_is_no_tied_one(plain, tmp_path):
    head = with_head(plain[2])
    head["lm_head.weight"][3] += 1
    other = opened(tmp_path / "b", head)
    assert "differs from the embedding" in other.notes[0]
    with pytest.raises(UserError, match="only in .*: lm_head.weight; --exclude 'lm_head' leaves them out"):
        compare_checkpoints(plain[0], other, FAST)


def test_names_of_another_model_are_one_short_line(plain, tmp_path):
    other = {name.replace("layers", "stages"): value for name, value in plain[2].items()}
    with pytest.raises(UserError, match="do not match: only in .* and 8 more; only in") as error:
        compare_checkpoints(plain[0], opened(tmp_path / "b", other), FAST)
    assert len(str(error.value)) < 2000 and "--exclude" not in str(error.value)


def test_a_resized_vocabulary_stops_only_what_needs_it(plain, tmp_path):
    first, _, final, want = plain
    larger = final | {"model.embed_tokens.weight": np.zeros((96, disk.HIDDEN), np.float32)}
    other = opened(tmp_path / "b", larger)
    with pytest.raises(UserError, match=r"embed_tokens.* \[90, 40\] and \[96, 40\]; --exclude 'embed_tokens' leaves"):
        compare_checkpoints(first, other, FAST)
    attention = CompareSettings(suite="fast", population="attention")
    report = compare_checkpoints(first, other, attention)
    assert {row["module"] for row in report.matrices} == {"q", "k", "v", "o"}
    held = numbers(want)
    assert all(row == held[name] for name, row in numbers(report).items())
    rest = compare_checkpoints(first, other, CompareSettings(suite="fast", exclude="embed_tokens"))
    assert len(rest.matrices) == len(want.matrices) and len(rest.parameters) == len(want.parameters) - 1


def tower(seed, scale):
    rng, moved = np.random.default_rng(9), np.random.default_rng(seed)
    stem = "model.vision_tower.vision_model.encoder.layers"
    shapes = {f"{stem}.{i}.self_attn.q_proj.weight": (12, 12) for i in range(3)}
    shapes |= {f"{stem}.0.mlp.fc1.weight": (24, 12), f"{stem}.0.layer_norm1.weight": (12,)}
    shapes |= {"model.multi_modal_projector.linear.weight": (40, 12), "mtp.layers.0.mlp.up_proj.weight": (72, 40)}
    return {
        name: (rng.standard_normal(shape) + scale * moved.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_towers_are_groups_of_their_own(plain, tmp_path):
    first, _, final, want = plain
    config = {"model_type": "toy_vl", "text_config": TIED, "vision_config": {"hidden_size": 12}}
    a = opened(tmp_path / "a", wrapped(tied_weights()) | tower(1, 0.0), config)
    b = opened(tmp_path / "b", wrapped(final) | tower(2, 0.0), config)
    report = compare_checkpoints(a, b, FAST)
    assert report.summary == want.summary
    assert {name: group for name, group in report.groups.items() if name != "tower"} == want.groups
    assert report.coverage == want.coverage
    assert set(report.groups["tower"]) == {"vision_tower", "multi_modal_projector", "mtp"}
    unchanged = report.groups["tower"]["vision_tower"]["sparsity_bf16"]
    assert (unchanged["mean"], unchanged["count"], unchanged["of"]) == (1.0, 5, 5)
    assert all(row["layer"] is None for row in report.matrices if "tower" in row)
    curves = trajectory_checkpoints(a, [(1, b)], FAST)
    assert curves["summary"]["stable_rank"]["mean"] == [want.summary["stable_rank"]["mean"]]
    assert curves["groups"]["tower"]["vision_tower"]["sparsity_bf16"]["mean"] == [1.0]
    # Against the text model by itself: what only one side has is left out, and said.
    alone = compare_checkpoints(first, b, FAST)
    assert numbers(alone) == numbers(want)
    assert any("vision_tower is not in every checkpoint" in note for note in alone.coverage["notes"])
    only = compare_checkpoints(a, b, CompareSettings(suite="fast", include="vision_tower"))
    assert only.summary["sparsity_bf16"]["count"] == 5 and "tower" not in only.groups


MOE = Qwen3Config.from_hf(
    tiny_config().to_hf()
    | {"model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
)


def stacked(tensors, turned=False):
    found = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer in range(MOE.num_hidden_layers):
        stem = f"model.layers.{layer}.mlp.experts"

        def stack(word, stem=stem):
            return np.stack([tensors[f"{stem}.{expert}.{word}_proj.weight"] for expert in range(3)])

        pair = np.concatenate([stack("gate"), stack("up")], axis=1)
        found[f"{stem}.gate_up_proj"], found[f"{stem}.down_proj"] = pair, stack("down")
        if turned:
            for name in (f"{stem}.gate_up_proj", f"{stem}.down_proj"):
                found[name] = np.ascontiguousarray(found[name].swapaxes(1, 2))
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_stacked_experts_are_the_single_ones(tmp_path, turned):
    from safetensors.numpy import load_file, save_file

    params = tiny_params(MOE)
    single, stack = tmp_path / "single", tmp_path / "stacked"
    for directory in (single, stack):
        save_model(directory, MOE, params)
    save_file(stacked(load_file(single / "model.safetensors"), turned), stack / "model.safetensors")
    sides = [open_checkpoint(path) for path in (single, stack)]
    assert len(sides[1]) < len(sides[0]) == len(hf_tensors(MOE))
    for pair in (sides, sides[::-1]):
        report = compare_checkpoints(pair[0], pair[1], FAST)
        assert report.summary["sparsity_stored"]["mean"] == 1 and len(report.matrices) == 2 * (4 + 3 * 3)
    one, other = (load_model(path)[1]["layers"]["mlp"] for path in (single, stack))
    for word in ("gate", "up", "down"):
        np.testing.assert_array_equal(one[word]["kernel"], other[word]["kernel"])


@pytest.mark.parametrize("change", [without_model, with_prefix, with_head, with_buffers])
def test_a_model_is_loaded_however_it_is_stored(tmp_path, change):
    from safetensors.numpy import load_file, save_file

    params = tiny_params(tiny_config())
    save_model(tmp_path, tiny_config(), params)
    save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)[1]
    np.testing.assert_array_equal(loaded["layers"]["mlp"]["up"]["kernel"], params["layers"]["mlp"]["up"]["kernel"])
    assert "head" not in loaded


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers=1000000000 .* at most"),
        ("num_hidden_layers", 4, "num_hidden_layers=4, there are tensors of 2 layers"),
        ("vocab_size", 120, r"embed_tokens.weight has 112 rows, config.json says vocab_size=120"),
        ("hidden_size", 10**12, "hidden_size=1000000000000 .* at most"),
        ("head_dim", 10**5, "head_dim=100000 .* at most"),
        ("rms_norm_eps", 10**400, "rms_norm_eps=1000.*… is not supported"),
        ("rope_theta", 1e-300, "no finite frequencies"),
        ("eos_token_id", 2**40, "eos_token_id=1099511627776"),
        ("tie_word_embeddings", None, "1 tensor is missing: lm_head.weight; its config.json does not say tie_word"),
    ],
)
def test_sizes_that_no_file_has_are_one_line_at_once(tmp_path, field, value, words):
    save_model(tmp_path, tiny_config(), tiny_params(tiny_config()))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path)


def renamed(change):
    """The same tensors under other names."""
    return lambda tensors: {change(name): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: f"llm.{name}", "names with llm.model. are matched"),
        (
            lambda name: f"policy.transformer.{name}".replace("transformer.model.", "transformer."),
            "policy.transformer.",
        ),
        (lambda name: name.replace("model.", "model.text_model.", 1), "names with model.text_model. are matched"),
        (lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."), "_checkpoint_wrapped_module."),
        (lambda name: name.replace("self_attn.", "self_attn._fsdp_wrapped_module."), "_fsdp_wrapped_module."),
    ],
)
def test_any_stem_is_the_same_model_and_is_said(plain, tmp_path, change, words):
    first, _, final, want = plain
    report = compare_checkpoints(first, opened(tmp_path / "b", renamed(change)(final)), FAST)
    assert numbers(report) == numbers(want)
    (note,) = [note for note in report.coverage["notes"] if "names with" in note]
    assert words in note and "q_proj" not in note


def test_masks_and_frequencies_are_buffers(plain, tmp_path):
    first, _, final, want = plain
    names = ("causal_mask", "freqs_cis", "layers.0.self_attn.rotary_emb.cos", "norm.num_batches_tracked")
    buffers = {f"model.{name}": np.ones(4, np.float32) for name in names} | {"model.seen": np.ones(4, bool)}
    report = compare_checkpoints(first, opened(tmp_path / "b", final | buffers), FAST)
    assert numbers(report) == numbers(want)


TOWERS = {
    "vpm": ("vpm.encoder.layers.0.self_attn.q_proj.weight", "vpm.patch_embedding.weight"),
    "mlp1": ("mlp1.0.weight",), "score": ("score.weight",), "qformer": ("model.qformer.encoder.layer.0.q_proj.weight",),
}  # fmt: skip


def test_a_tower_of_any_name_changes_no_number_of_the_text_model(plain, tmp_path):
    _, _, final, want = plain
    held = {name: np.ones((12, 12), np.float32) for names in TOWERS.values() for name in names}
    a = opened(tmp_path / "a", tied_weights() | held)
    b = opened(tmp_path / "b", final | {name: 3 * value for name, value in held.items()})
    report = compare_checkpoints(a, b, FAST)
    assert report.summary == want.summary and set(report.groups["tower"]) == set(TOWERS)
    assert all(report.groups[label] == want.groups[label] for label in ("module", "layer", "sparsity"))


@pytest.mark.parametrize("split", ["layers", "turned"])
def test_stacks_that_lie_otherwise_are_read_expert_by_expert(tmp_path, split):
    from safetensors.numpy import load_file, save_file

    save_model(tmp_path / "a", MOE, tiny_params(MOE))
    save_model(tmp_path / "b", MOE, tiny_params(MOE))
    single = load_file(tmp_path / "a" / "model.safetensors")
    if split == "turned":
        sides = [stacked(single), stacked(single, turned=True)]
    else:
        both = stacked(single), single
        sides = [
            {name: value for layer in (0, 1) for name, value in both[(layer + side) % 2].items()
             if f"layers.{layer}." in name or ".layers." not in name}
            for side in (0, 1)
        ]  # fmt: skip
    for place, name in enumerate("ab"):
        save_file(sides[place], tmp_path / name / "model.safetensors")
    report = compare_checkpoints(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"), FAST)
    assert report.summary["sparsity_stored"]["mean"] == 1 and len(report.matrices) == 2 * (4 + 3 * 3)


def test_mixtrals_names_are_those_of_its_conversion(tmp_path):
    from safetensors.numpy import load_file, save_file

    words = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}

    def mixtral(name):
        last = name.split(".")[-2]
        return name.replace(".mlp.", ".block_sparse_moe.").replace(f".{last}.", f".{words.get(last, last)}.")

    for name in "ab":
        save_model(tmp_path / name, MOE, tiny_params(MOE))
    file = tmp_path / "b" / "model.safetensors"
    save_file(renamed(mixtral)(load_file(file)), file)
    report = compare_checkpoints(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"), FAST)
    assert report.summary["sparsity_stored"]["mean"] == 1 and len(report.matrices) == 2 * (4 + 3 * 3)
