"""Code rewards: honest programs of all kinds in real processes, right and wrong, with the sandbox and without it."""

import json
import os

import pytest

from jaxgeom.data.rows import write_jsonl
from jaxgeom.errors import UserError
from jaxgeom.rewards import CodeTests, Verifier, code_reward, code_sandbox, extract_code
from jaxgeom.rewards.code_sandbox import isolation_problem
from tests.tiny import write_tiny_model

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
DOUBLE = {"inputs": ["2\n", "5"], "outputs": ["4\n", "10"]}
MODERN = """from __future__ import annotations
import pickle, sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

@dataclass
class Pair:
    left: int
    right: Pair | None = None

def total(pair: Pair) -> int:
    return pair.left + (pair.right.left if pair.right else 0)

def add(a, b):
    assert pickle.loads(pickle.dumps(Pair(a))) == Pair(a)
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(total, [Pair(a, Pair(b))]))[0]
"""


def respond(program):
    return f"Here it is:\n```python\n{program}\n```\nDone."


def reward(program, tests=TESTS, **options):
    return code_reward(respond(program), tests, allow_unisolated=True, **options)


@pytest.fixture(params=["bubblewrap", "limits alone"])
def way(request, monkeypatch):
    if request.param == "limits alone":
        monkeypatch.setattr(code_sandbox, "_way", lambda: None)
        monkeypatch.setattr(code_sandbox, "_problem", lambda: "bubblewrap is not installed")
    elif isolation_problem() is not None:
        pytest.xfail(f"{isolation_problem()}")
    return request.param


def test_extraction():
    assert extract_code("```python\na\n```\n```\nb\n```") == "b\n"
    assert extract_code("```py\na = 1\n```") == "a = 1\n"
    for text in ("", "no block", "```python\nunfinished", "```python\n\n```", "```python\na\n```</think> none"):
        assert extract_code(text) is None
    assert extract_code("<think>```python\na\n```") is None


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('noise')\ndef add(a, b):\n    print(a)\n    return a + b", 1.0),
        ("def add(a, b):\n    return a - b", 0.0),
        ("def add(a, b) return", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    raise RuntimeError", 1.0),
        ("import sys\ndef add(a, b):\n    sys.stdin.read()\n    return a + b", 1.0),
        (MODERN, 1.0),
        ("\x00", 0.0),
    ],
)
def test_functions(program, expected, way):
    assert reward(program) == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print(int(input()) * 2)", 1.0),
        ("import sys\nsys.stdout.write(str(2 * int(sys.stdin.readline())))", 1.0),
        ("import os\nos.write(1, str(2 * int(os.read(0, 99))).encode())", 1.0),
        ("def main():\n    print(2 * int(input()))\nif __name__ == '__main__':\n    main()\n    exit()", 1.0),
        (MODERN + "if __name__ == '__main__':\n    n = int(input())\n    print(add(n, n))", 1.0),
        ("print(4)", 0.0),
        ("print(int(input()) * 2)\nraise ValueError", 0.0),
        ("print(int(input()) * 2)\nexit(3)", 0.0),
    ],
)
def test_scripts(program, expected, way):
    assert reward(program, DOUBLE) == expected


def test_solutions_as_judges_of_contests_write_them():
    row = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional", "metadata": {"func_name": "shift"}}]
    program = "class Solution:\n    def shift(self, xs: List[int], by: int) -> Optional[List[int]]:\n        {}"
    assert reward(program.format("return [x + by for x in xs]"), row) == 1.0
    assert reward(program.format("return tuple(x + by for x in xs)"), row) == 1.0
    assert reward(program.format("return xs"), row) == 0.0


def test_large_inputs_and_outputs(way):
    numbers = " ".join(map(str, range(200_000)))
    assert reward("print(*map(int, input().split()))", {"inputs": [numbers], "outputs": [numbers]}) == 1.0


