"""A plan as numbers for a file and as tables for a console."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jaxgeom.planning.collectives import Collective
from jaxgeom.planning.planning import Plan
from jaxgeom.planning.programs import Planned
from jaxgeom.training.settings import to_json as settings_to_json

_UNITS = ("", "K", "M", "G", "T", "P", "E")
_BINDS = {"flops": "FLOPs", "memory": "HBM", "interconnect": "links"}


def to_json(plan: Plan, command: str) -> dict[str, Any]:
    """All numbers of a plan; bytes, operations and seconds are those of one device.

    Args:
        plan: to be written.
        command: as it was typed.
    """
    chip = plan.topology.chip
    return {
        "schema": 1,
        "command": command,
        "settings": settings_to_json(plan.settings),
        "device_kind": plan.topology.kind,
        "devices": len(plan.topology.devices),
        "mesh": plan.mesh,
        "batch_size": plan.batch_size,
        "fits": plan.fits,
        "hbm_bytes": plan.topology.memory,
        "resident_bytes": plan.resident,
        "largest_batch": None if plan.largest is None else plan.largest.batch,
        "largest_batch_is_compiled": None if plan.largest is None else plan.largest.is_compiled,
        "too_large_batch": None if plan.largest is None else plan.largest.too_large,
        "advice": plan.advice,
        "rates": None if chip is None else chip._asdict(),
        "programs": {name: _group(plan, parts) for name, parts in _groups(plan).items()},
    }


def _groups(plan: Plan) -> dict[str, list[Planned]]:
    """Programs by the first part of their name."""
    groups: dict[str, list[Planned]] = {}
    for one in plan.programs:
        groups.setdefault(one.name.split(".")[0], []).append(one)
    return groups


def _group(plan: Plan, parts: list[Planned]) -> dict[str, Any]:
    """A program, or several that run one after the other: memory of the largest, sums of the rest."""
    largest = max(parts, key=lambda one: one.needed)
    counted = [one.counts for one in parts if one.counts is not None]
    whole = len(counted) == len(parts)
    merged: dict[tuple[str, tuple[str, ...]], Collective] = {}
    for one in (one for counts in counted for one in counts.collectives):
        before = merged.get((one.kind, one.axes), Collective(one.kind, one.axes, 0.0, 0.0))
        merged[one.kind, one.axes] = before._replace(payload=before.payload + one.payload, sent=before.sent + one.sent)
    own = _memory(plan, largest) | {
        "flops": sum(counts.flops for counts in counted) if whole else None,
        "expected_flops": sum(plan.expected[one.name] for one in parts),
        "bytes": sum(counts.bytes for counts in counted) if whole else None,
        "collectives": [_collective(one) for one in merged.values()] if whole else None,
    }
    if len(parts) == 1 and "." not in parts[0].name:
        return own | _seconds(parts[0])
    return own | {"parts": {one.name: _part(plan, one) for one in parts}}


def _part(plan: Plan, one: Planned) -> dict[str, Any]:
    counts = one.counts
    return _memory(plan, one) | {
        "flops": None if counts is None else counts.flops,
        "expected_flops": plan.expected[one.name],
        "bytes": None if counts is None else counts.bytes,
        "collectives": None if counts is None else [_collective(moved) for moved in counts.collectives],
    } | _seconds(one)  # fmt: skip


def _memory(plan: Plan, one: Planned) -> dict[str, Any]:
    memory = plan.topology.memory
    return {
        "fits": None if memory is None else one.needed <= memory,
        "argument_bytes": one.arguments,
        "temp_bytes": one.temporary,
        "output_bytes": one.outputs,
        "held_bytes": one.held,
        "needed_bytes": one.needed,
    }


def _seconds(one: Planned) -> dict[str, Any]:
    times = one.seconds
    return {
        "seconds": None if times is None else times._asdict() | {"binds": times.binds},
        "compile_seconds": one.compile_seconds,
    }


def _collective(one: Collective) -> dict[str, Any]:
    return {"kind": one.kind, "axes": list(one.axes), "bytes": one.payload, "sent_bytes": one.sent}


def print_programs(plan: Plan, console: Console) -> None:
    """The tables of a plan, which is known before what follows from it.

    Args:
        plan: to be shown.
        console: where.
    """
    topology, settings = plan.topology, plan.settings
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    console.print(
        f"{settings.objective} of {settings.model}, batch {plan.batch_size}, on {topology.name}: "
        f"{len(topology.devices)} × {topology.kind} ({mesh})",
        highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    console.print(_memory_table(plan))
    if any(one.counts for one in plan.programs):
        console.print(_work_table(plan))
    if any(one.seconds for one in plan.programs):
        console.print(_time_table(plan))
    if any(one.counts and one.counts.collectives for one in plan.programs):
        console.print(_collective_table(plan))


def print_judgement(plan: Plan, console: Console) -> None:
    """What is odd, what would make it fit, and whether it does.

    Args:
        plan: to be judged.
        console: where.
    """
    for line in plan.advice:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_verdict(plan), highlight=False, soft_wrap=True)


def _verdict(plan: Plan) -> str:
    if plan.topology.memory is None or plan.largest is None:
        return "the memory of these devices is unknown: whether it fits is for you to judge"
    largest = plan.largest
    if largest.batch and largest.is_compiled:
        too_large = "none larger was compiled" if largest.too_large is None else f"{largest.too_large} does not fit"
        how = f", compiled; {too_large}"
    else:
        how = ", estimated" if largest.batch else ""
    return f"{'fits' if plan.fits else 'does not fit'}; largest batch that fits: {largest.batch}{how}"


def _bytes(count: float | int | None) -> str:
    """Of 2¹⁰, 2²⁰, … bytes, with the letter of the unit."""
    return _scaled(count, 1024)


def _operations(count: float | int) -> str:
    """Of 10³, 10⁶, … operations."""
    return _scaled(count, 1000)


def _scaled(count: float | int | None, base: int) -> str:
    if count is None:
        return "–"
    place = 0
    while count >= 999.5 and place < len(_UNITS) - 1:
        count, place = count / base, place + 1
    return f"{count:.0f}" if place == 0 else f"{count:.3g}{_UNITS[place]}"


def _memory_table(plan: Plan) -> Table:
    memory = plan.topology.memory
    of = "" if memory is None else f" of {memory / 2**30:.2f} GiB"
    table = _table(f"Memory of a device{of}, in bytes; held: what stays there and is not read")
    _add_numbers(table, "arguments", "temporary", "results", "held", "needed", "fits")
    for one in plan.programs:
        fits = "?" if memory is None else "yes" if one.needed <= memory else "NO"
        sizes = (one.arguments, one.temporary, one.outputs, one.held, one.needed)
        table.add_row(one.name, *map(_bytes, sizes), fits)
    return table


def _work_table(plan: Plan) -> Table:
    table = _table("Work of a device; rule: 6·N operations a token of a step, 2·N forward")
    _add_numbers(table, "FLOPs", "of rule", "HBM", "sent")
    for one in plan.programs:
        if one.counts is None:
            table.add_row(one.name, *["–"] * 4)
            continue
        counts, expected = one.counts, plan.expected[one.name]
        ratio = f"{counts.flops / expected:.2f}" if expected else "–"
        table.add_row(one.name, _operations(counts.flops), ratio, _bytes(counts.bytes), _bytes(counts.sent))
    return table


def _time_table(plan: Plan) -> Table:
    table = _table("Seconds at least, by each published rate alone")
    _add_numbers(table, "FLOPs", "HBM", "links", "binds")
    for one in plan.programs:
        times = one.seconds
        seconds = ["–"] * 4 if times is None else [*(f"{value:.3g}" for value in times), _BINDS[times.binds]]
        table.add_row(one.name, *seconds)
    return table


def _collective_table(plan: Plan) -> Table:
    table = _table("Collectives of a device by kind and axes of the mesh, in bytes, as often as they run")
    for label in ("kind", "axes"):
        table.add_column(label, overflow="fold")
    _add_numbers(table, "arrays", "sent")
    for one in plan.programs:
        moved = [] if one.counts is None else [c for c in one.counts.collectives if c.sent >= one.counts.sent / 1000]
        for place, each in enumerate(moved):
            name = one.name if place == 0 else ""
            table.add_row(name, each.kind, ", ".join(each.axes), _bytes(each.payload), _bytes(each.sent))
    return table


def _table(title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("program", overflow="fold")
    return table


def _add_numbers(table: Table, *labels: str) -> None:
    """Columns of which a narrow console breaks the numbers, and cuts none."""
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
