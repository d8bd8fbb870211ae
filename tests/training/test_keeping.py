"""Which checkpoints stay, written beside the steps: what is removed, what never is, and what a failed write says."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgeom.errors import UserError
from jaxgeom.training import Checkpoints, checkpointing, initial_state, loop
from jaxgeom.training.checkpointing import find_resume
from jaxgeom.training.keep_settings import KeepSettings
from tests.training import runs


def state_at(step, value=1.0):
    state = initial_state({"a": jnp.full((4, 3), value), "b": jnp.ones(2)}, optax.adam(1e-3))
    return state.replace(step=jnp.int32(step))


@pytest.mark.slow
def test_a_run_keeps_the_newest_the_multiples_and_those_that_are_named(inputs, tmp_path, jaxgeom):
    out = tmp_path / "run"
    options = {"steps": 9, "save_every": 1, "eval_data": None}
    said = jaxgeom(*runs.arguments(inputs, out, **options, keep=2, keep_every=4, keep_steps=3))
    assert said.status == 0, said.err
    assert runs.steps(out) == [0, 3, 4, 8, 9]
    # A finished run's last step stays when it is gone on with, also after a stop in between; fewer may stay then.
    more = options | {"steps": 12, "keep": 1}
    assert jaxgeom(*runs.arguments(inputs, out, **more)).status == 0
    assert runs.steps(out) == [0, 9, 12]
    again = options | {"steps": 14, "keep": 1}
    assert jaxgeom(*runs.arguments(inputs, out, **again)).status == 0
    assert runs.steps(out) == [0, 9, 12, 14]
    assert not [path for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]


def test_the_step_that_geometry_is_compared_with_stays(inputs, tmp_path, jaxgeom, monkeypatch):
    class Blind:
        def __init__(self, *_):
            self.before = self.after = lambda *_: {}

    monkeypatch.setattr(loop, "Monitor", Blind)
    out = tmp_path / "run"
    options = {"steps": 6, "save_every": 1, "eval_data": None, "keep": 1}
    options |= {"geometry_every": 3, "geometry_step": 2}
    assert jaxgeom(*runs.arguments(inputs, out, **options)).status == 0
    assert runs.steps(out) == [0, 2, 6]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"keep": 0}, "keep=0"),
        ({"keep_every": 2}, "keep_every=2: nothing is removed without keep"),
        ({"keep": 1, "keep_every": 3}, "keep_every=3: must be a multiple of save_every=2"),
        ({"keep": 1, "keep_steps": 3}, "keep_steps=3: no step that is saved"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(inputs, tmp_path, jaxgeom, given, words):
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "run", **given))
    assert said.status == 2 and said.err.count("\n") == 1 and words in said.err, said.err
    assert not (tmp_path / "run").exists()


def test_the_last_good_one_stays_though_newer_ones_are_damaged(tmp_path):
    keep = KeepSettings(keep=1)
    with Checkpoints(tmp_path, keep=keep, always={0}) as checkpoints:
        for step in (0, 2, 4, 6):
            checkpoints.save(state_at(step), {}, 0)
    assert runs.steps(tmp_path) == [0, 6]
    # The run went back to 0 from a damaged 6, and saves 3: it is the last good one, whatever lies beyond.
    next((tmp_path / "checkpoints" / "6").glob("params/manifest*")).unlink()
    with Checkpoints(tmp_path, keep=keep, always={0}) as checkpoints:
        checkpoints.save(state_at(3), {}, 0)
    assert runs.steps(tmp_path) == [0, 3, 6] and find_resume(tmp_path).step == 3


def test_what_is_not_ours_is_not_removed(tmp_path):
    said = []
    with Checkpoints(tmp_path, said.append, keep=KeepSettings(keep=1)) as checkpoints:
        checkpoints.save(state_at(1), {}, 0)
        checkpoints.wait()
        (tmp_path / "checkpoints" / "1" / "notes.txt").write_text("mine")
        checkpoints.save(state_at(2), {}, 0)
    assert (tmp_path / "checkpoints" / "1" / "notes.txt").read_text() == "mine"
    assert len(said) == 1 and "notes.txt" in said[0] and "cannot be removed" in said[0]


def test_what_is_written_is_the_step_although_its_buffers_are_given_away(tmp_path, monkeypatch):
    """The next step runs, and takes the buffers, before the first byte is on disk."""
    go, real = threading.Event(), checkpointing.checksums.write_checksums
    monkeypatch.setattr(checkpointing.checksums, "write_checksums", lambda *a, **b: go.wait() and real(*a, **b))
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state, told = state_at(1, 0.0), []
    with Checkpoints(tmp_path, saved=told.append) as checkpoints:
        checkpoints.save(state, {"place": 7}, 0, {"metrics.jsonl": {"bytes": 0, "sha256": "0"}})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        assert not told and find_resume(tmp_path).step is None
        go.set()
        checkpoints.wait()
        assert told == [1]
        held, data, _ = checkpoints.restore(1, state_at(1))
    np.testing.assert_array_equal(held.params["a"], np.zeros((4, 3)))
    assert data == {"place": 7} and float(state.params["a"][0, 0]) == 3.0


def test_a_write_that_fails_is_said_by_the_next_save_at_the_latest(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), {}, 0)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpointing.checksums, "write_checksums", full)
            checkpoints.save(state_at(2), {}, 0)
            with pytest.raises(
                UserError, match=r"checkpoints/2: cannot be saved: the disk is full; step 1 is the last"
            ):
                checkpoints.save(state_at(3), {}, 0)
        assert runs.steps(tmp_path) == [1]  # nothing half written is left
        checkpoints.save(state_at(3), {}, 0)
    assert runs.steps(tmp_path) == [1, 3]


@pytest.mark.parametrize("what", ["loss", "update"])
def test_a_lost_run_stops_names_the_last_good_step_and_saves_nothing(inputs, tmp_path, jaxgeom, what):
    """An infinite rate makes NaN of the weights; a huge one moves them by more than their size."""
    out = tmp_path / "run"
    lr = {"loss": "1e38", "update": "10"}[what]
    said = jaxgeom(*runs.arguments(inputs, out, steps=8, lr=lr, eval_data=None, save_every=1, warmup_fraction=0.0))
    assert said.status == 2 and said.err.count("\n") == 1, said.err
    last = runs.steps(out)[-1]
    assert f"the last good checkpoint is {out}@{last}" in said.err and not (out / "done").exists(), said.err
    assert all(np.isfinite(leaf).all() for leaf in runs.weights(out, last))
    assert [row["step"] for row in runs.logged(out)] == list(range(1, last + 1))