def test_limits_of_time_and_memory(way):
    assert reward("while True: pass", timeout=0.5) == 0.0
    hungry = "x = bytearray(400 * 2**20)\ndef add(a, b): return a + b"
    assert reward(hungry, memory_bytes=200 * 2**20) == 0.0
    assert reward(hungry, memory_bytes=900 * 2**20) == 1.0


def test_each_call_has_the_whole_time_and_all_of_them_six_times_it():
    tests = "\n".join(f"assert f({i}) == {i}" for i in range(3))
    slow = "import time\ndef f(n):\n    time.sleep({})\n    return n"
    assert reward(slow.format(1.0), tests, timeout=2.5) == 1.0  # 3 s in all, and 1.5 for a busy machine in each
    many = "\n".join(f"assert f({i}) == {i}" for i in range(30))
    assert reward(slow.format(0.1), many, timeout=0.3) == 0.0  # 3 s in all, of 1.8


def test_without_bubblewrap_it_must_be_allowed(monkeypatch):
    monkeypatch.setattr(code_sandbox, "_way", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="--allow-unisolated-code"):
        code_reward(respond("def add(a, b): return a + b"), TESTS)
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        Verifier().require([CodeTests.of(TESTS)])
    Verifier().require(["5", ("5", "6")])
    Verifier(allow_unisolated_code=True).require([CodeTests.of(TESTS)])
    monkeypatch.undo()
    with pytest.raises(UserError, match="tests: a test is no assert"):
        code_reward(respond(""), "add(1, 2)")


def test_a_verifier_judges_each_by_its_own_truth():
    texts = [r"\boxed{5}", r"\boxed{7}", respond("def add(a, b): return a + b"), respond("def add(a, b): return 0")]
    truths = ["5", ("6", "7.0"), CodeTests.of(TESTS), CodeTests.of(TESTS)]
    assert Verifier(allow_unisolated_code=True)(texts, truths) == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="1 texts but 0"):
        Verifier()(["x"], [])


ROWS = [
    {"prompt": "add", "test_list": TESTS.strip().split("\n")},
    {"prompt": "double", "input_output": json.dumps(DOUBLE)},
]


@pytest.fixture
def command(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return (
        "train", "rlvr", "--model", model, "--data", tmp_path / "rows.jsonl", "--steps", 1, "--batch-size", 8,
        "--samples-per-prompt", 4, "--max-new-tokens", 4, "--learning-rate", 1e-3,
    )  # fmt: skip


def test_train_rlvr_refuses_programs_that_it_may_not_run_and_tests_that_are_none(
    jaxgeom, command, tmp_path, monkeypatch
):
    monkeypatch.setattr("jaxgeom.rewards.code.isolation_problem", lambda: "bubblewrap is not installed")
    said = jaxgeom(*command, "--out", tmp_path / "run")
    assert said.status == 2 and "--allow-unisolated-code" in said.err and said.err.count("\n") == 1
    write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": "x", "test_list": ["f(1)"]}])
    said = jaxgeom(*command, "--out", tmp_path / "run")
    assert said.status == 2 and "row 1" in said.err and "no assert" in said.err and said.err.count("\n") == 1
    assert not os.path.exists(tmp_path / "run")


@pytest.mark.slow
def test_train_rlvr_runs_programs(jaxgeom, command, tmp_path, monkeypatch):
    """From rows with tests to a finished run, whose log says what the answers were judged by."""
    seen = []

    def converse(request, limits, **options):
        seen.append(request)
        return b"", None

    monkeypatch.setattr("jaxgeom.rewards.code.converse", converse)
    monkeypatch.setattr("jaxgeom.rewards.code.extract_code", lambda text: "def add(a, b): return a + b")
    said = jaxgeom(*command, "--allow-unisolated-code", "--out", tmp_path / "run")
    assert said.status == 0, said.err
    assert seen and {tuple(sorted(request)) for request in seen} == {("calls", "program"), ("input", "program")}
    logged = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().split("\n") if line]
    assert {sample["ground_truth"] for sample in logged} <= {
        "0 runs and 2 function cases",
        "2 runs and 0 function cases",
    }
