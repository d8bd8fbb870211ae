"""Rows of several data sets in one form, and ground truths."""

import functools
import json

import pytest

from jaxgeom.data.conversations import read_demonstration, read_prompt, unread_columns
from jaxgeom.data.templates import RowError
from jaxgeom.rewards import read_truth

ASKED, ANSWERED = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
BOTH = [ASKED, ANSWERED]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TRUTH = {"reward_model": {"ground_truth": "2"}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": BOTH},
        {"messages": BOTH, "text": None, "source": "x", "prompt": "1+1?"},
        {"messages": [ASKED | {"name": None}, ANSWERED | {"tool_calls": None}]},
        {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in BOTH]},
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
        {"conversations": BOTH},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": "1+1?", "completion": "2"},
        {"messages": json.dumps(BOTH)},
    ],
)
def test_forms_of_one_demonstration(row):
    assert read_demonstration(row).messages == BOTH


def test_columns_that_are_not_read_are_told():
    assert unread_columns({"text": "a", "url": "b", "id": 0, "none": None}) == ["url", "id"]
    assert unread_columns({"prompt": "1+1?", "completion": "2", "tools": [], "score": 1}) == ["score"]
    assert unread_columns({"conversations": BOTH, "system": "s"}) == []


def test_what_goes_with_the_messages():
    schema = {"type": "function", "function": {"name": "add"}}
    called = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "2"}]
    found = read_demonstration({"messages": [*called, ANSWERED], "tools": '[{"function": {"name": "add"}}]'})
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found.tools == [{"function": {"name": "add"}}]
    assert read_demonstration({"messages": BOTH, "tools": [schema]}).tools == [schema]
    assert read_demonstration({"messages": BOTH, "tools": []}).tools is None
    told = read_demonstration(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}
    )
    assert told.messages[0] == {"role": "system", "content": "s"}
    assert read_demonstration({"text": "plain"}).text == "plain"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "no column"),
        ({"instruction": "a", "output": "b"}, "it has 'instruction', 'output'"),
        ({"prompt": [ASKED]}, "has no 'messages'"),
        ({"messages": BOTH, "text": "plain"}, "'messages' and 'text': which is meant"),
        ({"completion": "2"}, "no 'prompt'"),
        ({"prompt": [*BOTH, ASKED], "completion": [ASKED]}, "'completion' has no assistant message"),
        ({"prompt": BOTH, "completion": "3"}, "'prompt' ends with an assistant message"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": "text"}, "'messages' must be a list"),
        ({"messages": [3]}, "message 0 is no object"),
        ({"messages": [{"content": "a"}]}, "message 0 has no 'role'"),
        ({"messages": [{"role": "user"}, ANSWERED]}, "message 0: 'content' is null"),
        ({"messages": [ASKED | {"content": 3}, ANSWERED]}, "message 0: 'content' is int"),
        ({"messages": [ASKED]}, "no assistant message"),
        ({"messages": [ASKED, ANSWERED | {"content": " \n"}]}, "message 1 is empty"),
        ({"messages": [ASKED, ANSWERED | {"content": None}]}, "message 1: 'content' is null"),
        ({"messages": [ASKED | {"content": [{"type": "image"}]}, ANSWERED]}, "'image'"),
        ({"messages": [ASKED, ANSWERED | {"content": "\ud800"}]}, "surrogate"),
        ({"messages": [ASKED, ANSWERED | {"tool_calls": [{"id": 3}]}]}, "tool_calls"),
        ({"messages": BOTH, "tools": "add"}, "'tools'"),
        ({"messages": BOTH, "tools": [{"function": "add"}]}, "'tools'"),
        ({"messages": [ASKED, ANSWERED | {"extra": functools.reduce(lambda x, _: [x], range(100), 1)}]}, "too deeply"),
        (
            {"text": "Write f.", "code": "def f(): 1", "test_list": ["assert f()"]},
            "'text' beside 'code' and 'test_list'",
        ),
        ({"question": "1+1?", "text": "a page", "answer": "2"}, "'text' beside 'question' and 'answer'"),
        (
            {"instruction": "Add.", "input": "1 1", "output": "2", "text": "### Add."},
            "'prompt' and 'completion' say so",
        ),
        ({"conversations": [{"from": "moderator", "value": "a"}]}, "'from' is 'moderator'"),
    ],
)
def test_what_is_no_demonstration_says_why(row, words):
    with pytest.raises(RowError, match=words):
        read_demonstration(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED]} | TRUTH,
        {"prompt": "1+1?"} | TRUTH,
        {"prompt": "1+1?", "answer": "2", "solution": None},
        {"problem": "1+1?", "answer": "2", "solution": "One and one are 2."},
        {"question": "1+1?", "ground_truth": 2},
        {"prompt": json.dumps([ASKED]), "ground_truth": 2},
        {"prompt": json.dumps([ASKED], indent=1), "ground_truth": 2},
        {"prompt": f" {[ASKED]} ", "ground_truth": 2},  # as Python prints it
        {"prompt": [ASKED], "question": "1+1?", "reward_model": '{"ground_truth": ["2"]}'},
    ],
)
def test_forms_of_one_prompt(row):
    found = read_prompt(row)
    assert found.messages == [ASKED] and found.ground_truth == "2"


