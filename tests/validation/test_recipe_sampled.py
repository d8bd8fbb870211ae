"""`jaxgeom validate --recipe rlvr` and `opd`: both sides score alike, changes are caught, bad input is named."""

import json
import math

import jax
import numpy as np
import pytest
from scipy import special, stats

from jaxgeom.data import ArithmeticTask, embedded_model
from jaxgeom.data.arithmetic import prompts
from jaxgeom.data.rows import write_jsonl
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.training.objectives import on_policy, rlvr
from jaxgeom.training.objectives.on_policy import OnPolicy
from jaxgeom.training.objectives.opd import OPD
from jaxgeom.validation import recipe_exact, torch_sampled
from jaxgeom.validation.recipe_sampled import SampledResult, SampledSide, compare_sampled, geometry, welch
from jaxgeom.validation.recipe_settings import RecipeSettings
from jaxgeom.validation.torch_side import load_torch, torch_logits
from tests.tiny import write_tiny_model

torch = pytest.importorskip("torch", reason="PyTorch oracle")

SMALL = {"steps": 2, "batch_size": 8, "samples_per_prompt": 4, "max_new_tokens": 5, "seeds": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Model, teacher, prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    write_jsonl(folder / "prompts.jsonl", prompts(ArithmeticTask(), 24, seed=0))
    sizes = {"num_hidden_layers": 1}
    teacher = write_tiny_model(folder / "teacher", seed=1, **sizes)
    return write_tiny_model(folder / "model", **sizes), teacher, folder / "prompts.jsonl"


def recipe(inputs, out, objective, *more):
    model, teacher, data = inputs
    given = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", value)]
    given += ["--teacher", teacher] if objective == "opd" else []
    return ("validate", model, "--recipe", objective, "--data", data, "--out", out, "--eval-limit", 8, *given, *more)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """An OPD recipe that was run by the command, and its exit status."""
    from jaxgeom.cli import main

    out = tmp_path_factory.mktemp("recipe") / "out"
    return main(list(map(str, recipe(inputs, out, "opd", "--lr", 1e-3)))), out


@pytest.mark.slow
def test_a_recipe_by_the_command(finished):
    status, out = finished
    held = json.loads((out / "recipe.json").read_text())
    rows = {check["name"]: check for check in held["checks"]}
    exact = [name for name in rows if name.startswith("first answers")]
    assert len(exact) == 7 and all(rows[name]["holds"] and rows[name]["error"] < 1e-3 for name in exact)
    # Of two seeds the intervals are what they are; the exit status says what the table says.
    assert held["holds"] is all(check["holds"] for check in held["checks"]) and status == (0 if held["holds"] else 1)
    for name in ("gap to the teacher, last quarter", "update: stable rank", "reward, last quarter"):
        assert name in rows
    assert rows["steps whose first prompt differs"]["error"] == 0
    assert [one["seed"] for one in held["seeds"]] == [0, 1]
    for one in held["seeds"]:
        ours, theirs = one["ours"]["steps"], one["torch"]["steps"]
        assert len(ours) == len(theirs) == 2 and set(one["ours"]["accuracy"]) == {"0", "1", "2"}
        # Two programs with draws of their own, on one scale.
        assert ours[0]["gap"] != theirs[0]["gap"] and ours[0]["gap"] == pytest.approx(theirs[0]["gap"], rel=0.5)
        assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1.0)
    assert (out / "figures" / "recipe.svg").is_file() and (out / "figures" / "recipe.png").is_file()


@pytest.mark.slow
def test_the_first_answers_of_the_embedded_models_agree(tmp_path, jaxgeom):
    data, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    write_jsonl(data, prompts(ArithmeticTask(), 200, seed=0))
    base, teacher = embedded_model("base"), embedded_model("teacher")
    sizes = ("--steps", 2, "--batch-size", 32, "--max-new-tokens", 16, "--eval-limit", 32, "--lr", 5e-4, "--seeds", 2)
    said = jaxgeom(*("validate", base, "--recipe", "opd", "--teacher", teacher, "--data", data, "--out", out, *sizes))
    held = json.loads((out / "recipe.json").read_text())
    assert said.status == (0 if held["holds"] else 1)
    first = [check for check in held["checks"] if check["name"].startswith("first answers")]
    assert first and all(check["holds"] for check in first)


@pytest.fixture(scope="module")
def oracle(inputs):
    """`checks(objective)`: the rows about the first answers, our loss and gradient norm as the run would log them."""
    import jax

    model, teacher, data = inputs
    reference, taught = load_torch(model, "float32"), load_torch(teacher, "float32")

    def checks(objective):
        is_taught = objective == "opd"
        settings = RecipeSettings(recipe=objective, data=data, teacher=teacher if is_taught else None, **SMALL)
        answers = recipe_exact.first_answers(
            settings.run_settings(0), settings.inputs(model, evaluated=False), Reporter(quiet=True)
        )
        squares = jax.tree.map(lambda one: float((one.astype(np.float64) ** 2).sum()), answers.first.gradients)
        logged = {"loss": answers.first.loss, "grad_norm": math.sqrt(sum(squares.values()))}
        return recipe_exact.compare_first(answers, logged, reference, taught if is_taught else None)

    return checks


