"""What one instruction costs: operations of its matrix products, bytes that it moves through a device's memory."""

import math
import re
from collections.abc import Callable

from jaxgeom.planning.hlo import Computation, Instruction, Module, Shape

Shapes = Callable[[str], tuple[Shape, ...]]
"""The shapes of an operand."""

# Products of `[queries, head_dim] x [head_dim, keys]` in one pass of a kernel, each over the causal half.
_KERNELS = {
    "splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4,
    "__cudnn$fmhaSoftmaxBackward": 5, "__cudnn$fmhaSoftmax": 2,
}  # fmt: skip
_NO_TRAFFIC = frozenset(
    """
    parameter constant get-tuple-element tuple bitcast while conditional call after-all partition-id replica-id iota
    opt-barrier optimization-barrier add-dependency
    """.split()
)
_HELPERS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "AsyncCollective")
_PARTS = ("dynamic-slice", "slice", "gather")


def flops(instruction: Instruction, shapes: Shapes) -> int | None:
    """Operations of a matrix product: 2 a multiplication and addition; 0 of anything else.

    Args:
        instruction: of a device's program.
        shapes: of its operands.

    Returns:
        The count; None of a kernel that is not known here.
    """
    if instruction.opcode in ("dot", "ragged-dot"):
        return _dot(instruction, shapes(instruction.operands[0])[0], shapes(instruction.operands[1])[0])
    if instruction.opcode == "convolution":
        return _convolution(instruction, shapes(instruction.operands[0])[0], shapes(instruction.operands[1])[0])
    if instruction.opcode == "custom-call":
        return _custom_call(instruction, shapes)
    return 0


def _sizes(attributes: str, key: str) -> tuple[int, ...]:
    found = re.search(rf"\b{key}=\{{([\d,]*)\}}", attributes)
    return () if found is None else tuple(int(size) for size in found[1].split(",") if size)


def _dot(instruction: Instruction, left: Shape, right: Shape) -> int:
    contracted = _sizes(instruction.attributes, "lhs_contracting_dims")
    product = 2 * math.prod(instruction.shapes[0].dims) * math.prod(left.dims[axis] for axis in contracted)
    del right
    return product


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> int:
    """The products of a window with what lies under it; those with padding are none."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    out = instruction.shapes[0]
    total = 2 * out.dims[of_out.index("b")] * out.dims[of_out.index("f")] * right.dims[of_right.index("i")]
    spatial = sorted(label for label in of_out if label.isdigit())
    for place, label in enumerate(spatial):
        taps = right.dims[of_right.index(label)]
        window = _window(instruction.attributes, place)
        total *= _positions(left.dims[of_left.index(label)], out.dims[of_out.index(label)], taps, window)
    return total


def _window(attributes: str, place: int) -> dict[str, int]:
    """Stride, low padding and dilations of one axis of a convolution's window."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", "" if text is None else text[1]))

    def of(key: str, otherwise: int) -> int:
        return int(fields[key].split("x")[place].split("_")[0]) if key in fields else otherwise

    return {"stride": of("stride", 1), "pad": of("pad", 0), "lhs": of("lhs_dilate", 1), "rhs": of("rhs_dilate", 1)}


