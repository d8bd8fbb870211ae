"""Whatever is damaged of what a run wrote is found, named, and never gone on from."""

import shutil

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
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


def test_a_log_that_is_gone_begins_anew(run):
    (run / "metrics.jsonl").unlink()
    assert find_resume(run).step == 4


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
    checkpoint = open_checkpoint(run)  # nothing is read yet
    with pytest.raises(UserError, match=rf"damaged: .*{data.name} is not what was written; .*run@2 is the last whole"):
        checkpoint["model.norm.weight"].read()
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
