"""Math rewards: what is found, what is equal, and that nothing a model writes can break or stall it."""

import os
import random
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxgeom.rewards import close_checkers, extract_answer, math_reward, normalize_answer, verify_batch
from jaxgeom.rewards import math_checker as checker_module


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, no: \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{4", None),
        (r"\boxed{}", None),
        (r"\boxed{1} Answer: 2", "1"),
        ("Answer: 12", "12"),
        ("**Answer:** 12\nbye", "12"),
        ("Answer:\n\n12", "12"),
        ("answer: 1\nAnswer: 2\nmore", "2"),
        ("work\n#### 18", "18"),
        ("#### 18\nAnswer: 19", "19"),
        ("Answer:", None),
        ("the answer is 3", None),
        (r"<think>\boxed{1}</think> Answer: 2", "2"),
        (r"<think>\boxed{1}</think> done", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


RIGHT_FAST = [
    ("5", "5"),
    ("5.", "5"),
    ("5.0", "5"),
    ("+5", "5"),
    ("-5", "-5.00"),
    ("007", "7"),
    ("1,234,567", "1234567"),
    ("$12$", "12"),
    (".5", "0.5"),
    ("1/2", r"\frac{1}{2}"),
    (r"\dfrac{2}{4}", "0.5"),
    (r"-\frac{1}{2}", "-0.5"),
    (r"\left(1,\,x\right)", "(1, x)"),
    ("(B)", "B"),
    (r"\text{Monday}", "Monday"),
    ("5", 5),
    ("5", "so it is\n#### 5"),
    ("0.25", 0.25),
]
WRONG_FAST = [("5", "6"), ("5", "-5"), ("0.3", "0.4"), ("1/3", "1/2"), ("12", "123"), ("1", ""), ("1,23", "123 456")]
RIGHT_ALGEBRA = [
    (r"x^2 + 2x + 1", r"(x+1)^2"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    (r"(-\infty, 2]", r"x \le 2"),
    ("x = 5", "5"),
    (r"50\%", "0.5"),
    (r"30^\circ", "30"),
    (r"\frac{\pi}{2}", r"0.5\pi"),
]
WRONG_ALGEBRA = [(r"x^2 + 1", r"(x+1)^2"), ("1, 2, 3", "3"), ("the answer is 5 or 6", "6"), (r"\sqrt{8}", "3")]


@pytest.mark.parametrize(
    ("answer", "truth", "reward"), [(*p, 1.0) for p in RIGHT_FAST] + [(*p, 0.0) for p in WRONG_FAST]
)
def test_plain_answers_are_judged_without_a_process(answer, truth, reward, monkeypatch):
    if (answer, truth) != ("1,23", "123 456"):
        monkeypatch.setattr(checker_module._pool, "check", lambda *_: pytest.fail("a process was asked"))
    assert math_reward(rf"thus \boxed{{{answer}}}", truth) == reward


@pytest.mark.parametrize(
    ("answer", "truth", "reward"), [(*p, 1.0) for p in RIGHT_ALGEBRA] + [(*p, 0.0) for p in WRONG_ALGEBRA]
)
def test_algebra_is_judged_by_math_verify(answer, truth, reward):
    assert math_reward(rf"thus \boxed{{{answer}}}", truth) == reward


def test_no_answer_is_worth_nothing():
    for text in ("", " ", "5", r"\boxed{}", "Answer:", "####"):
        assert math_reward(text, "5") == 0.0
    assert math_reward(r"\boxed{5}", "") == 0.0


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30), st.text(max_size=10))
@example("{" * 500, "x")
@example("\\" * 99, "1/0")
@example("9" * 5000, "1")
@example("\ud800\x00\n", "5")
@example(r"\frac{1}{0}", "1")
@example("1/0", "0.5")
@example("١", "1")
def test_garbage_never_raises(answer, truth):
    for text in (rf"\boxed{{{answer}}}", f"Answer: {answer}", answer):
        assert math_reward(text, truth, timeout=2.0) in (0.0, 1.0)


@given(st.text(max_size=200))
def test_normalizing_is_idempotent_where_it_matters(text):
    extract_answer(text)
    once = normalize_answer(text)
    assert len(once) <= len(text) + 4
    assert not any(c.isspace() for c in once)


def test_works_in_threads_and_in_batches():
    pairs = (RIGHT_ALGEBRA + WRONG_ALGEBRA + RIGHT_FAST + WRONG_FAST) * 2
    random.Random(0).shuffle(pairs)
    texts, truths = [rf"\boxed{{{a}}}" for a, _ in pairs], [t for _, t in pairs]
    right = RIGHT_ALGEBRA + RIGHT_FAST
    found = []
    thread = threading.Thread(target=lambda: found.append(verify_batch(texts, truths)))
    thread.start()
    thread.join()
    assert found == [[float(p in right) for p in pairs]]
    assert verify_batch([], []) == []
    with pytest.raises(ValueError, match="2 texts but 1"):
        verify_batch(["a", "b"], ["a"])


def test_a_killed_process_costs_one_answer_and_is_replaced():
    assert math_reward(r"\boxed{\sqrt{18}}", r"3\sqrt{2}") == 1.0
    victim = checker_module._pool.idle[-1].process
    victim.kill()
    victim.wait()
    assert math_reward(r"\boxed{\sqrt{32}}", r"4\sqrt{2}") == 0.0
    assert math_reward(r"\boxed{\sqrt{50}}", r"5\sqrt{2}") == 1.0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [(r"(x+y+z+w)^{300}+1", r"(x+y+z+w)^{299}(w+z+y+x)"), (r"9^{9^{9^{9}}}+x", r"x+9^{9^{9^{8}}}")],
)
def test_an_answer_that_hangs_is_wrong_in_bounded_processor_time(answer, truth):
    def processor_seconds():
        times = os.times()
        return times.children_user + times.children_system

    checker = checker_module._Checker()
    before = processor_seconds()
    assert not checker.check(answer, truth, 0.5)
    checker.close()  # reaps the process, and with it its processor time: its start, and the answer
    # Hard limit for the answer: 1.25 · 0.5 + 1 s. The start (sympy, the grammar) takes a second or two.
    assert processor_seconds() - before < 8.0


def test_closing_ends_the_processes_and_new_ones_start():
    assert math_reward(r"\boxed{2\sqrt{3}}", r"\sqrt{12}") == 1.0
    processes = [checker.process for checker in checker_module._pool.idle]
    close_checkers()
    assert processes and all(process.poll() is not None for process in processes)
    assert math_reward(r"\boxed{3\sqrt{3}}", r"\sqrt{27}") == 1.0
