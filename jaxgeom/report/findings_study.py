"""What a study found, and which published orderings appear in it, in sentences written from the numbers.

The orderings are those of *On the Geometry of On-Policy Distillation* (arXiv 2606.07082). Methods are compared over the
matrices that are defined in all of them.
"""

from typing import Any, NamedTuple

from ..diagnostics.statistics import SOURCES
from .findings_compare import early_sentence, over_words, path_word, rank_path
from .findings_confined import confined_sentences
from .formatting import format_count, format_number, format_value, statistic
from .learned import nothing_learned, undefined_numbers, without_seeds
from .reading import (
    Cell,
    compared_cell,
    compared_seeds,
    compared_tracks,
    label_of,
    matched_rows,
    methods_of,
    number,
    population_range,
    seeds_of,
    spread,
    spread_words,
    steady_cells,
)
from .tables import accuracy_cells, early_similarity, early_words
from .used import used_words
from .verdict import Verdict, beside_words, verdict

_THREE = ("sft_anchor", "opd", "rlvr")
_PAPER = SOURCES["2606.07082"]


class _Claim(NamedTuple):
    """The published ordering of SFT, OPD, RLVR on a statistic: +1 for rising from SFT to RLVR, −1 for falling."""

    key: str
    sign: int


_CLAIMS = (
    _Claim("sparsity_bf16", 1),
    _Claim("overlap_low", 1),
    _Claim("overlap_principal", -1),
    _Claim("angle_left_mean_deg", -1),
    _Claim("angle_right_mean_deg", -1),
    _Claim("nss", -1),
)


def study_findings(report: dict[str, Any]) -> list[str]:
    """Sentences on a study of SFT, OPD and RLVR.

    They say what was learned, how large each update was, each statistic with null and excess, which published
    orderings (arXiv 2606.07082) appear at this scale and which do not, whether the nulls alone have the same order, and
    what one seed or several allow to be said.

    Args:
        report: the content of a study's `report.json`.

    Returns:
        The sentences, in the order of the page.
    """
    methods = methods_of(report)
    if not methods:
        return []
    said = [*nothing_learned(report), _scope(report, methods), _learning(methods), _sizes(report)]
    said += [_values(claim.key, report) for claim in _CLAIMS]
    said += [_orderings(report), *(_ordering(claim, report) for claim in _CLAIMS)]
    said += [_control(report), _matched(report)]
    tracks = compared_tracks(report)
    said += [rank_path(track.get("trajectory"), label_of(name, track)) for name, track in tracks.items()]
    said += [_rank_claim(tracks)]
    for name, method in methods.items():
        own = early_similarity(report, name)
        said.append(early_sentence(method.get("trajectory"), label_of(name, method), own))
    said += [_locking(report), undefined_numbers(report)]
    said += confined_sentences(report) or [
        "The published claims on functional sufficiency (training inside the early subspace) and its controls (token "
        "sparsification, teacher rollouts, mixed objectives) are not tested by this study."
    ]
    return [sentence for sentence in said if sentence]


def _scope(report: dict[str, Any], methods: dict[str, Any]) -> str:
    count = max([len(report.get("seeds") or []), *(len(seeds_of(m)) for m in methods.values())])
    if count == 2:
        return (
            "2 seeds: values are means over seeds, with each one's own in brackets. No interval is given: that of two "
            "seeds reaches 6.4 times their difference to either side, so it would say nothing."
        )
    if count > 1:
        return (
            f"{count} seeds: values are means over seeds, with 95 % intervals (Student's t, within what is possible) "
            "in brackets."
        )
    return (
        "One seed was run, so there is no interval: every difference below describes these runs, and another seed may "
        "order the methods otherwise."
    )


def _learning(methods: dict[str, Any]) -> str:
    parts, flat = [], []
    for name, method in methods.items():
        before, after = accuracy_cells(method)
        if after.value is None:
            continue
        start = f"from {format_value('accuracy', before.value)} " if before.value is not None else ""
        parts.append(
            f"{label_of(name, method)} {start}to {format_value('accuracy', after.value)}{_brackets('accuracy', after)}"
        )
        idle = seeds_of(method, learned=False) and not seeds_of(method)  # said by itself
        if before.value is not None and after.value <= before.value + 0.01 and not idle:
            flat.append(label_of(name, method))
    if not parts:
        return ""
    sentence = f"Held-out accuracy went, for {'; '.join(parts)}."
    if flat:
        sentence += (
            f" {listed(flat)} did not gain accuracy here, so what {'they' if len(flat) > 1 else 'it'} did to the"
        )
        sentence += " weights is not the geometry of a run that learned."
    return sentence


