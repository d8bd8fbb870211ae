"""A comparison killed in the middle goes on, and ends with the report that it would have had."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, compare_checkpoints
from jaxgeom.comparison import journal as journal_module
from jaxgeom.errors import UserError
from tests.comparison import disk

SCRIPT = """
import sys, time
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, compare_checkpoints
def slow(done, total, name):
    print(name, flush=True)
    time.sleep(0.3)
a, b, out = sys.argv[1:]
compare_checkpoints(open_checkpoint(a), open_checkpoint(b), CompareSettings(angle_k=8), out=out, progress=slow)
"""


@pytest.fixture
def pair(tmp_path):
    initial = disk.weights()
    return disk.write(tmp_path / "a", initial), disk.write(tmp_path / "b", disk.moved(initial, 1e-3))


def test_killed_and_resumed(pair, tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *map(str, pair), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    partial = out / ".partial.jsonl"
    finished = [json.loads(line)["name"] for line in partial.read_text().splitlines()[1:]]
    assert len(finished) >= 3 and not (out / "report.json").exists()
    with partial.open("a") as file:
        file.write('{"name": "cut off in the mid')
    with pytest.raises(UserError, match="unfinished comparison of other inputs"):
        compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=7), out=out)
    measured: list[str] = []
    report = compare_checkpoints(
        *map(open_checkpoint, pair),
        CompareSettings(angle_k=8),
        out=out,
        progress=lambda done, total, name: measured.append(name),
    )
    assert not set(measured) & set(finished) and len(measured) + len(finished) == len(report.matrices) + len(
        report.parameters
    )
    whole = compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=8))
    assert json.dumps(report.to_json()) == json.dumps(whole.to_json())
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(whole.to_json()))
    assert sorted(path.name for path in out.iterdir()) == ["matrices.csv", "report.json"]


def test_a_full_disk_is_a_clear_line_and_keeps_what_was_measured(pair, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(time.monotonic())
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(journal_module.os, "fsync", full)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="the disk is full"):
        compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=8), out=out)
    assert len((out / ".partial.jsonl").read_text().splitlines()) >= 4
    report = compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=8), out=out)
    assert len(report.matrices) == 14 and np.isfinite(report.summary["nss"]["mean"])


def test_an_output_that_is_a_file_is_refused(pair, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is no directory"):
        compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=8), out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
