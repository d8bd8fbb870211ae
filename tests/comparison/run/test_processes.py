"""Several real processes at one measurement: the result of one process, resumption, failures."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jaxgeom import processes
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.commands import entries
from jaxgeom.comparison import CompareSettings, between_runs, compare, compare_checkpoints, trajectory_checkpoints
from jaxgeom.comparison.files.report import to_json_text
from jaxgeom.comparison.run.journal import Journal, is_resumable
from jaxgeom.comparison.run.plan import check_pair, plan_parts
from jaxgeom.comparison.run.processes import Apart, ProcessFailed, Team, share
from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.errors import UserError
from jaxgeom.processes import ProcessLost
from tests.comparison import disk

SETTINGS = CompareSettings(angle_k=8)


@pytest.fixture
def pair(tmp_path):
    initial = disk.weights()
    return disk.write(tmp_path / "a", initial), disk.write(tmp_path / "b", disk.moved(initial, 1e-3))


SCRIPT = """
import contextlib, io, json, sys
from jaxgeom.cli import main
said = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    said.append([status, out.getvalue(), err.getvalue()])
from jaxgeom.comparison import CompareSettings, Team, compare
from tests.comparison.run.test_processes import tree, SPECS
compare(tree(0), tree(1), SPECS, CompareSettings(angle_k=8), out=sys.argv[2], team=Team.here())
print(json.dumps(said))
"""
SPECS = {"layers": {"up": {"kernel": MatrixSpec(out=(1,), in_=(2,), batch=(0,))}, "norm": {"scale": None}}}


def tree(seed: int) -> dict:
    """A small tree: three stacked matrices and a vector."""
    rng = np.random.default_rng(seed)
    sizes = {"up": {"kernel": (3, 24, 16)}, "norm": {"scale": (16,)}}
    draw = {name: {leaf: rng.standard_normal(size) for leaf, size in leaves.items()} for name, leaves in sizes.items()}
    return {"layers": jax.tree.map(lambda array: array.astype(np.float32), draw)}


def arguments(kind: str, paths: list, out: pathlib.Path) -> list[str]:
    angles = [] if kind == "between" else ["--angle-k", "8"]
    return [kind, *map(str, paths), "--out", str(out), *angles, "--subspace-k", "3", "--distributed"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two processes on this machine, which find each other by environment variables, and do one thing after another.

    `compare`, `trajectory` and `between` by the command line, a comparison with a broken checkpoint, and trees.

    Returns the folder, the checkpoints, and per process the status, output and errors of every command.
    """
    folder, initial = tmp_path_factory.mktemp("real"), disk.weights(layers=1)
    paths = [disk.write(folder / "0", initial)]
    paths += [disk.write(folder / str(seed), disk.moved(initial, 1e-3, seed)) for seed in (1, 2)]
    broken = disk.moved(initial, 1e-3)
    broken["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    commands = [arguments("compare", paths[:2], folder / "compare")]
    commands += [arguments(kind, paths, folder / kind) for kind in ("trajectory", "between")]
    commands += [arguments("compare", [paths[0], disk.write(folder / "broken", broken)], folder / "failed")]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for index in range(2):
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(commands), str(folder / "trees")],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=pathlib.Path(__file__).parents[3],
            )
        )
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return folder, paths, [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_two_processes_write_the_result_of_one(real):
    folder, paths, said = real
    opened, settings = [open_checkpoint(path) for path in paths], CompareSettings(angle_k=8, subspace_k=3)
    single = folder / "single"
    for place, kind in enumerate(("compare", "trajectory", "between")):
        first, second = (process[place] for process in said)
        assert (first[0], second[0]) == (0, 0), (first, second)
        assert "page:" in first[1] and "page:" not in second[1] and "process 1 of 2: done" in second[1]
        out, files = folder / kind, ["report.json", "matrices.csv"]
        if kind == "trajectory":
            files = ["trajectory.json"]
        told = {"out": single / kind, "command": json.loads((out / files[0]).read_text())["command"]}
        if kind == "compare":
            compare_checkpoints(*opened[:2], settings, **told)
        elif kind == "between":
            between_runs(*opened, CompareSettings(subspace_k=3), **told)
        else:
            trajectory_checkpoints(opened[0], list(enumerate(opened))[1:], settings, **told)
        for name in files:
            assert (out / name).read_bytes() == (single / kind / name).read_bytes()
        assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    report = compare(tree(0), tree(1), SPECS, CompareSettings(angle_k=8))
    assert (folder / "trees" / "report.json").read_text() == to_json_text(report.to_json())


def test_a_failure_reaches_the_other_process(real):
    folder, _, said = real
    failed = [process[3] for process in said]
    assert [status for status, _, _ in failed] == [2, 2], failed
    own = "up_proj.weight: 1 of 2880 entries are NaN or infinite"
    assert all(own in errors for _, _, errors in failed)
    assert sum("failed:" in errors.split("jaxgeom: ")[-1] for _, _, errors in failed) == 1
    assert not (folder / "failed" / "report.json").exists()


def test_trees_go_on_with_the_same_weights_alone(tmp_path, monkeypatch):
    real, seen = Journal.add, []

    def stop(self: Journal, row: dict) -> None:
        real(self, row)
        seen.append(row["name"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(tree(0), tree(1), SPECS, CompareSettings(angle_k=8), out=tmp_path)
    with pytest.raises(UserError, match=r"unfinished comparison of other inputs \(final: .* other content now\)"):
        compare(tree(0), tree(2), SPECS, CompareSettings(angle_k=8), out=tmp_path)
    report = compare(tree(0), tree(1), SPECS, CompareSettings(angle_k=8), out=tmp_path)
    assert len(seen) == len(set(seen)) == len(report.matrices) + len(report.parameters)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))


def together(pair, out: pathlib.Path, run: int, count: int = 2, patience: float = 60.0, who=None) -> list:
    """A comparison by threads that play the processes; what each returned or raised."""
    results: list = [None] * count

    def play(index: int) -> None:
        try:
            team = Team(index, count, run, patience)
            results[index] = compare_checkpoints(*map(open_checkpoint, pair), SETTINGS, out=out, team=team)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=play, args=(index,)) for index in (who if who is not None else range(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_process_has_the_whole_report_and_goes_on_after_an_interruption(pair, tmp_path):
    out = tmp_path / "out"
    alone = together(pair, out, run=1, patience=0.5, who=[1])[1]
    assert isinstance(alone, ProcessFailed) and "no sign of process 0" in str(alone)
    journals = [path.name for path in out.iterdir() if "partial" in path.name]
    held = {json.loads(line)["name"] for line in (out / journals[0]).read_text().splitlines()[1:]}
    parts = plan_parts(open_checkpoint(pair[0]), check_pair(*map(open_checkpoint, pair), SETTINGS), SETTINGS)
    assert journals == [".partial.1.jsonl"] and held == {part.name for part in share(parts, 1, 2)}
    reports = together(pair, out, run=2)
    whole = compare_checkpoints(*map(open_checkpoint, pair), SETTINGS).to_json()
    assert all(json.dumps(report.to_json()) == json.dumps(whole) for report in reports)
    assert sorted(path.name for path in out.iterdir()) == ["matrices.csv", "report.json"]


def test_rows_that_another_process_adds_are_looked_at_when_they_come(tmp_path):
    """It has other files under the same names, and had measured nothing when its journal was first seen."""
    of = {"kind": "compare", "version": "1", "inputs": {"final": "b"}, "settings": {"k": 1}}
    mine, theirs = "mine", {"name": "w", "digests": ["theirs"]}

    def changed(row: dict) -> list[str]:
        return [] if row["digests"] == [mine] else ["final"]

    other = Journal(tmp_path, described=of, stamps=["2"], process=(1, 2))
    other.open()
    own = Journal(tmp_path, described=of, stamps=["1"], changed=changed, process=(0, 2))
    other.add({"name": "v", "digests": [mine]})
    own.load()
    assert list(own.rows) == ["v"] and own.fault_of_others() is None
    other.add(theirs)
    own.load()
    assert list(own.rows) == ["v"]
    assert own.fault_of_others() == "process 1 measures other inputs (final: b has other content now)"
    other.close(remove=True)


def test_processes_that_were_told_different_things_say_so(pair, tmp_path):
    """Other settings at once; other content under the same names when the rows are brought together."""
    out, results = tmp_path / "out", [None, None]
    meeting = threading.Barrier(2)

    def play(index: int, settings: CompareSettings, names: tuple) -> None:
        checkpoints = [open_checkpoint(name) for name in names]
        meeting.wait()
        try:
            compare_checkpoints(*checkpoints, settings, out=out, team=Team(index, 2, 1, 30.0))
        except UserError as error:
            results[index] = str(error)

    def both(*given: tuple) -> list:
        threads = [threading.Thread(target=play, args=(index, *one)) for index, one in enumerate(given)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shutil.rmtree(out)
        return results

    said = both((SETTINGS, pair), (CompareSettings(angle_k=7), pair))
    # Whoever comes later may find the other's journal before its status.
    assert any("angle_k: 8 in process 0, 7 in process 1" in one for one in said) or all(
        "angle_k" in one for one in said
    )
    other = disk.write(tmp_path / "elsewhere" / "b", disk.moved(disk.weights(), 2e-3))
    said = both((SETTINGS, pair), (SETTINGS, (pair[0], other)))
    assert all("other inputs (final: " in one and "with other content" in one for one in said)


def test_rows_of_an_earlier_start_outlive_another_process_that_was_told_something_else(pair, tmp_path):
    out = tmp_path / "out"
    together(pair, out, run=1, patience=0.5, who=[0])
    before = (out / ".partial.0.jsonl").read_text()
    Team(1, 2, run=2).tell(out, "failed", message="other settings", keep=False)
    (failed,) = [one for one in together(pair, out, run=2, who=[0]) if one is not None]
    assert str(failed) == "process 1 failed: other settings"
    assert (out / ".partial.0.jsonl").read_text() == before


def test_one_process_goes_on_where_several_were(pair, tmp_path):
    out = tmp_path / "out"
    together(pair, out, run=1, count=3, patience=0.5, who=[2])
    with pytest.raises(UserError, match="unfinished comparison of other inputs"):
        compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=7), out=out)
    measured: list[str] = []
    compare_checkpoints(
        *map(open_checkpoint, pair), SETTINGS, out=out, progress=lambda done, total, name: measured.append(name)
    )
    parts = plan_parts(open_checkpoint(pair[0]), check_pair(*map(open_checkpoint, pair), SETTINGS), SETTINGS)
    assert measured == [part.name for part in parts if part not in share(parts, 2, 3)]
    assert not [path.name for path in out.iterdir() if "partial" in path.name]


def test_shares_are_a_balanced_partition(pair):
    parts = plan_parts(open_checkpoint(pair[0]), check_pair(*map(open_checkpoint, pair), SETTINGS), SETTINGS)
    shares = [share(parts, index, 3) for index in range(3)]
    assert sorted(part.name for one in shares for part in one) == sorted(part.name for part in parts)
    cost = [sum(part.size * (min(part.shape) if part.is_matrix else 1) for part in one) for one in shares]
    assert max(cost) < 1.3 * min(cost)
    assert [parts.index(part) for part in shares[0]] == sorted(parts.index(part) for part in shares[0])


def test_processes_that_were_given_other_folders_do_not_wait_there_for_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "initialize", lambda: Team(0, 2, run=1))
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "exchanged", lambda value, **_: [value, value | {"out": "elsewhere"}])
    with pytest.raises(UserError, match='out: .* in process 0, "elsewhere" in process 1'):
        with entries.other_processes(True, tmp_path / "out"):
            raise AssertionError("they have begun")
    assert not list(tmp_path.iterdir())