def _brackets(key: str, own: Cell) -> str:
    if own.low is None or own.high is None:
        return ""
    return " " + spread_words(own.seeds, format_value(key, own.low), format_value(key, own.high))


def _sizes(report: dict[str, Any]) -> str:
    parts, cells = [], []
    for name, method in methods_of(report).items():
        own, steps = compared_cell(report, name, "relative_norm"), number(method.get("steps"))
        if own.value is not None:
            cells.append(own)
            parts.append(
                f"{label_of(name, method)} {format_value('relative_norm', own.value)}{_brackets('relative_norm', own)}"
                + (f" in {format_count(steps)} steps" if steps is not None else "")
            )
    if not parts:
        return ""
    over = population_range("relative_norm", cells)
    return (
        f"Relative size of the updates, ‖ΔW‖/‖W0‖{f' ({over})' if over else ''}: {', '.join(parts)}. Most static "
        "differences between methods follow from this number, so each statistic is read against its null."
    )


def _values(key: str, report: dict[str, Any]) -> str:
    parts, cells = [], []
    for name, method in methods_of(report).items():
        own = compared_cell(report, name, key)
        if own.value is None:
            continue
        cells.append(own)
        text = f"{label_of(name, method)} {format_value(key, own.value)}{_brackets(key, own)}"
        if own.null is not None and own.excess is not None:
            text += f" ({beside_words(key, own)})"
        parts.append(text)
    label = statistic(key).label
    over = ", ".join(text for text in (used_words(report, key), population_range(key, cells)) if text)
    return f"{label[0].upper()}{label[1:]}{f', {over}' if over else ''}: {'; '.join(parts)}." if parts else ""


def _three(
    report: dict[str, Any], key: str, field: str = "value", *, names: tuple[str, ...] = _THREE, at: str = "end"
) -> list[float] | None:
    cells = [getattr(compared_cell(report, name, key, at=at), field) for name in names]
    return cells if len(cells) == 3 and all(c is not None for c in cells) else None


def _ordered(values: list[float], sign: int) -> bool:
    return sign * values[0] < sign * values[1] < sign * values[2]


def _close(values: list[float]) -> bool:
    """OPD and RLVR within 5 % of each other: an order that the next seed may turn round."""
    return abs(values[1] - values[2]) <= 0.05 * max(abs(values[1]), abs(values[2]))


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""


def _nearer(values: list[float]) -> bool:
    return abs(values[1] - values[2]) < abs(values[1] - values[0])


def _orderings(report: dict[str, Any]) -> str:
    """How many of the published orderings appear at all."""
    methods = methods_of(report)
    tested = [(c, v) for c in _CLAIMS if (v := _three(report, c.key)) is not None]
    if not tested:
        missing = [m for m in _THREE if m not in methods]
        if {"opd", "rlvr"} <= {*missing}:
            return ""  # a study of other arms
        idle = [m for m in _THREE if m in methods and label_of(m, methods[m]) in without_seeds(report)]
        why = [f"{', '.join(missing)} was not run"] if missing else []
        why += [f"{listed([label_of(m, methods[m]) for m in idle])} learned nothing"] if idle else []
        return f"The published ordering of the three methods cannot be tested: {'; '.join(why)}." if why else ""
    there = [statistic(c.key).label for c, v in tested if _ordered(v, c.sign)]
    absent = [statistic(c.key).label for c, v in tested if not _ordered(v, c.sign)]
    sentence = (
        f"{_PAPER.title} (arXiv {_PAPER.key}) finds OPD between SFT and RLVR. Of {len(tested)} statistics tested here, "
        "that order appears in "
    )
    sentence += f"{len(there)} ({', '.join(there)})" if there else "none"
    sentence += f" and does not appear in {len(absent)} ({', '.join(absent)})" if absent else ""
    sentence += ", at this scale and with these settings"
    close = [statistic(c.key).label for c, v in tested if _close(v)]
    if close:
        sentence += f". OPD and RLVR lie within 5 % of each other in {len(close)} of the {len(tested)}, "
        sentence += "where their order says little"
    return sentence + "."


