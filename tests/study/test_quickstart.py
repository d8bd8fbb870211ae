"""The quickstart's file: it loads, its methods are matched, and its models are what they are said to be."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.data import arithmetic, embedded_model, load_tokenizer
from jaxgeom.models import load_model
from jaxgeom.study import At, load_experiment
from jaxgeom.study.preflight import check_inputs
from jaxgeom.training import Actor, ConfineSettings, evaluate
from tests.tiny import tiny_prompts

ROOT = Path(__file__).parents[2]


def test_the_quickstart_is_matched_between_methods():
    experiment = load_experiment(ROOT / "experiments" / "quickstart.py")
    check_inputs(experiment)
    fields = ("steps", "batch_size", "optimizer", "save_every", "max_new_tokens")
    told = [[getattr(settings, field) for field in fields] for settings in experiment.methods().values()]
    assert told[0] == told[1] == told[2]


def test_the_confined_study_compares_like_with_like():
    """Each method's second part: one start, one basis, one rate, one number of steps, whatever confines it."""
    experiment = load_experiment(ROOT / "experiments" / "confined.py")
    quick = load_experiment(ROOT / "experiments" / "quickstart.py")
    assert dataclasses.replace(experiment.anchor, save_every=25, eval_every=50) == quick.anchor
    arms = {arm.name: arm for arm in experiment.arms}
    for method in ("opd", "rlvr", "sft"):
        early = arms.pop(f"{method}_early")
        later = [arms.pop(name) for name in list(arms) if name.startswith(f"{method}_")]
        assert {arm.start for arm in later} == {At(early.name)} and early.settings.steps == 32
        assert {arm.basis_from for arm in later} <= {None, At(early.name)}
        plain = {dataclasses.replace(arm.settings, confine=ConfineSettings()) for arm in later}
        assert plain == {dataclasses.replace(early.settings, steps=128)}
        confined = {(arm.settings.confine.confine, arm.settings.confine.basis) for arm in later}
        assert confined == {
            (None, "delta"), ("gradients", "delta"), ("coordinates", "delta"), ("coordinates", "random")
        }  # fmt: skip
    assert not arms


@pytest.mark.parametrize(("name", "low", "high"), [("base", 0.0, 0.02), ("teacher", 0.95, 1.0)])
def test_the_embedded_models_solve_what_they_should(name, low, high):
    model, params = load_model(embedded_model(name), dtype="float32")
    tokenizer = load_tokenizer(embedded_model(name))
    rows = arithmetic.prompts(arithmetic.ArithmeticTask(), 128, split="heldout", seed=5)
    accuracy, _ = evaluate(Actor(model, params), tokenizer, tiny_prompts(rows, tokenizer), max_new_tokens=32)
    assert low <= accuracy <= high


def test_transformers_loads_the_embedded_models():
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    from transformers import AutoModelForCausalLM

    for name in ("base", "teacher"):
        theirs = AutoModelForCausalLM.from_pretrained(embedded_model(name), dtype=torch.float32)
        assert type(theirs).__name__ == "Qwen3ForCausalLM"
        tokens = np.random.default_rng(0).integers(0, 103, (2, 20)).astype(np.int32)
        model, params = load_model(embedded_model(name), dtype="float32")
        with torch.no_grad():
            wanted = theirs(torch.from_numpy(tokens).long()).logits.numpy()
        np.testing.assert_allclose(np.asarray(model.apply({"params": params}, jnp.asarray(tokens))), wanted, atol=1e-4)
