"""Reading numbers out of a report, a trajectory or a study without caring which of them are missing."""

import math
import re
import statistics as stats
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

from .formatting import METHOD_LABELS, format_count, population_noun, population_words, statistic


class Cell(NamedTuple):
    """One statistic over one population: value, null, excess of it over the null, and over how many it was taken.

    Attributes:
        value: mean over the population.
        null: mean of the null over the same population.
        excess: value less null.
        low, high: ends of the 95 % interval over seeds, where there are three or more; of two the lower and the higher.
        count: matrices (or parameter tensors) of the population.
        of: how many there are.
        z: mean z over those of the population that have one.
        z_count: how many those are.
        seeds: how many seeds `low` and `high` come from.
    """

    value: float | None
    null: float | None = None
    excess: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    of: int | None = None
    z: float | None = None
    seeds: int | None = None
    z_count: int | None = None


def number(value: Any) -> float | None:
    """`value` as a finite float, or None where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of more digits than a float has
        return None


def numbers(values: Any) -> list[float | None]:
    """Each entry as a finite float or None; no list gives no entries."""
    return [number(v) for v in values] if isinstance(values, list) else []


def cell(summary: Any, key: str, kind: str = "") -> Cell:
    """A statistic of a summary or group, written as `{key: {"mean", "null", "excess", "count"}}` or flat.

    Args:
        summary: statistics by key, nested, or flat with `<key>_null`, `<key>_excess`, `<key>_count`, `<key>_ci`.
        key: the statistic.
        kind: which of its further nulls, "" for the first; the value is then the mean over that null's population.
    """
    if not isinstance(summary, dict):
        return Cell(None)
    entry, ahead = summary.get(key), f"{kind}_" if kind else ""
    nested = entry if isinstance(entry, dict) else {}
    if nested:
        value = number(nested.get(f"{ahead}mean", nested.get("mean", nested.get("value"))))
    else:
        value = number(summary.get(f"{key}_{kind}_mean", entry) if kind else entry)

    def beside(name: str) -> Any:
        if f"{ahead}{name}" in nested:
            return nested[f"{ahead}{name}"]
        held = summary.get(f"{key}_{ahead}{name}")
        return held.get("mean") if isinstance(held, dict) else held

    null, excess = number(beside("null")), number(beside("excess"))
    if kind and null is None:
        return Cell(None)
    if excess is None and value is not None and null is not None:
        excess = value - null
    low, high = (numbers(beside("ci")) + [None, None])[:2] if not kind else (None, None)
    seeds = [one for one in numbers(beside("seeds")) if one is not None] if not kind else []
    if len(seeds) == 2:
        low, high = min(seeds), max(seeds)
    count, of = beside("count"), nested.get("of", summary.get(f"{key}_of"))
    z, several = number(beside("z")), None if low is None else len(seeds) or None
    return Cell(value, null, excess, low, high, _whole(count), _whole(of), z, several, _whole(beside("z_count")))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def interval(
    values: Sequence[float], *, confidence: float = 0.95, bounds: tuple[float | None, float | None] = (None, None)
) -> tuple[float, float] | None:
    """The interval of the mean by Student's t within what is possible, or None for fewer than two values.

    Args:
        values: one a seed.
        confidence: coverage of the interval.
        bounds: the least and the largest value that there can be; the interval ends there.
    """
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * stats.stdev(values) / math.sqrt(len(values))
    mean = stats.fmean(values)
    low, high = mean - half, mean + half
    return (
        low if bounds[0] is None else max(low, min(bounds[0], mean)),
        high if bounds[1] is None else min(high, max(bounds[1], mean)),
    )


def spread(
    values: Sequence[float], bounds: tuple[float | None, float | None] = (None, None)
) -> tuple[float, float] | None:
    """How far seeds lie apart: of two the lower and the higher, of more the interval of their mean; None for one.

    The interval of two seeds is 6.4 times their difference to either side, whatever was measured: it says nothing.
    """
    return (min(values), max(values)) if len(values) == 2 else interval(values, bounds=bounds)


def spread_words(seeds: int | None, low: str, high: str) -> str:
    """`[1.2, 1.4]` for an interval, `[seeds 1.2 and 1.4]` for what two seeds have."""
    return f"[seeds {low} and {high}]" if seeds == 2 else f"[{low}, {high}]"


def method_cell(method: dict[str, Any], key: str) -> Cell:
    """The statistic of a method by itself: over seeds the mean and how far they lie apart, else the one value."""
    own = cell(method.get("summary"), key)
    seeds = [cell(seed.get("summary"), key) for seed in seeds_of(method)]
    values = [c.value for c in seeds if c.value is not None]
    if own.low is not None or len(values) < 2:
        return own
    nulls = [c.null for c in seeds if c.value is not None and c.null is not None]
    mean, null = stats.fmean(values), stats.fmean(nulls) if len(nulls) == len(values) else None
    low, high = spread(values, statistic(key).bounds) or (None, None)
    excess = None if null is None else mean - null
    return Cell(mean, null, excess, low, high, own.count, own.of, own.z, len(values))


def population_range(key: str, cells: Sequence[Cell]) -> str:
    """`n = 3 to 7 of 7 matrices`: over how many the numbers of a panel are; empty where it is not known."""
    known = [(own.count, own.of) for own in cells if own.value is not None and own.count is not None]
    counts, totals = [count for count, _ in known], {of for _, of in known}
    if not counts:
        return ""
    of = totals.pop() if len(totals) == 1 else None
    if min(counts) == max(counts):
        return population_words(counts[0], of, noun=population_noun(key))
    words = population_words(max(counts), of, noun=population_noun(key))
    return words.replace("n = ", f"n = {format_count(min(counts))} to ", 1)


def compared_cell(report: dict[str, Any], name: str, key: str, *, at: str = "end") -> Cell:
    """The statistic of a method over the matrices that are defined in every method, for showing them side by side.

    Args:
        report: the content of a study's `report.json`.
        name: the method.
        key: the statistic.
        at: which comparison: `end`, `step`, `relative_norm` or `early`.

    Returns:
        The cell; that of the method by itself where the report holds no such comparison of ends.
    """
    block = (report.get("matched") or {}).get(at)
    rows = matched_rows(block)
    if name in rows:
        noun = "parameters" if statistic(key).counted else "matrices"
        return cell(rows[name], key)._replace(of=_whole(((block or {}).get("of") or {}).get(noun)))
    method = methods_of(report).get(name)
    return method_cell(method, key) if method is not None and at == "end" and not rows else Cell(None)


def compared_seeds(report: dict[str, Any], name: str, key: str) -> dict[Any, float]:
    """A method's statistic by seed, over the matrices that are defined in every method; without undefined ones."""
    seeds = seeds_of(methods_of(report).get(name) or {})
    row = matched_rows((report.get("matched") or {}).get("end")).get(name)
    if row is None:
        values = [cell(seed.get("summary"), key).value for seed in seeds]
    else:
        values = numbers(row.get(f"{key}_seeds")) or [number(row.get(key))]
    names = [seed.get("seed", place) for place, seed in enumerate(seeds)] or [None]
    return {name: value for name, value in zip(names, values, strict=False) if value is not None}


