"""The last resort of the command line: whatever nothing foresaw is one line, its traceback a file, the status 1."""

import errno
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from jaxgeom.commands import report
from tests.command_line import command


@pytest.fixture
def failing(monkeypatch):
    """Makes `jaxgeom report DIR` fail with an error."""

    def make(error):
        def fails(directory: str):
            def run(command):
                raise error

            return run

        monkeypatch.setattr(report, "report", lambda: fails("somewhere"))

    return make


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RecursionError("too deep"), MemoryError(), AssertionError("a\nb\nc"), ValueError("y" * 999)],
)
def test_an_unforeseen_error_is_one_line_and_its_traceback_a_file(jaxgeom, failing, monkeypatch, tmp_path, error):
    failing(error)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = jaxgeom("report")
    assert said.status == 1 and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert said.err.startswith(f"jaxgeom: a fault of this program's: {type(error).__name__}") and len(said.err) < 600
    path = Path(re.search(r"its traceback is in (\S+)", said.err)[1])
    text = path.read_text()
    assert path.parent == tmp_path and text.startswith("jaxgeom report\n")
    assert "Traceback (most recent call last)" in text and "in run\n    raise error" in text


def test_a_traceback_that_cannot_be_kept_is_still_one_line(jaxgeom, failing, monkeypatch):
    failing(KeyError("x"))

    def refuse(**_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", refuse)
        said = jaxgeom("report")
    assert said.status == 1 and said.err.count("\n") == 1
    assert "could not be kept (No space left on device)" in said.err


FULL = OSError(errno.ENOSPC, "No space left on device", "read.json", None, "DIR/written.json")  # as a copy has it
WORDS = ValueError("RESOURCE_EXHAUSTED: Failed to write 4 bytes: No space left on device")
MEMORY = ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4 bytes")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (FULL, 2, "jaxgeom: DIR/written.json: the disk is full; "),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "jaxgeom: output: the disk is full; "),
        (WORDS, 2, "jaxgeom: output: the disk is full; "),
        (MEMORY, 1, "a fault of this program's: ValueError: RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_a_full_disk_is_no_fault_of_the_programs(jaxgeom, failing, monkeypatch, tmp_path, error, status, words):
    failing(error)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = jaxgeom("report")
    assert said.status == status and said.err.count("\n") == 1 and words in said.err, said.err


def test_a_reader_that_has_seen_enough_is_no_error():
    line, environment = command("compare", "--help")
    shell = f"{shlex.join(line)} | head -c 20"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"") and len(done.stdout) == 20
