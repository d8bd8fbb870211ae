"""Weights that are finite and of no use: refused before anything is written, or at the first step, by what is wrong."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom.training import ready
from tests.training import runs


@pytest.fixture
def spoil(inputs, tmp_path):
    """A copy of the model in which every entry of a tensor is multiplied."""

    def made(name, factor):
        model = shutil.copytree(inputs / "model", tmp_path / "model")
        weights = load_file(model / "model.safetensors")
        weights[name] *= factor
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        return model

    return made


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("model.embed_tokens.weight", 1e30, "embed"),
        ("model.layers.0.mlp.down_proj.weight", 1e30, "down"),
        ("model.layers.1.self_attn.v_proj.weight", 1e36, "v"),
    ],
)
def test_weights_whose_gradient_is_not_finite_are_refused_before_anything_is_written(
    jaxgeom, inputs, tmp_path, spoil, name, factor, said
):
    model = spoil(name, factor)
    ran = jaxgeom(*runs.arguments(inputs, tmp_path / "out", model=model, eval_data=None, steps=1))
    assert ran.status == 2 and ran.err.count("\n") == 1 and not (tmp_path / "out").exists(), ran.err
    assert "is not finite in float32: " in ran.err and said in ran.err and "has entries of up to " in ran.err, ran.err
    assert f"{model}: " in ran.err and "lower --lr" not in ran.err


def test_what_is_seen_at_the_first_step_alone_is_the_starts_fault(jaxgeom, inputs, tmp_path, spoil, monkeypatch):
    monkeypatch.setattr(ready, "_LARGEST_TRAINED", 1e38)
    model = spoil("model.embed_tokens.weight", 1e6)
    ran = jaxgeom(*runs.arguments(inputs, tmp_path / "out", model=model, eval_data=None, steps=1))
    assert ran.status == 2 and ran.err.count("\n") == 1, ran.err
    assert "step 1: the " in ran.err and f"with the weights that the run began with: {model} cannot be" in ran.err


def test_large_weights_that_compute_what_is_finite_are_trained(jaxgeom, inputs, tmp_path, spoil):
    model = spoil("model.layers.0.self_attn.q_proj.weight", 1e6)  # normalised away
    out = tmp_path / "out"
    assert jaxgeom(*runs.arguments(inputs, out, model=model, eval_data=None, steps=1)).status == 0
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"] > 0
