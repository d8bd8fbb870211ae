"""Stopped by a signal, by a full disk, or met by a second process: what was reached is kept, and one line says it."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxgeom import cli, lock
from jaxgeom.errors import UserError
from jaxgeom.interruption import Interrupted, asked, goes_on, held, listening, stoppable
from jaxgeom.training import checkpointing, logs, loop, objectives, ready
from tests.command_line import command
from tests.training import runs


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_terminated_run_saves_and_goes_on_and_holds_its_directory(inputs, tmp_path):
    out = tmp_path / "run"
    options = {"batch_size": 2, "save_every": 100_000, "eval_data": None}
    line, environment = command(*runs.arguments(inputs, out, **options, steps=100_000))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    first = subprocess.Popen(line, **pipes)
    log = out / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 3, first)
    second = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert f"process {first.pid} on " in second.stderr
    begun = time.monotonic()
    first.send_signal(signal.SIGTERM)
    out_text, err_text = first.communicate(timeout=60)
    assert time.monotonic() - begun < 20 and first.returncode == 128 + signal.SIGTERM
    assert err_text.count("\n") == 1 and "the same command goes on from step" in err_text, err_text
    reached = int(err_text.split()[-1])
    assert runs.steps(out) == [0, reached] and not (out / ".lock").exists()
    kept = log.read_bytes()
    line, _ = command(*runs.arguments(inputs, out, **options, steps=reached + 2))
    more = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240)
    assert more.returncode == 0 and f"goes on from step {reached}" in more.stdout, more.stderr
    assert log.read_bytes().startswith(kept)
    assert [row["step"] for row in runs.logged(out)] == list(range(1, reached + 3))


@pytest.mark.parametrize("where", ["source", "evaluate", "save"])
def test_stopped_anywhere_it_ends_as_undisturbed(inputs, finished, tmp_path, monkeypatch, jaxgeom, where):
    """A real signal while answers are sampled, while they are evaluated, and while a checkpoint is written."""
    module, name = {
        "source": (objectives.SFT, "draw"),
        "evaluate": (loop, "evaluate"),
        "save": (checkpointing.checksums, "write_checksums"),
    }[where]
    real, calls = getattr(module, name), []

    def replaced(*arguments, **options):
        found = real(*arguments, **options) if where == "source" else None
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return found if where == "source" else real(*arguments, **options)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replaced)
        said = jaxgeom(*runs.arguments(inputs, out))
    assert said.status == 130 and said.err.count("\n") == 1, said.err
    reached = int(said.err.rpartition("the same command goes on from step ")[2])
    # A checkpoint is written beside the steps that follow.
    assert reached in {"source": [1], "evaluate": [4], "save": [2, 3, 4]}[where]
    assert runs.steps(out)[-1] == reached and not (out / "done").exists()
    said = jaxgeom(*runs.arguments(inputs, out))
    assert said.status == 0 and f"goes on from step {reached}" in said.out
    assert runs.logged(out) == runs.logged(finished)
    for one, other in zip(runs.weights(out, 4), runs.weights(finished, 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_stopped_between_two_steps_of_one_rollout_the_second_is_not_lost(inputs, tmp_path, monkeypatch, jaxgeom):
    """Every batch of rows is learned from twice, forwards and backwards; the signal comes before the second."""
    prepare, learn, calls = objectives.SFT.prepare, loop._Loop._learn, []

    def twice(*arguments):
        (batch,) = (found := prepare(*arguments)).batches
        turned = jax.tree.map(lambda x: x[::-1].at[0].set(x[0]), batch)
        return dataclasses.replace(found, batches=[batch, turned])

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return learn(*arguments)

    monkeypatch.setattr(objectives.SFT, "prepare", twice)
    options = {"steps": 5, "save_every": 5, "eval_data": None}
    assert jaxgeom(*runs.arguments(inputs, tmp_path / "whole", **options)).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_learn", stopped)
        assert jaxgeom(*runs.arguments(inputs, tmp_path / "run", **options | {"save_every": 3})).status == 130
    held_back = tmp_path / "run" / "checkpoints" / "3" / "pending.npz"
    assert held_back.exists() and runs.steps(tmp_path / "run") == [0, 3, 4]
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "run", **options))
    assert said.status == 0 and "goes on from step 4" in said.out
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "5")
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "run", **options))
    assert said.status == 0 and "goes on from step 3" in said.out
    assert runs.logged(tmp_path / "run") == runs.logged(tmp_path / "whole")
    for one, other in zip(runs.weights(tmp_path / "run", 5), runs.weights(tmp_path / "whole", 5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sum("target_tokens" in row for row in runs.logged(tmp_path / "run")) == 3  # a rollout's, once


@pytest.mark.slow
def test_files_that_may_not_grow_are_one_line_of_orbax_too(run, inputs, jaxgeom):
    """A real refusal of the system's, in the middle of a save: Orbax's threads say nothing of their own."""
    shutil.rmtree(run / "checkpoints" / "4")
    arguments = runs.arguments(inputs, run, steps=6)
    line, environment = command(*arguments)
    limited = ["sh", "-c", 'ulimit -f 32; exec "$@"', "sh", *line]  # 32 blocks of 512 bytes
    said = subprocess.run(limited, capture_output=True, text=True, env=environment, timeout=240)
    assert said.returncode == 2 and said.stderr.count("\n") == 1, said.stderr
    assert "the disk is full; step 2 is the last one saved" in said.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["0", "2"]
    assert jaxgeom(*arguments).status == 0


@pytest.mark.parametrize("what", ["store", "checksums", "log"])
def test_a_full_disk_is_one_line_and_the_last_step_is_kept(inputs, run, monkeypatch, jaxgeom, what):
    def full(*_, **__):
        if what == "store":  # as TensorStore says it
            raise ValueError("RESOURCE_EXHAUSTED: Error writing file: No space left on device")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "store": (checkpointing.ocp.AsyncCheckpointer, "save"),
        "checksums": (checkpointing.checksums, "write_atomically"),
        "log": (logs.JsonLines, "write"),
    }[what]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        said = jaxgeom(*runs.arguments(inputs, run, steps=6))
    assert said.status == 2 and said.err.count("\n") == 1 and "the disk is full" in said.err, said.err
    if what != "log":
        assert "step 4 is the last one saved" in said.err
    assert runs.steps(run) == [0, 2, 4]
    assert jaxgeom(*runs.arguments(inputs, run, steps=6)).status == 0 and runs.steps(run)[-1] == 6


def test_several_processes_are_refused(jaxgeom, inputs, tmp_path, monkeypatch):
    for name, value in (("JAX_NUM_PROCESSES", "2"), ("JAX_COORDINATOR_ADDRESS", "localhost:1234")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            said = jaxgeom(*runs.arguments(inputs, tmp_path / "run"))
            assert said.status == 2 and said.err.count("\n") == 1 and "JAX_NUM_PROCESSES" in said.err
    assert not (tmp_path / "run").exists()


HOLD = """
import pathlib, sys, time
from jaxgeom.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_living_process_holds_and_that_of_a_dead_one_does_not(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    for attempt in (lock.refuse_if_held, lambda folder: lock.locked(folder).__enter__()):
        with pytest.raises(UserError, match=f"process {process.pid} on .* works in this directory"):
            attempt(tmp_path)
    process.kill()
    process.communicate()
    said = []
    lock.refuse_if_held(tmp_path)
    with lock.locked(tmp_path, said.append):
        assert str(process.pid) in said[0] and "gone" in said[0]
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), lock.locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_holds_as_long_as_it_gives_signs(tmp_path):
    path = tmp_path / ".lock"
    path.write_text('{"host": "elsewhere", "pid": 7}')
    with pytest.raises(UserError, match="process 7 on elsewhere"), lock.locked(tmp_path):
        pass
    assert path.exists()
    os.utime(path, (time.time() - 2 * lock.SILENCE,) * 2)
    with lock.locked(tmp_path):
        pass
    assert not path.exists()
    for damaged in (b"\xff\x00", bytes(60), b'{"host": "els', b"{}"):  # a lock that nobody holds
        path.write_bytes(damaged)
        with lock.locked(tmp_path):
            pass


