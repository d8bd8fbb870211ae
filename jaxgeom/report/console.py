"""The table that a command ends with on the terminal."""

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..diagnostics.statistics import FURTHER, KIND_LABELS
from .formatting import format_value, headline_of, population_words, statistic
from .learned import seeds_note
from .reading import Cell, cell, compared_cell, label_of, methods_of, number
from .tables import (
    accuracy_cells,
    early_similarity,
    early_words,
    partial_words,
    shared_population,
    statistics_of,
    written,
)


def print_table(report: dict[str, Any], console: Console) -> None:
    """Print a report's headline: one row per method of a study, one row per statistic of a comparison, nulls beside.

    Args:
        report: the content of a study's or a comparison's `report.json`.
        console: where it is printed; on a narrow one, a study's table is turned and, where its methods are too many,
            cut into several of as many methods as fit.
    """
    if "methods" not in report:
        console.print(_comparison(report))
    else:
        wide = _wide(report)
        fits = Measurement.get(console, console.options.update(max_width=10_000), wide).maximum <= console.width
        for table in [wide] if fits else _turned(report, console):
            console.print(table)


def _stacked(key: str, cells: list[Cell], own: Cell) -> Text:
    text = written(key, own)
    lines = [f"null {text.null}"] if text.null else []
    if own.value is not None and own.count is not None and not shared_population(key, cells):
        lines.append(f"n = {own.count}")
    return Text.assemble(text.value, *(("\n" + line, "dim") for line in lines))


def _study_columns(report: dict[str, Any]) -> list[tuple[str, list[Text]]]:
    methods = list(methods_of(report).values())
    columns: list[tuple[str, list[Text]]] = [
        ("accuracy\nbefore", [Text(written("accuracy", accuracy_cells(m)[0]).value) for m in methods]),
        ("accuracy\nafter", [Text(format_value("accuracy", accuracy_cells(m)[1].value)) for m in methods]),
        ("steps", [Text("–" if (n := number(m.get("steps"))) is None else f"{n:.0f}") for m in methods]),
    ]
    for key in headline_of("compare"):
        cells = [compared_cell(report, name, key) for name in methods_of(report)]
        if any(own.value is not None for own in cells):
            columns.append((_label(key, statistic(key).short, cells), [_stacked(key, cells, own) for own in cells]))
    cells = [early_similarity(report, name) for name in methods_of(report)]
    label = _label("sim_to_final", f"similarity to final, {early_words(report)}", cells)
    return [*columns, (label, [_stacked("sim_to_final", cells, own) for own in cells])]


def _label(key: str, short: str, cells: list[Cell]) -> str:
    """A narrow column's label: a word a line, and the population that its cells share."""
    words = (short or statistic(key).label).split(" ")
    lines = [" ".join(words[: -(-len(words) // 2)]), " ".join(words[-(-len(words) // 2) :])]
    shared = shared_population(key, cells).removesuffix(" matrices").removesuffix(" tensors")
    return "\n".join(line for line in (*lines, shared) if line)


def _wide(report: dict[str, Any]) -> Table:
    table = Table(title=_title(report), title_justify="left", show_lines=True)
    table.add_column("method")
    columns = _study_columns(report)
    for label, _ in columns:
        table.add_column(label, justify="right", no_wrap=True)
    for row, (name, method) in enumerate(methods_of(report).items()):
        table.add_row(_name(name, method), *(cells[row] for _, cells in columns))
    return table


def _name(name: str, method: dict[str, Any]) -> Text:
    """A method's label, and under it which of its seeds count for nothing."""
    note = seeds_note(method)
    return Text.assemble((label_of(name, method), "bold"), ("\n" + note if note else "", "bold red"))


def _turned(report: dict[str, Any], console: Console) -> list[Table]:
    """One column a method; several tables where not all columns fit with every number whole."""
    methods, columns = methods_of(report), _study_columns(report)
    for count in range(len(methods), 0, -1):
        starts = range(0, len(methods), count)
        tables = [_of_methods(report, columns, slice(start, start + count)) for start in starts]
        unlimited = console.options.update(max_width=10_000)
        if all(Measurement.get(console, unlimited, table).minimum <= console.width for table in tables):
            break
    tables[0].title, tables[0].title_justify = _title(report), "left"
    return tables


def _of_methods(report: dict[str, Any], columns: list[tuple[str, list[Text]]], some: slice) -> Table:
    """A column each for some of the methods."""
    table = Table(show_lines=True)
    table.add_column("")
    for name, method in list(methods_of(report).items())[some]:
        table.add_column(_name(name, method), justify="right")
    for label, cells in columns:
        table.add_row(Text(label.replace("\n", " ")), *cells[some])
    return table


def _title(report: dict[str, Any]) -> str:
    seeds = report.get("seeds") or []
    means = f"Means over {len(seeds)} seeds" if len(seeds) > 1 else "One seed"
    return f"{means}; null: what chance gives; n: matrices (of sparsity: tensors) that every method has"


def _comparison(report: dict[str, Any]) -> Table:
    table = Table(title="Mean over the n matrices that have value and null; null: what chance gives",
                  title_justify="left")  # fmt: skip
    table.add_column("statistic")
    for label in ("value", "null", "excess", "n"):
        table.add_column(label, justify="right")
    if partial := partial_words(report):
        table.caption, table.caption_justify = " ".join(partial), "left"
    summary = report.get("summary")
    for key in statistics_of(summary):
        own = cell(summary, key)
        text = written(key, own)
        count = population_words(own.count, own.of, noun="").removeprefix("n = ").strip() or "–"
        table.add_row(Text(statistic(key).label), text.value, text.null or "–", text.excess or "–", count)
        for kind in FURTHER if key in headline_of("between") else ():
            other = cell(summary, key, kind)
            if other.null is not None:
                count = population_words(other.count, own.of, noun="").removeprefix("n = ").strip() or "–"
                cells = (format_value(key, other.value), format_value(key, other.null))
                excess = format_value(key, other.excess, signed=True)
                table.add_row(Text(f"  beside its {KIND_LABELS[kind]}", style="dim"), *cells, excess, count)
    return table
