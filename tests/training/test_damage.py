"""Whatever is damaged of what a run wrote is found, named, and never gone on from."""

import contextlib
import json
import os
import shutil
import signal

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.checkpoints.runs import saved_steps
from jaxgeom.errors import UserError
from jaxgeom.training import load_start
from jaxgeom.training.checkpointing import find_resume
from tests.training import runs


def test_a_whole_run_has_no_fault(run):
    found = find_resume(run)
    assert found.step == 4 and not found.faults and set(found.logs) == {"metrics.jsonl", "samples.jsonl"}


def test_a_bit_in_any_file_of_the_newest_checkpoint_is_found(run):
    folder = run / "checkpoints" / "4"
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(paths) > 15
    for path in paths:
        held = path.read_bytes()
        runs.flip(path)
        found = find_resume(run)
        assert found.step == 2, path
        assert path.name in found.faults[0] or path.name == "checksums.json"
        path.write_bytes(held)
    assert find_resume(run).step == 4


def test_the_list_of_checksums_has_one_of_its_own(run):
    """A bit of the list itself: of the place of a log, of an end, of the model, of the digest."""
    path, whole = run / "checkpoints" / "4" / "checksums.json", find_resume(run)
    held = path.read_bytes()
    for place in range(0, len(held), 19):
        runs.flip(path, place)
        found = find_resume(run, contents=False)
        assert found.step == 2 and "checksums.json is damaged" in found.faults[0], held[place - 20 : place + 20]
        path.write_bytes(held)
    first = {name: value for name, value in json.loads(held).items() if name != "sha256"} | {"schema": 1}
    path.write_text(json.dumps(first))  # as it was written before it had one
    assert find_resume(run) == whole
    first["logs"]["metrics.jsonl"]["bytes"] = -5
    path.write_text(json.dumps(first))
    assert find_resume(run).step == 2


def test_whole_checkpoints_with_a_damaged_log_are_not_called_damaged(jaxgeom, inputs, run):
    """The log goes; the checkpoints need not."""
    (run / "metrics.jsonl").write_bytes(b"nonsense\n")
    held = runs.files(run)
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 2 and "metrics.jsonl is not what was written (line 1): put it back, or remove it" in said.err
    assert "no checkpoint is whole" not in said.err and runs.files(run) == held
    (run / "metrics.jsonl").unlink()
    assert jaxgeom(*runs.arguments(inputs, run, steps=5)).status == 0
    assert runs.steps(run) == [0, 2, 4, 5]


def test_a_finished_run_without_its_last_checkpoint_says_so(jaxgeom, inputs, finished, run):
    shutil.rmtree(run / "checkpoints" / "4")
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 0 and "it was finished, and checkpoints/4 is gone" in said.out + said.err
    assert "goes on from step 2" in said.out and runs.logged(run) == runs.logged(finished)


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer", "rows"])
def test_a_file_in_place_of_a_folder_is_named_before_anything_is_done(jaxgeom, inputs, run, name):
    shutil.rmtree(run / name)
    (run / name).write_text("mine")
    held = runs.files(run)
    said = jaxgeom(*runs.arguments(inputs, run, steps=6))
    assert said.status == 2 and f"{run / name}: is no directory" in said.err, said.err
    assert runs.files(run) == held


@pytest.mark.parametrize("name", ["done", "samples.jsonl"])
def test_a_folder_in_place_of_a_file_is_named_before_anything_is_done(jaxgeom, inputs, run, name):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    held = runs.files(run)
    said = jaxgeom(*runs.arguments(inputs, run, steps=6))
    assert said.status == 2 and f"{run / name}" in said.err and said.err.count("\n") == 1, said.err
    assert "director" in said.err and runs.files(run) == held


@pytest.mark.parametrize("kind", ["truncated", "removed", "item", "checksums", "empty", "file", "all"])
def test_what_is_missing_is_found(run, kind):
    folder = run / "checkpoints" / "4"
    data = max((path for path in folder.rglob("params/**/*") if path.is_file()), key=lambda path: path.stat().st_size)
    if kind == "truncated":
        data.write_bytes(data.read_bytes()[:-1])
    elif kind == "removed":
        data.unlink()
    elif kind == "item":
        shutil.rmtree(folder / "data")
    elif kind == "checksums":
        (folder / "checksums.json").unlink()
    elif kind == "empty":
        (run / "checkpoints" / "99").mkdir()
    elif kind == "file":
        (run / "checkpoints" / "99").write_text("")
    else:
        for path in (run / "checkpoints").iterdir():
            (path / "_CHECKPOINT_METADATA").unlink()
    found = find_resume(run)
    assert found.step == {"empty": 4, "file": 4, "all": None}.get(kind, 2)
    assert found.faults and "damaged" in found.faults[0]


