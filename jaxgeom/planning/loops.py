"""How often the body of a `while` runs: from the compiler's note, or from its condition, start and step."""

import re
from typing import NamedTuple

from jaxgeom.planning.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)')
_THROUGH = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "optimization-barrier")


class Counter(NamedTuple):
    """An element of a loop's tuple plus a number: `element` None is the number alone."""

    element: int | None
    plus: int


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """How often the body of a loop runs, at most where it may stop early.

    Args:
        module: the program.
        caller: the computation that holds the loop.
        loop: the `while`.

    Returns:
        The count; None where the program does not hold it.
    """
    known = _KNOWN.search(loop.attributes)
    if known is not None:
        return int(known[1])
    condition, body = (module.computations[loop.called(key) or ""] for key in ("condition", "body"))
    for left, right, direction in _comparisons(module, condition, condition.root, {}):
        if direction in ("GT", "GE"):
            left, right, direction = right, left, {"GT": "LT", "GE": "LE"}[direction]
        if direction not in ("LT", "LE") or left.element is None:
            continue
        end, start = _at_start(module, caller, loop, right), _at_start(module, caller, loop, Counter(left.element, 0))
        step = _step(module, body, left.element)
        if end is None or step is None or step < 1:
            continue
        last = end - left.plus + (1 if direction == "LE" else 0)
        return max(-(-(last - (start or 0)) // step), 0)
    return None


def _comparisons(
    module: Module, computation: Computation, name: str, bound: dict[str, Counter | None]
) -> list[tuple[Counter, Counter, str]]:
    """The comparisons that must hold for a loop to go on: that at the root, or those under an `and` there."""
    instruction = computation.instructions.get(name)
    if instruction is None:
        return []
    if instruction.opcode in ("fusion", "call"):
        inner = module.computations[instruction.called("calls") or instruction.called("to_apply") or ""]
        return _comparisons(module, inner, inner.root, _arguments(module, computation, instruction, bound))
    if instruction.opcode in ("and", *_THROUGH):
        return [one for operand in instruction.operands for one in _comparisons(module, computation, operand, bound)]
    if instruction.opcode == "compare":
        left, right = (_value(module, computation, operand, bound) for operand in instruction.operands)
        direction = re.search(r"direction=(\w+)", instruction.attributes)
        if left is not None and right is not None and direction is not None:
            return [(left, right, direction[1])]
    return []


def _arguments(
    module: Module, computation: Computation, call: Instruction, bound: dict[str, Counter | None]
) -> dict[str, Counter | None]:
    """What the parameters of a called computation stand for."""
    return {str(number): _value(module, computation, name, bound) for number, name in enumerate(call.operands)}


def _value(
    module: Module, computation: Computation, name: str, bound: dict[str, Counter | None]
) -> Counter | None:  # fmt: skip
    """A scalar of a loop's condition or body as an element of the loop's tuple plus a number."""
    instruction = computation.instructions.get(name)
    if instruction is None:
        return None
    operands = instruction.operands
    if instruction.opcode == "constant":
        return Counter(None, int(instruction.literal)) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode == "parameter":
        return bound.get(instruction.literal)
    if instruction.opcode in _THROUGH:
        return _value(module, computation, operands[0], bound)
    if instruction.opcode == "get-tuple-element":
        source = computation.instructions[operands[0]]
        index = re.search(r"index=(\d+)", instruction.attributes)
        if index is None:
            return None
        if source.opcode == "parameter":
            return Counter(int(index[1]), 0)
        if source.opcode == "fusion":
            return _of_fusion(module, computation, source, int(index[1]), bound)
        return _value(module, computation, source.operands[int(index[1])], bound) if source.opcode == "tuple" else None
    if instruction.opcode in ("add", "subtract"):
        left, right = (_value(module, computation, operand, bound) for operand in operands)
        if left is None or right is None or right.element is not None and left.element is not None:
            return None
        if instruction.opcode == "subtract":
            return None if right.element is not None else Counter(left.element, left.plus - right.plus)
        return Counter(left.element if right.element is None else right.element, left.plus + right.plus)
    if instruction.opcode in ("fusion", "call"):
        return _of_fusion(module, computation, instruction, None, bound)
    return None


def _of_fusion(
    module: Module, computation: Computation, call: Instruction, index: int | None, bound: dict[str, Counter | None]
) -> Counter | None:
    inner = module.computations.get(call.called("calls") or call.called("to_apply") or "")
    if inner is None:
        return None
    root = inner.instructions[inner.root]
    wanted = inner.root if index is None or root.opcode != "tuple" else root.operands[index]
    return _value(module, inner, wanted, _arguments(module, computation, call, bound))


def _at_start(module: Module, caller: Computation, loop: Instruction, value: Counter) -> int | None:
    """A value of the loop before its first turn."""
    if value.element is None:
        return value.plus
    given = caller.instructions.get(loop.operands[0])
    if given is None or given.opcode != "tuple":
        return None
    found = _value(module, caller, given.operands[value.element], {})
    return None if found is None or found.element is not None else found.plus + value.plus


def _step(module: Module, body: Computation, element: int) -> int | None:
    """By how much a turn moves an element of the loop's tuple."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    moved = _value(module, body, root.operands[element], {})
    return moved.plus if moved is not None and moved.element == element else None
