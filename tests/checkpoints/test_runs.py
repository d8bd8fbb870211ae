"""What an argument names in a training run: one reader of `RUN@STEP` for every command."""

import pathlib

import pytest

from jaxgeom.checkpoints.runs import RunCheckpoint, named_run, saved_steps, split_step, step_folders, step_of_path
from jaxgeom.commands.trajectory import numbered, rates_of
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


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("global_step_20/actor/huggingface", 20),
        ("step20-lr1e-5", 20),
        ("checkpoint-500", 500),
        ("v/ckpt_7", 7),
        ("iter_0000100", 100),
        ("iteration300", 300),
        ("RUN/checkpoints/20", 20),
        ("v/step2_sft/40", 40),
        *((name, None) for name in ("v/fp16", "runA-v2", "seed0", "exp-3", "run_2", "model-7", "2024/final", "")),
    ],
)
def test_a_step_has_a_word_for_it_or_is_the_whole_name(path, step):
    assert step_of_path(path) == step


@pytest.mark.parametrize("name", ["seed0", "exp-3", "step2_sft"])
def test_a_folder_is_looked_into_whatever_its_name(tmp_path, name):
    for step in (60, 20, 40):
        (tmp_path / name / f"checkpoint-{step}").mkdir(parents=True)
    folder = tmp_path / name
    assert numbered([str(folder)]) == [(step, str(folder / f"checkpoint-{step}")) for step in (20, 40, 60)]
    rates, _ = rates_of("base", [str(folder)], 1e-5, None)
    assert rates is not None
    (folder / "adapter_config.json").write_text("{}")
    assert step_folders(folder) == []


def test_a_step_that_all_share_orders_nothing():
    for paths in (["v/step2_sft/a", "v/step2_sft/b"], ["a/checkpoint-5", "b/checkpoint-5"], ["v/fp16", "v/fp32"]):
        assert numbered(paths) == [(1, paths[0]), (2, paths[1])]
        with pytest.raises(UserError, match="how many steps lie between"):
            rates_of("base", paths, 1e-5, None)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_above_a_folder_of_checkpoints_is_the_adapter(run, file):
    (run / file).touch()
    assert named_run(run) is None
