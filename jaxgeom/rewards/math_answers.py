"""Math answers: finding the answer in a response, and judging it against the ground truth."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache

from .math_checker import CHECKERS, DEFAULT_TIMEOUT, check_with_math_verify

_MARKER = re.compile(r"(?:answer\s*:|####)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DECIMAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?")
_RATIO = re.compile(r"([+-]?)(?:\\[dt]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}|([+-]?\d+)/(\d+))")
_SPACING = re.compile(r"\\(?:(?:left|right|bigl|bigr|displaystyle)(?![a-zA-Z])|[!,;: ])")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_LONGEST_NUMBER = 100
_LONGEST_ANSWER = 1000


def extract_answer(text: str) -> str | None:
    r"""The final answer that a response states.

    Looked for after the last `</think>` where there is one: the content of the last complete `\boxed{…}` (braces may
    nest); without one, what follows the last `Answer:` or `####` on its line (or, where that line ends there, on the
    next line that is not empty).

    Args:
        text: a response.

    Returns:
        the answer, stripped, or None where none is stated or it is empty.

    >>> extract_answer(r"so it is $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> extract_answer("2 + 2 = 4\n#### 4")
    '4'
    """
    text = text.rpartition("</think>")[2]
    boxes = list(_BOX.finditer(text))
    for match in reversed(boxes):
        content = _until_closing_brace(text, match.end())
        if content is not None:
            return content.strip() or None
    if boxes:
        return None
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    lines = (line.strip(" \t\r*_`") for line in text[markers[-1].end() :].splitlines())
    return next((line for line in lines if line), None)


def _until_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : start + brace.start()]
    return None


def normalize_answer(answer: str) -> str:
    r"""The answer without dollar signs, spacing commands, `\text{}`, spaces, a final full stop, outer parentheses of a
    single letter.

    Args:
        answer: as written.

    Returns:
        What is compared as text.

    >>> normalize_answer(r" $\left( 1,\, 2 \right)$. ")
    '(1,2)'
    """
    answer = answer.strip().rstrip(".").strip()
    answer = _SPACING.sub("", answer.replace("$", "").replace(r"\(", "").replace(r"\)", ""))
    answer = _TEXT.sub(r"\1", answer).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    answer = re.sub(r"\s+", "", answer).rstrip(".")
    single = re.fullmatch(r"\(([A-Za-z])\)", answer)
    return single.group(1) if single else answer


def _as_number(normalized: str) -> Fraction | None:
    if len(normalized) > _LONGEST_NUMBER or not normalized.isascii():
        return None
    if any(c.isdigit() for c in normalized) and _DECIMAL.fullmatch(normalized):
        return Fraction(normalized.replace(",", "").removesuffix(".") or "0")
    ratio = _RATIO.fullmatch(normalized)
    if ratio is None:
        return None
    sign, *parts = ratio.groups()
    numerator, denominator = (int(part) for part in parts if part is not None)
    if denominator == 0:
        return None
    return Fraction(numerator, denominator) * (-1 if sign == "-" else 1)


def _judge_fast(answer: str, truth: str) -> bool | None:
    """True or False where it is plain; None where algebra is needed."""
    ours, theirs = normalize_answer(answer), normalize_answer(truth)
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    if len(ours) > _LONGEST_ANSWER + 10 * len(theirs):
        return False
    a, b = _as_number(ours), _as_number(theirs)
    if a is None or b is None:
        return None
    if a == b:
        return True
    # Decimals closer than what math-verify rounds to are left to it.
    plain = a.denominator == b.denominator == 1 or abs(a - b) > Fraction(1, 100_000) * max(1, abs(b))
    return False if plain else None


_check = lru_cache(maxsize=8192)(check_with_math_verify)


def math_reward(response_text: str, ground_truth: str | int | float, *, timeout: float = DEFAULT_TIMEOUT) -> float:
    r"""1.0 where the response's final answer equals the ground truth, else 0.0.

    The answer is found by `extract_answer`. Integers, decimals, fractions and strings that agree after
    `normalize_answer` are judged here, exactly; the rest (algebra, sets, intervals, matrices, percentages) by
    math-verify in a process of its own, so that this works in any thread, and an expression that hangs or swallows
    memory costs one answer and no more.

    Args:
        response_text: the whole response, any text.
        ground_truth: the right answer; a worked solution is reduced to its own final answer.
        timeout: seconds of processor time for one answer in math-verify; beyond them it counts as wrong. Not of wall
            time: the reward must not depend on how busy the machine is.

    Returns:
        1.0 or 0.0. No text raises: no answer, an unreadable one, and an empty ground truth give 0.0.

    Raises:
        RuntimeError: the checking process cannot be started at all (math-verify is not installed).

    Reference: https://github.com/huggingface/Math-Verify

    >>> math_reward("The sum is \\boxed{1,234}", "1234")
    1.0
    >>> math_reward("no idea", "1234")
    0.0
    """
    answer, truth = _final(response_text, ground_truth)
    if answer is None:
        return 0.0
    verdict = _judge_fast(answer, truth)
    return float(_check(answer, truth, timeout) if verdict is None else verdict)


def _final(response_text: str, ground_truth: str | int | float) -> tuple[str | None, str]:
    truth = str(ground_truth)
    return extract_answer(response_text), extract_answer(truth) or truth


def verify_batch(
    texts: Sequence[str], truths: Sequence[str | int | float], *, timeout: float = DEFAULT_TIMEOUT
) -> list[float]:
    """`math_reward` of many responses; those that need math-verify are shared out among its processes.

    Args:
        texts: responses.
        truths: their ground truths, as many.
        timeout: seconds of processor time for one answer in math-verify.

    Returns:
        1.0 or 0.0 for each, in order.

    Raises:
        ValueError: texts and truths differ in number.
        RuntimeError: the checking process cannot be started at all.
    """
    if len(texts) != len(truths):
        raise ValueError(f"verify_batch: {len(texts)} texts but {len(truths)} truths")
    pairs = [_final(text, truth) for text, truth in zip(texts, truths, strict=True)]
    verdicts = [False if answer is None else _judge_fast(answer, truth) for answer, truth in pairs]
    open_pairs = sorted({(a, t) for (a, t), v in zip(pairs, verdicts, strict=True) if v is None and a is not None})
    if open_pairs:
        with ThreadPoolExecutor(min(CHECKERS, len(open_pairs))) as pool:
            judged = dict(zip(open_pairs, pool.map(lambda p: _check(*p, timeout), open_pairs), strict=True))
        verdicts = [
            judged[a, t] if v is None and a is not None else v for (a, t), v in zip(pairs, verdicts, strict=True)
        ]
    return [float(bool(verdict)) for verdict in verdicts]
