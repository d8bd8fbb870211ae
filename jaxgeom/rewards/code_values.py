"""Values of Python as JSON that keeps their types, and when two of them are the same.

A float is `{"float": "0.5"}`, a tuple `{"tuple": […]}`, and so for list, set, frozenset, dict (pairs), complex and
bytes; None, bool, int and str stand for themselves. The process that runs a program sends its results so; here only
plain values are made of them.
"""

from typing import Any

from .code_runner import decode as _decode
from .code_runner import encode as _encode

_DEEPEST = 220


def encode(value: Any) -> Any:
    """The value as JSON.

    Raises:
        TypeError: it is, or holds, something that is no plain value.
    """
    return _encode(value, 0)


def decode(value: Any) -> Any:
    """The value that was encoded.

    Raises:
        ValueError: this is nothing that `encode` writes.
    """
    try:
        return _decode(value)
    except (TypeError, KeyError, RecursionError, OverflowError, AttributeError) as error:
        raise ValueError("no encoded value") from error


def equal(ours: Any, theirs: Any, *, lists_are_tuples: bool = False, depth: int = 0) -> bool:
    """Whether two plain values are the same by type and value.

    True is not 1, a tuple is no list; 1 and 1.0 are the same number.

    Args:
        ours: the program's.
        theirs: the right one.
        lists_are_tuples: True where the right value comes from JSON, which has no tuples.
        depth: how deep in the values this is.

    >>> equal([1, 2.0], [1, 2]), equal(True, 1), equal((1,), [1])
    (True, False, False)
    """
    if depth > _DEEPEST:
        return False
    numbers = (int, float, complex)
    if type(ours) in numbers and type(theirs) in numbers:
        return ours == theirs
    deeper = {"lists_are_tuples": lists_are_tuples, "depth": depth + 1}
    sequences = type(ours) in (list, tuple) and type(theirs) in (list, tuple)
    if sequences and (lists_are_tuples or type(ours) is type(theirs)):
        return len(ours) == len(theirs) and all(equal(a, b, **deeper) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, set | frozenset) and isinstance(theirs, set | frozenset):
        return {_typed(x) for x in ours} == {_typed(x) for x in theirs}
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        a, b = ({_typed(key): value for key, value in d.items()} for d in (ours, theirs))
        return a.keys() == b.keys() and all(equal(a[key], b[key], **deeper) for key in a)
    return ours == theirs


def among(value: Any, several: Any) -> bool:
    """`value in several`, where True is not 1; a text is looked for in a text."""
    if isinstance(several, str | bytes | bytearray):
        return value in several
    return any(equal(value, other) for other in several)


def _typed(key: Any) -> Any:
    """What is hashed in place of a set's element or a dict's key, so that True is not 1 in it, however deep."""
    if type(key) is bool:
        return (bool, key)
    if isinstance(key, tuple):
        return (tuple, tuple(map(_typed, key)))
    return (frozenset, frozenset(map(_typed, key))) if isinstance(key, frozenset) else key