def matched_rows(block: Any) -> dict[str, dict[str, Any]]:
    """The rows of a matched comparison by method."""
    rows = block.get("rows") if isinstance(block, dict) else None
    return {str(row.get("method")): row for row in rows or [] if isinstance(row, dict)}


def seeds_of(method: dict[str, Any], *, learned: bool = True) -> list[dict[str, Any]]:
    """The entries of `per_seed` whose run learned something, or those whose run did not; none where there are none."""
    seeds = method.get("per_seed")
    found = [s for s in seeds if isinstance(s, dict)] if isinstance(seeds, list) else []
    return [seed for seed in found if ("learned_nothing" not in seed) is learned]


def methods_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods of a study, its arms, in the order in which the file has them."""
    return {name: method for name, method in (report.get("methods") or {}).items() if isinstance(method, dict)}


def from_words(method: dict[str, Any]) -> str:
    """Where a method began: `the anchor`, `OPD at step 16`; "" where the report does not say."""
    origin = str(method.get("origin") or "")
    return f"the {origin}" if origin in ("base", "anchor") else origin


def confined_words(method: dict[str, Any]) -> str:
    """What a method is confined to, `by coordinates, delta basis, K = 16`; "" of one that is not."""
    confined = method.get("confined")
    if not isinstance(confined, dict):
        return ""
    if "mask" in confined:
        return f"by a mask ({confined['mask']})"
    return f"by {confined.get('by')}, {confined.get('basis')} basis, K = {confined.get('rank')}"


def label_of(name: str, method: dict[str, Any] | None = None) -> str:
    """What a method is called on the page."""
    label = str((method or {}).get("label") or METHOD_LABELS.get(name, name))
    return label.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair would stop the font


def compared_tracks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods, with curves over the matrices that are defined in all of them, the same ones at every step.

    A method keeps curves of its own where the report holds no such comparison.
    """
    block = (report.get("matched") or {}).get("along")
    curves = block if isinstance(block, dict) else {}
    found = {}
    for name, method in methods_of(report).items():
        own = curves.get(name)
        found[name] = method | own if isinstance(own, dict) else method
    return found


