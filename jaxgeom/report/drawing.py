"""Panels that more than one kind of report draws: statistics by layer, overlaps, tracks along training."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..diagnostics.statistics import SOURCES
from .formatting import format_value, population_noun, population_words, statistic
from .looks import looks_of
from .published import CONTROLLED
from .reading import Cell, by_layer, label_of, numbers, population_range, seeds_of, track, track_cells
from .style import FAINT, INK, MUTED, Look, label_ends, last_point, plot_track, scale_x, scale_y
from .verdict import Verdict, beside_words, verdict

Methods = dict[str, dict[str, Any]]


def published_mark(axes: Axes, value: float, row: float | int, controlled: bool) -> None:
    """A published value: filled for the controlled runs of *On the Geometry of OPD*, open for other models."""
    marker, size, face = ("D", 22, MUTED) if controlled else ("o", 16, "none")
    axes.scatter([value], [row], s=size, marker=marker, facecolors=face, edgecolors=MUTED, linewidths=0.7, zorder=2)


def reference_mark(axes: Axes, value: float, row: float | int, controlled: bool) -> None:
    """A published value on the upper edge of a row's bar."""
    axes.plot([value, value], [row - 0.32, row - 0.19], color=FAINT, linewidth=1.2, zorder=1.5)
    published_mark(axes, value, row - 0.32, controlled)


def reference_key() -> list[Line2D]:
    """The key to the published marks."""
    controlled = f"published, {SOURCES[CONTROLLED].cited}"
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="D",
            color=MUTED,
            markersize=4,
            label=controlled,
        ),
        Line2D(
            [], [], linestyle="none", marker="o", markerfacecolor="none", color=MUTED, label="published, other models"
        ),
    ]


def interval_bar(axes: Axes, own: Cell, row: float | int) -> None:
    if own.low is not None and own.high is not None:
        axes.plot([own.low, own.high], [row, row], color=INK, linewidth=0.9, zorder=4)


def triple(key: str, own: Cell) -> str:
    """`1.20° (null 1.31°, n = 14 of 14 matrices)`."""
    null = f"null {format_value(key, own.null)}" if own.null is not None else ""
    beside = ", ".join(text for text in (null, _over(key, own)) if text and own.value is not None)
    return format_value(key, own.value) + (f" ({beside})" if beside else "")


def _over(key: str, own: Cell) -> str:
    return population_words(own.count, own.of, noun=population_noun(key))


def with_population(label: str, key: str, cells: Sequence[Cell]) -> str:
    """An axis label with the population of the panel under it."""
    return "\n".join(text for text in (label, population_range(key, cells)) if text)


def against_null(key: str, cells: Sequence[tuple[str, Cell]], *, null: str = "null", where: str = "") -> str:
    """What value and null of one population say, in a sentence: which series is below chance, which above; or "".

    Which is decided by `verdict`, as in the findings.

    Args:
        key: the statistic.
        cells: what each series is called, with its cell.
        null: what the null is called.
        where: at which step, for instance.
    """
    said: dict[Verdict, list[str]] = {word: [] for word in Verdict}
    for name, own in cells:
        word = verdict(key, own)
        if word is not None:
            text = f"{format_value(key, own.value)} ({beside_words(key, own, null=null)})"
            said[word].append(f"{name} {text}" if name else text)
    parts = [f"{word.value}: {', '.join(texts)}" for word, texts in said.items() if texts]
    if not parts:
        return ""
    label, over = statistic(key).label, population_range(key, [own for _, own in cells])
    return f"{label[0].upper()}{label[1:]}{f' ({over})' if over else ''}{where and f' {where}'}, {'; '.join(parts)}."