@pytest.mark.parametrize("text", ["[1, 2] and what else?", '["role", 1]', "[{'role'", "[]", "[[{'role': 1}]]"])
def test_text_with_brackets_is_a_question(text):
    assert read_prompt({"prompt": text} | TRUTH).messages == [{"role": "user", "content": text}]


def test_a_question_alone_is_what_stands_before_the_last_answer():
    for truth in ("optional", "unread"):
        found = read_prompt({"messages": [*BOTH, ASKED, ANSWERED]}, truth=truth)
        assert found.messages == [*BOTH, ASKED] and found.ground_truth is None


@pytest.mark.parametrize(
    "answer",
    [{}, {"answer": None}, {"answer": " "}, {"reward_model": {"ground_truth": None}}, {"reward_model": {"style": "x"}}],
)
def test_an_optional_answer_is_read_where_there_is_one(answer):
    assert read_prompt({"prompt": "1+1?"} | answer, truth="optional").ground_truth is None
    assert read_prompt({"prompt": "1+1?"} | TRUTH, truth="optional").ground_truth == "2"
    with pytest.raises(RowError, match="ground_truth|answer"):
        read_prompt({"prompt": "1+1?"} | answer)
    with pytest.raises(RowError, match="must be text"):
        read_prompt({"prompt": "1+1?", "answer": True}, truth="optional")


def test_the_text_of_mbpp_is_a_prompt_beside_its_tests():
    row = {"task_id": 2, "text": "Add two numbers.", "code": "def add", "test_setup_code": ""}
    found = read_prompt(row | {"test_list": ["assert add(1, 2) == 3"]})
    assert found.messages == [{"role": "user", "content": "Add two numbers."}] and found.ground_truth is not None
    with pytest.raises(RowError, match=r"no 'prompt'.* 'problem', 'question', or 'text' with 'test_list'; .*'code'"):
        read_prompt(row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": [ASKED]}, "ground_truth' is missing"),
        ({"messages": BOTH} | TRUTH, "no 'prompt'"),
        ({"prompt": BOTH} | TRUTH, "ends with an assistant"),
        ({"prompt": " "} | TRUTH, "prompt is empty"),
        ({"problem": "a", "question": "b"} | TRUTH, "which is meant"),
        ({"prompt": "a", "answer": "2", "ground_truth": "3"}, "differ"),
        ({"prompt": "a", "reward_model": {"ground_truth": None}, "answer": "2"}, "is null"),
    ],
)
def test_what_is_no_prompt_says_why(row, words):
    with pytest.raises(RowError, match=words):
        read_prompt(row)


HELD = {"reward_model": {"ground_truth": "1/2"}}
TESTED = {"reward_model": {"ground_truth": json.dumps({"inputs": ["1"], "outputs": ["2"]})}}


