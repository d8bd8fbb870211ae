"""What a data set may give as the right answer, and what is wrong with what it gives instead."""

import ast
import json
import math
from typing import Any

from jaxgeom.errors import UserError

from .math_extraction import extract_answer

_LONGEST_LIST = 100_000


def truth_problem(ground_truth: Any) -> str | None:
    """What is wrong with a row's ground truth, to be put behind the row's file and number.

    Args:
        ground_truth: the value of `reward_model.ground_truth`.

    Returns:
        A phrase such as "is null", or None for one or several answers.

    >>> truth_problem(None)
    'is null'
    >>> truth_problem(["5", ""])
    'lists an answer that is empty'
    >>> truth_problem(5)
    """
    if ground_truth is None or (isinstance(ground_truth, float) and math.isnan(ground_truth)):
        return "is null"
    if isinstance(ground_truth, dict):
        return "is an object; an answer (text or a number) or a list of answers is needed"
    if isinstance(ground_truth, str):
        listed = _listed(ground_truth)
        if listed is not None:
            return truth_problem(listed)
        return None if ground_truth.strip() else "is empty"
    if isinstance(ground_truth, list | tuple):
        if not ground_truth:
            return "is an empty list"
        for answer in ground_truth:
            if isinstance(answer, dict | list | tuple):
                return "lists something that is no text and no number"
            problem = truth_problem(answer)
            if problem is not None:
                return f"lists an answer that {problem}"
        return None
    if isinstance(ground_truth, int | float):
        return None
    return f"is of type {type(ground_truth).__name__}; text, a number or a list of these is needed"


def allowed_answers(ground_truth: Any) -> tuple[str, ...]:
    r"""The answers of which one is enough.

    Args:
        ground_truth: text, a number, a list of these, or such a list of texts written as text (`["1", "2"]`); a worked
            solution is reduced to its own final answer.

    Returns:
        At least one answer.

    Raises:
        UserError: see `truth_problem`.

    >>> allowed_answers("['34', '34.0']")
    ('34', '34.0')
    >>> allowed_answers("[1, 2]")
    ('[1, 2]',)
    """
    problem = truth_problem(ground_truth)
    if problem is not None:
        raise UserError(f"ground_truth {problem}")
    listed = _listed(ground_truth) if isinstance(ground_truth, str) else ground_truth
    answers = listed if isinstance(listed, list | tuple) else [ground_truth]
    return tuple(extract_answer(str(answer)) or str(answer) for answer in answers)


def _listed(text: str) -> list[str] | None:
    """A list of texts that stands in a text; None for all else, `[1, 2]` among it, which is an answer itself."""
    text = text.strip()
    if not (text.startswith(("['", '["')) and text.endswith("]")) or len(text) > _LONGEST_LIST:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return None
