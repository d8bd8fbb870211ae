"""The process in which a plan is compiled: what ends it is a line, and with the command it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxgeom.errors import UserError
from jaxgeom.planning import apart


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Puts another program in the place of the plan's."""

    def put(text):
        (tmp_path / "program.py").write_text(text)
        monkeypatch.setattr(apart, "_PROGRAM", tmp_path / "program.py")

    return put


CHECK = "F1127 15:00:00.1 77 limits.cc:93] Check failed: id < kMaxDeviceCount (4 vs. 4)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"import os, sys; print({CHECK!r}, '@ 0x7f libtpu', sep='\\n', file=sys.stderr, flush=True); os.abort()",
         "by SIGABRT: Check failed: id < kMaxDeviceCount (4 vs. 4)"),
        ("import os; os.kill(os.getpid(), 9)", "by SIGKILL, as a rule because this machine's memory was full"),
        ("import os; os.write(2, b'ERROR: Unknown command line flag\\n'); os._exit(1)",
         "with status 1: ERROR: Unknown command line flag"),
    ],
)  # fmt: skip
def test_what_ends_it_is_one_line(program, text, said):
    program(text)
    with pytest.raises(UserError) as error:
        apart.plan_apart("jaxgeom plan")
    assert str(error.value) == f"the process that compiles was ended {said}"


def test_what_it_says_is_what_the_command_says(program, capfd):
    program("import sys; print(sys.argv[2:]); print('a line', file=sys.stderr); sys.exit(64 + 1)")
    assert apart.plan_apart("jaxgeom plan --model 'a b'") == 1
    assert capfd.readouterr() == ("['plan', '--model', 'a b']\n", "a line\n")


def test_what_was_handed_down_to_the_command_it_has_too(program):
    """`--json >(jq .fits)`"""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    program(f"import os, sys; os.write({write}, b'numbers'); sys.exit(64)")
    assert apart.plan_apart("jaxgeom plan") == 0
    os.close(write)
    assert os.read(read, 99) == b"numbers"
    os.close(read)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_stopped_with_the_command(jaxgeom, program, number, tmp_path):
    """At once, whatever the compiler is at, and nothing of it is left."""
    program(
        "import os, pathlib, signal, time\n"
        f"[signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; pathlib.Path({str(tmp_path)!r}, 'pid').write_text('x')\n"
        f"os.kill(os.getppid(), {int(number)}); pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    said = jaxgeom("plan", "--model", tmp_path, "--topology", "v5e:1x1", "--objective", "sft")
    assert (said.status, said.err) == (128 + number, "jaxgeom: stopped; the same command begins anew\n")
    assert time.monotonic() - began < 30
    pid = (tmp_path / "pid").read_text()
    assert pid == "x" or not os.path.exists(f"/proc/{pid}")


def test_it_ends_when_the_command_is_killed():
    """Which then cannot end it: it sees that nobody waits."""
    program = [sys.executable, "-P", str(apart._PROGRAM), '["/nowhere"]']
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.close()
    assert process.wait(60) == 1
