"""`jaxgeom validate --recipe sft`: both sides train alike, a changed constant is caught, bad input is one line."""

import dataclasses
import json
import math

import pytest

from jaxgeom.data import ArithmeticTask
from jaxgeom.data.arithmetic import demonstrations
from jaxgeom.data.rows import write_jsonl
from jaxgeom.optimizers import AdamWSettings, adamw, learning_rate_schedule
from jaxgeom.validation.checks import Check
from jaxgeom.validation.recipe import _differences
from jaxgeom.validation.recipe_sft import SeedResult, compare_sft
from jaxgeom.validation.torch_recipe import _rate
from tests.tiny import write_tiny_model

torch = pytest.importorskip("torch", reason="PyTorch oracle")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_jsonl(folder / "demos.jsonl", demonstrations(ArithmeticTask(), 40, seed=0))
    return write_tiny_model(folder / "model"), folder / "demos.jsonl"


def recipe(inputs, out, *more):
    model, data = inputs
    given = ("--recipe", "sft", "--data", data, "--out", out, "--steps", 3, "--batch-size", 8)
    return ("validate", model, *given, *more)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A recipe that was run by the command, and its exit status."""
    from jaxgeom.cli import main

    out = tmp_path_factory.mktemp("recipe") / "out"
    return main(list(map(str, recipe(inputs, out)))), out


def test_both_sides_train_alike(finished):
    status, out = finished
    held = json.loads((out / "recipe.json").read_text())
    assert status == 0 and held["holds"]
    names = [check["name"] for check in held["checks"]]
    curves = ("loss", "gradient norm", "learning rate", "targets")
    assert names == [*(f"{name}, worst step" for name in curves), "final weights"]
    (seed,) = held["seeds"]
    assert len(seed["ours"]) == len(seed["torch"]) == 3
    # Both sides really moved, and PyTorch's own rounding is of the size of what is between the two.
    assert seed["torch"][0]["loss"] > seed["torch"][2]["loss"] and seed["torch"][0]["grad_norm"] > 0
    assert 0 < seed["weights"]["null"] < 1e-3 and 0 < seed["weights"]["error"] < 1e-3
    assert (out / "figures" / "recipe.svg").is_file() and (out / "figures" / "recipe.png").is_file()


def test_a_changed_constant_is_caught(inputs, finished, tmp_path, monkeypatch, jaxgeom):
    def wrong(settings, steps, **options):
        return adamw(dataclasses.replace(settings, b2=0.96), steps, **options)

    monkeypatch.setattr("jaxgeom.training.optimizer.adamw", wrong)
    said = jaxgeom(*recipe(inputs, tmp_path / "out"))
    assert said.status == 1 and "does not hold: final weights: error" in said.out
    held = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert not held["holds"] and [check["name"] for check in held["checks"] if not check["holds"]] == ["final weights"]


def test_a_nan_is_null_in_the_report(inputs, tmp_path, monkeypatch, jaxgeom):
    """JSON has no word for it: other readers refuse the file."""

    def lost(results):
        return [Check("loss", math.nan, 1e-3, null=math.inf)]

    monkeypatch.setattr("jaxgeom.validation.recipe.compare_sft", lost)
    assert jaxgeom(*recipe(inputs, tmp_path / "out", "--steps", 1)).status == 1
    text = (tmp_path / "out" / "recipe.json").read_text()
    held = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert held["checks"][0] | {"error": None, "null": None, "holds": False} == held["checks"][0]


def test_another_recipe_is_not_written_over(inputs, finished, jaxgeom):
    _, out = finished
    before = (out / "recipe.json").read_bytes()
    said = jaxgeom(*recipe(inputs, out, "--lr", 1e-4))
    assert said.status == 2 and "learning_rate: 0.001 there, 0.0001 asked for" in said.err
    assert said.err.count("\n") == 1 and (out / "recipe.json").read_bytes() == before
    for damaged in ({}, {"settings": [], "inputs": {}, "contents": {}}, {"settings": {}, "inputs": None}):
        assert _differences(damaged, {"settings": {}, "inputs": {}, "contents": {}}) == ["its config.json is damaged"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--steps", 0), "steps=0"),
        (("--seeds", 0), "seeds=0"),
        (("--lr", -1.0), "learning_rate=-1.0"),
        (("--batch-size", 7), "batch_size=7"),
        (("--dtype", "bfloat16"), "--dtype bfloat16"),
        (("--length", 9), "--length 9"),
        (("--recipe", "dpo"), "dpo"),
        (("--data", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(inputs, tmp_path, jaxgeom, more, told):
    said = jaxgeom(*recipe(inputs, tmp_path / "out", *more))
    assert said.status == 2 and told in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_options_of_a_recipe_need_one(inputs, tmp_path, jaxgeom):
    said = jaxgeom("validate", inputs[0], "--steps", 3)
    assert said.status == 2 and "--steps belongs to a recipe" in said.err
    said = jaxgeom("validate", inputs[0], "--recipe", "sft")
    assert said.status == 2 and "needs --data FILE, --out DIR" in said.err


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_two_schedules_are_one_curve(schedule):
    end = {"learning_rate_end": 1e-4} if schedule == "cosine" else {}
    settings = AdamWSettings(learning_rate=2e-3, schedule=schedule, warmup_fraction=0.2, **end)
    ours = learning_rate_schedule(settings, 20)
    assert [float(ours(n)) for n in range(20)] == pytest.approx([_rate(settings, n, 20) for n in range(20)], rel=1e-6)


def test_nan_on_either_side_never_passes():
    row = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0, "target_tokens": 4.0}
    one = SeedResult(0, [row | {"loss": math.nan}], [row], [row], (math.nan, 0.0), (math.nan, "norm"))
    held = {check.name: check.ok for check in compare_sft([one])}
    assert not held["loss, worst step"] and not held["final weights"] and held["gradient norm, worst step"]


def test_what_rounding_alone_does_widens_later_steps_alone():
    row = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0, "target_tokens": 4.0}
    off = row | {"loss": 1.0 + 1e-3}
    again = [row, row | {"loss": 1.0 + 2e-4}, row]
    for place, holds in ((0, False), (1, True), (2, True)):
        ours = [off if step == place else row for step in range(3)]
        one = SeedResult(0, ours, [row] * 3, again, (0.0, 0.0), (0.0, "norm"))
        assert compare_sft([one])[0].ok is holds
