"""What a step is given by teachers that may have devices of their own: the same call in one process and in several."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgeom import processes
from jaxgeom.data.pipelines import Prompt
from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.sharding import parameter_shardings
from jaxgeom.training import Frozen, OPDSettings, objective_of
from jaxgeom.training.mesh_fit import split_devices
from jaxgeom.training.objectives.on_policy import Rollout
from jaxgeom.training.rollouts import Answers
from tests.tiny import tiny_config, tiny_params


class Taught(NamedTuple):
    """What a step is given, on the host, and the parameters of student and teachers where they lie."""

    batch: dict[str, np.ndarray]
    student: Any
    teachers: list[Any]


def taught(own: int | None, *, teachers: int = 1, rows: int = 8, **changes: Any) -> Taught:
    """A batch of one rollout, scored ahead where a run would have it so; it lies where the student does."""
    rate = AdamWSettings(learning_rate=1e-3)
    settings = OPDSettings(
        steps=2, batch_size=rows, samples_per_prompt=2, max_new_tokens=3, optimizer=rate, teacher_devices=own, **changes
    )
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 100, (rows, 9)).astype(np.int32)
    prompts = [Prompt(row, (1,), None, row * row % 3 % teachers) for row in range(rows)]
    answers = Answers(
        tokens, np.ones_like(tokens, bool), np.arange(9) > np.full((rows, 1), 5), np.zeros(tokens.shape, np.float32),
        np.zeros(rows, np.float32), ["x"] * rows, prompts,
    )  # fmt: skip
    meshes = split_devices(settings.mesh, own)
    models, params = [], []
    for place in range(1 + teachers):
        config, mesh = tiny_config(num_hidden_layers=1, hidden_size=16 * (1 + place)), meshes[min(place, 1)]
        tree = tiny_params(config, seed=place)
        models.append(Qwen3(config, platform="cpu", mesh=mesh))
        params.append(jax.tree.map(processes.placed, tree, parameter_shardings(tree, mesh)))
    objective = objective_of(settings, models[0], models[1:], meshes[0])
    frozen = Frozen(teachers=tuple(params[1:]))
    ahead = objective.scored_ahead(params[0], frozen, answers) if teachers == 1 else None
    rollout = Rollout(answers, {}, np.zeros(rows, bool), ahead)
    batch, _ = objective.learned_from(params[0], frozen, rollout, jax.random.key(0))
    held = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    held = {name: array for name, array in held.items() if array is not None}
    assert all(array.sharding.mesh == meshes[0] for array in held.values())
    return Taught({name: processes.whole(array) for name, array in held.items()}, params[0], params[1:])