def draw_by_layer(
    figure: Figure,
    axes_list: list[Axes],
    statistics: tuple[tuple[str, str, str], ...],
    groups: dict[str, tuple[Look, Any, str]],
) -> bool:
    """Fill one panel per (key, title, axis label) with each group along the layers; False if all are empty."""
    any_drawn = False
    for position, (axes, (key, title, axis_label)) in enumerate(zip(axes_list, statistics, strict=True)):
        every, labels, places, held = [], [], [], []
        for style, group, text in groups.values():
            layers, cells = by_layer(group, key)
            places += layers
            held += cells
            values, nulls = [c.value for c in cells], [c.null for c in cells]
            if plot_track(axes, layers, values, style):
                end = last_point(layers, values)
                labels += [(end, text, style.text)] if end is not None else []
            plot_track(axes, layers, nulls, style, kind="null")
            every += values + nulls
        axes.set_title(title)
        axes.set_xlabel(with_population("layer", key, held))
        axes.set_ylabel(axis_label)
        scale_x(axes, places)
        scale_y(axes, every, share=statistic(key).unit == "share")
        if not labels:
            blank(axes, "undefined" if any(c.count is not None for c in held) else "not measured")
        any_drawn |= bool(labels)
        if position == len(axes_list) - 1 and len(groups) > 1:
            label_ends(figure, axes, labels)
    return any_drawn


def blank(axes: Axes, text: str = "not measured") -> None:
    """Say in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


OVERLAPS = (("overlap_principal", "Principal mask"), ("overlap_low", "Low-magnitude mask"))


OVERLAP_TEXT = (
    "The filled mark is the share of visibly changed entries that lie in the mask; the upright tick is what "
    "direction-free noise of the same density gives after rounding to bf16, and the number is the excess over it in "
    "percentage points. A high low-magnitude overlap is no finding by itself, since rounding alone makes small weights "
    "change first: only the distance between mark and tick speaks of the method."
)


def overlap_key(style: Look | None = None) -> list[Line2D]:
    """The key to measured value and rounding null; `style` is the look of the only series where there is one."""
    marker, color = (style.marker, style.color) if style else ("o", MUTED)
    return [
        Line2D([], [], linestyle="none", marker=marker, color=color, markersize=5, label="measured"),
        Line2D(
            [], [], linestyle="none", marker="|", color=INK, markersize=9, markeredgewidth=1.6, label="rounding null"
        ),
    ]


def draw_overlaps(axes_list: list[Axes], rows: dict[str, tuple[Look, dict[str, Cell]]]) -> None:
    """Value, null and excess of both overlaps, one row per method or module."""
    for axes, (key, title) in zip(axes_list, OVERLAPS, strict=True):
        for row, (style, cells) in enumerate(rows.values()):
            own = cells[key]
            if own.value is None:
                axes.text(0.01, row, "undefined", va="center", color=MUTED, fontsize=6.5)
                continue
            if own.null is not None:
                axes.plot([own.null, own.value], [row, row], color=style.color, linewidth=2.4, alpha=0.5, zorder=3)
                axes.plot([own.null], [row], marker="|", color=INK, markersize=9, markeredgewidth=1.6, zorder=5)
            interval_bar(axes, own, row)
            axes.plot([own.value], [row], marker=style.marker, color=style.color, markersize=5, zorder=4)
            if own.excess is not None:
                text = format_value(key, own.excess, signed=True)
                write_beside(axes, row, text, [own.value, own.null], style.text, limit=0.8, gap=0.025)
        axes.set_title(title)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1)
        cells = [held[key] for _, held in rows.values()]
        axes.set_xlabel(with_population("share of changed entries inside the mask (%)", key, cells))
        axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
        axes.grid(axis="y", visible=False)


def write_beside(
    axes: Axes, row: int, text: str, marks: Sequence[float | None], color: str, *, limit: float, gap: float
) -> None:
    """A number right of a row's marks on an axis from 0 to 1; left of them where the rightmost lies beyond `limit`."""
    places = [mark for mark in marks if mark is not None]
    inside = max(places) < limit
    where = max(places) + gap if inside else min(places) - gap
    axes.text(where, row, text, va="center", ha="left" if inside else "right", fontsize=6.8, color=color)