def test_status_of_an_earlier_run_counts_for_nothing(tmp_path):
    Team(1, 2, run=1).tell(tmp_path, "failed", message="old", keep=True)
    now = Team(0, 2, run=2, patience=0.3)
    now.check(tmp_path)
    now.tell(tmp_path, "finished")
    began = time.monotonic()
    with pytest.raises(ProcessFailed, match="no sign of process 1 for 0.3 s"):
        now.wait(tmp_path, "finished")
    assert time.monotonic() - began >= 0.3
    with pytest.raises(RuntimeError), Team(1, 2, run=2).telling(tmp_path):
        raise RuntimeError("a bug")
    with pytest.raises(ProcessFailed, match="process 1 failed: a bug"):
        now.wait(tmp_path, "finished")


def test_processes_that_share_no_folder_tell_each_other_their_rows(pair, tmp_path, monkeypatch):
    """Threads play them; the first alone has, on the disk of its own, a folder with another measurement half done."""
    meeting, said, results = threading.Barrier(2), [None, None], [None, None]
    place = threading.local()

    def exchanged(make):
        said[place.index] = make()
        meeting.wait(timeout=60)
        return said

    monkeypatch.setattr(processes, "of_all", exchanged)
    together(pair, tmp_path / "out0", run=1, patience=0.5, who=[1])
    assert list((tmp_path / "out0").glob(".partial*"))

    def play(index):
        place.index = index
        results[index] = compare_checkpoints(
            *map(open_checkpoint, pair), SETTINGS, out=tmp_path / f"out{index}", force=True, team=Apart(index, 2)
        )

    threads = [threading.Thread(target=play, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts = plan_parts(open_checkpoint(pair[0]), check_pair(*map(open_checkpoint, pair), SETTINGS), SETTINGS)
    shares = [[part.name for part in share(parts, index, 2)] for index in range(2)]
    assert [[row["name"] for row in rows] for rows in said] == shares
    whole = compare_checkpoints(*map(open_checkpoint, pair), SETTINGS, out=tmp_path / "whole")
    assert all(json.dumps(report.to_json()) == json.dumps(whole.to_json()) for report in results)
    for name in ("report.json", "matrices.csv"):
        assert (tmp_path / "out0" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "out0").glob(".partial*"))


def test_rows_are_kept_when_another_process_or_the_bucket_is_lost():
    """Else the journal would go, as after a mistake in what was given."""
    lost = UserError("process 1: away")
    lost.status = 1
    assert is_resumable(ProcessLost("gone")) and is_resumable(lost) and not is_resumable(UserError("NaN"))


def test_processes_need_a_folder(pair):
    with pytest.raises(ValueError, match="out is None"):
        compare_checkpoints(*map(open_checkpoint, pair), SETTINGS, team=Team(0, 2, run=1))
