"""Code rewards: right and wrong programs, in real processes, and what a bad one cannot do."""

import time

import pytest

from jaxgeom.errors import UserError
from jaxgeom.rewards import code_reward, extract_code

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"


def respond(program):
    return f"Here it is:\n```python\n{program}\n```\nDone."


def reward(program, tests=TESTS, **options):
    return code_reward(respond(program), tests, allow_execution=True, **options)


def test_it_is_off_by_default():
    with pytest.raises(UserError, match="allow_execution"):
        code_reward(respond("def add(a, b): return a + b"), TESTS)


def test_extraction():
    assert extract_code("```python\na\n```\n```\nb\n```") == "b\n"
    assert extract_code("```py\na = 1\n```") == "a = 1\n"
    for text in ("", "no block", "```python\nunfinished", "```python\n\n```", "```python\na\n```</think> none"):
        assert extract_code(text) is None


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def add(a, b):\n    return a + b", 1.0),
        ("print('noise')\ndef add(a, b):\n    print(a)\n    return a + b", 1.0),
        ("def add(a, b):\n    return a - b", 0.0),
        ("def add(a, b) return", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("print('passed')", 0.0),
        ("def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    raise RuntimeError", 1.0),
        ("\x00", 0.0),
    ],
)
def test_programs(program, expected):
    assert reward(program) == expected


def test_limits_of_time_and_memory():
    start = time.monotonic()
    assert reward("while True: pass", timeout=1.0) == 0.0
    assert reward("import time\ntime.sleep(60)", timeout=1.0) == 0.0
    assert time.monotonic() - start < 60  # neither ran to its own end
    hungry = "x = bytearray(400 * 2**20)\ndef add(a, b): return a + b"
    assert reward(hungry, memory_bytes=200 * 2**20) == 0.0
    assert reward(hungry, memory_bytes=900 * 2**20) == 1.0


def test_children_of_the_program_die_with_it(tmp_path):
    sign = tmp_path / "sign"
    program = (
        "import os, time\n"
        f"if os.fork() == 0:\n    time.sleep(2)\n    open({str(sign)!r}, 'w').close()\n    os._exit(0)\n"
        "def add(a, b): return a + b"
    )
    assert reward(program) == 1.0
    time.sleep(2.5)
    assert not sign.exists()


def test_it_sees_no_environment_and_an_empty_directory(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "1")
    tests = "assert 'SOME_SECRET' not in env and sorted(files) == ['program.py', 'tests.py']"
    assert reward("import os\nenv, files = dict(os.environ), os.listdir('.')", tests) == 1.0
