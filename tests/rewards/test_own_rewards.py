"""Verifiers of a user's own: weighted beside the built-in ones, and every fault of theirs in one line with the row."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.rewards import GivenRow, OwnReward, Rewards, own_reward
from jaxgeom.rewards.code_tests import CodeTests
from jaxgeom.training.reward_settings import RewardPart, rewards_of

ROWS = [GivenRow(f"data.jsonl: row {number}", {"prompt": "?", "length": number}) for number in range(4)]
TEXTS = ["a", "bb", "ccc", "dddd"]


def test_a_sum_is_weighted_and_its_parts_are_not():
    tests = CodeTests.of({"inputs": ["1"], "outputs": ["1"]})

    def lengths(texts, rows):
        return [len(text) + row["length"] for text, row in zip(texts, rows, strict=True)]

    rewards = Rewards(
        lambda texts, truths: [float(text == truth) for text, truth in zip(texts, truths, strict=True)],
        {"math": 2.0},
        ((OwnReward("own:length", lengths), -0.5),),
    )
    found = rewards(TEXTS, ["a", "x", None, tests], ROWS)
    np.testing.assert_array_equal(found.parts["math"], np.array([1, 0, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(found.parts["own:length"], [1, 3, 5, 7])
    np.testing.assert_array_equal(found.total, [2 - 0.5, -1.5, -2.5, -3.5])
    np.testing.assert_array_equal(found.right, np.array([1, 0, np.nan, np.nan], np.float32))
    counted = rewards.counting(TEXTS, ["a", "x", None, tests], ROWS)
    np.testing.assert_array_equal(counted.total, found.total)  # what is counted alone is worth nothing
    np.testing.assert_array_equal(counted.right, np.array([1, 0, np.nan, 0], np.float32))


def test_a_row_that_nothing_judges_is_named():
    tests = CodeTests.of({"inputs": ["1"], "outputs": ["1"]})
    with pytest.raises(UserError, match=r"f: row 1: judged by code, and reward=math does not; give --reward code"):
        Rewards(lambda *_: [], {"math": 1.0}).require(["1", tests], lambda index: f"f: row {index}")


def raising(texts, rows):
    return [1.0 / (row["length"] - 2) for row in rows]


def exiting(texts, rows):
    raise SystemExit(1)


class OwnError(BaseException):
    """As pytest's own are."""


def out_of_all(texts, rows):
    raise OwnError("no")


def yielding(texts, rows):
    yield 1.0
    raise TypeError("from within")


class Unread:
    ndim = 0

    def item(self):
        raise RuntimeError("still on its device")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (exiting, r"row 0: reward own:f raised SystemExit: 1 \(.*test_own_rewards.py, line \d+"),
        (
            raising,
            r"row 2: reward own:f raised ZeroDivisionError: .*division by zero \(.*test_own_rewards.py, line \d+",
        ),
        (out_of_all, r"row 0: reward own:f raised OwnError: no"),
        (yielding, r"reward own:f raised TypeError: from within"),
        (lambda texts, rows: [Unread()] * 4, r"row 0: reward own:f raised RuntimeError: still on its device"),
        (lambda texts, rows: itertools.count(), "row 3: reward own:f returned more than 4 numbers for 4 answers"),
        (lambda texts, rows: dict(enumerate(range(4))), "reward own:f returned dict, not a list"),
        (lambda texts, rows: {0.0, 1.0, 2.0, 3.0}, "reward own:f returned set, not a list"),
        (lambda texts, rows: bytes(4), "reward own:f returned bytes, not a list"),
        (lambda texts, rows: [0, 1, 10**400, 1], "row 2: reward own:f returned 1000.*0000: a finite number"),
        (lambda texts, rows: [0, 1, 10**9000, 1], "row 2: reward own:f returned int of too many digits: a finite"),
        (lambda texts, rows: [0.0, -1e20, 1.0, 1.0], r"row 1: reward own:f returned -1e\+20: at most 1e\+09"),
        (lambda texts, rows: [0.0] * 3, "row 0 to data.jsonl: row 3: reward own:f returned 3 numbers for 4 answers"),
        (lambda texts, rows: [0.0, 1.0, float("nan"), 1.0], "row 2: reward own:f returned nan: a finite number"),
        (lambda texts, rows: [0.0, np.float32(np.inf), 1.0, 1.0], "row 1: reward own:f returned inf"),
        (lambda texts, rows: [0.0, "1", 1.0, 1.0], "row 1: reward own:f returned '1'"),
        (lambda texts, rows: [0.0, 1.0, 1.0, None], "row 3: reward own:f returned None"),
        (lambda texts, rows: None, "reward own:f returned NoneType, not a list"),
        (lambda texts, rows: 1.0, "reward own:f returned float, not a list"),
    ],
)
def test_what_is_wrong_with_its_answer_is_said_with_the_row(function, says):
    with pytest.raises(UserError, match=says) as caught:
        OwnReward("own:f", function)(TEXTS, ROWS)
    assert "\n" not in str(caught.value)


