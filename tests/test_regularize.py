"""The example in which a diagnostic is a loss: it lowers what it penalises and leaves the task be."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import jaxgeom as jg
from jaxgeom.data import embedded_model

PATH = Path(__file__).parents[1] / "experiments" / "regularize.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("regularize", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_penalty_is_the_mean_over_every_matrix(example):
    """Against float64 singular values of each layer's kernels, read as [out, in] by hand."""
    model, start = jg.load_model(embedded_model("base"), dtype="float32")
    rng = np.random.default_rng(0)

    def moved(tree):
        return {
            name: moved(leaf) if isinstance(leaf, dict) else leaf + np.float32(1e-3) * rng.standard_normal(leaf.shape)
            for name, leaf in tree.items()
        }

    end = moved({name: dict(part) if isinstance(part, dict) else part for name, part in start.items()})
    expected = []
    for block, modules in (("attention", "qkvo"), ("mlp", ("gate", "up", "down"))):
        for module in modules:
            old, new = (np.asarray(tree["layers"][block][module]["kernel"], np.float64) for tree in (start, end))
            for delta in new - old:
                flat = delta.reshape(-1, delta.shape[-1]) if module == "o" else delta.reshape(delta.shape[0], -1)
                sigma = np.linalg.svd(flat, compute_uv=False)
                expected.append((sigma**2).sum() / sigma[0] ** 2)
    end = {"layers": end["layers"]}
    found = float(example.mean_stable_rank(_as_float32(end), start, jg.parameter_specs(model.config)))
    assert len(expected) == 21 and found == pytest.approx(np.mean(expected), rel=2e-2)


def _as_float32(tree):
    return {k: _as_float32(v) if isinstance(v, dict) else np.asarray(v, np.float32) for k, v in tree.items()}


@pytest.mark.slow
def test_the_regularised_run_has_the_lower_stable_rank_at_a_comparable_loss(example):
    plain, regularised = example.run([0.0, 0.03], steps=12, batch_size=8)
    assert plain.steps == regularised.steps == [3, 6, 9, 12]
    assert regularised.ranks[-1] < 0.9 * plain.ranks[-1]
    assert regularised.losses[-1] < 1.1 * plain.losses[-1]
    assert plain.losses[-1] < plain.losses[0]
