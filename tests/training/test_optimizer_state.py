"""The optimizer's state by name, in memory and in checkpoints, and checkpoints that list its leaves in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxgeom.checkpoints import checksums
from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings, adamw, project_updates
from jaxgeom.training.checkpointing import Checkpoints
from jaxgeom.training.optimizer_state import by_name, from_names, leaf_names
from jaxgeom.training.state import Batch, TrainState, initial_state

PARAMS = {"embed": {"embedding": jnp.arange(6.0).reshape(3, 2)}, "norm": {"scale": jnp.ones(2)}}
ADAM = adamw(AdamWSettings(learning_rate=0.1), 3)


def moved(optimizer, steps=2):
    """A state whose numbers are all different from those of the start."""
    state = initial_state(jax.tree.map(jnp.array, PARAMS), optimizer)
    for number in range(steps):
        gradient = jax.tree.map(lambda leaf, number=number: leaf + number + 1.0, state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
    return state


def test_names_say_the_moment_and_the_parameter_wherever_in_the_chain_they_are():
    plain = by_name(moved(ADAM).opt_state)
    assert set(plain) == {"ScaleByAdamState", "ScaleByScheduleState"}
    clipped = adamw(AdamWSettings(learning_rate=0.1, clip_norm=1.0), 3)
    nested = leaf_names(clipped.init(PARAMS))
    assert [name for path in nested for name in path if name in ("mu", "nu")] == ["mu", "mu", "nu", "nu"]
    twice = optax.chain(optax.trace(0.9), optax.trace(0.5))
    assert leaf_names(twice.init({"w": jnp.zeros(2)})) == [("TraceState", "trace", "w"), ("TraceState2", "trace", "w")]
    masked = optax.masked(optax.scale_by_adam(), {"embed": True, "norm": False})
    assert ("inner_state", "mu", "embed", "embedding") in leaf_names(masked.init(PARAMS))


@pytest.mark.parametrize(
    "optimizer",
    [
        ADAM,
        optax.chain(ADAM, project_updates({"embed": {"embedding": jnp.eye(2)[:, :1]}, "norm": {"scale": None}})),
        optax.lion(1e-3),
        optax.multi_transform({"a": optax.sgd(0.1, 0.9), "b": optax.adam(0.1)}, {"embed": "a", "norm": "b"}),
    ],
    ids=["adamw", "projected", "lion", "several"],
)
def test_a_state_comes_back_from_its_names(optimizer):
    state = optimizer.init(PARAMS)
    assert len(set(leaf_names(state))) == len(jax.tree.leaves(state))
    back = from_names(by_name(state), optimizer.init(PARAMS))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_a_checkpoint_holds_it_by_name_with_the_batches_that_are_left(tmp_path):
    state = moved(ADAM)
    left = [
        Batch(np.full((2, 3), place, np.int32), np.ones((2, 3), bool), np.eye(2, 3) > 0, None, np.ones((2, 3)) * 0.1)
        for place in range(2)
    ]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"place": 5}, 0, pending=left)
        back, data, pending = checkpoints.restore(2, initial_state(PARAMS, ADAM))
        assert checksums.fault_of(tmp_path / "checkpoints" / "2") is None and data == {"place": 5}
        jax.tree.map(np.testing.assert_array_equal, back, state)
        assert [batch.old_log_probs for batch in pending] == [None, None]
        jax.tree.map(np.testing.assert_array_equal, pending, left)
        checkpoints.save(state, {}, 0)
        assert checkpoints.restore(2, initial_state(PARAMS, ADAM))[2] == []
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(tmp_path / "checkpoints" / "2" / "optimizer")
    wanted = state.opt_state[0].mu["embed"]["embedding"]
    np.testing.assert_array_equal(held["ScaleByAdamState"]["mu"]["embed"]["embedding"], wanted)


def test_another_optimizer_is_refused_by_the_first_name(tmp_path):
    other = optax.sgd(0.1, 0.9)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(moved(ADAM), {}, 0)
        with pytest.raises(UserError, match=r"its optimizer has ScaleByAdamState\.count: .* another optimizer"):
            checkpoints.restore(2, initial_state(PARAMS, other))


def test_a_list_of_leaves_in_their_order_is_read(tmp_path):
    """As earlier versions wrote it."""
    state = moved(ADAM)
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave({"state": jax.tree.leaves(state.opt_state)}),
        data=ocp.args.JsonSave({"place": 1}),
        key=ocp.args.JsonSave({"seed": 0, "step": 2}),
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(tmp_path / "checkpoints" / "2", args=items)
    with Checkpoints(tmp_path) as checkpoints:
        back, data, pending = checkpoints.restore(2, initial_state(PARAMS, ADAM))
    assert data == {"place": 1} and pending == []
    jax.tree.map(np.testing.assert_array_equal, back, state)
