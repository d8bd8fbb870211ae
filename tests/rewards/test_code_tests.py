"""Tests of programs as data sets write them; values and asserts, compared away from the program."""

import base64
import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgeom.rewards import CodeTests, code_values, read_tests, restored, stored
from jaxgeom.rewards.code import same_output
from jaxgeom.rewards.code_asserts import calls_of, holds

STDIN = [{"input": "2\n", "output": "4\n"}, {"input": "5", "output": "10"}]
PACKED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([STDIN[1] | {"testtype": "stdin"}])))).decode()
CALLS = {"inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]], "fn_name": "add"}


@pytest.mark.parametrize(
    ("row", "scripts", "functions"),
    [
        # DeepCoder: Codeforces' cases; PrimeIntellect's kinds; TACO's lists; verl's rows have them as the truth.
        ({"tests": STDIN}, 2, 0),
        ({"tests": json.dumps(STDIN)}, 2, 0),
        ({"tests": [case | {"type": "stdin_stdout"} for case in STDIN]}, 2, 0),
        ({"tests": [{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": 3}]}, 0, 1),
        ({"tests": json.dumps({"inputs": ["1\n", ["1", "2"]], "outputs": ["1", "2"]})}, 2, 0),
        ({"reward_model": {"style": "rule", "ground_truth": json.dumps(STDIN)}}, 2, 0),
        ({"reward_model": {"ground_truth": json.dumps(CALLS)}}, 0, 2),
        # TACO, APPS
        ({"input_output": json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]}), "solutions": "[]"}, 1, 0),
        ({"input_output": json.dumps(CALLS)}, 0, 2),
        # LiveCodeBench
        ({"public_test_cases": json.dumps([STDIN[0] | {"testtype": "stdin"}]), "private_test_cases": PACKED}, 2, 0),
        (
            {
                "public_test_cases": json.dumps([{"input": '[1, 2]\n"a"', "output": "[1]", "testtype": "functional"}]),
                "metadata": json.dumps({"func_name": "first"}),
            },
            0,
            1,
        ),
        # MBPP
        ({"test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "test_setup_code": "import math"}, 0, 2),
        ({"test_list": np.array(["assert add(1, 2) == 3"], object), "test_imports": []}, 0, 1),
        ({"reward_model": {"ground_truth": "assert add(1, 2) == 3\nassert add(1, 1) == 2"}}, 0, 2),
    ],
)
def test_schemas(row, scripts, functions):
    tests = read_tests(row)
    assert (len(tests.scripts), len(tests.functions)) == (scripts, functions)
    assert restored(json.loads(json.dumps(stored(tests)))) == tests


@pytest.mark.parametrize("truth", ["5", "[1, 2]", '["1"]', "{1, 2}", {"target": 5}, None, ["a"], 5, "assert", "(1, 2)"])
def test_answers_are_no_tests(truth):
    assert read_tests({"reward_model": {"ground_truth": truth}}) is None


class _Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tests": "[{"}, "JSON"),
        ({"tests": [{"input": "1"}]}, "'input' and 'output'"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "one length"),
        ({"tests": [STDIN[0] | {"type": "interactive"}]}, "interactive"),
        ({"tests": [{"type": "function_call", "input": [1], "output": 1}]}, "name"),
        ({"tests": [{"type": "function_call", "fn_name": "a b", "input": [1], "output": 1}]}, "name"),
        ({"test_list": ["add(1, 2)"]}, "assert"),
        ({"test_list": ["assert True"]}, "no function"),
        ({"test_list": ["assert f(open('x')) == 1"]}, "plain value"),
        ({"test_list": ["assert f(g(1)) == 1"]}, "plain value"),
        ({"test_list": ["assert f(1).x() == 1"]}, "method"),
        ({"test_list": ["assert f(1) == 1"], "test_setup_code": "class Node: pass"}, "imports"),
        ({"private_test_cases": "not base64!"}, "LiveCodeBench"),
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(_Evil()))).decode()}, "LiveCodeBench"),
        ({"tests": 5}, "int"),
    ],
)
def test_what_is_wrong_with_tests_is_said(row, problem, capsys):
    with pytest.raises(ValueError, match=problem):
        read_tests(row)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "results", "right"),
    [
        ("assert f(1) == 2", [2], True),
        ("assert 2 == f(1)", [2], True),
        ("assert f(1) == 2", [True], False),
        ("assert f(1) == 1", [True], False),
        ("assert f(1) == True", [1], False),
        ("assert f(1) == 1.0", [1], True),
        ("assert f(1) == (1, 2)", [[1, 2]], False),
        ("assert f(1) == [1, 2]", [[1, 2]], True),
        ("assert not f(1)", [0], True),
        ("assert f(1)", [[]], False),
        ("assert f(1) is None", [None], True),
        ("assert f(1) is True", [1], False),
        ("assert f(1) != 3", [3], False),
        ("assert set(f([3, 1])) == set([1, 3])", [[3, 1]], True),
        ("assert sorted(f(1), reverse=True) == [3, 1]", [[1, 3]], True),
        ("assert abs(f(1) - 0.5) < 1e-3", [0.5001], True),
        ("assert math.isclose(f(1), 0.5, rel_tol=0.001)", [0.5001], True),
        ("assert math.isclose(f(1), 0.5, rel_tol=0.001)", ["0.5"], False),
        ("assert round(f(1), 2) == 0.33", [1 / 3], True),
        ("assert f(1) + g(2) == 3", [1, 2], True),
        ("assert f(1)[0] == 1 and len(f(2)) == 2", [[1], [1, 2]], True),
        ("assert f(1)[0] == 1", [[]], False),
        ("assert 1 < f(1) <= 3", [3], True),
        ("assert f(1) in (1, 2)", [2], True),
        ("assert all(f(1))", [[1, 0]], False),
        ("assert f(1) in (1, 2)", [True], False),
        ("assert f(1) not in [1]", [True], False),
        ("assert f(1) in 'abc'", ["b"], True),
        ("assert f(1) != 1", [True], False),
        ("assert f(1) is (1,)", [(True,)], False),
        ("import math\nassert f(-1, [1] * 3, x={'a': {1}}, y=float('inf')) == 2 ** 10", [1024], True),
        ("assert f(1) * 10 ** 9 == 1", ["x"], False),
        ("assert f(1) ** f(2) == 1", [10**6, 10**9], False),
    ],
)
def test_asserts_as_calls(source, results, right):
    ((calls, check),) = calls_of(source)
    assert len(calls) == len(results)
    assert holds(check, results) is right


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_values_come_back_as_they_were(value):
    back = code_values.decode(json.loads(json.dumps(code_values.encode(value))))
    assert type(back) is type(value) and back == value
    assert code_values.equal(back, value)


