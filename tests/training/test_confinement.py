"""Bases and masks of a confined run against float64 numpy on the checkpoints' tensors; leakage by its definition."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom import processes
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config
from jaxgeom.optimizers import AdamWSettings, adamw
from jaxgeom.training import load_start
from jaxgeom.training.confine_settings import ConfineSettings
from jaxgeom.training.confinement import make_confinement

NAME = "model.layers.1.{}.weight"
MODULES = {
    "self_attn.q_proj": ("attention", "q"), "self_attn.o_proj": ("attention", "o"), "mlp.down_proj": ("mlp", "down"),
}  # fmt: skip


@pytest.fixture(scope="module")
def config(inputs):
    return Qwen3Config.from_hf(open_checkpoint(inputs / "model").config)


def read(source, module):
    return open_checkpoint(source)[NAME.format(module)].read().astype(np.float64)


def confinement(inputs, config, settings, **sources):
    return make_confinement(settings, config, model=inputs / "model", seed=3, **sources)


def leaf_of(trees, module):
    room, name = MODULES[module]
    return np.asarray(trees["layers"][room][name]["kernel"], np.float64)[1]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("module", MODULES)
def test_delta_spans_the_leading_directions_of_the_update(inputs, config, finished, module, side):
    settings = ConfineSettings(confine="updates", basis_rank=4, basis_side=side)
    basis = leaf_of(confinement(inputs, config, settings, basis_from=f"{finished}@4").trees, module)
    left, _, right = np.linalg.svd(read(f"{finished}@4", module) - read(f"{finished}@0", module))
    wanted = right[:4].T if side == "right" else left[:, :4]
    np.testing.assert_allclose(basis @ basis.T, wanted @ wanted.T, atol=2e-4)


def test_initial_spans_the_leading_directions_of_the_weights_and_random_neither(inputs, config):
    made = {
        kind: leaf_of(
            confinement(inputs, config, ConfineSettings(confine="updates", basis=kind, basis_rank=4)).trees,
            "mlp.down_proj",
        )
        for kind in ("initial", "random")
    }
    right = np.linalg.svd(read(inputs / "model", "mlp.down_proj"))[2][:4].T
    np.testing.assert_allclose(made["initial"] @ made["initial"].T, right @ right.T, atol=2e-4)
    np.testing.assert_allclose(made["random"].T @ made["random"], np.eye(4), atol=1e-6)
    assert np.linalg.norm(made["random"].T @ right) ** 2 / 4 < 0.5


def test_masks_are_those_of_their_definition(inputs, config, finished):
    weights = read(inputs / "model", "self_attn.q_proj")
    count = int(0.25 * weights.size + 0.5)
    for kind in ("low-magnitude", "principal", "random", "changed"):
        options = {} if kind == "changed" else {"mask_fraction": 0.25}
        options |= {"mask_rank": 4} if kind == "principal" else {}
        source = {"mask_from": f"{finished}@4"} if kind == "changed" else {}
        made = confinement(inputs, config, ConfineSettings(confine="mask", mask=kind, **options), **source)
        mask = leaf_of(made.trees, "self_attn.q_proj").reshape(config.hidden_size, -1).T.astype(bool)
        if kind == "changed":
            sides = (read(f"{finished}@{step}", "self_attn.q_proj") for step in (0, 4))
            a, b = (jnp.asarray(side, jnp.float32).astype(jnp.bfloat16) for side in sides)
            np.testing.assert_array_equal(mask, a != b)
            continue
        assert mask.sum() == count
        if kind == "low-magnitude":
            assert np.abs(weights[mask]).max() <= np.abs(weights[~mask]).min()
        if kind == "principal":
            u, s, v = np.linalg.svd(weights)
            part = np.abs((u[:, :4] * s[:4]) @ v[:4])
            assert part[mask].min() >= part[~mask].max() * (1 - 1e-5)


def test_directions_that_are_not_there_are_said_and_are_zero(inputs, config, finished):
    made = confinement(inputs, config, ConfineSettings(confine="updates", basis_rank=40), basis_from=f"{finished}@4")
    assert any("16 to 32 directions in place of 40" in note for note in made.notes), made.notes
    assert leaf_of(made.trees, "mlp.down_proj").shape == (48, 32)


@pytest.mark.parametrize("kind", ["gradients", "updates", "coordinates", "mask"])
def test_leakage_is_the_share_of_energy_outside(inputs, config, finished, kind):
    options = {"mask": "low-magnitude"} if kind == "mask" else {"basis_rank": 4}
    source = {} if kind == "mask" else {"basis_from": f"{finished}@4"}
    made = confinement(inputs, config, ConfineSettings(confine=kind, **options), **source)
    start = load_start(inputs / "model", mesh=None, compute_dtype="float32")[1]
    transform = made.wrap(adamw(AdamWSettings(learning_rate=1e-3), 1))
    gradients = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32), start
    )
    state = transform.init(start)
    inside = made.gradients(gradients, state)
    updates, state = jax.jit(transform.update)(inside, state, start, start=start)
    moved = optax.apply_updates(start, updates)
    found = {name: float(value) for name, value in jax.jit(made.leakage)(moved, start, state).items()}
    outside = []
    for module in MODULES:
        room, name = MODULES[module]
        delta = (
            np.asarray(moved["layers"][room][name]["kernel"], np.float64)[1]
            - np.asarray(start["layers"][room][name]["kernel"], np.float64)[1]
        )
        held = leaf_of(made.trees, module)
        if kind == "mask":
            rest = np.where(held.astype(bool), 0.0, delta)
        else:
            matrix = delta.reshape(-1, config.hidden_size).T if name == "o" else delta.reshape(held.shape[0], -1).T
            delta, rest = matrix, matrix - matrix @ held @ held.T
        outside.append(np.sum(rest**2) / np.sum(delta**2))
    assert max(outside) <= found["leakage_max"] * (1 + 1e-3) + 1e-12
    if kind == "gradients":
        assert 0.1 < found["leakage"] <= found["leakage_max"] < 1
    else:
        assert found["leakage_max"] < (1e-30 if kind == "mask" else 1e-8)
    frozen = moved["embed"]["embedding"]
    np.testing.assert_array_equal(frozen, start["embed"]["embedding"])


@pytest.mark.parametrize(
    ("options", "sources", "words"),
    [
        ({"confine": "updates"}, {}, "needs basis_from"),
        ({"confine": "mask", "mask": "changed"}, {}, "needs mask_from"),
        ({"confine": "mask"}, {"basis_from": "RUN@4"}, "nothing reads it"),
        ({"confine": "updates", "basis": "random"}, {"basis_from": "RUN@4"}, "nothing reads it"),
        ({}, {"mask_from": "RUN@4"}, "nothing reads it"),
        ({"confine": "updates"}, {"basis_from": "RUN@3"}, "no checkpoint at step 3"),
        ({"confine": "updates"}, {"basis_from": "RUN@0"}, "step 0"),
        ({"confine": "updates"}, {"basis_from": "MODEL"}, "no checkpoint of a run"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(inputs, config, finished, options, sources, words):
    named = {k: v.replace("RUN", str(finished)).replace("MODEL", str(inputs / "model")) for k, v in sources.items()}
    with pytest.raises(UserError, match=words):
        confinement(inputs, config, ConfineSettings(**options), **named)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "@4: 2 layers, the model has 3 layers"),
        (
            {"intermediate_size": 64},
            r"@4: \(48, 32\) is the shape of model.layers.0.mlp.gate_proj.weight, .* \(64, 32\)",
        ),
    ],
)
def test_a_run_of_other_shapes_is_refused_with_both(inputs, config, finished, changes, words):
    with pytest.raises(UserError, match=words):
        other = dataclasses.replace(config, **changes)
        confinement(inputs, other, ConfineSettings(confine="updates"), basis_from=f"{finished}@4")


def test_whether_the_head_is_tied_does_not_matter_to_a_basis(inputs, config, finished):
    other = dataclasses.replace(config, tie_word_embeddings=not config.tie_word_embeddings)
    made = confinement(inputs, other, ConfineSettings(confine="updates", basis_rank=2), basis_from=finished)
    assert "run@4" in made.notes[0]  # the last step, where none is named


def test_an_empty_mask_is_said_to_be_its_fractions(inputs, config):
    with pytest.raises(UserError, match="mask_fraction=1e-05: less than half an entry"):
        confinement(inputs, config, ConfineSettings(confine="mask", mask="random", mask_fraction=1e-5))


def test_a_matrix_without_directions_is_named_and_has_no_gradient(inputs, config, tmp_path):
    shutil.copytree(inputs / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    name, tensors = NAME.format("self_attn.v_proj"), load_file(file)
    save_file({one: 0 * tensor if one == name else tensor for one, tensor in tensors.items()}, file)
    settings = ConfineSettings(confine="updates", basis="initial", basis_rank=2)
    made = make_confinement(settings, config, model=tmp_path / "model", seed=3)
    assert any(f"{name}: 0 in the model" in note for note in made.notes), made.notes
    assert not np.any(np.asarray(made.trees["layers"]["attention"]["v"]["kernel"])[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"basis_rank": 4}, "nothing reads it with confine=None"),
        ({"confine": "mask", "basis_rank": 4}, "nothing reads it with confine=mask"),
        ({"confine": "updates", "mask_fraction": 0.1}, "nothing reads it with confine=updates"),
        ({"confine": "updates", "basis_rank": 0}, "basis_rank=0"),
        ({"confine": "mask", "mask_fraction": 1.0}, "mask_fraction=1.0"),
        ({"confine": "mask", "mask": "changed", "mask_fraction": 0.1}, "mask_fraction=0.1: .* mask=changed"),
        ({"confine": "mask", "mask": "random", "mask_rank": 8}, "mask_rank=8: .* mask=random"),
        ({"unconfined": "free"}, "unconfined=free: nothing reads it with confine=None"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        ConfineSettings(**options)


def test_every_process_has_the_bases_and_masks_of_the_first(inputs, config, monkeypatch):
    """A decomposition has other last digits where a machine has other cores; replicas must not."""
    monkeypatch.setattr(processes, "as_first_has", lambda array: np.ones_like(array))
    for settings in (ConfineSettings(confine="updates", basis="initial"), ConfineSettings(confine="mask")):
        leaves = jax.tree.leaves(confinement(inputs, config, settings).trees)
        assert leaves and all(np.all(np.asarray(leaf) == 1) for leaf in leaves)