@pytest.mark.parametrize(("name", "place", "step"), [("metrics.jsonl", -3, 2), ("metrics.jsonl", 3, None)])
def test_a_damaged_log_sends_the_run_back_to_where_it_is_sound(run, name, place, step):
    runs.flip(run / name, place)
    found = find_resume(run)
    assert found.step == step and name in found.faults[0]


def test_a_log_that_is_gone_begins_anew_and_is_said(jaxgeom, inputs, run):
    (run / "metrics.jsonl").unlink()
    assert find_resume(run).step == 4
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 0 and "finished already" in said.out and "metrics.jsonl: cannot be read" in said.out
    (run / "done").unlink()
    said = jaxgeom(*runs.arguments(inputs, run))
    assert (
        said.status == 0 and "metrics.jsonl is gone: it begins anew, without the rows of the first 4 steps" in said.out
    )


@pytest.mark.parametrize(("source", "name"), [(2, 4), (2, 40), (4, 0)])
def test_a_checkpoint_of_another_step_is_not_believed(jaxgeom, run, tmp_path, source, name):
    """A folder that was copied over another, or to a step that never was."""
    shutil.rmtree(run / "checkpoints" / str(name), ignore_errors=True)
    shutil.copytree(run / "checkpoints" / str(source), run / "checkpoints" / str(name))
    held = (run / "metrics.jsonl").read_bytes()
    found = find_resume(run)
    assert found.step == {4: 2}.get(name, 4)
    if name:
        assert f"checkpoints/{name} is damaged: it holds step {source}" in found.faults
    assert (run / "metrics.jsonl").read_bytes() == held
    said = jaxgeom("export", run, "--step", name, "--to", tmp_path / "out")
    assert said.status == 2 and f"it holds step {source}" in said.err, said.err
    with pytest.raises(UserError, match=f"it holds step {source}"):
        load_start(f"{run}@{name}", mesh=None, compute_dtype="float32")


def test_a_folder_whose_name_is_no_decimal_number_is_no_step(run):
    for name in ("²", "٤", "04", "4.5", "9" * 40):
        (run / "checkpoints" / name).mkdir()
    assert find_resume(run).step == 4 and not find_resume(run).faults and saved_steps(run) == [0, 2, 4]


def test_weights_are_not_read_into_another_architecture(jaxgeom, inputs, run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    held = config["model"]["rope_theta"]
    config["model"]["rope_theta"] = 18000.0
    (run / "config.json").write_text(json.dumps(config))
    words = f"config.json is not what it was: model.rope_theta=18000.0, {held!r} when step 4 was saved"
    for use in (open_checkpoint, lambda path: load_start(path, mesh=None, compute_dtype="float32")):
        with pytest.raises(UserError) as error:
            use(f"{run}@4")
        assert words in str(error.value)
    said = jaxgeom("export", run, "--step", 4, "--to", tmp_path / "out")
    assert said.status == 2 and words in said.err and not (tmp_path / "out").exists()
    # The run's own command knows the model by its start, and puts it back.
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 0 and words in said.out and "written anew" in said.out
    assert json.loads((run / "config.json").read_text())["model"]["rope_theta"] == held
    assert "finished already" in jaxgeom(*runs.arguments(inputs, run)).out
    # A checkpoint that keeps no model, as those of versions before, is read.
    path = run / "checkpoints/4/checksums.json"
    listing = json.loads(path.read_text())
    assert listing.pop("model") == json.loads((run / "config.json").read_text())["model"]
    del listing["sha256"]
    path.write_text(json.dumps(listing | {"schema": 1}))
    assert open_checkpoint(f"{run}@4").config is not None


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "samples.jsonl", "checkpoints/4/checksums.json"])
def test_a_pipe_is_waited_for_by_nobody(jaxgeom, inputs, run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    with said_in_time():
        found = find_resume(run)
        assert found.step == (2 if "checkpoints" in name else None if "jsonl" in name else 4)
        said = jaxgeom(*runs.arguments(inputs, run, steps=2))
    assert said.status == (0 if "checkpoints" in name else 2), said.err
    assert "checksums.json is damaged" in said.out if "checkpoints" in name else said.err.count("\n") == 1


@contextlib.contextmanager
def said_in_time():
    """Raises where a quarter of an hour goes by: whoever opens a pipe waits for ever."""

    def late(*_):
        raise TimeoutError("something waits for a pipe")

    held = signal.signal(signal.SIGALRM, late)
    signal.alarm(900)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, held)


