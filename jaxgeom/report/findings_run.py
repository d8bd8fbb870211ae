"""What one training run's own log says, in sentences written from its numbers and their nulls."""

from typing import Any

from .formatting import format_value, statistic
from .reading import number, track_cells


def run_lead(report: dict[str, Any]) -> list[str]:
    """How far the run is, and where what it changed is measured in full."""
    steps = max(int(row["step"]) for row in report["log"])
    wanted = (report.get("settings") or {}).get("steps")
    lead = [f"{steps}{f' of {wanted}' if wanted else ''} steps, from the run's own log."]
    if not report["live"]:
        lead.append("Nothing of its geometry was measured on the way: --geometry-every asks for it.")
    return [*lead, "Every diagnostic with its null: jaxgeom compare and jaxgeom trajectory on the run's checkpoints."]


def run_findings(report: dict[str, Any]) -> list[str]:
    """Accuracy along the run, and the live geometry at its last measurement, each beside its null."""
    found = []
    evaluations = [row for row in report["log"] if number(row.get("accuracy")) is not None]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        ends = [number(last.get(f"accuracy_{end}")) for end in ("low", "high")]
        within = f" [{', '.join(format_value('accuracy', end) for end in ends)}]" if None not in ends else ""
        start, end = (format_value("accuracy", number(row["accuracy"])) for row in (first, last))
        found.append(
            f"Held-out accuracy, greedy: {start} at step {first['step']}, {end}{within} at step {last['step']}."
        )
    for section, words in (("geometry", "since the start"), ("step_geometry", "by one step")):
        curves = report["live"].get(section)
        if not curves:
            continue
        said = []
        for key in curves["summary"]:
            known = [own for own in track_cells(curves, key) if own.value is not None]
            if known:
                own = known[-1]
                null = f" (null {format_value(key, own.null)})" if own.null is not None else ""
                said.append(f"{statistic(key).label} {format_value(key, own.value)}{null}")
        if said:
            found.append(f"Changed {words}, measured at step {curves['steps'][-1]}: {', '.join(said)}.")
    return found
