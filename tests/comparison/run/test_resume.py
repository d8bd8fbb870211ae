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
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache, measure_base
from jaxgeom.comparison.run import journal as journal_module
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
    with pytest.raises(UserError, match=r"unfinished comparison of other .* \(angle_k: 8 there, 7 asked for\)"):
        compare_checkpoints(*map(open_checkpoint, pair), CompareSettings(angle_k=7), out=out)
    for path in [file for side in pair for file in side.iterdir()]:
        os.utime(path, (1, 1))  # another date is no other content
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


def test_other_content_under_the_same_name_is_no_comparison_to_go_on_with(tmp_path):
    initial = {name: w for name, w in disk.weights(layers=1).items() if "self_attn" in name}
    out, settings = tmp_path / "out", CompareSettings(suite="fast", mask_rank=4)
    start = open_checkpoint(disk.write(tmp_path / "a", initial))

    def measure(scale, **options):
        final = open_checkpoint(disk.write(tmp_path / "b", disk.moved(initial, scale)))
        return compare_checkpoints(start, final, settings, out=out, **options)

    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(1e-3, progress=stop)
    with pytest.raises(UserError, match=r"comparison of other inputs \(final: .*b has other content now\); .*--force"):
        measure(2e-3)
    measured: list[str] = []
    report = measure(1e-3, progress=lambda done, total, name: measured.append(name))
    assert len(measured) == len(report.matrices) + len(report.parameters) - 1


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


@pytest.mark.parametrize("spoilt", [b"3", b"null", b'"name"', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_spoilt_journal_costs_what_was_measured_and_nothing_else(tmp_path, spoilt):
    initial = {name: w for name, w in disk.weights(layers=1).items() if "self_attn" in name}
    pair = disk.write(tmp_path / "a", initial), disk.write(tmp_path / "b", disk.moved(initial, 1e-3))
    out, settings = tmp_path / "out", CompareSettings(suite="fast", mask_rank=4)

    def stop(done: int, total: int, name: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_checkpoints(*map(open_checkpoint, pair), settings, out=out, progress=stop)
    lines = (out / ".partial.jsonl").read_bytes().splitlines()
    whole = json.dumps(compare_checkpoints(*map(open_checkpoint, pair), settings).to_json())
    for place in (0, 2):
        (out / ".partial.jsonl").write_bytes(b"\n".join([*lines[:place], spoilt, *lines[place + 1 :]]) + b"\n")
        report = compare_checkpoints(*map(open_checkpoint, pair), settings, out=out)
        assert json.dumps(report.to_json()) == whole


def test_a_damaged_cache_holds_nothing(tmp_path):
    """Bytes of an archive changed anywhere: whatever NumPy raises or does not find, no wrong spectrum comes out."""
    matrix = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    cache, sound = BaseCache(tmp_path), measure_base(matrix, 2, view=None)
    cache.save("digest", 2, sound)
    (path,) = tmp_path.iterdir()
    held = path.read_bytes()
    directory = held.index(b"PK\x01\x02")  # the table at the end decides what is read, and how
    for place in [*range(0, directory, 11), *range(directory, len(held))]:
        path.write_bytes(held[:place] + bytes([held[place] ^ 0x21]) + held[place + 1 :])
        found = cache.load("digest", 2)
        if found is not None:
            for one, other in ((found.stored.values, sound.stored.values), (found.stored.long, sound.stored.long)):
                np.testing.assert_array_equal(one, other)
    for cut in range(0, len(held), 31):
        path.write_bytes(held[:cut])
        assert cache.load("digest", 2) is None
    np.savez(path, stored_values=np.ones(4), stored_exact=np.array(True))
    assert cache.load("digest", 2) is None
    path.write_bytes(held)
    assert cache.load("digest", 2) is not None and cache.load("digest", 3) is None


def test_a_cache_that_cannot_be_written_is_named(pair, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is no directory to keep base spectra in"):
        compare_checkpoints(*map(open_checkpoint, pair), out=tmp_path / "out", cache=tmp_path / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="cache: the disk is full"):
        compare_checkpoints(*map(open_checkpoint, pair), out=tmp_path / "out", cache=tmp_path / "cache")
    assert (tmp_path / "out" / ".partial.jsonl").exists() and not list((tmp_path / "cache").iterdir())