@given(plain, plain)
def test_equal_is_no_laxer_than_python(a, b):
    if code_values.equal(a, b):
        assert a == b
    assert not code_values.equal(True, 1) and not code_values.equal([1], (1,)) and not code_values.equal({1}, {True})


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ({True: "a"}, {1: "a"}, False),
        ({1: "a"}, {1.0: "a"}, True),
        ({0: "a", True: "b"}, {0: "a", 1: "b"}, False),
        ({(True,)}, {(1,)}, False),
        ({(1, (False, 2))}, {(1, (0, 2))}, False),
        ({(1, (0, 2))}, {(1, (0.0, 2))}, True),
        ({frozenset({True})}, {frozenset({1})}, False),
        ({(True,): 1}, {(1,): 1}, False),
        ({"a": {True}}, {"a": {1}}, False),
        ([{"a": 1}], [{"a": True}], False),
        ({1, "1"}, {1, 1.5}, False),
        ({None: 1}, {0: 1}, False),
        ({b"a": 1}, {"a": 1}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ],
)
def test_keys_and_elements_are_compared_by_type(ours, theirs, same):
    assert code_values.equal(ours, theirs) is same
    assert code_values.equal(theirs, ours) is same


@pytest.mark.parametrize("junk", [{"set": [{"list": []}]}, {"float": []}, {"x": 1}, {"dict": [1]}, {"bytes": "x"}, {}])
def test_what_no_runner_writes_is_refused(junk):
    with pytest.raises(ValueError):
        code_values.decode(junk)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("1 2\n3\n", "1  2 \n3", True),
        ("1.0\n", "1", True),
        ("100.50 -0", "100.5 0.0", True),
        ("+5 5.", "5 5.", True),
        ("0010", "0010", True),
        ("10", "0010", False),
        ("0010", "10", False),
        ("007.0", "007", False),
        ("1e2", "100", False),
        ("100", "1e2", False),
        ("1_0", "10", False),
        ("\uff11\uff10", "10", False),
        ("\u0661", "1", False),
        ("5.", "5", False),
        (".5", "0.5", False),
        ("0x10", "16", False),
        ("5", "-5", False),
        ("10", "100", False),
        ("10.0", "100", False),
        ("1.05", "1.5", False),
        ("Infinity", "inf", False),
        ("YES", "yes", False),
        ("0.333", "0.33", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("", "1", False),
        ("1\n\n\n", "1", True),
        ("nan", "NaN", False),
        ("9" * 500, "9" * 500, True),
        ("1e99999999", "1", False),
    ],
)
def test_outputs(ours, theirs, same):
    assert same_output(ours, theirs) is same


def test_a_row_is_its_tests_where_it_has_both():
    row = {"reward_model": {"ground_truth": "5"}, "tests": STDIN}
    assert isinstance(read_tests(row), CodeTests)
