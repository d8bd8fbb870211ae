"""What makes a run fit: the largest batch, recomputation, smaller parts, more devices; compiled only where needed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxgeom.planning.programs import Planned, Refused


class Largest(NamedTuple):
    """The largest batch that fits.

    Attributes:
        batch: sequences a step; 0 where none fits.
        is_compiled: whether a program was compiled at it, and the others fit there by what was compiled of them; else
            it is estimated, most often too small.
        too_large: the smallest batch that was compiled and does not fit; None where all that were do.
    """

    batch: int
    is_compiled: bool
    too_large: int | None = None


def largest_batch(
    planned: Sequence[Planned],
    batch: int,
    unit: int,
    memory: int,
    compile_at: Callable[[str, int], Planned],
    tries: int,
) -> Largest:
    """The largest batch whose programs all fit.

    What a program needs beyond its arguments is taken to grow with the batch, first from zero on (which errs to small
    batches as a rule), then along the line through the batches that were compiled.

    Args:
        planned: the programs at `batch`.
        batch: sequences a step.
        unit: batches are multiples of it.
        memory: bytes of a device.
        compile_at: compiles a program, by its name, at another batch.
        tries: compilations at most.
    """
    known = {one.name: [(batch, one.needed)] for one in planned}
    fixed = {one.name: one.held + _unchanging(one) for one in planned}
    good = batch if all(one.needed <= memory for one in planned) else 0
    bad = None if good else batch
    for _ in range(tries):
        limits = _limits(known, fixed, unit, memory)
        name, guess = _least(limits)
        if bad is not None:
            guess = min(max(guess, unit), bad - unit)
        elif len(known[name]) == 1:
            # A second point, from which on the line is known; not beyond what the lines of others allow.
            guess = max(guess, min([2 * good, *(limits[other] for other, held in known.items() if len(held) > 1)]))
        if guess <= good or guess < unit:
            break
        try:
            found = compile_at(name, guess)
        except Refused:  # as one that does not fit, of which nothing is known
            bad = guess
            continue
        known[name].append((guess, found.needed))
        if found.needed > memory:
            bad = guess
        good = _compiled(known, _limits(known, fixed, unit, memory), memory, bad)
    _, guess = _least(_limits(known, fixed, unit, memory))
    guess = guess if bad is None else min(guess, bad - unit)
    if guess > good:
        return Largest(guess, False, bad) if good == 0 or tries == 0 else Largest(good, True, bad)
    return Largest(good, good > 0, bad)


def _unchanging(one: Planned) -> int:
    """Bytes that no batch changes: the arguments of a step are parameters, those of decoding hold the cache too."""
    return 0 if one.name == "rollout.decode" else one.arguments


def _limits(known: dict[str, list[tuple[int, int]]], fixed: dict[str, int], unit: int, memory: int) -> dict[str, int]:
    """The largest batch at which each program should fit."""
    limits = {}
    for name, points in known.items():
        (one, need), (other, more) = (0, fixed[name]), points[-1]
        if len(points) > 1:
            one, need = points[-2]
        slope = (more - need) / (other - one) if other != one else 0.0
        limit = other + (memory - more) / slope if slope > 0 else 1 << 20
        limits[name] = max(int(limit // unit * unit), 0)
    return limits


def _least(limits: dict[str, int]) -> tuple[str, int]:
    """The program that binds first, and its limit."""
    name = min(limits, key=lambda key: limits[key])
    return name, limits[name]


def _compiled(
    known: dict[str, list[tuple[int, int]]], limits: dict[str, int], memory: int, bad: int | None
) -> int:  # fmt: skip
    """The largest batch below `bad` at which a program was compiled, and at which all fit by what is known of them."""
    fitting = {name: [batch for batch, needed in points if needed <= memory] for name, points in known.items()}
    reach = min(max([limits[name], *batches]) for name, batches in fitting.items())
    least = reach if bad is None else min(reach, bad - 1)
    return max((batch for batches in fitting.values() for batch in batches if batch <= least), default=0)
