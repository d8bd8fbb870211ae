"""What makes a run fit: the largest batch, recomputation, smaller parts, more devices; compiled only where needed."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxgeom.planning.programs import Planned, Refused

# The search ends where what fits and what does not are so much of what fits apart: an eighth.
_NEAR = 8


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
    batches as a rule), then along the line through the batches that were compiled, those on both sides of the memory
    where there are such. It ends where a batch that does not fit is an eighth larger than one that does, or less.

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
    creeps = False
    for _ in range(tries):
        limits = _limits(known, fixed, unit, memory)
        name, guess = _least(limits)
        step = max(unit, good // _NEAR // unit * unit)
        if bad is not None:
            if bad - good <= step:
                break
            guess = max(guess, unit) if good == 0 else guess
            if creeps or not good < guess < bad:
                guess = _between(good, bad, unit)
        elif len(known[name]) == 1:
            # A second point, from which on the line is known; not beyond what the lines of others allow.
            guess = max(guess, min([2 * good, *(limits[other] for other, held in known.items() if len(held) > 1)]))
        else:
            guess = max(guess, good + step)  # what should not fit any more, where all that were compiled do
        if any(guess == other for other, _ in known[name]):
            # Of one that is known only not to fit somewhere it is not known that it does below.
            name = next((one for one in known if one != name and not _fitting(known[one], memory)), None)
            if name is None:
                break
        before = _width(good, bad, unit)
        try:
            found = compile_at(name, guess)
        except Refused:  # as one that does not fit, of which nothing is known
            bad = guess
        else:
            known[name].append((guess, found.needed))
            bad = bad if found.needed <= memory else guess
        good = _compiled(known, _limits(known, fixed, unit, memory), memory, bad)
        creeps = _width(good, bad, unit) > before / 2
    _, guess = _least(_limits(known, fixed, unit, memory))
    guess = guess if bad is None else min(guess, bad - unit)
    if guess > good:
        return Largest(guess, False, bad) if good == 0 or tries == 0 else Largest(good, True, bad)
    return Largest(good, good > 0, bad)


def _width(good: int, bad: int | None, unit: int) -> float:
    """How far what fits and what does not are apart: of their logarithms."""
    return math.inf if bad is None else math.log(bad / max(good, unit))


def _between(good: int, bad: int, unit: int) -> int:
    """A multiple of `unit` between two batches that are more than it apart: the middle of their logarithms."""
    middle = int(math.sqrt(max(good, unit) * bad) // unit * unit)
    return min(max(middle, good + unit), bad - unit)


def _unchanging(one: Planned) -> int:
    """Bytes that no batch changes: the arguments of a step are parameters, those of decoding hold the cache too."""
    return 0 if one.name == "rollout.decode" else one.arguments


def _limits(known: dict[str, list[tuple[int, int]]], fixed: dict[str, int], unit: int, memory: int) -> dict[str, int]:
    """The largest batch at which each program should fit."""
    limits = {}
    for name, points in known.items():
        (one, need), (other, more) = _line(points if len(points) > 1 else [(0, fixed[name]), *points], memory)
        slope = (more - need) / (other - one) if other != one else 0.0
        limit = other + (memory - more) / slope if slope > 0 else 1 << 20
        limits[name] = max(int(limit // unit * unit), 0)
    return limits


def _line(points: list[tuple[int, int]], memory: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two batches and what they need: on both sides of the memory where there are such, else the nearest to it."""
    points = sorted(points)
    above = next((place for place, (_, needed) in enumerate(points) if needed > memory), len(points) - 1)
    return points[max(above, 1) - 1], points[max(above, 1)]


def _least(limits: dict[str, int]) -> tuple[str, int]:
    """The program that binds first, and its limit."""
    name = min(limits, key=lambda key: limits[key])
    return name, limits[name]


def _compiled(
    known: dict[str, list[tuple[int, int]]], limits: dict[str, int], memory: int, bad: int | None
) -> int:  # fmt: skip
    """The largest batch below `bad` at which a program was compiled, and at which all fit by what is known of them."""
    fitting = {name: _fitting(points, memory) for name, points in known.items()}
    # Below a batch that does not fit the line from zero on errs to large batches.
    reach = min(max([limits[name], *batches]) if batches else 0 for name, batches in fitting.items())
    least = reach if bad is None else min(reach, bad - 1)
    return max((batch for batches in fitting.values() for batch in batches if batch <= least), default=0)


def _fitting(points: list[tuple[int, int]], memory: int) -> list[int]:
    return [batch for batch, needed in points if needed <= memory]
