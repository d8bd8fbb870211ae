"""What a mesh does not divide is said; devices that would all do the same are refused."""

import dataclasses

import pytest

from jaxgeom.data.rows import write_jsonl
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config
from jaxgeom.sharding import make_mesh
from jaxgeom.training.mesh_fit import mesh_notes, undivided
from tests.tiny import write_tiny_model

CONFIG = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
MOE = dataclasses.replace(CONFIG, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16)


@pytest.mark.parametrize(
    ("config", "sizes", "said"),
    [
        (CONFIG, (2, 4, 1, 1), []),
        (CONFIG, (2, 2, 2, 1), []),
        (CONFIG, (1, 2, 4, 1), ["--mesh-tensor 4 does not divide the 2 key-value heads"]),
        (CONFIG, (1, 1, 8, 1), ["the 4 attention heads", "the 2 key-value heads"]),
        (MOE, (2, 2, 1, 2), ["--mesh-expert 2: those devices divide the experts"]),
        (dataclasses.replace(CONFIG, hidden_size=36), (1, 8, 1, 1), ["--mesh-fsdp 8 does not divide the 36 columns"]),
        (dataclasses.replace(CONFIG, vocab_size=63), (4, 1, 2, 1), ["--mesh-tensor 2 does not divide the 63 rows of"]),
        (MOE, (1, 2, 1, 4), ["--mesh-expert 4 does not divide the 6 experts", "--mesh-expert 4: those"]),
        (dataclasses.replace(CONFIG, intermediate_size=63), (2, 2, 2, 1), ["the 63 feed-forward units"]),
    ],
)
def test_what_an_axis_does_not_divide_is_said(config, sizes, said):
    notes = mesh_notes(config, make_mesh(*sizes))
    assert len(notes) == len(said) and all(words in note for words, note in zip(said, notes, strict=True))


def test_a_teacher_may_be_dense_beside_a_mixture():
    assert undivided(CONFIG, make_mesh(2, 2, 1, 2)) == []


def test_experts_of_a_dense_model_are_refused():
    with pytest.raises(UserError, match="--mesh-expert 2: the model is dense.*--mesh-fsdp"):
        mesh_notes(CONFIG, make_mesh(2, 2, 1, 2))


def test_training_refuses_experts_of_a_dense_model_before_anything_is_written(jaxgeom, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, [{"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}] * 8)
    said = jaxgeom(
        "train", "sft", "--model", model, "--data", data, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 8,
        "--lr", 1e-3, "--mesh-expert", 2,
    )  # fmt: skip
    assert said.status == 2 and "--mesh-expert 2" in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
