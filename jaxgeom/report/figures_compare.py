"""The figures of a comparison of two checkpoints: sparsity, overlaps, rotation, ranks, and the map of its layers."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..diagnostics.statistics import KIND_LABELS, split_key
from .drawing import (
    OVERLAP_TEXT,
    OVERLAPS,
    against_null,
    blank,
    draw_by_layer,
    draw_overlaps,
    overlap_key,
    published_mark,
    reference_key,
    triple,
)
from .formatting import MODULES, format_count, format_value, population_words, statistic
from .published import PUBLISHED_FRACTION, references
from .reading import Cell, cell, number, numbers
from .style import FAINT, FAMILY_LOOKS, INK, MUTED, PAPER, SINGLE, Drawing, key_below, panels, plain_number, scale_y
from .used import capped_angles


def compare_drawings(report: dict[str, Any], rows: list[dict[str, Any]]) -> list[Drawing]:
    """Every figure that the comparison's numbers allow, in the order of the page."""
    drawings = (sparsity(report), hidden(rows), overlaps(report), rotation(report), ranks(report), layer_map(rows))
    return [d for d in drawings if d is not None]


_GROUPS = (
    ("all", "all parameters"),
    ("matrices", "matrices"),
    ("embedding", "embedding"),
    ("head", "head"),
    ("norm", "norms"),
)
_PUBLISHED = (("sft", "published SFT"), ("opd", "published OPD"), ("rlvr", "published RLVR"))
_SPARSITIES = (
    ("sparsity_bf16", "visible_sparsity", "unchanged in the bf16 view"),
    ("sparsity_abs_1e-5", "absolute_sparsity_1e-5", "changed by at most 1e-5"),
)


def sparsity(report: dict[str, Any]) -> Drawing | None:
    """Sparsity by kind of parameter, visible and at an absolute tolerance, over the published values of each."""
    groups = (report.get("groups") or {}).get("sparsity") or {}
    names = [(label, groups[name]) for name, label in _GROUPS if _holds_any(groups.get(name))]
    own = [{label: cell(group, key) for label, group in names} for key, _, _ in _SPARSITIES]
    if all(one.value is None for panel in own for one in panel.values()):
        own = [{"matrices": cell(report.get("summary"), key)} for key, _, _ in _SPARSITIES]
    found = [[(label, one.value) for label, one in panel.items()] for panel in own]
    shown = [
        (*what, panel)
        for what, panel in zip(_SPARSITIES, found, strict=True)
        if any(value is not None for _, value in panel)
    ]
    if not shown:
        return None
    labels = [counted_label(label, [panel[label] for panel in own]) for label, _ in found[0]]
    labels += [label for _, label in _PUBLISHED]
    figure, axes_list = panels(1, len(shown), 0.9 + 0.27 * len(labels), sharey=True)
    for axes, (key, metric, title, panel) in zip(axes_list, shown, strict=True):
        _sparsity_panel(axes, key, metric, panel)
        axes.set_title(title)
    axes_list[0].set_yticks(range(len(labels)), labels)
    for tick, (family, _) in zip(axes_list[0].get_yticklabels()[-len(_PUBLISHED) :], _PUBLISHED, strict=True):
        tick.set_color(FAMILY_LOOKS[family].text)
    axes_list[0].set_ylim(len(labels) - 0.4, -0.6)
    key_below(figure, [], reference_key())
    told = "; ".join(
        f"{title}: " + ", ".join(f"{label} {format_value(key, value)}" for label, value in panel)
        for key, _, title, panel in shown
    )
    return Drawing(
        "sparsity",
        "How much stayed as it was",
        "The bars give the share of parameters that are unchanged, by kind of parameter; the marks under them are "
        "published values for three kinds of training, on models of 1.5 to 30 billion parameters. The dotted line "
        "carries this comparison's own value down to them: it says which updates were of a similar size, and not that "
        "they were trained alike.",
        f"Sparsity, {told}. Published values are drawn as marks below.",
        figure,
        _against(report.get("summary"), ["sparsity_bf16"]),
    )


def counted_label(label: str, cells: Sequence[Cell]) -> str:
    """The label of a row with the number of matrices or tensors that its cells are over.

    Where a module has no null its values are in no mean beside a null, and so not in that of all modules: it is said.
    """
    known = [own for own in cells if own.value is not None and own.count is not None]
    counts = dict.fromkeys(own.count for own in known)
    if not counts:
        return label
    without = ", no null" if not any(own.null is not None for own in known) and label != "all" else ""
    return f"{label} (n = {', '.join(format_count(count) for count in counts)}{without})"


_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def module_label(name: str) -> str:
    """`k_proj` for the module k, which beside a count would be read as a number."""
    return f"{name}_proj" if name in _PROJECTIONS else name


