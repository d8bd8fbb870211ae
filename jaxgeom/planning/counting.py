"""A whole program counted: every instruction as often as it runs, the body of a loop once a turn."""

import re
from dataclasses import dataclass, field

from jaxgeom.planning.collectives import Collective, collective
from jaxgeom.planning.hlo import Computation, Instruction, Module, Shape, read_module
from jaxgeom.planning.loops import trip_count
from jaxgeom.planning.operations import Shapes, flops, traffic


@dataclass
class Counts:
    """What one device does in one run of a program.

    Attributes:
        flops: of matrix products, 2 a multiplication and addition.
        bytes: read from and written to its main memory.
        collectives: added up by kind and axes.
        notes: what could not be counted.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sent(self) -> float:
        """Bytes that the device sends to others."""
        return sum((one.sent for one in self.collectives), start=0.0)

    def times(self, runs: int) -> "Counts":
        """What it does in so many runs."""
        moved = [one._replace(payload=runs * one.payload, sent=runs * one.sent) for one in self.collectives]
        return Counts(runs * self.flops, runs * self.bytes, moved, self.notes)


def count_program(text: str, mesh: dict[str, int]) -> Counts:
    """Counts an optimized program.

    Args:
        text: `Compiled.as_text()`, of a program for all devices of the mesh or for one.
        mesh: names and sizes of the mesh's axes, in their order; empty for one device.

    Returns:
        What one device does. Loops that may stop early count as if they did not; of branches the dearest counts.
    """
    counter = _Counter(read_module(text), mesh)
    found = counter.visit(counter.module.computations[counter.module.entry], 1, fused=False)
    groups: dict[tuple[str, tuple[str, ...]], Collective] = {}
    for one in (*found.collectives, *counter.by_channel.values()):
        before = groups.get((one.kind, one.axes), Collective(one.kind, one.axes, 0.0, 0.0))
        together = before._replace(payload=before.payload + one.payload, sent=before.sent + one.sent)
        groups[one.kind, one.axes] = together
    found.collectives = sorted(groups.values(), key=lambda one: -one.sent)
    found.notes = sorted(set(found.notes))
    return found


class _Counter:
    def __init__(self, module: Module, mesh: dict[str, int]):
        self.module, self.mesh = module, mesh
        # One that runs beside products is written into each of their fusions: the same channel, and it runs once.
        self.by_channel: dict[tuple[str, int], Collective] = {}

    def visit(self, computation: Computation, times: int, *, fused: bool) -> Counts:
        """Counts a computation that runs so often."""
        total = Counts()

        def shapes(name: str) -> tuple[Shape, ...]:
            return computation.instructions[name].shapes if name in computation.instructions else ()

        def add(other: Counts) -> None:
            total.flops += other.flops
            total.bytes += other.bytes
            total.collectives += other.collectives
            total.notes += other.notes

        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                turns = trip_count(self.module, computation, instruction)
                if turns is None:
                    total.notes.append(f"the turns of a loop ({_where(instruction)}) are unknown: counted once")
                body = self.module.computations[instruction.called("body") or ""]
                add(self.visit(body, times * (1 if turns is None else turns), fused=False))
            elif opcode == "conditional":
                add(self._dearest([self.module.computations[name] for name in instruction.branches()], times))
            elif opcode == "fusion":
                add(self.visit(self.module.computations[instruction.called("calls") or ""], times, fused=True))
            elif opcode in ("call", "async-start"):
                name = instruction.called("to_apply") or instruction.called("calls") or ""
                if name in self.module.computations:
                    add(self.visit(self.module.computations[name], times, fused=fused))
            self._count(instruction, shapes, times, total, scatters=fused and _is_scattered(computation, instruction))
            if not fused and opcode not in ("call", "async-start"):
                total.bytes += times * traffic(self.module, computation, instruction)
        return total

    def _dearest(self, branches: list[Computation], times: int) -> Counts:
        """Counts the branch that does most, of which alone the collectives run."""
        before, found = self.by_channel, []
        for branch in branches:
            self.by_channel = {}
            found.append((self.visit(branch, times, fused=False), self.by_channel))
        dearest, by_channel = max(found, key=lambda one: (one[0].flops, one[0].bytes))
        self.by_channel = before
        for key, moved in by_channel.items():
            self._keep(key, moved)
        return dearest

    def _keep(self, key: tuple[str, int], moved: Collective) -> None:
        before = self.by_channel.get(key)
        if before is None or before.sent < moved.sent:
            self.by_channel[key] = moved

    def _count(
        self, instruction: Instruction, shapes: Shapes, times: int, total: Counts, *, scatters: bool
    ) -> None:  # fmt: skip
        products = flops(instruction, shapes)
        if products is None:
            total.notes.append(f"operations of the kernel {instruction.name.split('.')[0]} are not counted")
        total.flops += times * (products or 0)
        operands = tuple(shape for name in instruction.operands for shape in shapes(name))
        moved = collective(instruction, operands, self.mesh)
        if moved is None:
            return
        if scatters:
            moved = moved._replace(kind="reduce-scatter", sent=moved.sent / 2)
        moved = moved._replace(payload=times * moved.payload, sent=times * moved.sent)
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if channel is None:
            total.collectives.append(moved)
            return
        self._keep((moved.kind, int(channel[1])), moved)


def _is_scattered(computation: Computation, instruction: Instruction) -> bool:
    """Whether a fusion sums over devices and keeps a slice: how the compiler of TPUs writes a reduce-scatter."""
    if instruction.opcode != "all-reduce":
        return False
    users = computation.users()
    after = users[instruction.name]
    while len(after) == 1 and after[0].opcode in ("bitcast", "reshape", "copy"):
        after = users[after[0].name]
    return bool(after) and all(user.opcode == "dynamic-slice" for user in after)


def _where(instruction: Instruction) -> str:
    """What the program calls an instruction."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return instruction.name if found is None else found[1].split("/")[-1]
