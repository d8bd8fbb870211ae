"""One answer against its right answers: as text, as a choice, as words, then by its structure."""

from collections.abc import Sequence
from itertools import accumulate

from .math_letters import judged as letters_judged
from .math_plain import base_of, choice, number, words
from .math_structure import Answer, Equal, read, same
from .math_text import clean

_LONGEST, _DEEPEST = 2000, 30
_CHOICES = 2  # a choice whose text begins with a letter is one; behind that no letter is a choice's


class AlgebraNeededError(Exception):
    """Two expressions that only algebra can compare."""


def is_right(answer: str, truths: Sequence[str], algebra: Equal | None = None) -> bool:
    """Whether an answer is one of the right ones.

    Args:
        answer: what a response states.
        truths: right answers; one of them is enough.
        algebra: compares two scalar expressions; without it only what is plain is judged.

    Returns:
        True or False.

    Raises:
        AlgebraNeededError: `algebra` is needed and was not given.
    """
    needed = False
    for truth in truths:
        try:
            if _is_right(answer, truth, algebra):
                return True
        except AlgebraNeededError:
            needed = True
        except (RecursionError, ArithmeticError):
            continue
    if needed:
        raise AlgebraNeededError
    return False


def _is_right(answer: str, truth: str, algebra: Equal | None, choices: int = 0) -> bool:
    if answer.strip() == truth.strip():
        return bool(truth.strip())
    if max(len(answer), len(truth)) > _LONGEST or max(_depth(answer), _depth(truth)) > _DEEPEST:
        return False
    ours, theirs = clean(answer), clean(truth)
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    letter, other = (choice(theirs), choice(ours)) if choices < _CHOICES else (None, None)
    if letter is not None and other is not None and letter[0] == other[0]:
        if letter[1] and other[1]:  # `(B) 12` is not `(B) 13`
            return _is_right(other[1], letter[1], algebra, choices + 1)
        # `a` is `A` among choices; of variables, `N` is not `n`.
        return letter[0] <= "H" or ours.strip('"()') == theirs.strip('"()')
    name = words(theirs)
    if name is not None and name == words(ours):
        return True

    def equal(a: str, b: str) -> bool:
        if a == b:
            return not _meaningless(a)
        x, y = number(a), number(b)
        if x is not None and y is not None:
            # 12 in base 8 and in base 9 are written for two things, and so are 7 and 7.
            return x == y and (base_of(a) == base_of(b) or None in (base_of(a), base_of(b)))
        if not a.startswith("\x00") and (verdict := letters_judged(a, b)) is not None:
            return verdict
        if algebra is None:
            raise AlgebraNeededError
        return algebra(a, b)

    return same(_pruned(read(ours)), _pruned(read(theirs)), equal)


def _depth(s: str) -> int:
    return max(accumulate((c in "([{") - (c in ")]}") for c in s), default=0)


def _meaningless(expression: str) -> bool:
    return not expression or expression.endswith(("/0", "{0}")) and number(expression) is None and "frac" in expression


def _pruned(answer: Answer) -> Answer:
    """Without the empty ends of a list (`5,`)."""
    if answer.kind != "list":
        return answer
    parts = tuple(part for part in answer.parts if part.kind != "scalar" or part.text or part.unit)
    return parts[0] if len(parts) == 1 else Answer("list", answer.text, parts)