def test_a_disk_too_full_for_a_lock_is_left_as_it_was(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="new/run: the disk is full"), lock.locked(tmp_path / "new" / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["text", "link"])
def test_what_is_only_called_like_a_lock_is_left_alone(tmp_path, kind):
    mine = tmp_path / ("elsewhere" if kind == "link" else ".lock")
    mine.write_text("mine")
    if kind == "link":
        (tmp_path / ".lock").symlink_to(mine)
    with pytest.raises(UserError, match="no lock of jaxgeom's|cannot be written to"), lock.locked(tmp_path):
        pass
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("where", ["packages", "rows", "claimed"])
def test_stopped_before_the_first_step_it_says_directory_and_step(inputs, run, tmp_path, monkeypatch, jaxgeom, where):
    """A real signal while packages load, while rows are read, and after the directory is claimed."""
    place, name = {
        "packages": (cli.importlib, "import_module"),
        "rows": (ready, "read_run_rows"),
        "claimed": (loop, "write_tokenizer"),
    }[where]
    real = getattr(place, name)

    def stopped(*given, **options):
        monkeypatch.setattr(place, name, real)
        signal.raise_signal(signal.SIGTERM)
        return real(*given, **options)

    for out, steps, ends in ((tmp_path / "new", 4, "begins anew"), (run, 6, "goes on from step 4")):
        monkeypatch.setattr(place, name, stopped)
        said = jaxgeom(*runs.arguments(inputs, out, steps=steps))
        ends = "goes on from what is kept" if where == "packages" else ends
        assert said.status == 143 and said.err == f"jaxgeom: {out}: stopped; the same command {ends}\n", said.err
    assert runs.steps(run) == [0, 2, 4]


