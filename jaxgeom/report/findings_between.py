"""What two runs share, in sentences written from its numbers and their nulls."""

from typing import Any

from .findings_compare import over_words, undefined_sentences
from .formatting import format_count, format_value
from .reading import cell
from .verdict import Verdict, beside_words, ratio_words, verdict


def between_lead(report: dict[str, Any]) -> list[str]:
    """What was compared, which run is called A and which B, and what the nulls are."""
    inputs = report.get("inputs") or {}
    origin, a, b = (str((inputs.get(role) or {}).get("name") or role) for role in ("initial", "final_a", "final_b"))
    count = len(report.get("matrices") or [])
    return [
        f"Run A went from {origin} to {a}, run B from the same start to {b}; {format_count(count)} matrices were "
        "measured.",
        "Overlaps of the changed entries stand beside two nulls: masks of the same sizes laid at random, and two "
        "random updates of the same densities after rounding, which meet at small weights by themselves. Each has its "
        "own excess; the second null is the one to beat.",
    ]


def between_findings(report: dict[str, Any]) -> list[str]:
    """Sentences on what two runs share.

    Args:
        report: the content of the `report.json` of `jaxgeom between`.

    Returns:
        The sentences, in the order of the page.
    """
    summary = report.get("summary")
    said = [_masks(summary), _one_sided(summary), _directions(summary), _subspaces(summary)]
    return [sentence for sentence in said + undefined_sentences(report) if sentence]


def _masks(summary: Any) -> str:
    own, rounding = cell(summary, "jaccard"), cell(summary, "jaccard", "rounding")
    if own.value is None:
        return ""
    sentence = f"The changed entries of the two runs have a Jaccard index of {format_value('jaccard', own.value)}"
    sentence += f" ({said})" if (said := over_words("jaccard", own)) else ""
    if own.null is not None:
        sentence += f"; masks of the same sizes laid at random have {format_value('jaccard', own.null)}"
    if rounding.null is None or rounding.excess is None:
        return sentence + "."
    there = ""
    if rounding.count != own.count:
        there = f" over the {rounding.count} matrices that have this null ({format_value('jaccard', rounding.value)})"
    beside = beside_words("jaccard", rounding).removeprefix("null ")
    sentence += f", two random updates after rounding {beside}{there}"
    said = verdict("jaccard", rounding)
    if said is Verdict.ALIKE:
        return sentence + ": about what size and rounding alone give."
    where = "more" if said is Verdict.MORE else "less"
    return sentence + f": they share {where} than size and rounding explain."


def _one_sided(summary: Any) -> str:
    parts = []
    for key, first, second in (("overlap_a_in_b", "B", "A"), ("overlap_b_in_a", "A", "B")):
        rounding = cell(summary, key, "rounding")
        own = rounding if rounding.null is not None else cell(summary, key)
        if own.value is not None:
            null = f" (rounding null {format_value(key, own.null)})" if rounding.null is not None else ""
            parts.append(f"of what {first} changed, {second} changed {format_value(key, own.value)}{null}")
    return f"One-sided: {'; '.join(parts)}." if parts else ""


def _directions(summary: Any) -> str:
    own = cell(summary, "orthogonal_share")
    if own.value is None:
        return ""
    shared, null = 1 - own.value, beside_words("orthogonal_share", own).removeprefix("null ")
    return (
        f"{format_value('orthogonal_share', own.value)} of one update's energy is orthogonal to the other, where two "
        f"independent updates give {null or 'no null'}; what they share along each other is "
        f"{format_value('orthogonal_share', shared)}."
    )


def _subspaces(summary: Any) -> str:
    own = cell(summary, "subspace_similarity")
    if own.value is None:
        return ""
    words = ratio_words("subspace_similarity", own)
    null = beside_words("subspace_similarity", own).removeprefix("null ") or "no null"
    value = format_value("subspace_similarity", own.value)
    beside = f"{null}, {words}" if words else null
    return f"The leading right subspaces of the two updates have a similarity of {value}; chance gives {beside}."