def failing(checks):
    return [check.name for check in checks if not check.ok]


def test_the_first_answers_agree_to_rounding(oracle):
    checks = oracle("rlvr")
    assert failing(checks) == [] and len(checks) == 8
    # What chance rewards teach is no comparison of nothing with nothing.
    by_name = {check.name.rpartition(": ")[2]: check for check in checks}
    assert by_name["advantages"].error < 1e-5 and by_name["log-probs"].error > 0


MOVED = "first answers, chance rewards and moved ratio"


@pytest.mark.parametrize(
    ("objective", "patch", "caught"),
    [
        ("rlvr", "normalisation", f"{MOVED}: advantages"),
        ("rlvr", "clip", f"{MOVED}: loss"),
        ("opd", "sign", "first answers: advantages"),
        ("opd", "temperature", "first answers: log-probs"),
        ("opd", "teacher's temperature", "first answers: advantages"),
    ],
)
def test_a_changed_constant_is_caught(oracle, monkeypatch, objective, patch, caught):
    def half(tree):
        return jax.tree.map(lambda values: 0.5 * values, tree)

    if patch == "normalisation":
        true = rlvr.group_advantages
        monkeypatch.setattr(rlvr, "group_advantages", lambda rewards, time, *_: true(rewards, time, False))
    elif patch == "clip":
        monkeypatch.setattr(OnPolicy, "clip_range", property(lambda self: (0.2, 0.2)))
    elif patch == "sign":
        true_advantages = OPD.advantages
        monkeypatch.setattr(OPD, "advantages", lambda self, *given: -true_advantages(self, *given))
    elif patch == "temperature":
        true_scored = on_policy.sequence_log_probs
        monkeypatch.setattr(on_policy, "sequence_log_probs", lambda *given, **how: half(true_scored(*given, **how)))
    else:
        true_score = OnPolicy.score_of
        monkeypatch.setattr(
            OnPolicy, "score_of", lambda self, name, actor, placed: half(true_score(self, name, actor, placed))
        )
    assert failing(oracle(objective))[0] == caught


BAD = [
    ("rlvr", ("--seeds", 1), "seeds=1: must be between 2 and 100"),
    ("rlvr", ("--teacher", "{teacher}"), "recipe rlvr has no use for it"),
    ("sft", ("--teacher", "{teacher}"), "recipe sft has no use for it"),
    ("rlvr", ("--max-length", 9), "max_length=9: recipe rlvr has no use for it"),
    ("rlvr", ("--samples-per-prompt", 1), "samples_per_prompt=1"),
    ("rlvr", ("--data", "{untrue}"), "untrue.jsonl"),
    ("opd", ("--eval-data", "{untrue}"), "untrue.jsonl"),
    ("opd", ("--teacher", "missing"), "missing"),
    ("rlvr", ("--eval-data", "a=b.jsonl"), "a=b.jsonl: no such file"),
]


