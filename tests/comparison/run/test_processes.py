"""Several real processes at one comparison: the report of one process, resumption, failures."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, compare_checkpoints
from jaxgeom.comparison.run.plan import check_pair, plan_parts
from jaxgeom.comparison.run.processes import ProcessFailed, Team, share
from jaxgeom.errors import UserError
from tests.comparison import disk

SETTINGS = CompareSettings(angle_k=8)


@pytest.fixture
def pair(tmp_path):
    initial = disk.weights()
    return disk.write(tmp_path / "a", initial), disk.write(tmp_path / "b", disk.moved(initial, 1e-3))


def start(pair, out: pathlib.Path, count: int = 2) -> list[subprocess.Popen[str]]:
    """`jaxgeom compare --distributed` in `count` processes that find each other by environment variables."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = ["compare", *map(str, pair), "--out", str(out), "--angle-k", "8", "--distributed"]
    processes = []
    for index in range(count):
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "jaxgeom.cli", *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def test_two_processes_write_the_report_of_one(pair, tmp_path):
    out, single = tmp_path / "out", tmp_path / "single"
    processes = start(pair, out)
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "page:" in said[0][0] and "page:" not in said[1][0] and "process 1 of 2: done" in said[1][0]
    command = json.loads((out / "report.json").read_text())["command"]
    compare_checkpoints(*map(open_checkpoint, pair), SETTINGS, out=single, command=command)
    for name in ("report.json", "matrices.csv"):
        assert (out / name).read_bytes() == (single / name).read_bytes()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_failure_reaches_the_other_process(pair, tmp_path):
    broken = disk.moved(disk.weights(), 1e-3)
    broken["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    processes = start((pair[0], disk.write(tmp_path / "broken", broken)), tmp_path / "out")
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    own = "up_proj.weight: 1 of 2880 entries are NaN or infinite"
    assert all(own in errors for _, errors in said)
    assert sum("failed:" in errors.split("jaxgeom: ")[-1] for _, errors in said) == 1
    assert not (tmp_path / "out" / "report.json").exists()


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


def test_processes_need_a_folder(pair):
    with pytest.raises(ValueError, match="out is None"):
        compare_checkpoints(*map(open_checkpoint, pair), SETTINGS, team=Team(0, 2, run=1))
