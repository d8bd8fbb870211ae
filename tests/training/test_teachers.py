"""Teachers of other shapes, and several: each row is taught by its own, in every form of distillation."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.data.pipelines import Prompt
from jaxgeom.data.prepared import Prepared
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import Frozen, OPDSettings, RunInputs, objective_of
from jaxgeom.training.identity import differences
from jaxgeom.training.objectives.on_policy import Rollout
from jaxgeom.training.rollouts import Answers
from jaxgeom.training.teachers import assigned
from tests.tiny import tiny_config, tiny_params, write_tiny_model
from tests.training import runs
from tests.training.in_step import credited

COMMON = dict(
    steps=1, batch_size=6, max_new_tokens=6, samples_per_prompt=2, optimizer=AdamWSettings(learning_rate=1e-3)
)
WHICH = [0, 0, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def world():
    """A student, two teachers of other sizes, six answers."""
    configs = [tiny_config(num_hidden_layers=1, hidden_size=size) for size in (32, 48, 16)]
    models, params = [Qwen3(config) for config in configs], [tiny_params(c, seed=s) for s, c in enumerate(configs)]
    rng = np.random.default_rng(0)
    valid = np.arange(10) < 4 + rng.integers(2, 7, 6)[:, None]
    prompts = [Prompt(row, (5, 6), None, teacher) for row, teacher in enumerate(WHICH)]
    answers = Answers(
        rng.integers(3, 100, (6, 10)).astype(np.int32), valid, valid & (np.arange(10) >= 4),
        np.zeros((6, 10), np.float32), np.zeros(6, np.float32), [""] * 6, prompts,
    )  # fmt: skip
    return models, params, answers


def batch_of(settings, world, teachers=(1, 2), answers=None):
    models, params, whole = world
    objective = objective_of(settings, models[0], [models[place] for place in teachers])
    frozen = Frozen(teachers=tuple(params[place] for place in teachers))
    answers = whole if answers is None else answers
    rollout = Rollout(answers, {}, np.zeros(len(answers.texts), bool))
    return objective, frozen, objective.prepare(params[0], frozen, rollout, 0).batches[0]


def advantages_of(settings, world, teachers=(1, 2)):
    objective, frozen, batch = batch_of(settings, world, teachers)
    return np.asarray(credited(objective, world[1][0], frozen, batch)[0].advantages)


def test_each_row_is_scored_by_its_own_teacher(world):
    settings = OPDSettings(**COMMON)
    found, *alone = (advantages_of(settings, world, places) for places in ((1, 2), (1,), (2,)))
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(found, np.where(np.array(WHICH)[:, None] == 0, *alone), atol=1e-5)


def test_in_the_step_each_row_is_taught_by_its_own_teacher(world):
    """Loss and gradient are those of each teacher on its own rows, over the tokens of all."""
    settings, params = OPDSettings(**COMMON, support="full"), world[1][0]
    objective, frozen, batch = batch_of(settings, world)
    np.testing.assert_array_equal(batch.teacher, WHICH)
    shape = objective.shape_of_batch(
        lambda dtype, by_row=False: jax.ShapeDtypeStruct((6,) if by_row else (6, 10), dtype)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shape) == jax.tree.map(lambda x: (x.shape, x.dtype), batch)

    denominator = objective.denominator(batch)
    alone = [batch_of(settings, world, (place,)) for place in (1, 2)]
    masks = [batch.loss_mask & (jnp.array(WHICH) == place)[:, None] for place in (0, 1)]

    def together(tree):
        return objective.loss(tree, batch, objective.step_inputs(frozen), denominator)[0]

    def apart(tree):
        return sum(
            single.loss(tree, whole.replace(loss_mask=mask), single.step_inputs(own), denominator)[0]
            for (single, own, whole), mask in zip(alone, masks, strict=True)
        )

    (found, grads), (wanted, expected) = (jax.jit(jax.value_and_grad(loss))(params) for loss in (together, apart))
    np.testing.assert_allclose(float(found), float(wanted), rtol=1e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6), grads, expected)


def test_a_row_names_its_teacher_by_place_path_or_last_part(tmp_path):
    def rows(*names):
        count = len(names)
        return Prepared("", np.zeros(0), np.zeros(0), np.zeros(1), np.arange(count), [None] * count, list(names))

    paths = (tmp_path / "a" / "maths", tmp_path / "b" / "code")
    assert assigned(rows(1, "maths", str(paths[1])), tmp_path, paths).teachers == [1, 0, 1]
    assert assigned(rows(None, "anyone"), tmp_path, paths[:1]).teachers == [0, 0]
    for names, says in (
        (("maths", None), "row 1: has no field 'teacher'; one of maths, code"),
        (("law",), "row 0: teacher='law' names 0 of the teachers; one of maths, code"),
        ((2,), "row 0: teacher=2 names 0"),
        ((True,), "row 0: teacher=True names 0"),
        (("maths", 0), f"teacher={paths[1]}: no row of {tmp_path} names it"),
    ):
        with pytest.raises(UserError, match=says):
            assigned(rows(*names), tmp_path, paths)
    alike = (tmp_path / "a" / "last", tmp_path / "b" / "last")
    with pytest.raises(UserError, match=f"teacher='last' names 2 of the teachers; one of {alike[0]}, {alike[1]}"):
        assigned(rows("last", "last"), tmp_path, alike)


def test_a_teacher_is_given_once(tmp_path):
    with pytest.raises(UserError, match=f"teacher={tmp_path}: given twice"):
        RunInputs(model=tmp_path, data=tmp_path, teacher=(tmp_path, tmp_path / "other", tmp_path))


def test_one_path_is_a_teacher_and_old_runs_are_known(tmp_path):
    made = [RunInputs(model=tmp_path, data=tmp_path, teacher=given) for given in (tmp_path, (tmp_path,))]
    assert made[0] == made[1] and made[0].teachers == (tmp_path,)
    assert RunInputs(model=tmp_path, data=tmp_path, teacher=None).teachers == ()
    settings = {"steps": 1, "rows": {}, "optimizer": {"learning_rate": 1e-3}}
    old = {"objective": "opd", "settings": settings, "contents": {"teacher": "x"}, "inputs": {"teacher": "t"}}
    new = old | {"inputs": {"teacher": ["t"]}}
    assert differences(old, new, 0) == []
    assert "t" in differences(old, new | {"contents": {"teacher": "y"}}, 0)[0]


def test_several_teachers_do_not_answer(world):
    models, _, _ = world
    with pytest.raises(UserError, match="rollouts=teacher: 2 teachers are given"):
        objective_of(OPDSettings(**COMMON, rollouts="teacher"), models[0], models[1:])


def test_a_command_for_which_several_would_answer_is_refused_before_anything_is_loaded(jaxgeom, taught, tmp_path):
    line = arguments(taught, tmp_path / "run", "--teacher", taught / "unwritten", "--rollouts", "teacher")
    refused = jaxgeom(*line)
    assert refused.status == 2 and "rollouts=teacher: 2 teachers are given" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run by two teachers, dense and mixture, of other paddings and in bfloat16, and what it said."""
    folder = runs.write_inputs(tmp_path_factory.mktemp("taught"))
    write_tiny_model(folder / "model", num_hidden_layers=1)
    write_tiny_model(folder / "dense", seed=1, vocab_size=128, num_hidden_layers=1)
    write_tiny_model(
        folder / "mixture", seed=2, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, num_hidden_layers=1, hidden_size=16,
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    named = [row | {"teacher": ("mixture", 0)[number % 2]} for number, row in enumerate(rows)]
    (folder / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    return folder


def arguments(folder, out, *more, data="named.jsonl"):
    line = ["train", "opd", "--model", folder / "model", "--data", folder / data, "--out", out, "--steps", 1]
    line += ["--batch-size", 8, "--samples-per-prompt", 2, "--lr", 1e-3, "--max-new-tokens", 2, "--mesh-fsdp", 1]
    return [*line, "--mesh-data", 8, "--teacher", folder / "dense", *more]


@pytest.mark.slow
def test_a_run_with_two_teachers_of_other_kinds_sizes_paddings_and_dtypes(jaxgeom, taught, tmp_path):
    both = ("--teacher", taught / "mixture", "--teacher-dtype", "bfloat16", "--support", "teacher-top-k", "--top-k", 4)
    said = jaxgeom(*arguments(taught, tmp_path / "run", *both))
    assert said.status == 0, said.err
    assert "dense: its embedding has 128 rows, the model's has 112: those from token 103 on are padding" in said.out
    (row,) = (row for row in runs.logged(tmp_path / "run") if "loss" in row)
    assert 0 < row["loss"] < math.inf and row["divergence"] > 0 and row["gap"] != 0
    config = read_json(tmp_path / "run" / "config.json")
    assert {"teacher", "teacher1"} <= set(config["contents"]) and len(config["inputs"]["teacher"]) == 2
    other = jaxgeom(*arguments(taught, tmp_path / "run", "--steps", 2, *both[2:]))
    assert other.status == 2 and "teacher1:" in other.err
    missing = jaxgeom(*arguments(taught, tmp_path / "new", *both, data="prompts.jsonl"))
    assert missing.status == 2 and "prompts.jsonl: row 0: has no field 'teacher'" in missing.err
    assert not (tmp_path / "new").exists()
