"""Code answers: a program from a response, run on the inputs of its tests and judged by what comes out."""

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxgeom.cores import usable_cores
from jaxgeom.errors import UserError

from .code_sandbox import Limits, converse, isolation_problem
from .code_tests import CodeTests, FunctionCase
from .workers import Pool

_FENCE = re.compile(r"```(?:python3?|py)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)
_ALL_TESTS = 6
# Digits of ASCII, no zeros before others: what stands in an output as `0010` is a text.
_NUMBER = re.compile(r"([+-]?)(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_VALUE = b'["value", '
# Seconds to judge a result that came at the end of its test's time.
_LEAST_TO_JUDGE = 0.5
_judges = Pool("code_judgement", usable_cores(), 2**30)
WHAT_IS_OPEN = (
    "without it they can read and change whatever this user can, use the network, stop this run, leave files and "
    "processes"
)


def extract_code(text: str) -> str | None:
    """The content of the last complete fenced block of a response, or None.

    Looked for after the last `</think>`, and nowhere in a response whose last `<think>` is not closed.

    Args:
        text: the response.

    Returns:
        The code, or None where there is no such block or it is empty.
    """
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks and blocks[-1].strip() else None


def require_isolation(*, allow_unisolated: bool) -> bool:
    """Whether programs run under bubblewrap here.

    Args:
        allow_unisolated: run them without it where that is not to be had.

    Raises:
        UserError: it is not to be had, and nobody allowed to do without.
    """
    problem = isolation_problem()
    if problem is not None and not allow_unisolated:
        raise UserError(
            f"programs that a model writes are run under bubblewrap, but {problem}; --allow-unisolated-code runs them "
            f"nevertheless: {WHAT_IS_OPEN}"
        )
    return problem is None


def code_reward(
    response_text: str,
    tests: CodeTests | Any,
    *,
    allow_unisolated: bool = False,
    timeout: float = 10.0,
    memory_bytes: int = 1024 * 2**20,
) -> float:
    """1.0 where the response's program passes all tests, else 0.0.

    The program (last fenced block) is run as a script on each input, or its functions are called; what comes out is
    compared here. What is right never enters the process that runs it: nothing that it does to its own interpreter
    gains anything.

    It runs under bubblewrap: users, processes, network and mounts of its own, the system read-only, nothing of the
    user's files, no environment, a directory of 64 MiB and 4,096 files, no system calls to mount, trace or open
    namespaces; limits on time, on memory of each process and of all together, on processes, open files and output. All
    of it is gone afterwards.

    Args:
        response_text: the whole response.
        tests: `CodeTests`, or what `CodeTests.of` reads: asserts as text among it.
        allow_unisolated: where bubblewrap is not to be had, run the program with limits alone: it can then read and
            change whatever this user can, use the network, stop this process and leave files and processes.
        timeout: seconds of wall time for a run, a call; all tests of a response together have six times as many.
        memory_bytes: of each process' address space, and of the memory of all of a program's processes.

    Returns:
        1.0 or 0.0; no program, a syntax error, an exception, an exit status other than 0, a limit: 0.0.

    Raises:
        UserError: bubblewrap is not to be had and `allow_unisolated` is not set; tests that are none.
    """
    try:
        tests = tests if isinstance(tests, CodeTests) else CodeTests.of(tests)
    except ValueError as error:
        raise UserError(f"tests: {error}") from error
    isolated = require_isolation(allow_unisolated=allow_unisolated)
    program = extract_code(response_text)
    if program is None or "\0" in program:
        return 0.0
    deadline = time.monotonic() + _ALL_TESTS * timeout

    def limits() -> Limits:
        return Limits(max(0.0, min(timeout, deadline - time.monotonic())), memory_bytes)

    passed = all(_right_output(program, case, limits(), isolated) for case in tests.scripts)
    return float(passed and (not tests.functions or _right_results(program, tests.functions, limits(), isolated)))


def code_rewards(texts: Sequence[str], tests: Sequence[CodeTests], **options: Any) -> list[float]:
    """`code_reward` of many responses, as many at a time as there are cores; a repeated one is run once."""
    pairs = list(zip(texts, tests, strict=True))
    different = list(dict.fromkeys(pairs))
    if not different:
        return []
    with ThreadPoolExecutor(min(usable_cores(), len(different))) as pool:
        rewards = dict(zip(different, pool.map(lambda pair: code_reward(*pair, **options), different), strict=True))
    return [rewards[pair] for pair in pairs]


def _right_output(program: str, case: tuple[str, str], limits: Limits, isolated: bool) -> bool:
    given, right = case
    output, status = converse({"program": program, "input": given}, limits, isolated=isolated)
    return status == 0 and same_output(output.decode("utf-8", "replace"), right)


def same_output(ours: str, theirs: str) -> bool:
    """Whether two outputs have the same words line by line; a number may have more zeros at its end (`1.0` for `1`).

    A number is digits, with a point or without. `0010`, `1e2`, `1_0` are words: right only where they are written so.
    Blank lines at the end and spaces are no matter. No tolerance: 0.33 is not 0.333.
    """
    a, b = (text.rstrip().split("\n") for text in (ours, theirs))
    return len(a) == len(b) and all(x == y or _same_words(x.split(), y.split()) for x, y in zip(a, b, strict=True))


def _same_words(ours: list[str], theirs: list[str]) -> bool:
    return len(ours) == len(theirs) and all(x == y or _same_number(x, y) for x, y in zip(ours, theirs, strict=True))


def _same_number(ours: str, theirs: str) -> bool:
    a, b = _NUMBER.fullmatch(ours), _NUMBER.fullmatch(theirs)
    return a is not None and b is not None and _digits(a) == _digits(b)


def _digits(number: re.Match[str]) -> tuple[bool, str, str]:
    """Sign, digits before the point and after it, in one spelling."""
    sign, before, after = number.groups()
    after = (after or "").rstrip("0")
    return sign == "-" and (before, after) != ("0", ""), before, after


def _right_results(program: str, cases: tuple[FunctionCase, ...], limits: Limits, isolated: bool) -> bool:
    calls = [[call.function, *json.loads(call.arguments)] for case in cases for call in case.calls]
    waiting, lines = list(reversed(cases)), []
    deadline = time.monotonic() + _ALL_TESTS * limits.seconds
    with _judges.lent() as judge:

        def goes_on(line: bytes, left: float) -> bool:
            """Has a case judged as soon as the results of its calls are there, in the time that its test has left."""
            left = min(left, deadline - time.monotonic())
            if left < 0 or not line.startswith(_VALUE):
                return False
            lines.append(line.decode("utf-8", "replace"))
            case = waiting[-1]
            if len(lines) == len(case.calls):
                if not judge.ask([lines, case.check, case.allowed], max(left, _LEAST_TO_JUDGE)):
                    return False
                waiting.pop()
                lines.clear()
            return bool(waiting)

        converse({"program": program, "calls": calls}, limits, isolated=isolated, goes_on=goes_on)
    return not waiting
