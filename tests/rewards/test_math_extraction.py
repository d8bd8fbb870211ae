"""Where the answer of a response is found."""

import pytest

from jaxgeom.rewards import allowed_answers, extract_answer, read_truth


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, no: \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7 and", "7"),
        (r"\boxed{1}, \boxed{2} and \boxed{3}", "1, 2, 3"),
        (r"\fbox{7}", "7"),
        (r"\framebox{7}", "7"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{4", None),
        (r"\boxed{}", None),
        (r"\boxed{5} then \boxed{}", None),
        (r"\boxed{1} Answer: 2", "1"),
        ("Answer: 12", "12"),
        ("**Answer:** 12\nbye", "12"),
        ("Answer:\n\n12", "12"),
        ("answer: 1\nAnswer: 2\nmore", "2"),
        ("The final answer is 3.", "3."),
        ("Answer： 3", "3"),
        ("#### 3\nI hope that the answer is clear", "3"),
        ("work\n#### 18", "18"),
        ("#### 18\nAnswer: 19", "19"),
        ("Answer: 5<|im_end|>", "5"),
        ("The answer is 5, because 6 is not", "5"),
        ("The answer is 6 since 5 is not", "6"),
        ("The answer is since 1990", "since 1990"),
        ("Answer:", None),
        ("it is 3", None),
        (r"<think>\boxed{1}</think> Answer: 2", "2"),
        (r"<think>\boxed{1}</think> done", None),
        (r"<think>\boxed{1}", None),
        (r"\boxed{2} <think>", None),
        ("", None),
        (r"\boxed{5}" + " " * 2_000_000, None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("5", ("5",)),
        (5, ("5",)),
        (0.5, ("0.5",)),
        (["1", 2], ("1", "2")),
        ('["1", "2"]', ("1", "2")),
        ("['1', '2']", ("1", "2")),
        ("[1, 2]", ("[1, 2]",)),
        ("['1', 2]", ("['1', 2]",)),
        ("['unclosed", ("['unclosed",)),
        ("worked\n#### 18", ("18",)),
        ([r"so \boxed{3}"], ("3",)),
        (10**400, ("1" + "0" * 400,)),
        (r"\{\}", (r"\{\}",)),
        ("<think>t</think><answer>7</answer>", ("7",)),
        ("<think>8</think> 7", ("7",)),
    ],
)
def test_allowed_answers(truth, answers):
    assert allowed_answers(truth) == answers


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        (None, "null"),
        (float("nan"), "nan"),
        ("", "empty"),
        (" \n", "empty"),
        ([], "empty list"),
        (["1", ""], "empty"),
        ('["1", ""]', "empty"),
        ("[]", "no answer"),
        (" [ ] ", "no answer"),
        (r"\boxed{}", "no answer"),
        (r"so it is $\boxed{ }$", "no answer"),
        ([r"$\text{}$"], "no answer"),
        pytest.param(10**5000, "too many digits", id="digits"),
        pytest.param("7" * 5_000_000, "has 5,000,000 characters: a right answer has at most 100,000", id="long"),
        pytest.param(["7" * 100_001], "an entry of .* has 100,001 characters", id="entry"),
        pytest.param(list(range(20_000)), "list of 20,000 answers", id="many"),
        (["1", None], "null"),
        ("4\ud800", "surrogate"),
        ("<think>7", "a thought that is not closed"),
        ("<think>7</think> ", "no answer"),
        ("<think>7</think><answer> </answer>", "no answer"),
        ([["1"]], "list"),
        ({"target": 1}, "dict"),
        (b"5", "bytes"),
    ],
)
def test_what_is_no_truth(truth, problem):
    with pytest.raises(ValueError, match=problem):
        read_truth(truth)
