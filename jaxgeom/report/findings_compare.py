"""What a comparison or a trajectory found, in sentences written from its numbers and their nulls."""

from typing import Any

from ..diagnostics.statistics import STATISTICS, split_key
from .formatting import (
    format_count,
    format_number,
    format_value,
    population_noun,
    population_words,
    statistic,
)
from .reading import Cell, cell, number, steady_cells, track_cells
from .tables import early_cell, early_share, further_nulls
from .used import capped_angles, used_words
from .verdict import Verdict, beside_words, ratio_words, verdict


def findings(report: dict[str, Any]) -> list[str]:
    """Sentences on a comparison of two checkpoints.

    Each gives a value, its null and the excess over it; statistics that are undefined for some matrices are named with
    the reason. Nothing is said of a statistic that the report does not hold.

    Args:
        report: the content of a comparison's `report.json`.

    Returns:
        The sentences, in the order of the page.
    """
    summary = report.get("summary")
    said = [_sparsity(summary, report.get("settings")), _size(summary)]
    for key in ("overlap_principal", "overlap_low"):
        said += [overlap_sentence(key, cell(summary, key)), _further_sentence(key, summary)]
    said += [_rotation(report), _drift(summary), _rank(summary), _projection(report), _decay(summary)]
    said += [_functional(summary)]
    said += undefined_sentences(report)
    return [sentence for sentence in said if sentence]


def trajectory_findings(trajectory: dict[str, Any]) -> list[str]:
    """Sentences on a trajectory: the path of the stable rank, and when its subspace was found.

    Args:
        trajectory: the content of a `trajectory.json`.

    Returns:
        The sentences, in the order of the page.
    """
    said = [rank_path(trajectory), early_sentence(trajectory), disjoint_sentence(trajectory)]
    return [sentence for sentence in said if sentence]


def _sparsity(summary: Any, settings: Any) -> str:
    whole, kept = cell(summary, "sparsity_bf16"), cell(summary, "sparsity_stored")
    own, stored = whole.value, kept.value
    if own is None:
        return ""
    eta = number((settings or {}).get("eta")) if isinstance(settings, dict) else None
    test = ""
    if eta is not None:
        same = ", which is below 2⁻⁸ and so asks for bitwise equality" if eta < 2**-8 else ""
        test = f" (test at η = {format_number(eta)}{same})"
    over = f" ({said})" if (said := over_words("sparsity_bf16", whole)) else ""
    sentence = f"In the bf16 view {format_value('sparsity_bf16', own)} of the parameters{over} are unchanged{test}"
    if whole.null is not None and whole.excess is not None:
        excess = format_value("sparsity_bf16", whole.excess, signed=True)
        sentence += f", where equal noise leaves {format_value('sparsity_bf16', whole.null)} (excess {excess})"
    if stored is not None:
        sentence += f"; as stored, {format_value('sparsity_stored', stored)}"
        alike = kept.count == whole.count  # as stored it is defined everywhere: as many are the same ones
        sentence += " are" if alike else f" ({over_words('sparsity_stored', kept)}) are"
        if alike and abs(stored - own) > 0.005:
            sentence += ", so the difference between the two is the work of rounding"
    loose = cell(summary, "sparsity_abs_1e-5")
    if loose.value is not None:
        sentence += f". An absolute tolerance of 1e-5 would call {format_value('sparsity_abs_1e-5', loose.value)}"
        beside = whole if stored is None else kept
        alike, over = loose.count == beside.count, over_words("sparsity_abs_1e-5", loose)
        sentence += " unchanged" if alike or not over else f" ({over}) unchanged"
        if alike and loose.value > (beside.value or 0.0) + 0.005:
            sentence += ", a share that hides changes of small weights first"
    return sentence + "."


def over_words(key: str, own: Cell) -> str:
    """`n = 14 of 14 matrices`, over which a cell's value and null are; empty where the report does not say."""
    return population_words(own.count, own.of, noun=population_noun(key))


def _size(summary: Any) -> str:
    size = cell(summary, "relative_norm")
    own = size.value
    if own is None:
        return ""
    if own == 0:
        return "The update is exactly zero in every matrix: nothing changed, so nothing rotated and nothing moved."
    return (
        f"The update's norm is {format_value('relative_norm', own)} of the weights' norm (mean over matrices"
        f"{f', {said}' if (said := over_words('relative_norm', size)) else ''}); "
        "sparsity, overlaps, angles and spectral shift all move with this number, so each is read against its null."
    )