TRACKS = (
    ("stable_rank", "Stable rank of ΔW", "stable rank, fp32"),
    ("stable_rank_bf16", "The same, seen in bf16", "stable rank, bf16 view"),
    ("relative_norm", "Size of the update", "‖ΔW‖/‖W0‖"),
    ("hill", "Spectral tail of ΔW", "Hill index"),
)
# Shared by the two figures that draw these tracks: the null of the bf16 panel is not that of the others.
TRACK_NULLS = (
    "the dashed line is its null: an isotropic update of that norm or, in the bf16 panel, the last update's direction "
    "at that norm, rounded, which ends at the value itself (the table's null is the isotropic one). Read the two upper "
    "panels together: a fall that shows only in the bf16 view comes from rounding a small update, and not from "
    "training."
)


def draw_tracks(
    figure: Figure,
    axes_list: list[Axes],
    tracks: tuple[tuple[str, str, str], ...],
    methods: Methods,
    *,
    label_columns: int,
    progress: bool = True,
) -> bool:
    """Fill one panel per (key, title, axis label) with each method along its steps; False if all are empty."""
    any_drawn, ends, looks = False, [], looks_of(methods)
    for position, (axes, (key, title, axis_label)) in enumerate(zip(axes_list, tracks, strict=True)):
        every, labels, held = [], [], []
        for name, method in methods.items():
            style = looks[name]
            held += track_cells(method.get("trajectory"), key)
            for seed in seeds_of(method) if len(seeds_of(method)) > 1 else []:
                x, y = _along(seed.get("trajectory"), key, progress=progress)
                plot_track(axes, x, y, style, kind="seed")
                every += y
            x, y = _along(method.get("trajectory"), key, progress=progress)
            nulls = track(method.get("trajectory"), key, "null")
            if plot_track(axes, x, y, style):
                end = last_point(x, y)
                labels += [(end, label_of(name, method), style.text)] if end is not None else []
            plot_track(axes, x, nulls, style, kind="null")
            every += y + nulls
        axes.set_title(title)
        axes.set_xlabel(with_population("share of the run's steps (%)" if progress else "step", key, held))
        axes.set_ylabel(axis_label)
        share = statistic(key).unit == "share"
        scale_y(axes, every, share=share, log=False if share else None)
        if progress:
            axes.set_xlim(0, 102)
        else:
            scale_x(axes, [s for m in methods.values() for s in _along(m.get("trajectory"), key, progress=False)[0]])
        if not labels:
            blank(axes)
        any_drawn |= bool(labels)
        if position % label_columns == label_columns - 1 and len(methods) > 1:
            ends.append((axes, labels))
    for axes, labels in ends:  # once every panel has its texts, and so its size
        label_ends(figure, axes, labels)
    return any_drawn


def _along(trajectory: Any, key: str, *, progress: bool) -> tuple[list[float], list[float | None]]:
    steps = [s or 0.0 for s in numbers((trajectory or {}).get("steps"))]
    last = max(steps, default=0.0) or 1.0
    return [100 * s / last for s in steps] if progress else steps, track(trajectory, key)


SUBSPACE = (
    ("sim_to_final", "Cumulative update against its end", "similarity to the final subspace (%)"),
    ("sim_disjoint", "Update so far against what follows", "similarity of disjoint parts (%)"),
)


SUBSPACE_TEXT = (
    "Left, the leading right subspace of the update so far is compared with that of the whole update; a random walk "
    "with the same steps (dashed) already rises to 100 %, so only the height above its own dashed line counts. Right, "
    "the update up to a step is compared with the update after it, two parts that share no step, beside that of "
    "independent ones (dashed: K/n, or what rounding leaves of it where checkpoints are in bfloat16): this is the fair "
    "test of a locked subspace."
)
