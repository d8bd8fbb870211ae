"""What an argument names in a training run: one reader of `RUN@STEP` for every command."""

import pathlib

import pytest

from jaxgeom.checkpoints.runs import RunCheckpoint, named_run, saved_steps, split_step
from jaxgeom.errors import UserError


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    for step in (0, 5, 12):
        (tmp_path / "you@home" / "checkpoints" / str(step) / "params").mkdir(parents=True)
    (tmp_path / "you@home" / "checkpoints" / "13").mkdir()  # cut off before its parameters were there
    (tmp_path / "you@home" / "checkpoints" / "tmp.14").mkdir()
    return tmp_path / "you@home"


def test_every_form_names_the_run_and_its_step(run):
    assert named_run(run) == RunCheckpoint(run) and RunCheckpoint(run).saved_step() == 12
    assert named_run(f"{run}@5") == named_run(f"{run}/checkpoints/5") == RunCheckpoint(run, 5)
    assert named_run(f"{run}/@5") == RunCheckpoint(run, 5)
    assert saved_steps(run) == [0, 5, 12] and saved_steps(run.parent) == []


def test_what_names_no_run(run, tmp_path):
    (tmp_path / "hf@3").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "hf@3", tmp_path / "file", tmp_path / "absent", run / "checkpoints", tmp_path / "5"):
        assert named_run(path) is None
    assert split_step("hf@3") == ("hf", 3) and split_step("hf@") == ("hf@", None)


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(UserError, match="absent: no such run directory"):
        named_run(f"{tmp_path}/absent@5")
    with pytest.raises(UserError, match="the step after '@' is no number"):
        named_run(f"{run}@last")
    with pytest.raises(UserError, match="no checkpoint at step 13; there are 0, 5, 12"):
        RunCheckpoint(run, 13).saved_step()
    with pytest.raises(UserError, match="no checkpoint in"):
        RunCheckpoint(tmp_path).saved_step()