def _ordering(claim: _Claim, report: dict[str, Any]) -> str:
    values, nulls = _three(report, claim.key), _three(report, claim.key, "null")
    excesses = _three(report, claim.key, "excess")
    if values is None:
        return ""
    label, ordered = statistic(claim.key).label, _ordered(values, claim.sign)
    relation = " < " if claim.sign > 0 else " > "
    shown = ", ".join(f"{n} {format_value(claim.key, v)}" for n, v in zip(("SFT", "OPD", "RLVR"), values, strict=True))
    verb = "appears" if ordered else "does not appear"
    sentence = f"{label[0].upper()}{label[1:]}: the published order SFT{relation}OPD{relation}RLVR {verb} ({shown})"
    if ordered:
        sentence += f", with OPD nearer to {'RLVR, as published' if _nearer(values) else 'SFT, unlike the published'}"
    if nulls is not None and excesses is not None:
        gaps = ", ".join(format_value(claim.key, e, signed=True) for e in excesses)
        if _ordered(nulls, claim.sign):
            so = ", so the size of the updates and chance would give it too" if ordered else ""
            sentence += f"; the nulls alone have that order{so}; what is left is the excess ({gaps})"
        else:
            sentence += f"; the nulls alone do not have that order (excess {gaps})"
        sentence += (
            (", which is itself in that order" if _ordered(excesses, claim.sign) else ", which is not in that order")
            if ordered
            else ""
        )
    return sentence + _seed_votes(claim, report) + "."


def _seed_votes(claim: _Claim, report: dict[str, Any]) -> str:
    """In how many of the seeds that all have the order appears, and how OPD − RLVR and OPD − SFT lie over them."""
    runs = [compared_seeds(report, name, claim.key) for name in _THREE]
    shared = [seed for seed in runs[1] if seed in runs[2]]
    if len(runs[0]) == 1:  # one anchor serves every seed
        runs[0] = dict.fromkeys(shared, *runs[0].values())
    complete = [[run[seed] for run in runs] for seed in shared if seed in runs[0]]
    if len(complete) < 2:
        return ""
    votes = sum(_ordered(row, claim.sign) for row in complete)
    parts, bounds = [], (-1.0, 1.0) if statistic(claim.key).unit == "share" else (None, None)
    for name, column in (("SFT", 0), ("RLVR", 2)):
        span = spread([row[1] - row[column] for row in complete], bounds)
        if span is not None:
            low, high = (format_value(claim.key, v, signed=True) for v in span)
            holds = " (holds 0)" if span[0] <= 0 <= span[1] else ""
            parts.append(f"OPD − {name} {spread_words(len(complete), low, high)}{holds}")
    what = "differences" if len(complete) == 2 else "paired 95 % intervals"
    return f". It appears in {votes} of {len(complete)} seeds; {what}: {', '.join(parts)}"


def _control(report: dict[str, Any]) -> str:
    """The same orderings with SFT continued from the anchor in SFT's place."""
    names = ("sft_continued", "opd", "rlvr")
    tested = [(c, v) for c in _CLAIMS if (v := _three(report, c.key, names=names)) is not None]
    if not tested:
        return ""
    there = [statistic(c.key).label for c, v in tested if _ordered(v, c.sign)]
    names = f" ({', '.join(there)})" if there else ""
    sentence = (
        "With SFT continued from the same anchor in place of SFT from the base (a control that was not published), "
    )
    sentence += "the order appears in "
    return sentence + f"{len(there)} of {len(tested)} statistics{names}."