def overlap_sentence(key: str, own: Cell) -> str:
    """Value, null and excess of an overlap, and what the excess says."""
    if own.value is None:
        return ""
    name = "principal" if key == "overlap_principal" else "low-magnitude"
    sentence = f"{format_value(key, own.value)} of the visibly changed entries lie in the {name} mask"
    if own.null is None or own.excess is None:
        return sentence + "; no null was computed for it, so it says nothing about the direction of the update."
    sentence += (
        ", where direction-free noise of the same density gives "
        f"{_comma(beside_words(key, own).removeprefix('null '), over_words(key, own))}"
    )
    said = verdict(key, own)
    if said is Verdict.ALIKE:
        return sentence + ": about what rounding alone gives."
    where = "more" if said is Verdict.MORE else "fewer"
    little = ", if only by a little" if abs(own.excess) < 0.02 else ""
    return sentence + f": {where} changes fall there than size and rounding explain{little}."


def _comma(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _further_sentence(key: str, summary: Any) -> str:
    """What the nulls that keep something of the real update give for an overlap."""
    found = further_nulls(key, summary)
    if not found:
        return ""
    own = "principal" if key == "overlap_principal" else "low-magnitude"
    said = [f"{null} ({label}, excess {excess})" for label, null, excess in found]
    return (
        f"Beside it, nulls that keep something of the real update give {' and '.join(said)} for the {own} mask; an "
        "excess over equal noise that the scale profile takes away is the work of loud rows and columns."
    )


def _rotation(report: dict[str, Any]) -> str:
    summary, parts = report.get("summary"), []
    for side, key in (("left", "angle_left_mean_deg"), ("right", "angle_right_mean_deg")):
        own = cell(summary, key)
        if own.value is not None:
            parts.append(f"{format_value(key, own.value)} on the {side}{_against(key, own)}")
    if not parts:
        return ""
    return " ".join((f"The leading singular subspaces turned by {' and '.join(parts)}.", *capped_angles(report)))


def _against(key: str, own: Cell) -> str:
    if own.value is None or own.null is None or own.excess is None:
        return " (no null)"
    return f" ({_comma(beside_words(key, own), ratio_words(key, own), over_words(key, own))})"


def _drift(summary: Any) -> str:
    own, without = cell(summary, "nss"), cell(summary, "nss_without_decay")
    if own.value is None:
        return ""
    sentence = f"The spectrum moved by {format_value('nss', own.value)} of its norm{_against('nss', own)}"
    if without.value is not None:
        sentence += f"; with the shrinking of W0 taken out, by {format_value('nss', without.value)}"
        sentence += _over("nss_without_decay", without)
    return sentence + "."


def _rank(summary: Any) -> str:
    own, rounded, hill = cell(summary, "stable_rank"), cell(summary, "stable_rank_bf16"), cell(summary, "hill")
    if own.value is None:
        return ""
    sentence = f"The update's stable rank is {format_value('stable_rank', own.value)}{_against('stable_rank', own)}"
    if rounded.value is not None:
        sentence += f"; seen in bf16 it is {format_value('stable_rank', rounded.value)}"
        sentence += _over("stable_rank_bf16", rounded)
    if hill.value is not None:
        sentence += f". The Hill index of its tail is {format_value('hill', hill.value)}"
        sentence += _over("hill", hill)
    return sentence + "."


def _over(key: str, own: Cell) -> str:
    """` (null 4.40, n = 14 of 14 matrices)`: what a number stands beside, and over how many both are."""
    null = f"null {format_value(key, own.null)}" if own.null is not None else ""
    said = _comma(null, over_words(key, own))
    return f" ({said})" if said else ""


def _projection(report: dict[str, Any]) -> str:
    own = cell(report.get("summary"), "projection_joint")
    if own.value is None or own.null is None:
        return ""
    beside = _comma(
        *(words("projection_joint", own) for words in (beside_words, ratio_words, over_words)),
        used_words(report, "projection_joint"),
    )
    return (
        f"{format_value('projection_joint', own.value)} of the update's energy lies in the leading left and right "
        f"subspaces of W0 ({beside})."
    )


def _decay(summary: Any) -> str:
    own = cell(summary, "decay")
    if not own.value:
        return ""
    what = "shrank" if own.value < 0 else "grew"
    over = _over("decay", own)
    return f"Along themselves the weights {what}: the decay component is {format_value('decay', own.value)}{over}."


def _functional(summary: Any) -> str:
    own = cell(summary, "functional_distance")
    if own.value is None or not isinstance(summary, dict):
        return ""
    entry = summary["functional_distance"]
    k3, error = number(entry.get("k3")), number(entry.get("k3_standard_error"))
    spread = "" if error is None else f" ± {format_number(error, digits=2)}"
    return (
        f"On {format_count(own.count)} tokens of answers by the initial model, the final model's distribution is "
        f"{format_number(own.value)} nats a token away from the initial one's (exact forward KL; k3 estimate "
        f"{format_number(k3)}{spread}); there is no null, and 0 is no change."
    )


def undefined_sentences(report: dict[str, Any]) -> list[str]:
    """Which statistics have no value, for how many matrices, and why."""
    rows = [r for r in report.get("matrices") or [] if isinstance(r, dict)]
    if not rows:
        return []
    keys = dict.fromkeys(k for row in rows for k in row if split_key(k)[2] == "value" and k in STATISTICS)
    reasons: dict[str, list[str]] = {}
    for key in keys:
        missing = [row for row in rows if key in row and row[key] is None]
        if missing:
            reason = _reason(key, missing)
            share = "every matrix" if len(missing) == len(rows) else f"{len(missing)} of {len(rows)} matrices"
            reasons.setdefault(f"for {share}, because {reason}", []).append(statistic(key).label)
    return [f"Undefined {what}: {'; '.join(labels)}." for what, labels in reasons.items()]


def _reason(key: str, missing: list[dict[str, Any]]) -> str:
    """The engine's note where it is the same for all of these matrices, else the reason that lies in the statistic."""
    notes = {str(row.get(f"{key.split('_')[0]}_note") or "") for row in missing}
    note = notes.pop() if len(notes) == 1 else ""
    return note.removeprefix("undefined: ") or statistic(key).undefined


def rank_path(trajectory: Any, who: str = "the update") -> str:
    """Where the stable rank starts, ends and ranges, in both precision views, over the same matrices throughout."""
    key = "stable_rank"
    cells = steady_cells(trajectory, key)
    values = [own.value for own in cells if own.value is not None]
    if len(values) < 2:
        return ""
    sentence = (
        f"The stable rank of {who} goes from {format_value(key, values[0])} to {format_value(key, values[-1])} along "
        f"training (lowest {format_value(key, min(values))}, highest {format_value(key, max(values))}): "
        f"it {path_word(values)}"
    )
    over = f" ({said})" if (said := over_words(key, cells[-1])) else ""
    if cells[-1].null is not None:
        first, last = format_value(key, cells[0].null), format_value(key, cells[-1].null)
        sentence += f"; its null is {last}" if first == last else f"; its null goes from {first} to {last}"
    sentence += over
    rounded = steady_cells(trajectory, "stable_rank_bf16")
    if len(rounded) > 1:
        ends = f"{format_value(key, rounded[0].value)} to {format_value(key, rounded[-1].value)}"
        sentence += f". In the bf16 view it goes from {ends}"
        if rounded[-1].null is not None:
            ends = f"{format_value(key, rounded[0].null)} to {format_value(key, rounded[-1].null)}"
            sentence += f", where the final direction at each step's norm, rounded, goes from {ends}"
        sentence += f" ({said})" if (said := over_words("stable_rank_bf16", rounded[-1])) else ""
    return sentence + "."


def path_word(values: list[float]) -> str:
    """`stays in a band` (last within a fifth of first), `widens` or `contracts`."""
    ratio = values[-1] / values[0] if values[0] else float("inf")
    if max(values) <= 1.25 * min(values) or 0.8 <= ratio <= 1.25:
        return "stays in a band"
    return "widens" if ratio > 1 else "contracts"


def early_sentence(trajectory: Any, who: str = "the update", own: Cell | None = None) -> str:
    """How near the subspace at a fifth of training is to the final one, and a random walk's.

    Args:
        trajectory: whose steps say which share of training it is.
        who: the method.
        own: value and null there, where they are over other matrices than the trajectory's own.
    """
    own = early_cell(trajectory, "sim_to_final") if own is None else own
    if own.value is None:
        return ""
    sentence = (
        f"At {100 * early_share(trajectory):.0f} % of its steps the leading right subspace of {who} is at "
        f"{format_value('sim_to_final', own.value)} of the final one"
    )
    if own.null is None or own.excess is None:
        return sentence + " (no null was computed)."
    beside = _comma(beside_words("sim_to_final", own).removeprefix("null "), over_words("sim_to_final", own))
    return sentence + f", where a random walk is at {beside}: {_EARLY_WORDS[verdict('sim_to_final', own)]}."


_EARLY_WORDS = {
    Verdict.LESS: "later than a walk finds its own",
    Verdict.ALIKE: "about as a walk finds its own",
    Verdict.MORE: "earlier than a walk finds its own",
    None: "",
}


def disjoint_sentence(trajectory: Any, who: str = "The update") -> str:
    """The similarity of disjoint parts of training at its highest, against that of independent ones."""
    known = [own for own in track_cells(trajectory, "sim_disjoint") if own.value is not None]
    if not known:
        return ""
    own = max(known, key=lambda one: one.value or 0.0)
    value, null = own.value or 0.0, own.null
    sentence = (
        f"{who} up to a step and {who[0].lower() + who[1:] if who.startswith('The ') else who} after it share at most "
        f"{format_value('sim_disjoint', value)} of their leading right subspaces"
    )
    if null is None:
        return sentence + "."
    beside = beside_words("sim_disjoint", own).removeprefix("null ")
    beside = _comma(beside, ratio_words("sim_disjoint", own), over_words("sim_disjoint", own))
    return sentence + f", where independent stretches give {beside}."
