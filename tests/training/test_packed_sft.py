"""Packed rows are the unpacked ones: the same loss, gradient and step; a packed run stops and goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.sharding import batch_sharding, make_mesh, parameter_shardings
from jaxgeom.training import Batch, SFTSettings, objective_of
from jaxgeom.training.state import Frozen
from tests.tiny import tiny_config, tiny_params
from tests.training import runs

LENGTHS = (9, 5, 3, 12, 4, 7, 11, 2)
ROWS = ((0, 1, 2), (3, 4), (5, 6), (7,))
WIDTH = 20


def both_batches():
    """The same eight demonstrations, alone and packed into four rows."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 100, length) for length in LENGTHS]
    masks = [np.arange(length) >= max(1, length // 2) for length in LENGTHS]
    kinds = {"tokens": int, "valid": bool, "loss_mask": bool}
    alone = {name: np.zeros((8, WIDTH), kind) for name, kind in kinds.items()}
    for row, (tokens, mask) in enumerate(zip(sequences, masks, strict=True)):
        alone["tokens"][row, : len(tokens)], alone["valid"][row, : len(tokens)] = tokens, True
        alone["loss_mask"][row, : len(tokens)] = mask
    packed = {name: np.zeros((4, WIDTH), kind) for name, kind in (kinds | {"segments": int}).items()}
    for row, members in enumerate(ROWS):
        place = 0
        for number, member in enumerate(members, 1):
            own = slice(place, place + LENGTHS[member])
            packed["tokens"][row, own], packed["loss_mask"][row, own] = sequences[member], masks[member]
            packed["valid"][row, own], packed["segments"][row, own] = True, number
            place += LENGTHS[member]
    return (Batch(**{name: jnp.asarray(array) for name, array in one.items()}) for one in (alone, packed))


def loss_and_gradient(batch, kind, mesh=None):
    config = tiny_config()
    packing, optimizer = batch.segments is not None, AdamWSettings(learning_rate=1e-3)
    settings = SFTSettings(steps=1, batch_size=8, optimizer=optimizer, packing=packing)
    objective = objective_of(settings, Qwen3(config, attention=kind, platform="cpu", mesh=mesh), mesh=mesh)
    params = tiny_params(config)
    if mesh is not None:
        params = jax.device_put(params, parameter_shardings(params, mesh))
        batch = jax.device_put(batch, batch_sharding(mesh))

    def loss(params):
        return objective.loss(params, batch, Frozen(), objective.denominator(batch))[0]

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("kind", ["plain", "chunked"])
def test_loss_and_gradient_are_those_of_the_rows_alone(kind):
    alone, packed = both_batches()
    wanted, gradient = loss_and_gradient(alone, kind)
    found, own = loss_and_gradient(packed, kind)
    assert float(found) == pytest.approx(float(wanted), rel=2e-6)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_on_a_mesh_too():
    alone, packed = both_batches()
    wanted, gradient = loss_and_gradient(alone, "plain")
    found, own = loss_and_gradient(packed, "plain", make_mesh(2, 2, 2, 1))
    assert float(found) == pytest.approx(float(wanted), rel=2e-6)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.slow
def test_a_packed_run_that_goes_on_is_the_run(inputs, tmp_path):
    given = {"max_length": 24, "eval_data": None}
    assert runs.train(inputs, tmp_path / "whole", "--packing", **given) == 0
    assert runs.train(inputs, tmp_path / "parts", "--packing", **given | {"steps": 2}) == 0
    assert runs.train(inputs, tmp_path / "parts", "--packing", **given) == 0
    assert runs.logged(tmp_path / "whole") == runs.logged(tmp_path / "parts")
    for a, b in zip(runs.weights(tmp_path / "whole", 4), runs.weights(tmp_path / "parts", 4), strict=True):
        np.testing.assert_array_equal(a, b)
