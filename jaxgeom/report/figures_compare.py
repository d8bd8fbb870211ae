"""The figures of a comparison of two checkpoints: sparsity, overlaps, rotation, ranks, and the map of its layers."""

from collections import defaultdict
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .catalogue import MODULES, format_value, statistic
from .drawing import (
    OVERLAP_TEXT,
    OVERLAPS,
    blank,
    draw_by_layer,
    draw_overlaps,
    overlap_key,
    reference_key,
    triple,
)
from .published import references
from .reading import cell, number
from .style import FAINT, FAMILY_LOOKS, INK, MUTED, SINGLE, Drawing, key_below, panels


def compare_drawings(report: dict[str, Any], rows: list[dict[str, Any]]) -> list[Drawing]:
    """Every figure that the comparison's numbers allow, in the order of the page."""
    drawings = (sparsity(report), overlaps(report), rotation(report), ranks(report), layer_map(rows))
    return [d for d in drawings if d is not None]


_GROUPS = (
    ("all", "all parameters"),
    ("matrices", "matrices"),
    ("embedding", "embedding"),
    ("head", "head"),
    ("norm", "norms"),
)
_PUBLISHED = (("sft", "published SFT"), ("opd", "published OPD"), ("rlvr", "published RLVR"))


def sparsity(report: dict[str, Any]) -> Drawing | None:
    """Visible sparsity by kind of parameter, over the published values."""
    groups = (report.get("groups") or {}).get("sparsity") or {}
    own = cell(report.get("summary"), "sparsity_bf16")
    found = [(label, cell(groups.get(name), "sparsity_bf16").value) for name, label in _GROUPS if name in groups]
    values = [(label, value) for label, value in found if value is not None]
    if not values and own.value is not None:
        values = [("matrices", own.value)]
    if not values:
        return None
    figure, (axes,) = panels(1, 1, 0.75 + 0.27 * (len(values) + len(_PUBLISHED)))
    for row, (_, value) in enumerate(values):
        axes.barh(row, value, height=0.6, color=SINGLE.color, alpha=0.9 if row == 0 else 0.55, zorder=3)
        inside = value > 0.9
        axes.text(
            value + (-0.01 if inside else 0.01),
            row,
            format_value("sparsity_bf16", value),
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else INK,
            fontsize=7,
            zorder=4,
        )
    for row, (family, _) in enumerate(_PUBLISHED, start=len(values)):
        marks = [m for m in references("visible_sparsity") if m.family == family]
        axes.axhline(row, color=FAINT, linewidth=0.5, zorder=1)
        for mark in marks:
            face = MUTED if mark.controlled else "none"
            shape, size = ("D", 22) if mark.controlled else ("o", 18)
            axes.scatter(
                [mark.value], [row], s=size, marker=shape, facecolors=face, edgecolors=MUTED, linewidths=0.8, zorder=2
            )
    axes.axvline(values[0][1], color=SINGLE.color, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5)
    names = [label for label, _ in values] + [label for _, label in _PUBLISHED]
    axes.set_yticks(range(len(names)), names)
    for tick, (family, _) in zip(axes.get_yticklabels()[len(values) :], _PUBLISHED, strict=True):
        tick.set_color(FAMILY_LOOKS[family].text)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
    axes.set_xlabel("parameters unchanged in the bf16 view (%)")
    key_below(figure, [], reference_key())
    told = ", ".join(f"{label} {format_value('sparsity_bf16', value)}" for label, value in values)
    return Drawing(
        "sparsity",
        "How much stayed as it was",
        "The bars give the share of parameters that are unchanged in bf16, by kind of parameter; the marks under them "
        "are published values for three kinds of training, on models of 1.5 to 30 billion parameters. The dotted line "
        "carries this comparison's own value down to them: it says which updates were of a similar size, and not that "
        "they were trained alike.",
        f"Visible sparsity: {told}. Published values are drawn as marks below.",
        figure,
    )


def overlaps(report: dict[str, Any]) -> Drawing | None:
    """Overlap with both reference masks by module, beside the rounding null."""
    modules = (report.get("groups") or {}).get("module") or {}
    names = [m for m in MODULES if m in modules] + [m for m in modules if m not in MODULES]
    sources = {"all": report.get("summary")} | {name: modules[name] for name in names}
    rows = {name: (SINGLE, {key: cell(source, key) for key, _ in OVERLAPS}) for name, source in sources.items()}
    rows = {
        name: row for name, row in rows.items() if name == "all" or any(c.value is not None for c in row[1].values())
    }
    if all(c.value is None for _, cells in rows.values() for c in cells.values()):
        return None
    figure, axes_list = panels(1, 2, 1.0 + 0.25 * len(rows), sharey=True)
    draw_overlaps(axes_list, rows)
    axes_list[0].set_yticks(range(len(rows)), list(rows))
    axes_list[0].set_ylim(len(rows) - 0.4, -0.6)
    axes_list[0].tick_params(axis="y", length=0)
    axes_list[0].get_yticklabels()[0].set_fontweight("bold")
    key_below(figure, [], overlap_key())
    told = ", ".join(f"{title.lower()} {triple(key, cell(report.get('summary'), key))}" for key, title in OVERLAPS)
    return Drawing("overlaps", "Where the visible changes fall", OVERLAP_TEXT, f"Overlaps by module: {told}.", figure)


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
        "over the matrices of each layer. The dashed line is what an isotropic random update of the same Frobenius "
        "norm does to the same matrices: below it the update avoids the principal directions, above it it seeks them.",
        f"By layer: {told}.",
        figure,
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
            share=statistic(key.removesuffix("_excess")).unit == "share",
        )
        base = statistic(key.removesuffix("_excess"))
        title = {"overlap_low": "low-magnitude overlap"}.get(base.key, base.label)
        axes.set_title(title + ("\nexcess over null (pp)" if key.endswith("_excess") else ""), fontsize=7)
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
        "module decides, stripes along a row that the depth does; grey cells are undefined.",
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
    """A heat map with its colour bar; undefined cells are grey."""
    known = [v for row in grid for v in row if v is not None]
    if not known:
        blank(axes)
        return
    low, high = limits or (min(known), max(known))
    if diverging:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    if high <= low:
        low, high = low - 1e-12, high + 1e-12
    values = [[float("nan") if v is None else v for v in row] for row in grid]
    columns, rows = [c - 0.5 for c in range(len(values[0]) + 1)], [r - 0.5 for r in range(len(values) + 1)]
    axes.set_facecolor(FAINT)
    palette = "RdBu_r" if diverging else "cividis"
    image = axes.pcolormesh(
        columns, rows, values, cmap=palette, norm=Normalize(low, high), edgecolor="face", linewidth=0.1
    )
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(
        image, ax=axes, orientation="horizontal", fraction=0.06, pad=0.03, aspect=18, ticks=MaxNLocator(3)
    )
    cast(Patch, bar.outline).set_visible(False)
    bar.ax.tick_params(labelsize=6, color=MUTED)
    if share:
        bar.ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g}".replace("-", "−"))