def _positions(size: int, outputs: int, taps: int, window: dict[str, int]) -> int:
    """Pairs of an output and a tap of the window under which an entry of the input lies."""
    count, reach = 0, (size - 1) * window["lhs"] + 1
    for tap in range(taps):
        offset = tap * window["rhs"] - window["pad"]
        if window["lhs"] == 1:
            first = max(-(offset // window["stride"]), 0)
            last = min((reach - 1 - offset) // window["stride"], outputs - 1)
            count += max(last - first + 1, 0)
        else:
            places = (out * window["stride"] + offset for out in range(outputs))
            count += sum(0 <= place < reach and place % window["lhs"] == 0 for place in places)
    return count


def _custom_call(instruction: Instruction, shapes: Shapes) -> int | None:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    name = "" if target is None else target[1]
    if "dot_dimension_numbers" in instruction.attributes:
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        axes = [int(axis.strip('" ')) for axis in contracted[1].split(",") if axis.strip('" ')] if contracted else []
        left = shapes(instruction.operands[0])[0]
        return 2 * math.prod(instruction.shapes[0].dims) * math.prod(left.dims[axis] for axis in axes)
    for kernel, products in _KERNELS.items():
        if kernel in instruction.name or kernel in name:
            return products * _causal_product(instruction, shapes, rows_last=kernel.startswith("splash"))
    if instruction.name.startswith(("ragged-dot", "tgmm")):
        return _ragged(instruction, shapes)
    return None if name == "tpu_custom_call" else 0


def _ragged(instruction: Instruction, shapes: Shapes) -> int:
    """A ragged product by the kernel of TPUs: each row of `[rows, k]` with one matrix of `[groups, k, n]`, whichever;
    or, for the gradient of those, each row of `[rows, k]` with its row of `[rows, n]`.
    """
    arrays = [shapes(operand)[0] for operand in instruction.operands if shapes(operand)]
    products = [array for array in arrays if len(array.dims) >= 2 and array.dtype in ("bf16", "f32")]
    if len(products) < 2:  # what only says which rows are whose
        return 0
    rows, other = products[:2]
    return 2 * math.prod(rows.dims) * (other if len(other.dims) == 2 else instruction.shapes[0]).dims[-1]


def _causal_product(instruction: Instruction, shapes: Shapes, *, rows_last: bool) -> int:
    """Half of one product of all queries with all keys: what causality leaves."""
    arrays = [shapes(operand)[0] for operand in instruction.operands if shapes(operand)]
    queries, keys = [array for array in arrays if len(array.dims) >= 3 and array.dtype in ("bf16", "f16", "f32")][:2]
    if rows_last:  # [..., heads, time, head_dim]
        return math.prod(queries.dims) * keys.dims[-2]
    return math.prod(queries.dims) * keys.dims[-3]  # [batch, time, heads, head_dim]


def traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes of a device's main memory that an instruction reads and writes, each operand and result once.

    What is fused stays out; of an operand of which only slices are read, the slices count; what lies in a scratchpad
    (VMEM) or in host memory counts nothing.

    Args:
        module: the program.
        computation: which holds the instruction.
        instruction: none that is inside a fusion.
    """
    opcode, table = instruction.opcode, computation.instructions
    if opcode in _NO_TRAFFIC or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "custom-call" and any(helper in instruction.attributes for helper in _HELPERS):
        return 0
    operands = [_main(table[name].shapes) if name in table else 0 for name in instruction.operands]
    results = _main(instruction.shapes)
    if opcode.endswith("-start"):
        # The result repeats the operands, then holds what is written.
        held = [shape for name in instruction.operands if name in table for shape in table[name].shapes]
        written = instruction.shapes[:1] if opcode == "copy-start" else instruction.shapes[len(held) : 2 * len(held)]
        return sum(operands) + _main(written)
    if opcode in _PARTS:
        return min(operands[0], results) + results
    if opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if opcode == "scatter":
        return 2 * sum(operands[2:]) + operands[1]
    if opcode == "fusion":
        inner = module.computations[instruction.called("calls") or ""]
        return _fusion(module, inner, operands, results)
    return sum(operands) + results


def _main(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.space == 0)


def _fusion(module: Module, inner: Computation, operands: list[int], results: int) -> int:
    users, total = inner.users(), 0
    for number, size in enumerate(operands):
        parameter = inner.parameter(number)
        total += size if parameter is None else min(size, _read(module, inner, users, parameter, size))
    root = inner.instructions[inner.root]
    ends = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for end in ends:
        where, end = _made(module, inner, end)
        if end.opcode == "dynamic-update-slice":  # in place
            update = where.instructions[end.operands[1]]
            results -= max(sum(s.bytes for s in end.shapes) - sum(s.bytes for s in update.shapes), 0)
    return total + max(results, 0)


def _made(module: Module, inner: Computation, end: Instruction) -> tuple[Computation, Instruction]:
    """What makes a result, behind its bitcasts and in the fusions within the fusion, and the computation of that."""
    while True:
        if end.opcode == "bitcast" and end.operands[0] in inner.instructions:
            end = inner.instructions[end.operands[0]]
        elif end.opcode == "fusion":
            inner = module.computations[end.called("calls") or ""]
            end = inner.instructions[inner.root]
        else:
            return inner, end


def _read(
    module: Module, inner: Computation, users: dict[str, list[Instruction]], value: Instruction, size: int
) -> int:  # fmt: skip
    """Bytes of a fusion's parameter that are read."""
    total = 0
    for user in users[value.name]:
        if user.opcode in _PARTS and user.operands[0] == value.name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue
        elif user.opcode == "bitcast":
            total += _read(module, inner, users, user, size)
        elif user.opcode == "fusion":
            within = module.computations[user.called("calls") or ""]
            for number in (place for place, name in enumerate(user.operands) if name == value.name):
                parameter = within.parameter(number)
                total += size if parameter is None else _read(module, within, within.users(), parameter, size)
                if parameter is not None and _made(module, within, within.instructions[within.root])[1] == parameter:
                    total += _read(module, inner, users, user, size)  # handed on as it is
        else:
            return size
    return min(total, size)
