"""Judging what a program's functions gave back, in a process that can be ended.

Results are whatever a program makes of its lines: numbers of millions of digits, sets whose elements all hash alike. To
decode and to compare them can take any time, and one operation of it cannot be interrupted.
"""

import json
from typing import Any

from . import code_values
from .code_asserts import holds

_LONGEST_LINE = 4 * 2**20


def serve(lines: list[str], check: str | None, allowed: list[str]) -> bool:
    """Whether the results of a case's calls are right; False where they are none.

    Args:
        lines: what the calls answered, one each, as `code_runner` writes them.
        check: an expression over their results; None where the one result is compared with `allowed`.
        allowed: right results, as `code_values.encode` writes them in JSON.
    """
    try:
        results = [_result(line) for line in lines]
        if check is not None:
            return holds(check, results)
        values = (code_values.decode(json.loads(text)) for text in allowed)
        return any(code_values.equal(results[0], value, lists_are_tuples=True) for value in values)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False


def _result(line: str) -> Any:
    if len(line) > _LONGEST_LINE:
        raise ValueError("too long")
    kind, content = json.loads(line)
    if kind != "value":
        raise ValueError("no value")
    return code_values.decode(content)
