"""A teacher on devices of its own: scored there, with the numbers that it has beside the student."""

import jax
import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.sharding import parameter_shardings
from jaxgeom.training import Frozen, OPDSettings, objective_of
from jaxgeom.training.mesh_fit import require_batch_divides, split_devices
from jaxgeom.training.rollouts import Answers
from tests.tiny import tiny_config, tiny_params, write_tiny_model
from tests.training import runs

COMMON = dict(steps=2, batch_size=8, max_new_tokens=3, optimizer=AdamWSettings(learning_rate=1e-3))
GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.integers(1, 100, (8, 9)).astype(np.int32)
ANSWERS = Answers(
    TOKENS, np.ones_like(TOKENS, bool), np.arange(9) > np.full((8, 1), 5), np.zeros(TOKENS.shape, np.float32),
    np.zeros(8, np.float32), ["x"] * 8, [],
)  # fmt: skip


def scores(own):
    """Of student and teacher, and where the teacher lies."""
    settings = OPDSettings(**COMMON, teacher_devices=own, keep_tokens=0.5)  # by the gap: both are scored before
    meshes = split_devices(settings.mesh, own)
    models, params = [], []
    for place, mesh in enumerate(meshes):
        config = tiny_config(num_hidden_layers=1, hidden_size=16 * (1 + place))
        tree = tiny_params(config, seed=place)
        models.append(Qwen3(config, platform="cpu", mesh=mesh))
        params.append(jax.device_put(tree, parameter_shardings(tree, mesh)))
    objective = objective_of(settings, models[0], models[1:], meshes[0])
    placed = objective.scored_ahead(params[0], Frozen(teachers=(params[1],)), ANSWERS)
    assert all(found.sharding.mesh == meshes[0] for found in placed.scores.values())
    return jax.device_get(dict(placed.scores)), meshes, params[1]


def test_a_teacher_is_scored_on_its_own_devices():
    together, alone = scores(None), scores(4)
    assert together[1][0] == together[1][1] and together[1][0].size == 8
    student, teacher = (set(mesh.devices.flat) for mesh in alone[1])
    assert student == set(jax.devices()[:4]) and teacher == set(jax.devices()[4:])
    kernel = alone[2]["layers"]["attention"]["q"]["kernel"]
    assert kernel.sharding.device_set == teacher and kernel.addressable_shards[0].data.size * 4 == kernel.size
    assert together[0].keys() == alone[0].keys() == {"score", "score.teacher0"}
    for name, found in alone[0].items():
        np.testing.assert_allclose(found[:, 1:], together[0][name][:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"teacher_devices": 0}, "teacher_devices=0: must be positive"),
        ({"teacher_devices": 8}, "--teacher-devices 8: there are 8 devices"),
        ({"teacher_devices": 3}, "batch_size=8 is not divisible by the 3 devices"),
        ({"teacher_devices": 4, "support": "full"}, "support=full the student's step reads the teacher"),
    ],
)
def test_what_cannot_be_split_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        settings = OPDSettings(**COMMON, **given)
        require_batch_divides(settings, split_devices(settings.mesh, settings.teacher_devices)[0])


@pytest.mark.slow
def test_a_run_with_a_teacher_aside_learns_what_one_beside_teaches(tmp_path):
    """And one is gone on with by the other."""
    inputs = runs.write_inputs(tmp_path)
    teacher = write_tiny_model(tmp_path / "teacher", seed=5, hidden_size=48)
    logs = []
    for name, own in (("beside", None), ("aside", 4)):
        line = runs.arguments(
            inputs, tmp_path / name, data=inputs / "prompts.jsonl", eval_data=None, samples_per_prompt=2, steps=2,
            save_every=1, teacher=teacher, teacher_devices=own,
        )  # fmt: skip
        assert runs.main([line[0], "opd", *line[2:]]) == 0
        logs.append(runs.logged(tmp_path / name))
    assert (tmp_path / "beside" / "samples.jsonl").read_bytes() == (tmp_path / "aside" / "samples.jsonl").read_bytes()
    for mine, theirs in zip(*logs, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    line = runs.arguments(
        inputs, tmp_path / "aside", data=inputs / "prompts.jsonl", eval_data=None, samples_per_prompt=2, steps=3,
        save_every=1, teacher=teacher,
    )  # fmt: skip
    assert runs.main([line[0], "opd", *line[2:]]) == 0 and runs.steps(tmp_path / "aside") == [0, 1, 2, 3]
