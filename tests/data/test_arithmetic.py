"""The synthetic task: seeded, verifiable, disjoint."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgeom.data import arithmetic
from jaxgeom.data.arithmetic import ArithmeticTask
from jaxgeom.errors import UserError
from jaxgeom.rewards import verify_batch


@given(st.integers(2, 5), st.integers(2, 4), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_demonstrations_are_verified_and_every_line_is_true(terms, digits, seed):
    for row in arithmetic.demonstrations(ArithmeticTask(terms, digits), 5, seed=seed):
        question, answer = (message["content"] for message in row["messages"])
        truth = sum(map(int, question.split("+")))
        assert verify_batch([answer], [str(truth)]) == [1.0]
        assert verify_batch([answer], [str(truth + 1)]) == [0.0]
        for line in answer.splitlines()[:-1]:
            left, right = line.split("=")
            assert sum(map(int, left.split("+"))) == int(right)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_no_problem_is_in_both_splits_whatever_the_seeds(one, other):
    task = ArithmeticTask(terms=2, digits=2)
    train = set(itertools.islice(arithmetic.problems(task, split="train", seed=one), 2_000))
    heldout = set(itertools.islice(arithmetic.problems(task, split="heldout", seed=other), 500))
    assert not train & heldout


def test_the_stream_depends_on_the_seed_alone():
    task = ArithmeticTask()
    first, again, other = (
        list(itertools.islice(arithmetic.problems(task, split="train", seed=seed), 50)) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_held_out_prompts_have_no_problem_twice():
    rows = arithmetic.prompts(ArithmeticTask(terms=2, digits=2), 200, split="heldout", seed=0)
    assert len({row["prompt"][0]["content"] for row in rows}) == 200


def test_pretraining_text_adds_and_repeats_but_never_shows_the_task():
    for text in arithmetic.pretraining_text(ArithmeticTask(), 200, seed=0):
        lines = text.splitlines()
        assert len(set(lines)) == 1 or all(line.count("+") == 1 for line in lines)
        for line in lines:
            if "=" in line:
                left, right = line.split("=")
                assert sum(map(int, left.split("+"))) == int(right)


@pytest.mark.parametrize(("terms", "digits"), [(1, 2), (2, 0), (2, 7), (2, 1)])
def test_impossible_difficulties_are_refused(terms, digits):
    with pytest.raises(UserError):
        ArithmeticTask(terms=terms, digits=digits)


def test_more_held_out_problems_than_there_are_is_refused():
    with pytest.raises(UserError, match="held-out"):
        arithmetic.prompts(ArithmeticTask(terms=2, digits=2), 5_000, split="heldout", seed=0)
