"""Sixty programs and more that mean ill: none is rewarded, none breaks, outlives or leaves the verifier."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxgeom.rewards import CodeTests, code_reward
from jaxgeom.rewards.code_sandbox import isolation_problem
from tests.rewards.code_attacks import EXHAUSTIONS, GAINS, SECRET
from tests.rewards.code_escapes import ESCAPES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
WITHOUT = isolation_problem()
isolated = pytest.mark.xfail(WITHOUT is not None, reason=f"{WITHOUT}", run=False)
TIMEOUT = 1.0
SECRET_TESTS = CodeTests.of(f"assert answer(7) == {SECRET}")
NOTHING_GAINED = CodeTests.of("assert answer(7) is False")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Where the verifier makes its directories: others make theirs beside it in the system's."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def rewards(programs, tests, **options):
    """Reward and seconds of each, two at a time."""

    def one(program):
        begun = time.monotonic()
        reward = code_reward(f"```python\n{program}\n```", tests, timeout=TIMEOUT, memory_bytes=400 * 2**20, **options)
        return reward, time.monotonic() - begun

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(programs, pool.map(one, programs.values()), strict=True))


def late(found, again):
    """Those of `found` (reward and seconds a name) beyond the limit and a second, which ending it all may take.

    A machine that others use too delays a program now and then; what the verifier does not end is late each time. So
    the least of three counts, the second and third alone.
    """
    seconds = {name: spent for name, (_, spent) in found.items() if spent > TIMEOUT + 1.0}
    for name in seconds:
        for _ in range(2):
            if seconds[name] > TIMEOUT + 1.0:
                seconds[name] = again(name)[1]
    return {name: spent for name, spent in seconds.items() if spent > TIMEOUT + 1.0}


@isolated
def test_there_are_sixty():
    assert len(GAINS) + len(EXHAUSTIONS) + len(ESCAPES) >= 60


@isolated
def test_nothing_is_gained_without_the_answer():
    found = rewards(GAINS, SECRET_TESTS)
    assert {name for name, (reward, _) in found.items() if reward != 0.0} == set()
    assert rewards({"honest": f"def answer(n): return {SECRET}"}, SECRET_TESTS)["honest"][0] == 1.0


@isolated
def test_nothing_outlives_its_limit():
    found = rewards(EXHAUSTIONS, SECRET_TESTS)
    assert {name for name, (reward, _) in found.items() if reward != 0.0} == set()
    assert late(found, lambda name: rewards({name: EXHAUSTIONS[name]}, SECRET_TESTS)[name]) == {}
    assert os.listdir(tempfile.gettempdir()) == []


# Results that an expression over them, or decoding alone, does not get done with.
COLLIDING = "M = 2**61 - 1\ndef answer(n): return "
HELD_UP = {
    "a factorial": ("def answer(n): return 10**7", "import math\nassert math.factorial(answer(7)) == 6"),
    "digits before the point": ("def answer(n): return -10**9", "assert round(123, answer(7)) == 6"),
    "a sum of lists": ("def answer(n): return [list(range(99))] * 9000", "assert sum(answer(7), []) == [1]"),
    "digits of a power": ("def answer(n): return 10**3000", "assert str(answer(7)**900) == '6'"),
    "elements of one hash": (COLLIDING + "{i * M for i in range(14000)}", "assert answer(7) == {1}"),
    "elements of one hash, written": (
        "import os\n"
        "text = '[\"value\", {\"set\": [' + ', '.join(str(i * (2**61 - 1)) for i in range(60000)) + ']}]\\n'\n"
        "def answer(n):\n for stream in range(3, 30):\n  try: os.write(stream, text.encode())\n"
        "  except OSError: pass\n import time\n time.sleep(9)",
        "assert answer(7) == {1}",
    ),
    "keys of one hash": (
        "text = '[\"value\", {\"dict\": [' + ', '.join(f'[{i * (2**61 - 1)}, 0]' for i in range(60000)) + ']}]\\n'\n"
        "import os\ndef answer(n):\n for stream in range(3, 30):\n  try: os.write(stream, text.encode())\n"
        "  except OSError: pass\n import time\n time.sleep(9)",
        "assert answer(7) == {1: 2}",
    ),
}


@isolated
def test_no_result_holds_the_verifier_up():
    def one(pair):
        begun = time.monotonic()
        reward = code_reward(f"```python\n{pair[0]}\n```", CodeTests.of(pair[1]), timeout=TIMEOUT)
        return reward, time.monotonic() - begun

    one((f"def answer(n): return {SECRET}", "assert answer(7) == 1"))  # the judge is there
    own = time.process_time()
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(HELD_UP, pool.map(one, HELD_UP.values()), strict=True))
    assert {name for name, (reward, _) in found.items() if reward != 0.0} == set()
    assert time.process_time() - own < 1.0
    assert late(found, lambda name: one(HELD_UP[name])) == {}
    assert one((f"def answer(n): return {SECRET}", f"assert answer(7) == {SECRET}"))[0] == 1.0


@isolated
def test_nothing_gets_out(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEOM_SECRET", "1")
    (tmp_path / "data.jsonl").write_text(str(SECRET))
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        server.bind(("127.0.0.1", 0))
        server.listen()
        local.bind(f"\0jaxgeom-{os.getpid()}")
        local.listen()
        given = f"HOST = {str(tmp_path)!r}\nPORT = {server.getsockname()[1]}\nABSTRACT = '\\0jaxgeom-{os.getpid()}'\n"
        found = rewards({name: given + program for name, program in ESCAPES.items()}, NOTHING_GAINED)
        assert {name for name, (reward, _) in found.items() if reward != 1.0} == set()


@isolated
def test_no_process_is_left(tmp_path):
    script = (
        "import sys\nfrom jaxgeom.rewards.code_sandbox import Limits, converse\n"
        "converse({'program': sys.argv[1], 'input': ''}, Limits(1.0), isolated=True)\nprint('back', flush=True)\n"
        "import time\ntime.sleep(0 if len(sys.argv) < 3 else 99)"
    )
    # A name that can be found from outside: the program's own, which every process that it makes keeps.
    name = f"jaxgeomprobe{os.getpid()}"
    program = (
        f"import ctypes, os, time\nfor _ in range(5):\n if os.fork() == 0:\n  os.setsid()\n"
        f"  ctypes.CDLL(None).prctl(15, b'{name[:15]}', 0, 0, 0)\n  time.sleep(60)\ntime.sleep(60)"
    )

    def alive():
        names = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                names.append(Path(f"/proc/{pid}/comm").read_text().strip())
            except OSError:
                continue
        return names.count(name[:15])

    done = subprocess.run([sys.executable, "-c", script, program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "back\n", done.stderr
    assert alive() == 0
    # The trainer itself is killed while a program runs: its programs go with it.
    trainer = subprocess.Popen([sys.executable, "-c", script.replace("1.0", "50.0"), program])
    deadline = time.monotonic() + 30
    while alive() < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == 5
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == 0


def test_without_a_sandbox_the_verifier_stands_too():
    """With limits alone: what ends, hides or replaces things raises nothing, and nothing is gained."""
    names = (
        "equal to everything",
        "patched say",
        "hard exit",
        "lines into every file",
        "deep json as a line",
        "frames",
    )
    chosen = {name: GAINS[name] for name in names}
    chosen |= {name: EXHAUSTIONS[name] for name in ("an endless loop", "a pipe held open", "memory", "output")}
    chosen["nested directories"] = ESCAPES["nested directories"]
    chosen["a link"] = (
        "import os, shutil\nhere = os.getcwd()\nos.chdir('/')\nshutil.rmtree(here)\nos.symlink('/usr', here)\n"
        "def answer(n): return 0"
    )
    found = {}
    for name, program in chosen.items():
        found |= rewards_unisolated(name, program)
    assert found == dict.fromkeys(chosen, 0.0)
    assert os.listdir(tempfile.gettempdir()) == []
    assert os.path.isdir("/usr")


def rewards_unisolated(name, program):
    from jaxgeom.rewards.code import _right_results
    from jaxgeom.rewards.code_sandbox import Limits

    return {name: float(_right_results(program, SECRET_TESTS.functions, Limits(TIMEOUT, 400 * 2**20), False))}


def test_a_request_holds_nothing_of_what_is_right():
    calls = [json.loads(call.arguments) for case in SECRET_TESTS.functions for call in case.calls]
    assert str(SECRET) not in json.dumps(calls)