@pytest.mark.parametrize("kind", ["cut", "gone", "other"])
def test_a_run_whose_configuration_is_damaged_is_called_so(jaxgeom, inputs, finished, run, kind):
    path = run / "config.json"
    if kind == "gone":
        path.unlink()
    else:
        path.write_text(path.read_text()[:200] if kind == "cut" else "{}")
    held = runs.files(run)
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 2 and said.err.count("\n") == 1 and "config.json: damaged: " in said.err, said.err
    assert "--force deletes the run and begins anew" in said.err and runs.files(run) == held
    (run / "mine.txt").write_text("")
    assert "mine.txt" in jaxgeom(*runs.arguments(inputs, run), "--force").err
    (run / "mine.txt").unlink()
    if kind == "cut":
        assert jaxgeom(*runs.arguments(inputs, run), "--force").status == 0
        assert runs.logged(run) == runs.logged(finished)


@pytest.mark.parametrize("kind", ["flip", "log", "done"])
def test_a_damaged_run_ends_as_an_undisturbed_one(jaxgeom, inputs, finished, run, kind):
    newest = run / "checkpoints" / "4"
    if kind == "flip":
        data = max((newest / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
        runs.flip(data)
    elif kind == "log":
        runs.flip(run / "metrics.jsonl", -3)
    else:
        shutil.rmtree(newest)  # the run says that it is done
        (run / "checkpoints" / "99").mkdir()
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 0, said.err
    words = {
        "flip": "checkpoints/4 is damaged",
        "log": "metrics.jsonl is not what",
        "done": "checkpoints/99 is damaged",
    }
    assert words[kind] in said.out and "goes on from step 2" in said.out
    for one, other in zip(runs.weights(run, 4), runs.weights(finished, 4), strict=True):
        np.testing.assert_array_equal(one, other)
    assert runs.logged(run) == runs.logged(finished)
    kept = (finished / "metrics.jsonl").read_bytes().split(b"\n")[:3]
    assert (run / "metrics.jsonl").read_bytes().split(b"\n")[:3] == kept
    assert (run / "done").exists() and find_resume(run).step == 4
    again = jaxgeom(*runs.arguments(inputs, run))
    assert again.status == 0 and "finished already" in again.out


def test_a_folder_that_lost_its_files_does_not_stand_in_the_way_of_its_step(jaxgeom, inputs, run):
    """`params/d` without a file in it is ours: the list of the step's files says so."""
    for path in (run / "checkpoints/4/params/d").iterdir():
        path.unlink()
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 0 and "goes on from step 2" in said.out, said.err
    assert find_resume(run).step == 4


def test_a_run_without_a_whole_checkpoint_is_refused_and_begun_anew_with_force(jaxgeom, inputs, finished, run):
    for path in (run / "checkpoints").iterdir():
        (path / "params" / "_METADATA").unlink()
    held = runs.files(run)
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 2 and said.err.count("\n") == 1 and "no checkpoint is whole" in said.err
    assert runs.files(run) == held
    assert jaxgeom(*runs.arguments(inputs, run), "--force").status == 0
    assert runs.logged(run) == runs.logged(finished)


def test_a_damaged_checkpoint_is_read_by_nobody(jaxgeom, run, tmp_path):
    data = max((run / "checkpoints/4/params").rglob("d/*"), key=lambda path: path.stat().st_size)
    runs.flip(data)
    with pytest.raises(UserError, match=rf"damaged: .*{data.name} is not what was written; .*run@2 is the last whole"):
        open_checkpoint(run)["model.norm.weight"].read()  # where the flipped byte is an array's, opening reads none
    with pytest.raises(UserError, match="damaged"):
        load_start(run, mesh=None, compute_dtype="float32")
    for words in (("compare", f"{run}@0", run, "--out", tmp_path / "out"), ("export", run, "--to", tmp_path / "out")):
        said = jaxgeom(*words)
        assert said.status == 2 and said.err.count("\n") == 1 and "damaged" in said.err, said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "_sharding"])
def test_what_orbax_cannot_read_is_one_line(run, name):
    """Without checksums, as another program writes: whatever Orbax and TensorStore raise."""
    for path in (run / "checkpoints").glob("*/checksums.json"):
        path.unlink()
    path = run / "checkpoints/4/params" / name
    for text in (b"{}", b'{"tree_metadata": {"a": 3}}', b"", b"\xff\x00"):
        path.write_bytes(text)
        try:
            checkpoint = open_checkpoint(f"{run}@4")
            checkpoint["model.norm.weight"].read()
            load_start(f"{run}@4", mesh=None, compute_dtype="float32")
        except UserError as error:
            assert str(run) in str(error) and "\n" not in str(error)
        else:
            assert name == "_sharding"  # which is not needed
