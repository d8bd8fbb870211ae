"""Math answers: judging what a response states against what is right."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from .math_checker import CHECKERS, DEFAULT_TIMEOUT, check_by_algebra
from .math_extraction import extract_answer
from .math_judgement import AlgebraNeededError, is_right
from .math_text import clean
from .truths import GroundTruth, allowed_answers

AnswerOrSeveral = str | int | float | Sequence[str | int | float]


def normalize_answer(answer: str) -> str:
    r"""The answer in the one spelling in which answers are compared as text.

    Without dollar signs, sizes and spacing commands, `\text{}`; dashes, digits, degrees and roots in one spelling. A
    space stays between two numbers or letters: `1 1/2` is one and a half, `11/2` is not.

    Args:
        answer: as written.

    Returns:
        What is compared as text.

    >>> normalize_answer(r" $\left( 1,\, 2 \right)$. ")
    '(1, 2)'
    >>> normalize_answer("1 1/2")
    '1 1/2'
    """
    return clean(answer).replace('"', "")


_check = lru_cache(maxsize=8192)(check_by_algebra)


def math_reward(response_text: str, ground_truth: AnswerOrSeveral, *, timeout: float = DEFAULT_TIMEOUT) -> float:
    r"""1.0 where the response's final answer equals the ground truth, else 0.0.

    The answer is found by `extract_answer`. Numbers, words, choices and what is written alike are judged here, exactly;
    what needs algebra in a process of its own, so that this works in any thread, and an expression that hangs or
    swallows memory costs one answer and no more. Equality is proved: no two different numbers are equal, however close.

    Args:
        response_text: the whole response, any text.
        ground_truth: the right answer, or several of which one is enough (a list, or a list as text); a worked
            solution is reduced to its own final answer.
        timeout: seconds of processor time for one answer, all its right answers together; beyond them it counts as
            wrong. Not of wall time: the reward must not depend on how busy the machine is.

    Returns:
        1.0 or 0.0. No response raises: no answer and an unreadable one give 0.0.

    Raises:
        ValueError: a ground truth that is none (null, empty, a dict).
        RuntimeError: the checking process cannot be started at all (math-verify is not installed).

    Reference: https://github.com/huggingface/Math-Verify (its grammar reads the expressions)

    >>> math_reward("The sum is \\boxed{1,234}", "1234")
    1.0
    >>> math_reward("The sum is \\boxed{5}", ["5", "6"])
    1.0
    >>> math_reward("no idea", "1234")
    0.0
    """
    return verify_batch([response_text], [ground_truth], timeout=timeout)[0]


def same_truth(one: GroundTruth, other: GroundTruth, *, timeout: float = DEFAULT_TIMEOUT) -> bool:
    """Whether every right answer of one is right by the other, and the other way round.

    Args:
        one: an answer or several, as `read_truth` returns them.
        other: likewise.
        timeout: seconds of processor time for one answer.

    Raises:
        RuntimeError: the checking process cannot be started at all.

    >>> same_truth("0.5", r"so it is \\boxed{\\frac{1}{2}}"), same_truth("5", ("5", "6"))
    (True, False)
    """
    ours, theirs = allowed_answers(one), allowed_answers(other)
    pairs = [(answer, theirs) for answer in ours] + [(answer, ours) for answer in theirs]
    return all(_is_right(answer, allowed, timeout) for answer, allowed in pairs)


def _is_right(answer: str, allowed: tuple[str, ...], timeout: float) -> bool:
    try:
        return is_right(answer, allowed)
    except AlgebraNeededError:
        return _check(answer, allowed, timeout)


def verify_batch(
    texts: Sequence[str], truths: Sequence[AnswerOrSeveral], *, timeout: float = DEFAULT_TIMEOUT
) -> list[float]:
    """`math_reward` of many responses; those that need algebra are shared out among its processes.

    Args:
        texts: responses.
        truths: their ground truths, as many.
        timeout: seconds of processor time for one answer.

    Returns:
        1.0 or 0.0 for each, in order.

    Raises:
        ValueError: texts and truths differ in number, or a truth is none.
        RuntimeError: the checking process cannot be started at all.
    """
    if len(texts) != len(truths):
        raise ValueError(f"verify_batch: {len(texts)} texts but {len(truths)} truths")
    known: dict[str, tuple[str, ...]] = {}  # the answers to one prompt have one truth, which is read once
    pairs = []
    for text, truth in zip(texts, truths, strict=True):
        key = repr(truth)
        if key not in known:
            known[key] = allowed_answers(truth)
        pairs.append((extract_answer(text), known[key]))
    verdicts: dict[tuple[str | None, tuple[str, ...]], bool] = {}
    unsettled: list[tuple[str, tuple[str, ...]]] = []
    for answer, allowed in dict.fromkeys(pairs):
        try:
            verdicts[answer, allowed] = answer is not None and is_right(answer, allowed)
        except AlgebraNeededError:
            assert answer is not None
            unsettled.append((answer, allowed))
    if unsettled:
        with ThreadPoolExecutor(min(CHECKERS, len(unsettled))) as pool:
            verdicts |= zip(unsettled, pool.map(lambda pair: _check(*pair, timeout), unsettled), strict=True)
    return [float(verdicts[pair]) for pair in pairs]
