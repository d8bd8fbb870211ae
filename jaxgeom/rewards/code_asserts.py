"""Asserts as calls: `assert f(1) == 2` is a call of f, whose result is compared here and not where the program runs.

An assert's own expression is worked out over plain values by a small evaluator: no name, attribute or statement of the
test is ever executed by Python.
"""

import ast
import cmath
import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import code_values

_LARGEST = 10_000_000
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (abs, all, any, bool, chr, complex, dict, divmod, float, frozenset, int, len, list, max)},
    **{f.__name__: f for f in (min, ord, repr, round, set, sorted, str, sum, tuple)},
    "enumerate": lambda *a: list(enumerate(*a)),
    "isclose": math.isclose,
    "range": lambda *a: list(_short(range(*a))),
    "reversed": lambda *a: list(reversed(*a)),
    "zip": lambda *a: list(zip(*a, strict=False)),
}
_MODULES = {"math": math, "cmath": cmath}
_MATHS = frozenset("isclose sqrt pi e inf nan floor ceil isnan isinf gcd factorial log exp sin cos tan".split())
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.BitAnd: operator.and_},
    **{ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift},
}
_UNARY: dict[type, Callable[[Any], Any]] = {
    **{ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Invert: operator.invert}
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    **{ast.Eq: code_values.equal, ast.NotEq: lambda a, b: not code_values.equal(a, b) and a != b},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.In: code_values.among, ast.NotIn: lambda a, b: not code_values.among(a, b) and a not in b},
    **{ast.Is: lambda a, b: type(a) is type(b) and code_values.equal(a, b)},
    ast.IsNot: lambda a, b: not (type(a) is type(b) and a == b),
}


@dataclass(frozen=True)
class Call:
    """A call of one of the program's functions.

    Attributes:
        function: Its name.
        arguments: JSON of the positional arguments and of those by name, as `code_values.encode` writes values.
    """

    function: str
    arguments: str


def calls_of(source: str) -> list[tuple[tuple[Call, ...], str]]:
    """The asserts of a test.

    Args:
        source: Python; assert statements alone, and imports, which are passed over.

    Returns:
        For each assert its calls, and the expression over their results `result[0]`, `result[1]`, ….

    Raises:
        ValueError: what stands there that cannot be turned into calls.
    """
    try:
        statements = ast.parse(source.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a test is no Python: {source.strip()[:60]!r}") from error
    found = []
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        if not isinstance(statement, ast.Assert):
            raise ValueError(f"a test is no assert: {ast.unparse(statement)[:60]!r}")
        finder = _Calls()
        expression = ast.unparse(finder.visit(statement.test))
        if not finder.calls:
            raise ValueError(f"a test calls no function: {ast.unparse(statement)[:60]!r}")
        found.append((tuple(finder.calls), expression))
    return found


def holds(expression: str, results: list[Any]) -> bool:
    """Whether an assert's expression is true of its calls' results; False where it cannot be worked out."""
    try:
        return bool(_value(ast.parse(expression, mode="eval").body, results))
    except Exception:  # results are what a program wrote: any operation on them may raise anything
        return False


class _Calls(ast.NodeTransformer):
    """Puts `result[i]` for each call of a function that is not a builtin one."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Attribute):
            if _module_member(node.func) is None:
                raise ValueError(f"a test calls a method: {ast.unparse(node)[:60]!r}")
            return self.generic_visit(node)
        if not isinstance(node.func, ast.Name):
            raise ValueError(f"a test calls what is no name: {ast.unparse(node)[:60]!r}")
        if node.func.id in _FUNCTIONS:
            return self.generic_visit(node)
        try:
            arguments = [code_values.encode(_value(argument, [])) for argument in node.args]
            keywords = {k.arg: code_values.encode(_value(k.value, [])) for k in node.keywords if k.arg}
        except Exception as error:
            raise ValueError(f"an argument of a test is no plain value: {ast.unparse(node)[:60]!r}") from error
        if len(keywords) != len(node.keywords):
            raise ValueError(f"an argument of a test is no plain value: {ast.unparse(node)[:60]!r}")
        self.calls.append(Call(node.func.id, json_of([arguments, keywords])))
        return ast.parse(f"result[{len(self.calls) - 1}]", mode="eval").body


def json_of(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"))


def _value(node: ast.AST, results: list[Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(item, results) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(k, results): _value(v, results) for k, v in pairs if k is not None}
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, results))
    if isinstance(node, ast.BinOp):
        return _combined(node.op, _value(node.left, results), _value(node.right, results))
    if isinstance(node, ast.BoolOp):
        value: Any = None
        for part in node.values:
            value = _value(part, results)
            if bool(value) is isinstance(node.op, ast.Or):
                return value
        return value
    if isinstance(node, ast.Compare):
        left = _value(node.left, results)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = _value(comparator, results)
            if not _COMPARISONS[type(op)](left, right):
                return False
            left = right
        return True
    if isinstance(node, ast.Subscript):
        if isinstance(node.value, ast.Name) and node.value.id == "result":
            return results[_value(node.slice, results)]
        return _value(node.value, results)[_value(node.slice, results)]
    if isinstance(node, ast.Slice):
        return slice(*(None if part is None else _value(part, results) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.Attribute) and (member := _module_member(node)) is not None:
        return member
    if isinstance(node, ast.Call):
        function = _FUNCTIONS.get(node.func.id) if isinstance(node.func, ast.Name) else _value(node.func, results)
        if callable(function):
            arguments = [_value(argument, results) for argument in node.args]
            return _short(function(*arguments, **{k.arg or "": _value(k.value, results) for k in node.keywords}))
    raise ValueError(f"not worked out here: {ast.unparse(node)[:60]!r}")


def _combined(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, ast.Mult):
        for a, b in ((left, right), (right, left)):
            if isinstance(a, str | list | tuple | bytes) and isinstance(b, int) and len(a) * b > _LARGEST:
                raise ValueError("too long")
    if isinstance(op, ast.Pow | ast.LShift) and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if isinstance(op, ast.Pow) else right
        if bits > _LARGEST:
            raise ValueError("too large")
    if isinstance(op, ast.Mod) and isinstance(left, str | bytes):
        raise ValueError("formatting is not worked out here")
    return _OPERATORS[type(op)](left, right)


def _module_member(node: ast.Attribute) -> Any:
    if isinstance(node.value, ast.Name) and node.value.id in _MODULES and node.attr in _MATHS:
        return getattr(_MODULES[node.value.id], node.attr, None)
    return None


def _short(value: Any) -> Any:
    if hasattr(value, "__len__") and len(value) > _LARGEST:
        raise ValueError("too long")
    return value