def _holds_any(group: Any) -> bool:
    """Whether there are parameters of the kind: where there are some, their sparsity is defined."""
    return any(cell(group, key).value is not None for key, _, _ in _SPARSITIES)


def _sparsity_panel(axes: Axes, key: str, metric: str, values: list[tuple[str, float | None]]) -> None:
    """Bars of one sparsity by kind of parameter, and under them the published values, one row a kind of training."""
    for row, (_, value) in enumerate(values):
        if value is None:
            axes.text(0.01, row, "undefined", va="center", color=MUTED, fontsize=6.5)
            continue
        axes.barh(row, value, height=0.6, color=SINGLE.color, alpha=0.9 if row == 0 else 0.55, zorder=3)
        inside = value > 0.8
        label = axes.text(
            value + (-0.01 if inside else 0.01),
            row,
            format_value(key, value),
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else INK,
            fontsize=7,
            zorder=4,
        )
        if not inside:  # the dotted line may pass here
            label.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
    for row, (family, _) in enumerate(_PUBLISHED, start=len(values)):
        axes.axhline(row, color=FAINT, linewidth=0.5, zorder=1)
        for mark in references(metric):
            if mark.family == family:
                published_mark(axes, mark.value, row, mark.controlled)
    if values and values[0][1] is not None:
        axes.axvline(values[0][1], color=SINGLE.color, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
    axes.set_xlabel(f"{statistic(key).label} (%)")


def hidden(rows: list[dict[str, Any]]) -> Drawing | None:
    """Share of the visible changes that an absolute tolerance hides, by decile of |W0|."""
    tables = [numbers(row.get("hidden_by_decile")) for row in rows]
    columns = list(zip(*(table for table in tables if len(table) == 10), strict=True))
    known = [[v for v in column if v is not None] for column in columns]
    means = [sum(column) / len(column) if column else None for column in known]
    if all(mean is None for mean in means):
        return None
    figure, (axes,) = panels(1, 1, 2.3)
    for place, mean in enumerate(means, start=1):
        if mean is None:
            axes.text(place, 0, "undefined", rotation=90, va="bottom", ha="center", color=MUTED, fontsize=6.5)
            continue
        axes.bar(place, mean, width=0.7, color=SINGLE.color, alpha=0.85, zorder=3)
        text = format_value("sparsity_bf16", mean)
        axes.text(place, mean, text, va="bottom", ha="center", fontsize=6.5, zorder=4)
    axes.set_xticks(range(1, 11), ["1\nsmallest", *map(str, range(2, 10)), "10\nlargest"])
    counts = [len(column) for column in known if column]
    many = population_words(max(counts), len(rows))
    least = f"n = {format_count(min(counts))} to " if min(counts) < max(counts) else "n = "
    axes.set_xlabel(f"decile of |W0| within its matrix\n{many.replace('n = ', least)}")
    axes.set_ylabel("hidden share (%)")
    axes.grid(axis="x", visible=False)
    scale_y(axes, means, share=True, log=False)
    axes.set_ylim(0, 1.12 * max(m for m in means if m is not None) or 1.0)
    told = ", ".join(format_value("sparsity_bf16", mean) for mean in means)
    return Drawing(
        "hidden",
        "What an absolute tolerance hides",
        "Each bar is the share of the entries that changed visibly in bf16, yet by no more than 1e-5, so that a test "
        "with that tolerance calls them unchanged; the entries are ordered by the size of their initial weight, and "
        "the shares averaged over the matrices. Bars that fall from left to right mean that such a test overlooks the "
        "changes of small weights first, which is where rounding lets a small update show.",
        f"Share of visible changes of at most 1e-5 by decile of the initial magnitude: {told}.",
        figure,
    )


def overlaps(report: dict[str, Any]) -> Drawing | None:
    """Overlap with both reference masks by module beside the rounding null; published values of the same fraction."""
    modules = (report.get("groups") or {}).get("module") or {}
    names = [m for m in MODULES if m in modules] + [m for m in modules if m not in MODULES]
    sources = {"all": report.get("summary")} | {name: modules[name] for name in names}
    rows = {name: (SINGLE, {key: cell(source, key) for key, _ in OVERLAPS}) for name, source in sources.items()}
    rows = {
        name: row for name, row in rows.items() if name == "all" or any(c.value is not None for c in row[1].values())
    }
    if all(c.value is None for _, cells in rows.values() for c in cells.values()):
        return None
    published = references("low_magnitude_overlap") if _same_fraction(report) else ()
    labels = [counted_label(module_label(name), list(cells.values())) for name, (_, cells) in rows.items()]
    labels += ["published"] if published else []
    figure, axes_list = panels(1, 2, 1.0 + 0.25 * len(labels), sharey=True)
    draw_overlaps(axes_list, rows)
    for mark in published:
        axes_list[1].axvline(mark.value, color=FAINT, linewidth=0.8, zorder=1.2)
        published_mark(axes_list[1], mark.value, len(rows), mark.controlled)
        where, text = mark.value + 0.02, FAMILY_LOOKS[mark.family].text
        axes_list[1].text(where, len(rows), mark.family.upper(), va="center", color=text, fontsize=6.5)
    for axes in axes_list:  # every row has a number of its own
        axes.set_xlabel("share of changed entries inside the mask (%)")
    axes_list[0].set_yticks(range(len(labels)), labels)
    axes_list[0].set_ylim(len(labels) - 0.4, -0.6)
    axes_list[0].tick_params(axis="y", length=0)
    axes_list[0].get_yticklabels()[0].set_fontweight("bold")
    key_below(figure, [], overlap_key(SINGLE) + (reference_key()[:1] if published else []))
    summary = report.get("summary")
    told = ", ".join(f"{title.lower()} {triple(key, cell(summary, key))}" for key, title in OVERLAPS)
    alt, title = f"Overlaps by module: {told}.", "Where the visible changes fall"
    return Drawing("overlaps", title, OVERLAP_TEXT, alt, figure, _against(summary, [key for key, _ in OVERLAPS]))


def _against(summary: Any, keys: Sequence[str]) -> tuple[str, ...]:
    """What value and null of a comparison say, statistic by statistic."""
    return tuple(text for key in keys if (text := against_null(key, [("", cell(summary, key))])))


def _same_fraction(report: dict[str, Any]) -> bool:
    """Whether the masks hold the share of the entries that the published overlaps were taken at."""
    settings = report.get("settings")
    return isinstance(settings, dict) and settings.get("mask_fraction") == PUBLISHED_FRACTION


_ROTATION = (
    ("angle_left_mean_deg", "Rotation, output side", "mean principal angle, left (°)"),
    ("angle_right_mean_deg", "Rotation, input side", "mean principal angle, right (°)"),
    ("nss", "Spectral drift", "NSS (relative)"),
)
_RANKS = (
    ("relative_norm", "Size of the update", "‖ΔW‖/‖W0‖"),
    ("stable_rank", "Stable rank of ΔW", "stable rank, as stored"),
    ("hill", "Spectral tail of ΔW", "Hill index"),
)


def rotation(report: dict[str, Any]) -> Drawing | None:
    """Angles and drift by layer, beside the norm-matched null."""
    figure, axes_list = panels(1, 3, 2.6)
    if not draw_by_layer(figure, axes_list, _ROTATION, {"own": (SINGLE, report.get("groups"), "measured")}):
        return None
    key_below(figure, ["measured", "null"])
    summary = report.get("summary")
    told = ", ".join(f"{statistic(k).label} {triple(k, cell(summary, k))}" for k, _, _ in _ROTATION)
    return Drawing(
        "rotation",
        "Rotation and drift by layer",
        "The solid line shows how far the leading singular subspaces turned and how far the spectrum moved, averaged "
        "over the matrices of each layer for which value and null are both defined. The dashed line is what an "
        "isotropic random update of the same Frobenius norm does to the same matrices: only the distance between the "
        "two is the method's, and whether it is more than the null's own scatter is said below.",
        f"By layer: {told}.",
        figure,
        (*capped_angles(report), *_against(summary, [key for key, _, _ in _ROTATION])),
    )


def ranks(report: dict[str, Any]) -> Drawing | None:
    """Size, stable rank and tail of the update by layer."""
    figure, axes_list = panels(1, 3, 2.6)
    if not draw_by_layer(figure, axes_list, _RANKS, {"own": (SINGLE, report.get("groups"), "measured")}):
        return None
    key_below(figure, ["measured", "null"])
    summary = report.get("summary")
    told = ", ".join(f"{statistic(k).label} {triple(k, cell(summary, k))}" for k, _, _ in _RANKS)
    return Drawing(
        "ranks",
        "Size, rank and tail of the update by layer",
        "The stable rank counts how many directions carry the update, and the Hill index how heavy the tail of its "
        "spectrum is (smaller is heavier); each point is the mean over the matrices of a layer. The dashed line is the "
        "null: a random update of the same norm spreads over many directions, so a low rank is a finding and a high "
        "one is not.",
        f"By layer: {told}.",
        figure,
        _against(summary, [key for key, _, _ in _RANKS]),
    )


_MAP = ("sparsity_bf16", "overlap_low_excess", "stable_rank", "nss")


def layer_map(rows: list[dict[str, Any]], keys: tuple[str, ...] = _MAP) -> Drawing | None:
    """Layer × module for a few statistics (the page's own map offers every one)."""
    grids = [(key, *layer_grid(rows, key)) for key in keys]
    shown = [
        (key, layers, modules, grid)
        for key, layers, modules, grid in grids
        if any(v is not None for r in grid for v in r)
    ]
    if not shown:
        return None
    layers, modules = shown[0][1], shown[0][2]
    figure, axes_list = panels(1, len(shown), min(1.7 + 0.13 * len(layers), 6.5), sharey=True)
    for axes, (key, _, _, grid) in zip(axes_list, shown, strict=True):
        draw_grid(
            figure,
            axes,
            grid,
            diverging=key.endswith("_excess"),
            share=statistic(split_key(key)[0]).unit == "share",
        )
        base, kind, _ = split_key(key)
        title, over = statistic(base).short or statistic(base).label, KIND_LABELS.get(kind, "null")
        axes.set_title(title + (f"\nexcess over {over} (pp)" if key.endswith("_excess") else ""), fontsize=7)
        axes.set_xticks(range(len(modules)), modules, rotation=90)
        axes.set_xlabel("module")
    every = max(1, len(layers) // 18)
    axes_list[0].set_yticks(range(0, len(layers), every), [str(n) for n in layers[::every]])
    axes_list[0].set_ylabel("layer")
    return Drawing(
        "layers",
        "Map of layers and modules",
        "Each cell is one matrix (the mean over experts in a mixture), coloured by the statistic named above its "
        "panel; the excess is blue below the null and red above it. Stripes along a column mean that the kind of "
        "module decides, stripes along a row that the depth does; hatched cells are undefined.",
        f"Heat maps of {len(layers)} layers by {len(modules)} modules for {len(shown)} statistics.",
        figure,
    )


def layer_grid(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[str], list[list[float | None]]]:
    """Layers, modules, and the mean of `key` over the matrices of each pair (None where there is none)."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    layers, modules = set(), set()
    for row in rows:
        layer, module, value = row.get("layer"), row.get("module"), number(row.get(key))
        if isinstance(layer, int) and module is not None:
            layers.add(layer)
            modules.add(str(module))
            if value is not None:
                found[layer, str(module)].append(value)
    columns = [m for m in MODULES if m in modules] + sorted(modules.difference(MODULES))
    order = sorted(layers)
    grid = [[sum(v) / len(v) if (v := found.get((layer, m))) else None for m in columns] for layer in order]
    return order, columns, grid


def draw_grid(
    figure: Figure,
    axes: Axes,
    grid: list[list[float | None]],
    *,
    diverging: bool = False,
    share: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    """A heat map with its colour bar; undefined cells are grey and hatched, as in the page's own map."""
    known = [v for row in grid for v in row if v is not None]
    if not known:
        blank(axes)
        return
    low, high = limits or (min(known), max(known))
    if diverging:
        # Full colour is never less than a point: else what is nothing would look like the strongest of findings.
        high = max(abs(low), abs(high), 0.01 if share else 0.0) or 1.0
        low = -high
    single = high <= low  # one colour, and one number under it
    if single:
        pad = abs(high) or 1.0
        low, high = low - pad, high + pad
    values = [[float("nan") if v is None else v for v in row] for row in grid]
    columns, rows = [c - 0.5 for c in range(len(values[0]) + 1)], [r - 0.5 for r in range(len(values) + 1)]
    axes.set_facecolor(FAINT)
    palette = "RdBu_r" if diverging else "cividis"
    image = axes.pcolormesh(
        columns, rows, values, cmap=palette, norm=Normalize(low, high), edgecolor="face", linewidth=0.1
    )
    for r, row in enumerate(grid):
        for c, value in enumerate(row):
            if value is None:
                axes.add_patch(
                    Rectangle((c - 0.5, r - 0.5), 1, 1, facecolor="none", edgecolor=MUTED, hatch="/////", linewidth=0)
                )
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    # Powers of ten are wide: more than two of them would run into each other.
    ticks = 1 if "×" in plain_number(high) and not share else 2
    bar = figure.colorbar(
        image,
        ax=axes,
        orientation="horizontal",
        fraction=0.06,
        pad=0.03,
        aspect=18,
        ticks=[known[0]] if single else MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]),
    )
    cast(Patch, bar.outline).set_visible(False)
    bar.ax.tick_params(labelsize=6, color=MUTED)
    bar.ax.xaxis.set_major_formatter(_tick_format(low, high, share))


def _tick_format(low: float, high: float, share: bool) -> Callable[[float, Any], str]:
    """How a colour bar writes its numbers: enough digits to tell its two ends apart, shares in percent."""
    if not share:
        return lambda v, _: plain_number(v)
    digits = min(max(1 - math.floor(math.log10(100 * (high - low))), 0), 6)
    return lambda v, _: f"{100 * v:.{digits}f}".replace("-", "−")