def _matched(report: dict[str, Any]) -> str:
    """Which orderings survive at the same step and at the same relative norm."""
    blocks, methods, parts = report.get("matched") or {}, methods_of(report), []
    for field, words in (("step", "At the same step"), ("relative_norm", "At the same relative norm")):
        block = blocks.get(field)
        start = "sft_anchor" if "sft_anchor" in matched_rows(block) else "sft_continued"
        names = (start, "opd", "rlvr")
        found = [(c, v) for c in _CLAIMS if (v := _three(report, c.key, names=names, at=field)) is not None]
        if found:
            there = [statistic(c.key).label for c, v in found if _ordered(v, c.sign)]
            at = number((block or {}).get(field))
            where = "" if at is None else f" ({at:.0f})" if field == "step" else f" ({format_number(at)})"
            named = f" ({', '.join(there)})" if there else ""
            over = ", ".join(filter(None, (_over(found, report, names, field, kind) for kind in (True, False))))
            parts.append(
                f"{words}{where}, the published order of {label_of(start, methods.get(start))}, OPD, RLVR appears in "
                f"{len(there)} of {len(found)} statistics{named}{f', {over}' if over else ''}"
            )
    return ". ".join(parts) + "." if parts else ""


def _over(found: list[Any], report: dict[str, Any], names: tuple[str, ...], at: str, counted: bool) -> str:
    """`n = 21 of 21 matrices`, for the claims on what is counted (over tensors) or for the others (over matrices)."""
    keys = [claim.key for claim, _ in found if statistic(claim.key).counted is counted]
    cells = [compared_cell(report, name, key, at=at) for key in keys for name in names]
    return population_range(keys[0], cells) if keys else ""


_PATHS = (("opd", "stays in a band"), ("sft_anchor", "widens"), ("rlvr", "contracts"))


def _rank_claim(methods: dict[str, Any]) -> str:
    """Published: OPD's stable rank stays in a band, SFT's widens, RLVR's contracts; here, in both precision views."""
    parts = []
    for name, claimed in _PATHS:
        trajectory = (methods.get(name) or {}).get("trajectory")
        words, over = {}, {}
        for key in ("stable_rank", "stable_rank_bf16"):
            cells = steady_cells(trajectory, key)
            values = [own.value for own in cells if own.value is not None]
            if len(values) > 1:
                words[key], over[key] = path_word(values), over_words(key, cells[-1])
        if "stable_rank" in words:
            said = "; ".join(part for part in (f"published: {claimed}", over["stable_rank"]) if part)
            text = f"{label_of(name, methods[name])} {words['stable_rank']} ({said})"
            rounded = words.get("stable_rank_bf16")
            if rounded and rounded != words["stable_rank"]:
                text += f", but in the bf16 view {rounded}"
                text += f" ({over['stable_rank_bf16']})" if over["stable_rank_bf16"] else ""
            parts.append(text)
    if not parts:
        return ""
    rule = "(a band: the last value within 0.8 to 1.25 of the first, or all values within a factor of 1.25)"
    return f"Path of the stable rank {rule}: {'; '.join(parts)}."


def _locking(report: dict[str, Any]) -> str:
    """Published: OPD's subspace is near its final one early; here against the random walk, and against the others."""
    methods = methods_of(report)
    cells = {n: early_similarity(report, n) for n in methods}
    known = {n: c.excess for n, c in cells.items() if c.excess is not None}
    if "opd" not in known:
        return ""
    opd = known["opd"]
    rank = sorted(known, key=lambda n: -known[n])
    order = ", ".join(f"{label_of(n, methods[n])} {format_value('sim_to_final', known[n], signed=True)}" for n in rank)
    over = population_range("sim_to_final", list(cells.values()))
    sentence = (
        f"Early subspace, excess over the random walk at {early_words(report)} of the steps"
        f"{f', {over}' if over else ''}: {order}. "
    )
    if verdict("sim_to_final", cells["opd"]) is not Verdict.MORE:
        return (
            sentence + "OPD's subspace is not found earlier than a random walk's, so the published locking does not "
            "appear here."
        )
    near = [label_of(n, methods[n]) for n in rank if n != "opd" and abs(known[n] - opd) < 0.03]
    if near:
        return (
            sentence + f"OPD is above chance, and {listed(near)} within three points of it: no mark of OPD alone here."
        )
    if rank[0] == "opd":
        return sentence + "OPD is above chance and above the other methods, as the published subspace locking says."
    ahead = label_of(rank[0], methods[rank[0]])
    return sentence + f"OPD is above chance, but {ahead} more so: early subspaces are not peculiar to OPD here."
