"""One run over several real processes: what it learns is what one process learns; a mistake or a loss is said."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from jaxgeom import processes
from jaxgeom.errors import UserError
from tests import launching
from tests.tiny import write_tiny_model
from tests.training import runs


def words(kind, inputs, out, **changes):
    """A run of the smallest size; a batch of four, for four devices."""
    given = {"batch_size": 4, "save_every": 1, "steps": 2, "lr": 1e-2, "eval_data": None, "max_new_tokens": None}
    if kind != "sft":
        given |= {"data": inputs / "prompts.jsonl", "samples_per_prompt": 2, "max_new_tokens": 3}
    if kind == "rlvr":
        given |= {"reward": "tests.training.runs:by_letters", "eval_data": inputs / "prompts.jsonl", "eval_limit": 4}
    if kind == "opd":
        given["teacher"] = inputs / "teacher"
    found = runs.arguments(inputs, out, **given | changes)
    return [found[0], kind, *found[2:]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = runs.write_inputs(tmp_path_factory.mktemp("inputs"))
    write_tiny_model(folder / "teacher", seed=5)
    return folder


def test_one_process_meets_nobody():
    assert processes.exchanged({"a": 1}) == [{"a": 1}] and processes.of_all(lambda: 3) == [3]
    assert processes.from_first(lambda: 4) == 4 and processes.together(lambda: 5) == 5
    processes.require_same({"a": 1})
    with pytest.raises(UserError, match="mine"):
        processes.from_first(lambda: (_ for _ in ()).throw(UserError("mine")))
    assert processes.share_of(7) == slice(0, 7) and processes.Signals().turn(15) == 15


def test_rows_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(processes.share_of(8))
    assert [list(range(8))[part] for part in shares] == [[0, 1, 2], [3, 4], [5, 6, 7]]


def test_processes_that_disagree_and_a_directory_that_is_not_shared_are_refused(inputs, tmp_path):
    """And nothing is written but in the directory of process 0, which it leaves empty."""
    folders = {index: tmp_path / str(index) for index in range(2)}
    for folder in folders.values():
        folder.mkdir()
    commands = [[words("sft", inputs, tmp_path / "run", lr=rate), words("sft", inputs, "run")] for rate in (0.01, 0.02)]
    ended = launching.each(launching.end(launching.start(commands, devices=1, directories=folders)))
    for told, unshared in ended:
        assert told.status == 2 and told.err.count("\n") == 1, told
        assert "the processes disagree" in told.err and "0.01 in process 0, 0.02 in process 1" in told.err, told.err
        assert unshared.status == 2 and unshared.err.count("\n") == 1, unshared
        assert "run: process 1 does not see what process 0 writes there" in unshared.err
    assert not (tmp_path / "run").exists() and not any(any(folder.iterdir()) for folder in folders.values())


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """The three objectives by two processes with two devices each, gone on with once; and by one with four devices."""
    folder = tmp_path_factory.mktemp("trained")
    of_count = {}
    for count in (2, 1):
        commands = []
        for kind in ("sft", "rlvr", "opd"):
            out = folder / f"{kind}{count}"
            commands += [words(kind, inputs, out), words(kind, inputs, out, steps=3)]
        started = launching.start([commands] * count, devices=4 // count)
        of_count[count] = launching.each(launching.end(started))
    return folder, of_count


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "rlvr", "opd"])
def test_two_processes_learn_what_one_does(trained, kind):
    folder, said = trained
    for process in (*said[1], *said[2]):
        assert [one.status for one in process] == [0] * 6, process
    assert said[2][0][0].out and not said[2][1][0].out  # one alone speaks
    one, two = folder / f"{kind}1", folder / f"{kind}2"
    assert (one / "samples.jsonl").read_bytes() == (two / "samples.jsonl").read_bytes()
    first, second = runs.logged(one), runs.logged(two)
    assert [sorted(row) for row in first] == [sorted(row) for row in second]
    for mine, theirs in zip(first, second, strict=True):
        for name, value in mine.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert runs.steps(one) == runs.steps(two) == [0, 1, 2, 3]
    assert (
        json.loads((one / "config.json").read_text())["settings"]
        == json.loads((two / "config.json").read_text())["settings"]
    )
    for mine, theirs in zip(runs.weights(one, 3), runs.weights(two, 3), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)
    assert (two / "done").exists() and not list(two.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(inputs, tmp_path, lost):
    undisturbed, out = (words("sft", inputs, tmp_path / name, steps=40) for name in ("whole", "cut"))
    assert [one[0].status for one in launching.each(launching.end(launching.start([[undisturbed]] * 2)))] == [0, 0]
    started = launching.start([[out]] * 2, script=launching.ALONE)
    while not (tmp_path / "cut" / "checkpoints" / "3").exists():
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    os.kill(started[lost].pid, signal.SIGKILL)
    ended = launching.end(started, seconds=300)
    assert ended[lost].status == -signal.SIGKILL and ended[1 - lost].status not in (0, -signal.SIGKILL), ended
    assert "another" in ended[1 - lost].err or "died" in ended[1 - lost].err
    assert not (tmp_path / "cut" / "done").exists()
    assert [one[0].status for one in launching.each(launching.end(launching.start([[out]] * 2)))] == [0, 0]
    assert runs.logged(tmp_path / "cut") == runs.logged(tmp_path / "whole")
    for mine, theirs in zip(*(runs.weights(tmp_path / name, 40) for name in ("whole", "cut")), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_a_process_that_never_comes_is_reported(inputs, tmp_path):
    command = words("sft", inputs, tmp_path / "run")
    started = launching.start([[command]], count=2, script=launching.ALONE, patience=(10, 10, 1.0))
    (ended,) = launching.end(started, seconds=300)
    assert ended.status not in (0, -9) and "10" in ended.err and not (tmp_path / "run").exists(), ended
