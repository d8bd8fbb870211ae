"""The optimized program of the compiler, read from its text: computations, their instructions, shapes, call sites."""

import math
import re
from typing import NamedTuple

_BITS = {
    "pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_SPACE = re.compile(r"S\((\d+)\)")


class Shape(NamedTuple):
    """One array.

    Attributes:
        dtype: as the compiler writes it.
        dims: sizes.
        space: memory that it lies in: 0 the device's main memory, others a scratchpad or the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Of the whole array, without padding."""
        bits = 8 if self.dtype.startswith("f8") else 4 if self.dtype.startswith("f4") else _BITS[self.dtype]
        return -(-math.prod(self.dims) * bits // 8)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: as the compiler writes it.
        shapes: the arrays of its result; several where that is a tuple.
        operands: names of instructions of the same computation.
        literal: what stands between the parentheses, for constants and parameters.
        attributes: the rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, key: str) -> str | None:
        """The computation that an attribute (`calls`, `body`, `condition`, `to_apply`) names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return None if found is None else found[1]

    def branches(self) -> list[str]:
        """The computations of a `conditional`."""
        several = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if several is not None:
            return [name.strip().lstrip("%") for name in several[1].split(",")]
        return [name for key in ("true_computation", "false_computation") if (name := self.called(key))]


class Computation(NamedTuple):
    """Instructions by name, in their order, and the name of the one whose result is returned."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found

    def parameter(self, number: int) -> Instruction | None:
        """The instruction that stands for an argument."""
        wanted = str(number)
        return next((i for i in self.instructions.values() if i.opcode == "parameter" and i.literal == wanted), None)


class Module(NamedTuple):
    """Computations by name, and the name of the one that is called from outside."""

    computations: dict[str, Computation]
    entry: str


def read_shapes(text: str) -> tuple[Shape, ...]:
    """Every array in the type of an instruction; a tuple's in their order.

    >>> read_shapes("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[])")
    (Shape(dtype='bf16', dims=(2, 3), space=1), Shape(dtype='f32', dims=(), space=0))
    """
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype not in _BITS and not dtype.startswith(("f8", "f4")):
            continue
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, 0 if space is None else int(space[1])))
    return tuple(found)


def read_module(text: str) -> Module:
    """The program that `Compiled.as_text()` shows.

    Args:
        text: of an optimized HLO module.

    Returns:
        Its computations.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head is not None:
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif line == "}" and name:
            computations[name] = _computation(name, lines)
            name = ""
        elif name and _NAME.match(line):
            lines.append(line)
        elif name and lines:  # metadata with a line break in it
            lines[-1] += line
    return Module(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        found = _NAME.match(line)
        assert found is not None
        instruction = _instruction(found[2], line[found.end() :])
        instructions[instruction.name] = instruction
        root = instruction.name if found[1] else root
    return Computation(name, instructions, root)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=name,
        opcode=rest[:opening],
        shapes=read_shapes(kind),
        operands=tuple(_OPERAND.findall(inside)),
        literal=inside.strip(),
        attributes=rest[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis: {text[:80]}")
