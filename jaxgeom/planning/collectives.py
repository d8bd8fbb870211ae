"""What one collective moves: its kind, the axes of the mesh that it spans, its bytes, what a device sends."""

import math
import re
from typing import NamedTuple

import numpy as np

from jaxgeom.planning.hlo import Instruction, Shape

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
    """One collective, or many of a kind and axes together.

    Attributes:
        kind: one of `KINDS`.
        axes: of the mesh, those along which its devices differ.
        payload: bytes of the whole array that a device ends (all-gather, all-reduce) or begins (the others) with.
        sent: bytes that a device sends, by a ring: (n − 1)/n of the payload, of all-reduce twice that.
    """

    kind: str
    axes: tuple[str, ...]
    payload: float
    sent: float


def collective(instruction: Instruction, operands: tuple[Shape, ...], mesh: dict[str, int]) -> Collective | None:
    """What an instruction moves between devices.

    Args:
        instruction: of a device's program.
        operands: the arrays that it takes.
        mesh: names and sizes of its axes, in their order.

    Returns:
        The collective; None of anything else, and where a device is alone in its group.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    size = sum(shape.bytes for shape in operands)
    if kind == "collective-permute":
        pairs = _pairs(instruction.attributes)
        moved = [(source, target) for source, target in pairs if source != target]
        return Collective(kind, _axes(moved, mesh), size, size) if moved else None
    groups = _groups(instruction.attributes, math.prod(mesh.values()))
    count = groups.shape[1]
    if count == 1:
        return None
    payload = size * count if kind == "all-gather" else size
    sent = payload * (count - 1) / count * (2 if kind == "all-reduce" else 1)
    first = groups[0].tolist()
    return Collective(kind, _axes([(first[0], other) for other in first[1:]], mesh), payload, sent)


def _axes(pairs: list[tuple[int, int]], mesh: dict[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of some pair differ."""
    ends = np.array(pairs).T
    places = [np.unravel_index(end, tuple(mesh.values())) for end in ends]
    return tuple(axis for axis, one, other in zip(mesh, *places, strict=True) if np.any(one != other))


def _pairs(attributes: str) -> list[tuple[int, int]]:
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    assert found is not None
    return [(int(source), int(target)) for source, target in re.findall(r"\{(\d+),(\d+)\}", found[1])]


def _groups(attributes: str, devices: int) -> np.ndarray:
    """The devices of each group, `[groups, devices of one]`, from any of the forms that the compiler writes."""
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed is not None:
        rows = [[int(one) for one in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", listed[1])]
        return np.array(rows) if rows else np.arange(devices)[None]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if counted is not None:
        return _counted(counted[2], counted[3]).reshape(_numbers(counted[1]))
    of_mesh = re.search(
        r"replica_groups=@?\w*mesh\w*\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
        attributes,
    )
    if of_mesh is None:
        raise ValueError(f"replica_groups of an unknown form: {attributes[:200]}")
    names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", of_mesh[1]), strict=True)
    shape = [int(size) for size in sizes]
    ids = np.arange(devices) if of_mesh[2] is None else _counted(of_mesh[2], of_mesh[3])
    return _along(ids.reshape(shape), list(names), re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", of_mesh[4]))


def _along(ids: np.ndarray, names: list[str], wanted: list[tuple[str, str, str]]) -> np.ndarray:
    """Groups along axes of a mesh of devices; of an axis, `(pre)size` takes the part behind its first `pre`."""
    shape, inside = [], []
    parts = {name: (int(pre), int(size)) if size else None for name, pre, size in wanted}
    for name, size in zip(names, ids.shape, strict=True):
        if name in parts and (part := parts[name]) is not None:
            pre, taken = part
            shape += [pre, taken, size // (pre * taken)]
            inside += [False, True, False]
        else:
            shape.append(size)
            inside.append(name in parts)
    ids = ids.reshape(shape)
    within = [axis for axis, is_in in enumerate(inside) if is_in]
    around = [axis for axis, is_in in enumerate(inside) if not is_in]
    return ids.transpose(around + within).reshape(-1, math.prod(ids.shape[axis] for axis in within))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _counted(sizes: str, order: str | None) -> np.ndarray:
    """Device numbers counted over `sizes`, its axes then put in another order, flat."""
    ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return (ids if order is None else ids.transpose(_numbers(order))).reshape(-1)