@pytest.mark.parametrize(("objective", "more", "told"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(inputs, tmp_path, jaxgeom, objective, more, told):
    untrue = tmp_path / "untrue.jsonl"
    write_jsonl(untrue, [{"prompt": [{"role": "user", "content": "1+2"}]}] * 4)
    more = [str(one).format(teacher=inputs[1], untrue=untrue) for one in more]
    given = recipe(inputs, tmp_path / "out", objective, *more)
    if objective == "sft":
        given = ("validate", inputs[0], "--recipe", "sft", "--data", inputs[2], "--out", tmp_path / "out", *more)
    said = jaxgeom(*given)
    assert said.status == 2 and told in said.err and said.err.count("\n") == 1, said
    assert not (tmp_path / "out").exists()


def test_a_teacher_must_be_given(inputs, tmp_path, jaxgeom):
    said = jaxgeom("validate", inputs[0], "--recipe", "opd", "--data", inputs[2], "--out", tmp_path / "out")
    assert said.status == 2 and "needs --teacher DIR" in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_prompts_without_answers_teach_distillation(inputs, tmp_path):
    """Nothing is judged then: no reward, no accuracy."""
    from jaxgeom.validation.recipe_sampled import sampled_inputs

    untrue = tmp_path / "untrue.jsonl"
    write_jsonl(untrue, [{"prompt": [{"role": "user", "content": "1+2"}]}] * 4)
    for data, evaluated in ((untrue, ()), (inputs[2], (inputs[2],))):
        settings = RecipeSettings(recipe="opd", data=data, teacher=inputs[1], **SMALL)
        assert sampled_inputs(inputs[0], settings, Reporter(quiet=True)).eval_data == evaluated


RECIPE = torch_sampled.SampledRecipe("rlvr", 2, 6, (7,), None, (0.2, 0.28), AdamWSettings(learning_rate=1e-3))


def test_the_cached_sampler_draws_what_the_model_says(inputs):
    """Greedy answers are the argmax of whole forward passes, and the draws of one place follow its distribution."""
    model = load_torch(inputs[0], "float32")
    asked = [(5, 6, 8, 9), (11, 12)]
    for prompt, answer in zip(asked, torch_sampled.sample_torch(model, asked, RECIPE), strict=True):
        whole = np.array([[*prompt, *answer]])
        logits = torch_logits(model, whole, np.ones_like(whole, bool))[0]
        assert answer == logits[len(prompt) - 1 : -1].argmax(-1).tolist()[: len(answer)]
        assert len(answer) == 6 or answer[-1] == 7
    drawn = torch_sampled.sample_torch(model, [asked[0]] * 4000, RECIPE, torch.Generator().manual_seed(0))
    logits = torch_logits(model, np.array([asked[0]]), np.ones((1, 4), bool))[0, -1]
    expected = special.softmax(logits.astype(np.float64))
    counts = np.bincount([one[0] for one in drawn], minlength=expected.size)
    large = expected > 0.004
    seen, wanted = np.append(counts[large], counts[~large].sum()), np.append(expected[large], expected[~large].sum())
    assert stats.chisquare(seen, wanted / wanted.sum() * 4000).pvalue > 1e-3


def test_the_oracle_by_hand():
    """Advantages and clipped loss of PyTorch's side, from numbers worked out here."""
    advantages = torch_sampled.grpo_torch(np.array([1.0, 0.0, 1.0, 1.0]), 2)
    assert advantages.tolist() == pytest.approx([1.0, -1.0, 0.0, 0.0], abs=1e-5)
    ratios = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    credit = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    mask = torch.tensor([[True, True], [True, True]])
    loss = torch_sampled.policy_loss_torch(torch.log(ratios), torch.zeros(2, 2), credit, mask, (0.2, 0.28))
    assert float(loss) == pytest.approx(-(1.28 + 0.5 - 1.5 - 0.8) / 4)


def test_welch_is_scipys():
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(1.0, 0.1, 4), generator.normal(1.1, 0.3, 3)
    error, half = welch(ours, theirs, confidence=0.95)
    found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert half == pytest.approx((found.high - found.low) / 2)
    assert error == pytest.approx(math.sqrt(ours.var(ddof=1) / 4 + theirs.var(ddof=1) / 3))
    assert welch(np.ones(2), np.ones(2), confidence=0.95) == (0.0, 0.0)


def side(reward, *, accuracy=0.5):
    row = {"grad_norm": 1.0, "learning_rate": 1e-3, "response_length": 4.0, "reward": reward}
    numbers = {"relative_norm": 1e-3, "density_bf16": 0.5, "stable_rank": 3.0}
    return SampledSide([row] * 4, {0: 0.5, 4: accuracy}, numbers)


def compared(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    results = [SampledResult(seed, side(a), side(b), 0) for seed, (a, b) in enumerate(pairs)]
    return {check.name: check for check in compare_sampled(results, [])}


def test_seeds_say_how_far_two_means_may_lie_apart():
    held = compared([0.5, 0.52, 0.48], [0.51, 0.49, 0.5])["reward, last quarter"]
    assert held.ok and held.tolerance > held.null > 0
    # The rows of a table share 5 %: of 8, each has 1 − 0.05/8.
    ours, theirs = np.array([0.5, 0.52, 0.48]), np.array([0.51, 0.49, 0.5])
    assert held.tolerance == pytest.approx(welch(ours, theirs, confidence=1 - 0.05 / 8)[1])
    assert not compared([0.5, 0.52, 0.48], [0.9, 0.91, 0.89])["reward, last quarter"].ok
    # Seeds that agree to the last digit leave a stated share of the mean, and no more.
    assert compared([0.5] * 3, [0.505] * 3)["reward, last quarter"].ok
    assert not compared([0.5] * 3, [0.52] * 3)["reward, last quarter"].ok
    assert not compared([math.nan] * 3, [0.5] * 3)["reward, last quarter"].ok


def test_geometry_by_hand():
    """Two matrices of one kind: means over both, embeddings and norms left out."""
    before = {f"model.layers.{i}.mlp.up_proj.weight": np.eye(4, dtype=np.float32) for i in range(2)}
    after = {name: (2.0 + place) * value for place, (name, value) in enumerate(before.items())}
    more = {"model.norm.weight": np.ones(4, np.float32), "model.embed_tokens.weight": np.ones((4, 4), np.float32)}
    found = geometry(before | more, after | {name: 9 * value for name, value in more.items()})
    assert found == {"relative_norm": pytest.approx(1.5), "density_bf16": 0.25, "stable_rank": pytest.approx(4.0)}
