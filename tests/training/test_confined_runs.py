"""Confined training from the command line: what leaks, what is kept, what goes on, what crosses devices."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.sharding import batch_sharding, make_mesh, parameter_shardings
from jaxgeom.training import Batch, SFTSettings, initial_state, make_optimizer, make_train_step, objective_of
from jaxgeom.training.state import Frozen
from tests.tiny import tiny_config, tiny_params
from tests.training import runs
from tests.training.bases import random_confinement


def optimizer_values(run):
    """How many numbers of the optimizer the last checkpoint holds, by Orbax's own list of them."""
    held = ocp.PyTreeCheckpointer().metadata(run / "checkpoints" / "4" / "optimizer").item_metadata.tree
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(held, is_leaf=lambda leaf: hasattr(leaf, "shape")))


def leakages(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["leakage"], row["leakage_max"]) for row in rows if "loss" in row]


@pytest.mark.parametrize("form", ["gradients", "coordinates"])
def test_a_run_is_confined_to_its_own_early_subspace(inputs, finished, tmp_path, form):
    out = tmp_path / "run"
    given = {"confine": form, "basis_from": f"{finished}@2", "basis_rank": 4, "model": f"{finished}@2", "seed": 1}
    assert runs.train(inputs, out, **given) == 0
    found = leakages(out)
    assert len(found) == 4 and all(mean <= largest for mean, largest in found)
    assert all(largest < 1e-8 for _, largest in found) if form == "coordinates" else found[-1][0] > 1e-3
    before, after = (runs.weights(out, step) for step in (0, 4))
    assert sum(np.any(a != b) for a, b in zip(before, after, strict=True)) == 7  # q, k, v, o, gate, up, down
    if form == "coordinates":
        assert optimizer_values(out) < 0.2 * optimizer_values(finished)  # moments of [out, 4], and of nothing else
        # Stopped and gone on with it is the same run.
        again = tmp_path / "again"
        assert runs.train(inputs, again, **given | {"steps": 2}) == 0
        assert runs.train(inputs, again, **given) == 0
        for a, b in zip(runs.weights(out, 4), runs.weights(again, 4), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_trains_the_entries_of_a_mask(inputs, finished, tmp_path):
    out = tmp_path / "run"
    assert runs.train(inputs, out, confine="mask", mask="changed", mask_from=f"{finished}@4", unconfined="free") == 0
    assert [largest for _, largest in leakages(out)] == [0.0] * 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"confine": "updates"}, "basis_from"),
        ({"confine": "updates", "basis_from": "RUN@3"}, "no checkpoint at step 3"),
        ({"confine": "updates", "basis_from": "MODEL"}, "RUN@STEP"),
        ({"basis_from": "RUN@2"}, "nothing reads it"),
        ({"confine": "mask", "mask_fraction": 0.0}, "mask_fraction=0.0"),
    ],
)
def test_what_cannot_confine_is_refused_before_anything_is_written(jaxgeom, inputs, finished, tmp_path, given, words):
    names = {"RUN": str(finished), "MODEL": str(inputs / "model")}
    for name, path in names.items():
        given = {key: value.replace(name, path) if isinstance(value, str) else value for key, value in given.items()}
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "run", **given))
    assert said.status == 2 and said.err.count("\n") == 1 and words in said.err, said.err
    assert not (tmp_path / "run").exists()


def compiled_step(mesh, form, parts=1):
    config = tiny_config()
    model, params = Qwen3(config, platform="cpu", mesh=mesh), tiny_params(config)
    confinement = random_confinement(config, params, form)
    settings = SFTSettings(
        steps=3, batch_size=8, micro_batches=parts,
        optimizer=AdamWSettings(learning_rate=1e-2, eps=1e-2),  # else the first step is the sign of what is rounding
        confine=confinement.settings,
    )  # fmt: skip
    params = params if mesh is None else jax.device_put(params, parameter_shardings(params, mesh))
    optimizer = make_optimizer(settings, params, confinement)
    start = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    state = initial_state(params, optimizer)
    tokens = jnp.asarray(np.random.default_rng(1).integers(1, 100, (8, 12)))
    batch = Batch(tokens=tokens, valid=jnp.ones((8, 12), bool), loss_mask=jnp.arange(12)[None] > jnp.arange(8)[:, None])
    batch = batch if mesh is None else jax.device_put(batch, batch_sharding(mesh))
    step = make_train_step(objective_of(settings, model, mesh=mesh), optimizer, state, confinement)
    return step, state, batch, Frozen(start=start)


def test_what_crosses_devices_under_data_parallelism_is_the_coordinates():
    mesh = make_mesh(4, 1, 1, 1, devices=jax.devices()[:4])
    step, *arguments = compiled_step(mesh, "coordinates")
    compiled = step.lower(*arguments).compile()
    sums = [line for line in compiled.as_text().splitlines() if "all-reduce(" in line or "all-reduce-start(" in line]
    entries = sum(_entries(line.split(" all-reduce")[0]) for line in sums)
    config = tiny_config()
    outs = [32, 16, 16, 32, 48, 48, 32]  # q, k, v, o, gate, up, down
    wanted = config.num_hidden_layers * 4 * sum(outs)
    assert wanted <= entries < wanted + 64  # and a few scalars: loss, counts, norms
    for kind in ("all-gather(", "reduce-scatter(", "all-to-all("):
        assert kind not in compiled.as_text()


def _entries(result: str) -> int:
    """Numbers in the result of an HLO line, `x = (f32[2,3], f32[])`."""
    shapes = re.findall(r"[fsu]\d+\[([\d,]*)\]", result)
    return sum(int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes)


@pytest.mark.parametrize("form", [pytest.param("updates", marks=pytest.mark.slow), "coordinates"])
def test_the_step_is_the_same_on_any_mesh_and_in_parts(form):
    step, state, batch, frozen = compiled_step(None, form)
    wanted, metrics = step(state, batch, frozen)
    for sizes, parts in (((4, 1, 1, 1), 2), ((2, 2, 2, 1), 1)):
        mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        step, state, batch, frozen = compiled_step(mesh, form, parts)
        found, own = step(state, batch, frozen)
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
        # Of two nearly equal shares below float32's rounding nothing is compared.
        assert float(own["leakage"]) == pytest.approx(float(metrics["leakage"]), rel=1e-2, abs=1e-8)
        assert float(own["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
        assert float(own["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)
