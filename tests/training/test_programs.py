"""What can be lowered from shapes alone is what a run calls; and what a loss is divided by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.data.pipelines import Prompt
from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.rollout import sampling
from jaxgeom.sharding import batch_sharding, make_mesh, parameter_shardings
from jaxgeom.training import (
    Batch,
    Frozen,
    OPDSettings,
    RLVRSettings,
    SFTSettings,
    initial_state,
    make_optimizer,
    make_train_step,
    objective_of,
    programs,
    run_programs,
)
from jaxgeom.training.objectives import Tools
from tests.tiny import tiny_config, tiny_params

COMMON = dict(steps=3, batch_size=8, max_new_tokens=3, optimizer=AdamWSettings(learning_rate=1e-3, clip_norm=1.0))
SETTINGS = {
    "sft": SFTSettings(**COMMON),
    "rlvr": RLVRSettings(**COMMON, samples_per_prompt=4, micro_batches=2),
    "opd": OPDSettings(**COMMON, samples_per_prompt=4, temperature=0.9),
    "opd, scored before": OPDSettings(**COMMON, samples_per_prompt=4, keep_tokens=0.5),
}


class Letters:
    """As much of a tokenizer as a rollout asks for."""

    eos_token_id = pad_token_id = 0

    def get_vocab(self):
        return {}

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens))

    def batch_decode(self, rows, **_):
        return [self.decode(row) for row in rows]


def shapes(tree):
    """What a program is compiled for: shapes, dtypes, and what is static."""
    arrays = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)) if isinstance(x, arrays) else x, tree)


class Recorder:
    """Stands for a jitted function: keeps what it is called with, and returns zeros of its result's shapes."""

    def __init__(self, function, mesh):
        self.function, self.mesh, self.calls = function, mesh, []
        self.eval_shape, self.lower = function.eval_shape, function.lower

    def __call__(self, *arguments):
        self.calls.append(arguments)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.eval_shape(*arguments))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("sft", (1, 1, 1)), ("opd", (1, 1, 1)), ("opd, scored before", (1, 1, 1)), ("rlvr", (2, 2, 2))],
)
def test_the_lowered_programs_are_those_that_a_step_calls(name, sizes, monkeypatch):
    settings, model = SETTINGS[name], Qwen3(tiny_config(num_hidden_layers=1, eos_token_id=0))
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    params = tiny_params(model.config)
    params = jax.device_put(params, parameter_shardings(params, mesh))
    objective = objective_of(settings, model, [model] if settings.is_taught else [], mesh)
    frozen = Frozen(teachers=(params,) if settings.is_taught else ())
    optimizer = make_optimizer(settings, params)
    recorders = {}
    for module, key in ((sampling, "_prefill"), (sampling, "_decode"), (programs, "_score")):
        recorders[key] = Recorder(getattr(module, key), mesh)
        monkeypatch.setattr(module, key, recorders[key])
    if settings.reads == "demonstrations":
        rows = {name: np.ones((8, 12), bool) for name in ("valid", "loss_mask")}
        rows["tokens"] = np.ones((8, 12), np.int32)
    else:
        rows = [Prompt(row, tuple(range(5, 14)), "1") for row in range(2)]
    tools = Tools(iter([rows] * 3), Letters(), lambda texts, truths: [float(n % 2) for n in range(len(texts))])
    drawn = objective.draw(params, frozen, tools, 0)
    (batch,) = objective.prepare(params, frozen, drawn, 0).batches
    batch = jax.device_put(batch, batch_sharding(mesh))
    state = initial_state(params, optimizer)
    real = make_train_step(objective, optimizer, state).lower(state, batch, objective.step_inputs(frozen))

    def abstract(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

    found = run_programs(objective, optimizer, abstract(params), abstract(frozen), prompt_length=9)
    assert found["train"].lower().as_text() == real.as_text()
    calls = {
        "rollout.prefill": recorders["_prefill"].calls,
        "rollout.decode": recorders["_decode"].calls,
    }
    scorers = objective.scorers(params, frozen)
    calls |= {key: [made] for key, made in zip(scorers, recorders["_score"].calls, strict=True)}
    wanted = {"opd": ["score.teacher0"], "opd, scored before": ["score", "score.teacher0"]}
    assert list(scorers) == wanted.get(name, [])
    assert set(found) == {"train", *(key for key, made in calls.items() if made)}
    for key, made in calls.items():
        for arguments in made:
            assert shapes(found[key].arguments) == shapes(arguments)
            assert found[key].lower() is not None


def test_a_constant_divides_each_sequence_by_the_longest_answer():
    """Dr. GRPO: the sum over all tokens by sequences times `max_new_tokens`, whatever their lengths."""
    settings = dataclasses.replace(SETTINGS["rlvr"], aggregate="constant")
    mask = np.zeros((8, 6), bool)
    mask[:, 3:] = True
    mask[2:4, 4:] = False
    mask[7] = False  # of a group that is filtered out: it is no sequence
    batch = Batch(tokens=jnp.zeros((8, 6), jnp.int32), valid=jnp.ones((8, 6), bool), loss_mask=jnp.asarray(mask))
    objective = objective_of(settings, Qwen3(tiny_config()))
    assert float(objective.denominator(batch)) == 7 * settings.max_new_tokens
