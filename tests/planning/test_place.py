"""Where a plan's numbers go: what is there stays there, and a pipe is written to as it is."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxgeom.errors import UserError
from jaxgeom.planning.place import _descriptor, require_place, write_numbers
from tests.tiny import tiny_config

PLAN = {"schema": 1, "command": "jaxgeom plan", "programs": {}, "hbm_bytes": 1}


@pytest.mark.parametrize("content", ["{}", "no JSON", "[1]", '{"model_type": "qwen3", "programs": {}}', "\0\xff"])
def test_a_file_that_is_no_plan_stays(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="another file is there that holds no plan"):
        require_place(path)
    assert path.read_text(encoding="latin-1") == content and os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("content", [None, "", json.dumps(PLAN | {"hbm_bytes": 2})])
def test_an_earlier_plan_is_replaced(tmp_path, content):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    require_place(path)
    write_numbers(path, PLAN)
    assert json.loads(path.read_text()) == PLAN and os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("name", ["no/plan.json", "x" * 250, "x" * 300, ""])
def test_a_place_where_nothing_can_be_written_is_said_before(tmp_path, name):
    with pytest.raises(UserError, match="no file can be written there"):
        require_place(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    require_place(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_numbers(pipe, PLAN)
    reader.join(10)
    assert json.loads(read[0]) == PLAN and pipe.is_fifo()


@pytest.mark.parametrize("place", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_what_this_process_has_open_is_written_to_where_it_stands(tmp_path, place):
    """`plan --json /dev/stdout > FILE`: of a file there nothing is lost, and it is not replaced."""
    with open(tmp_path / "out", "w") as out:
        out.write("before\n")
        out.flush()
        path = Path(place.format(out.fileno()))
        require_place(path)
        write_numbers(path, PLAN)
        out.write("after\n")
    said = (tmp_path / "out").read_text()
    assert said == "before\n" + json.dumps(PLAN, indent=1) + "\nafter\n" and os.listdir(tmp_path) == ["out"]
    with open(tmp_path / "out") as read, pytest.raises(UserError, match="it is open to be read"):
        require_place(Path(place.format(read.fileno())))
    with pytest.raises(UserError, match="no file can be written there: Bad file descriptor"):
        require_place(Path(place.format(999_999)))


def test_the_streams_of_a_process_are_known_by_their_names():
    assert [_descriptor(Path(name)) for name in ("/dev/stdout", "/dev/stderr", "/dev/null", "stdout")] == [
        1, 2, None, None,
    ]  # fmt: skip


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "plan.json")
    for hbm in (1, 2):  # to what is not there yet, and to an earlier plan
        require_place(tmp_path / "link.json")
        write_numbers(tmp_path / "link.json", PLAN | {"hbm_bytes": hbm})
        assert (tmp_path / "link.json").is_symlink()
        assert json.loads((tmp_path / "plan.json").read_text())["hbm_bytes"] == hbm


def test_the_file_and_the_status_do_not_depend_on_the_reader_of_a_pipe(tmp_path):
    """Of which rich makes an end of the process with status 1, which says that the run does not fit."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=1).to_hf()))
    options = "--topology local --objective sft --max-length 8 --batch-size 1 --search 0".split()
    line = [sys.executable, "-m", "jaxgeom.cli", "plan", "--model", str(tmp_path), *options]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}

    def ended(*more):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as gone:
            return subprocess.run([*line, *more], env=environment, stdout=gone, stderr=subprocess.PIPE, text=True)

    found = ended("--json", str(tmp_path / "plan.json"))
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is True
    alone = ended()
    assert (alone.returncode, alone.stderr) == (0, "")
