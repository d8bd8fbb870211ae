"""The table that a command ends with on the terminal."""

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .catalogue import STATISTICS, format_value, statistic
from .reading import Cell, cell, label_of, method_cell, methods_of, number, rounding_null
from .tables import accuracy_cells, early_similarity, written

_COLUMNS = (
    ("relative_norm", "relative\nnorm"),
    ("sparsity_bf16", "sparsity\n(bf16)"),
    ("overlap_principal", "overlap\nprincipal"),
    ("overlap_low", "overlap\nlow"),
    ("nss", "spectral\nshift"),
    ("angle_right_mean_deg", "angle\nright"),
    ("stable_rank", "stable\nrank"),
)


def print_table(report: dict[str, Any], console: Console) -> None:
    """Print a report's headline: one row per method of a study, one row per statistic of a comparison, nulls beside.

    Args:
        report: the content of a study's or a comparison's `report.json`.
        console: where it is printed; on a narrow one, a study's table is turned so that it fits.
    """
    if "methods" not in report:
        console.print(_comparison(report))
    else:
        wide = _wide(report)
        fits = Measurement.get(console, console.options.update(max_width=10_000), wide).maximum <= console.width
        console.print(wide if fits else _turned(report))


def _stacked(key: str, own: Cell) -> Text:
    text = written(key, own)
    if not text.null:
        return Text(text.value)
    return Text.assemble(text.value, ("\nnull " + text.null, "dim"))


def _study_columns(report: dict[str, Any]) -> list[tuple[str, list[Text]]]:
    methods = list(methods_of(report).values())
    columns: list[tuple[str, list[Text]]] = [
        ("accuracy\nbefore", [Text(written("accuracy", accuracy_cells(m)[0]).value) for m in methods]),
        ("accuracy\nafter", [Text(format_value("accuracy", accuracy_cells(m)[1].value)) for m in methods]),
        ("steps", [Text("–" if (n := number(m.get("steps"))) is None else f"{n:.0f}") for m in methods]),
    ]
    for key, label in _COLUMNS:
        columns.append((label, [_stacked(key, _without_interval(method_cell(m, key))) for m in methods]))
    early = [_stacked("sim_to_final", _without_interval(early_similarity(m))) for m in methods]
    return [*columns, ("similarity\nto final, 20 %", early)]


def _without_interval(own: Cell) -> Cell:
    return own._replace(low=None, high=None)


def _wide(report: dict[str, Any]) -> Table:
    table = Table(title=_title(report), title_justify="left", show_lines=True)
    table.add_column("method")
    columns = _study_columns(report)
    for label, _ in columns:
        table.add_column(label, justify="right", no_wrap=True)
    for row, (name, method) in enumerate(methods_of(report).items()):
        table.add_row(Text(label_of(name, method), style="bold"), *(cells[row] for _, cells in columns))
    return table


def _turned(report: dict[str, Any]) -> Table:
    table = Table(title=_title(report), title_justify="left", show_lines=True)
    table.add_column("")
    for name, method in methods_of(report).items():
        table.add_column(Text(label_of(name, method)), justify="right")
    for label, cells in _study_columns(report):
        table.add_row(Text(label.replace("\n", " ")), *cells)
    return table


def _title(report: dict[str, Any]) -> str:
    seeds = report.get("seeds") or []
    return (
        f"Means over {len(seeds)} seeds; null: what chance gives"
        if len(seeds) > 1
        else "One seed; null: what chance gives"
    )


def _comparison(report: dict[str, Any]) -> Table:
    table = Table(title="Mean over matrices; null: what chance gives", title_justify="left")
    table.add_column("statistic")
    summary = report.get("summary")
    keys = [key for key in STATISTICS if isinstance(summary, dict) and key in summary]
    rounding = {key: rounding_null(summary, key) for key in keys}
    two_nulls = any(value is not None for value in rounding.values())
    for label in ("value", "null", "rounding null", "excess") if two_nulls else ("value", "null", "excess"):
        table.add_column(label, justify="right")
    for key in keys:
        text = written(key, cell(summary, key))
        nulls = [text.null or "–"] + ([format_value(key, rounding[key])] if two_nulls else [])
        table.add_row(Text(statistic(key).label), text.value, *nulls, text.excess or "–")
    return table