def by_layer(groups: Any, key: str) -> tuple[list[int], list[Cell]]:
    """The statistic along the layers, in the order of the layers, undefined ones left in."""
    layers = (groups or {}).get("layer") or {}
    order = sorted((int(name), entry) for name, entry in layers.items() if re.fullmatch(r"-?[0-9]{1,9}", str(name)))
    return [index for index, _ in order], [cell(entry, key) for _, entry in order]


def track(trajectory: Any, key: str, field: str = "mean") -> list[float | None]:
    """One field of a statistic along a trajectory's steps; a single number is repeated, nothing is all None."""
    if not isinstance(trajectory, dict):
        return []
    steps = trajectory.get("steps") or []
    entry = (trajectory.get("summary") or {}).get(key)
    values = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(values, list):
        found = numbers(values)
        return (found + [None] * len(steps))[: len(steps)]
    return [number(values)] * len(steps)


def track_cells(trajectory: Any, key: str) -> list[Cell]:
    """A statistic at every step of a trajectory, each over that step's population."""
    fields = [track(trajectory, key, field) for field in ("mean", "null", "excess", "count", "z")]
    of = _whole((((trajectory or {}).get("summary") or {}).get(key) or {}).get("of"))
    cells = []
    for value, null, excess, count, z in zip(*fields, strict=True):
        if excess is None and value is not None and null is not None:
            excess = value - null
        cells.append(Cell(value, null, excess, count=None if count is None else int(count), of=of, z=z))
    return cells


def steady_cells(trajectory: Any, key: str) -> list[Cell]:
    """A statistic at the steps whose population is that of its last step, so that a path is of the same matrices.

    Steps without a value are left out, and, where the last one has a null, those without.
    """
    cells = track_cells(trajectory, key)
    if not isinstance(trajectory, dict):
        return []
    flags = ((trajectory.get("summary") or {}).get(key) or {}).get("as_last")
    known = [(place, own) for place, own in enumerate(cells) if own.value is not None]
    if not known:
        return []
    last = known[-1][1]
    if isinstance(flags, list) and len(flags) == len(cells):
        known = [(place, own) for place, own in known if flags[place]]
    return [own for _, own in known if own.count == last.count and (own.null is None) == (last.null is None)]