def test_what_belongs_together_is_done_whole():
    done = []
    with pytest.raises(Interrupted) as stop, stoppable():
        with held():
            signal.raise_signal(signal.SIGTERM)
            done.append(1)
        done.append(2)
    assert done == [1] and stop.value.status == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


STUCK = """
import hashlib
from jaxgeom.interruption import goes_on, stoppable
with stoppable(grace=0.5):
    goes_on("the same command goes on from step 7")
    print("stuck", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_who_stops_together_with_others_is_told_and_has_the_time_that_they_need():
    """Longer than the time to begin to save; that runs from when it listens no more."""
    with stoppable(grace=0.3), pytest.raises(Interrupted) as stop:
        with listening():
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1.0)
            assert asked() == signal.SIGTERM
        with held():
            pass
    assert stop.value.status == 128 + signal.SIGTERM


def test_a_main_thread_that_runs_no_handler_is_ended_from_beside():
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline()
    time.sleep(1)  # until it hashes, deaf to Python's handlers
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and err == "jaxgeom: stopped; the same command goes on from step 7\n", err


def test_a_signal_that_does_not_come_through_is_raised_again(tmp_path, monkeypatch, capfd):
    """While something is imported, which would make an ImportError of it, and where Python prints it and goes on."""
    (tmp_path / "slow_import.py").write_text(
        "import signal, time\nsignal.raise_signal(15)\ntime.sleep(0.5)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    class Lost:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def imported():
        import slow_import

        seen.append(slow_import.whole)

    for work in (imported, lambda: Lost() and None):
        seen, begun = [], time.monotonic()
        with pytest.raises(Interrupted) as stop, stoppable():
            goes_on("from here", tmp_path)
            work()
            while True:
                time.sleep(0.01)
        assert str(stop.value) == f"{tmp_path}: stopped; from here" and time.monotonic() - begun < 6
        assert seen == ([True] if work is imported else [])
    assert capfd.readouterr().err == ""


LEFT = """
import signal, sys, threading, time
from jaxgeom import cli
def interrupted(name):
    threading.Timer(60, print, ["left"]).start()  # as JAX does while it looks for a TPU
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)
cli.importlib.import_module = interrupted
sys.argv = ["jaxgeom", "compare", "a", "b", "--out", "c"]
sys.exit(cli.main())
"""


def test_a_thread_that_a_library_leaves_does_not_hold_the_process():
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=40)
    assert done.returncode == 143 and done.stdout == "", done.stdout
    assert done.stderr == "jaxgeom: c: stopped; the same command goes on from what is kept\n"


def test_a_killed_save_leaves_nothing_that_counts(inputs, finished, run, jaxgeom):
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / ".6.partial")
    (run / "checkpoints" / ".6.partial" / "checksums.json").unlink()
    assert jaxgeom(*runs.arguments(inputs, run, steps=6)).status == 0
    assert runs.steps(run) == [0, 2, 4, 6] and checkpointing.find_resume(run).step == 6