@pytest.mark.parametrize(
    "row",
    [
        HELD | {"answer": r"\frac{1}{2}"},
        HELD | {"answer": 0.5, "ground_truth": "1/2"},
        HELD | {"answer": "Half of it is left.\n#### 0.5"},
        HELD | {"answer": "", "ground_truth": []},
        HELD | {"solution": "One of the two halves goes.\nSo a half is left."},
        HELD | {"solution": r"so it is \boxed{\dfrac12}"},
        HELD | {"solution": {"steps": 3}},
        {"ground_truth": "1/2", "answer": "0.5"},
        {"reward_model": {"ground_truth": ["1/2"]}, "answer": ["0.5", "1/2"]},
        {"reward_model": {"ground_truth": r"\sqrt{8}"}, "answer": r"2\sqrt{2}"},
    ],
)
def test_two_right_answers_that_are_equal_are_one(row):
    first = row.get("reward_model", row)["ground_truth"]
    assert read_prompt({"prompt": "a"} | row).ground_truth == read_truth(first)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (HELD | {"answer": "3/2"}, "'reward_model.ground_truth' \\('1/2'\\) and 'answer' \\('3/2'\\)"),
        (HELD | {"ground_truth": 2}, "'reward_model.ground_truth' \\('1/2'\\) and 'ground_truth' \\('2'\\)"),
        (HELD | {"answer": "Half of it.\n#### 7"}, "'answer'"),
        (HELD | {"solution": r"so it is \boxed{7}"}, "'solution'"),
        (HELD | {"solution": "x + 1"}, "'solution'"),
        (HELD | {"solution": 7}, "'solution'"),
        (HELD | {"answer": ["1/2", "7"]}, "'answer' .*\\('1/2', '7'\\)"),
        ({"reward_model": '{"ground_truth": "1/2"}', "answer": "7"}, "'answer'"),
        ({"answer": "1/2", "solution": r"\boxed{7}"}, "'answer' .*and 'solution'"),
        (TESTED | {"answer": "7"}, "'answer' \\('7'\\) beside tests"),
        (TESTED | {"tests": [{"input": "1", "output": "3"}]}, "'tests' want different outputs"),
    ],
)
def test_two_right_answers_that_differ_are_refused_with_both(row, names):
    with pytest.raises(RowError, match=names):
        read_prompt({"prompt": "a"} | row)


def test_tests_may_stand_beside_a_program_and_fewer_tests():
    row = TESTED | {"answer": "print(int(input()) + 1)", "tests": [{"input": "1", "output": "2"}], "ground_truth": ""}
    assert read_prompt({"prompt": "a"} | row).ground_truth == read_prompt({"prompt": "a"} | TESTED).ground_truth


def test_a_name_that_stands_twice_in_json_within_a_row_is_refused():
    for row in (
        {"prompt": "a", "reward_model": '{"ground_truth": "1", "ground_truth": "2"}'},
        {"prompt": "a", "reward_model": {"ground_truth": '{"inputs": ["1"], "inputs": ["2"], "outputs": ["2"]}'}},
        {"prompt": '[{"role": "user", "content": "a", "content": "b"}]'} | TRUTH,
    ):
        with pytest.raises(RowError, match="stands twice in one object, with different values"):
            read_prompt(row)
    assert (
        read_prompt({"prompt": "a", "reward_model": '{"ground_truth": "1", "ground_truth": "1"}'}).ground_truth == "1"
    )


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        ("72", "72"),
        (72, "72"),
        (0.5, "0.5"),
        (1e-7, "0.0000001"),
        (["72"], "72"),
        (["1/2", 0.5, "1/2"], ("1/2", "0.5")),
        ('["72"]', "72"),
        ('["a", "b"]', ("a", "b")),
        ("[1, 2]", "[1, 2]"),
        ("[1, 2)", "[1, 2)"),
    ],
)
def test_truths(value, truth):
    assert read_truth(value, "t") == truth


@pytest.mark.parametrize("value", [None, "", " \n", {}, {"target": 3}, [], [None], [""], ["1", {}], True, float("nan")])
def test_what_no_answer_can_be_compared_with(value):
    with pytest.raises(ValueError, match="t "):
        read_truth(value, "t")


@pytest.mark.parametrize(("field", "value"), [("weight", 0), ("train", False), ("loss", 0.0)])
def test_an_answer_that_is_not_to_be_learned_from_is_refused(field, value):
    with pytest.raises(RowError, match=f"message 1: '{field}'.*not to be learned from"):
        read_demonstration({"messages": [ASKED, ANSWERED | {field: value}, ASKED, ANSWERED]})
    kept = [ASKED | {field: value}, ANSWERED | {field: 1}]
    assert [m["content"] for m in read_demonstration({"messages": kept}).messages] == ["1+1?", "2"]