def test_it_is_not_asked_about_no_answers():
    """The share of a process where several judge fewer answers than they are; in one process there is always one."""
    rewards = Rewards(lambda *_: [], {}, ((OwnReward("own:best", lambda texts, rows: [max(map(len, texts))]), 1.0),))
    found = rewards([], [], [])
    assert found.total.shape == found.right.shape == found.parts["own:best"].shape == (0,)


def test_it_returns_numbers_of_any_kind():
    for values in (np.array([0, 1, 2, 3]), np.float32([0, 1, 2, 3]), (False, True, 2, 3.0), iter([0, 1, 2, 3])):
        assert OwnReward("own:f", lambda texts, rows, values=values: values)(TEXTS, ROWS) == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        (None, "own_none:f", "own_none cannot be imported: ModuleNotFoundError"),
        (
            "import own_gone",
            "own_needs:f",
            "own_needs cannot be imported: ModuleNotFoundError: No module named 'own_gone'",
        ),
        ("f = 1 +", "own_syntax:f", r"own_syntax cannot be imported: SyntaxError: .*own_syntax.py, line 1\)"),
        ("1 / 0", "own_raises:f", r"ZeroDivisionError: division by zero \(.*own_raises.py, line 1\)"),
        ("raise SystemExit(3)", "own_exits:f", "own_exits cannot be imported: SystemExit: 3"),
        ("g = 1", "own_empty:f", "own_empty has no f"),
        ("f = 1", "own_number:f", "f is int, not a function"),
    ],
)
def test_one_that_cannot_be_imported_is_refused_in_one_line(tmp_path, monkeypatch, source, name, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if source is not None:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(source)
    with pytest.raises(UserError, match=f"reward={name}: .*{says}") as caught:
        own_reward(name)
    assert "\n" not in str(caught.value)


def test_one_in_the_working_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "own_here.py").write_text("class Of:\n    def f(texts, rows):\n        return [1] * len(texts)\n")
    found = own_reward("own_here:Of.f")
    assert found(TEXTS, ROWS) == [1.0] * 4 and len(found.digest) == 64


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["maths"], "'maths' is neither math, code nor MODULE:FUNCTION"),
        (["a.b:"], "neither math"),
        (["math=x"], "the weight 'x' is no finite number"),
        (["math="], "the weight '' is no finite number"),
        (["math=inf"], "no finite number"),
        (["math=-1e7"], "the weight '-1e7' is above"),
        (["math", "math=2"], "math is given twice"),
        (["math=0", "a:b=0.0"], "every weight is 0"),
    ],
)
def test_names_and_weights_that_are_none(given, says):
    with pytest.raises(UserError, match=says):
        rewards_of(given)
    assert rewards_of([]) == (RewardPart("math", 1.0), RewardPart("code", 1.0))


def test_a_function_that_changes_a_row_changes_its_own_copy():
    row = GivenRow("f: row 0", {"answer": "3", "held": {"seen": []}})

    def judged(texts, rows):
        for one in rows:
            one.pop("answer")
            one["held"]["seen"].append(1)
        return [len(one["held"]["seen"]) for one in rows]

    reward = OwnReward("own:judged", judged)
    assert [reward(["a", "b"], [row, row]) for _ in range(2)] == [[1.0, 1.0]] * 2
    assert row.content == {"answer": "3", "held": {"seen": []}}


def test_a_function_that_goes_elsewhere_leaves_the_run_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "other").mkdir()
    (tmp_path / "own_goes.py").write_text(
        "import os\nos.chdir('other')\ndef f(texts, rows):\n    os.chdir('/')\n    return [0] * len(texts)\n"
    )
    assert own_reward("own_goes:f")(TEXTS, ROWS) == [0.0] * 4
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("end", ["return [0.0]", "raise ValueError"])
def test_a_child_that_a_function_forks_does_not_come_back(end):
    """In a process of its own, which has no other threads."""
    program = f"""
import os
from jaxgeom.rewards import GivenRow, OwnReward
def f(texts, rows):
    if child := os.fork():
        os.waitpid(child, 0)
        return [1.0]
    {end}
print(OwnReward("own:f", f)(["a"], [GivenRow("row 0", {{}})]), flush=True)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert said.stdout == "[1.0]\n" and said.stderr == "" and said.returncode == 0
