"""The documentation page of the statistics, written from their table: `python -m jaxgeom.report.statistics_page`.

The page is `docs/statistics.md`; a test compares it with what this module writes.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from ..diagnostics.statistics import FURTHER, KIND_LABELS, SOURCES, STATISTICS, Null, Statistic
from ..files import write_atomically

_LEAD = """# The statistics

This page is written from the table `jaxgeom.diagnostics.STATISTICS` by `python -m jaxgeom.report.statistics_page`, and
a test says that it is current.

Every number of a report by its key in `report.json`: its formula, what it says, what chance gives in its place, what
leaves it undefined, and where it comes from. W0 is the initial matrix `[out, in]`, m × n, W+ the final one,
ΔW = W+ − W0, σ singular values in descending order, U_k and V_k the k leading left (output side) and right (input side)
singular vectors. Titles of the papers are in the [bibliography](bibliography.md).

**A triple is one population.** Beside a statistic stand `<key>_null`, `<key>_excess = <key> − <key>_null` and, where
the null has a standard deviation, `<key>_z`, the excess in units of it; that of angles, spectral shift and orthogonal
share, and of cosines and the drift ratio of rounded checkpoints, is
[something else](sceptic.md#where-z-is-not-the-excess-in-deviations). In a summary, a group or a curve, value,
null and excess are over the same matrices, those where value and null are both defined (where none has a null or, of
what is counted entry by entry, less than half of the parameters have one, those where the value is), and `count` says
how many of `of`; the mean `z` is over those of them that have one, `z_count`.
Nulls beside the first one have the same three, with their kind in the name (`<key>_rounding_null`), over their own
population (`rounding_mean`, `rounding_null`, `rounding_excess`, `rounding_count` in a summary). Methods are compared
over the matrices that are defined in all of them, their curves over the same ones at every step.

**Averages.** What is counted entry by entry is averaged over every parameter tensor, weighted by its size; everything
else is a plain mean over the q, k, v, o, gate, up and down matrices, experts one by one. Value, null, excess and z are
weighted alike, in a report and by `summarize`.

**Agreement** is the relative difference (for angles, in degrees) that is allowed between a report and the public
function of `jaxgeom.diagnostics` on the same arrays under x64.
"""

_TITLES = {
    "sparsity_bf16": "What changed, entry by entry",
    "fro_norm": "Size, rank and tail of the update; spectrum and subspaces of the weights",
    "sim_to_final": "Along a run, in a given subspace, and what the model says",
    "density_a": "Two runs from one start",
}
"""The first statistic of each part, with the part's title."""


def statistics_page() -> str:
    """The content of `docs/statistics.md`."""
    lines = [_LEAD, "## All of them", "", *_overview(STATISTICS.values()), ""]
    for key, entry in STATISTICS.items():
        if key in _TITLES:
            lines += [f"## {_TITLES[key]}", ""]
        lines += [*_section(entry), ""]
    return "\n".join(lines).rstrip() + "\n"


def _overview(entries: Iterable[Statistic]) -> list[str]:
    lines = ["| key | what it is | null | mean over | in |", "|---|---|---|---|---|"]
    for entry in entries:
        if not entry.is_setting:
            nulls = [entry.null.form if entry.null is not None else "–", *(KIND_LABELS[kind] for kind in entry.further)]
            key, label = f"[`{entry.key}`](#{_anchor(entry)})", entry.label.replace("|", "\\|")
            lines.append(f"| {key} | {label} | {', '.join(nulls)} | {entry.weighting} | {', '.join(entry.commands)} |")
    return lines


def _anchor(entry: Statistic) -> str:
    return entry.key.lower()


def _section(entry: Statistic) -> list[str]:
    said = [f"- **in**: {_commands(entry)}"]
    if entry.null is not None:
        said.append(f"- **null**: {_null(entry.null)}")
        said += [f"- **null along a trajectory**: {_null(entry.along)}"] if entry.along is not None else []
        further = [kind for kind in FURTHER if kind in entry.further]
        said += [f"- **null, {KIND_LABELS[kind]}**: {_null(entry.further[kind])}" for kind in further]
    elif not entry.is_setting:
        said.append("- **null**: none")
    if not entry.is_setting:
        fast = "" if entry.agreement_fast is None else f"; suite fast {_power(entry.agreement_fast)}"
        fast += f"; and {_power(entry.over_gap)}·σ₁²/(σ_K² − σ_{{K+1}}²) of the updates" if entry.over_gap else ""
        said += [
            f"- **undefined**: {entry.undefined}{_lost(entry)}",
            f"- **mean**: {_MEANS[entry.weighting]}",
            f"- **agreement**: {_power(entry.agreement)}{fast}",
            f"- **source**: {_sources(entry.sources)}",
        ]
    title = f"{entry.label[0].upper()}{entry.label[1:]}. {entry.meaning}"
    return [f"### `{entry.key}`", "", title, "", "```text", entry.definition, "```", "", *said]


_MEANS = {
    "parameters": "over every parameter tensor, weighted by its size",
    "matrices": "over the matrices, plain",
    "tokens": "over the tokens: one number for the models",
}


def _lost(entry: Statistic) -> str:
    nulls = {"null": entry.null} | {f"null, {KIND_LABELS[kind]}": null for kind, null in entry.further.items()}
    return "".join(f"; {what}: {null.lost}" for what, null in nulls.items() if null is not None and null.lost)


def _commands(entry: Statistic) -> str:
    suite = "" if len(entry.suites) == 2 else f", suite {entry.suites[0]} alone"
    cheap = ", in `CHEAP` of `measure`" if entry.cheap else ""
    return ", ".join(f"`{command}`" for command in entry.commands) + suite + cheap


def _power(value: float) -> str:
    """`1e-9` in place of `1e-09`."""
    return f"{value:g}".replace("e-0", "e-")


def _null(null: Null) -> str:
    z = "" if null.deviation else "; without a deviation, so no z"
    suites = "" if len(null.suites) == 2 else f"; suite {null.suites[0]}"
    source = f"; {_sources(null.sources)}" if null.sources else ""
    return null.described + z + suites + source


def _sources(keys: Iterable[str]) -> str:
    found = [SOURCES[key] for key in keys]
    return "; ".join(f"[{one.short}]({one.link or 'bibliography.md'})" for one in found) or "this project"


def main(arguments: list[str]) -> None:
    """Writes the page to the path given, `docs/statistics.md` where none is."""
    write_atomically(Path(arguments[0] if arguments else "docs/statistics.md"), statistics_page())


if __name__ == "__main__":
    main(sys.argv[1:])
