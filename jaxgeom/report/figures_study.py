"""The figures of a study: one colour per method, the null beside every statistic.

They are those of *On the Geometry of On-Policy Distillation* (arXiv 2606.07082, Figures 2 to 5) and more. Methods stand
side by side over the matrices that are defined in all of them; a curve is over the same ones at every step.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..diagnostics.statistics import EARLY, SOURCES
from .drawing import (
    OVERLAP_TEXT,
    OVERLAPS,
    SUBSPACE,
    SUBSPACE_TEXT,
    TRACK_NULLS,
    TRACKS,
    Methods,
    against_null,
    draw_by_layer,
    draw_overlaps,
    draw_tracks,
    interval_bar,
    overlap_key,
    reference_key,
    reference_mark,
    triple,
    with_population,
)
from .figures_run import live_geometry
from .formatting import format_value, statistic
from .looks import looks_of
from .published import METHOD_FAMILY, published_sources, references
from .reading import (
    compared_cell,
    compared_tracks,
    label_of,
    matched_rows,
    methods_of,
    number,
    numbers,
    population_range,
    seeds_of,
    track,
)
from .style import (
    INK,
    MUTED,
    PAPER,
    Drawing,
    key_below,
    label_ends,
    last_point,
    panels,
    plot_track,
    scale_y,
)
from .tables import early_words, percent
from .used import capped_angles


def study_drawings(report: dict[str, Any]) -> list[Drawing]:
    """Every figure that the study's numbers allow, in the order of the page."""
    methods = methods_of(report)
    drawings = [accuracy(methods), *(maker(report) for maker in (sparsity, rotation, overlaps))]
    drawings += [ranks(report), subspace(report), matched(report), live_geometry(methods)]
    return [d for d in drawings if d is not None]


def accuracy(methods: Methods) -> Drawing | None:
    """Held-out accuracy along training."""
    figure, (axes,) = panels(1, 1, 2.6)
    labels, every, seeds_drawn, looks = [], [], False, looks_of(methods)
    for name, method in methods.items():
        style = looks[name]
        for seed in seeds_of(method) if len(seeds_of(method)) > 1 else []:
            x, y = _curve(seed)
            seeds_drawn |= plot_track(axes, x, y, style, kind="seed")
        x, y = _curve(method)
        if not plot_track(axes, x, y, style):
            continue
        every += y
        end = last_point(x, y)
        final, ci = x[-1], numbers((method.get("accuracy") or {}).get("ci"))
        if end is not None and len(ci) == 2 and ci[0] is not None and ci[1] is not None:
            axes.plot([final, final], [ci[0], ci[1]], color=style.color, linewidth=0.9, zorder=2.3)
            every += ci
        if end is not None:
            labels.append((end, f"{label_of(name, method)}  {format_value('accuracy', end)}", style.text))
    if not labels:
        return None
    scale_y(axes, every, share=True, log=False)
    axes.set_xlabel("optimizer steps of the run")
    axes.set_ylabel("held-out accuracy, greedy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    label_ends(figure, axes, labels)
    if seeds_drawn:
        key_below(figure, ["measured", "seed"])
    return Drawing(
        "accuracy",
        "What each run learned",
        "Each line is the share of held-out problems that a run answers right (greedy decoding) along its training; "
        "the bar at its end is the 95 % interval. Differences in geometry mean little between runs that did not learn, "
        "so read this figure first.",
        "Held-out accuracy along training. At the end: " + ", ".join(text for _, text, _ in labels) + ".",
        figure,
    )


def _curve(method: dict[str, Any]) -> tuple[list[float], list[float | None]]:
    curve = (method.get("accuracy") or {}).get("curve") or []
    pairs = [(number(p[0]), number(p[1])) for p in curve if isinstance(p, list) and len(p) >= 2]
    kept = [(x, y) for x, y in pairs if x is not None]
    return [x for x, _ in kept], [y for _, y in kept]


_METRICS = (("sparsity_bf16", "visible_sparsity"), ("sparsity_abs_1e-5", "absolute_sparsity_1e-5"))


def sparsity(report: dict[str, Any]) -> Drawing | None:
    """Sparsity per method, over the published values of the same kind of training."""
    methods = methods_of(report)
    cells = {key: {name: compared_cell(report, name, key) for name in methods} for key, _ in _METRICS}
    shown = [(k, m) for k, m in _METRICS if any(own.value is not None for own in cells[k].values())]
    if not shown:
        return None
    figure, axes_list = panels(1, len(shown), 0.55 + 0.42 * len(methods) + 0.6, sharey=True)
    looks = looks_of(methods)
    told = []
    for axes, (key, metric) in zip(axes_list, shown, strict=True):
        for row, (name, method) in enumerate(methods.items()):
            style = looks[name]
            own = cells[key][name]
            for mark in references(metric):
                if mark.family == METHOD_FAMILY.get(name) and name != "sft_continued":
                    reference_mark(axes, mark.value, row, mark.controlled)
            if own.value is None:
                axes.text(0.01, row, "undefined", va="center", color=MUTED, fontsize=7)
                continue
            axes.barh(row, own.value, height=0.34, color=style.color, alpha=0.85, zorder=3)
            if own.null is not None:
                axes.plot([own.null], [row], marker="|", color=INK, markersize=12, markeredgewidth=1.6, zorder=6)
            interval_bar(axes, own, row)
            end = max(own.value, own.null or 0.0, own.high or 0.0)
            label = axes.text(end + 0.015, row, format_value(key, own.value), va="center", fontsize=7, zorder=5)
            label.set_fontweight("bold")
            start = min(v for v in (own.value, own.null, own.low) if v is not None)
            if end > 0.85 and start > 0.2:
                label.set(x=start - 0.015, ha="right", color="white")
            elif end > 0.85:  # over an interval that leaves no room beside it
                inside = own.value > 0.8
                label.set(x=own.value + (-0.015 if inside else 0.015), ha="right" if inside else "left")
                label.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
            told.append(f"{label_of(name, method)} {format_value(key, own.value)}")
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(with_population(f"{statistic(key).label} (% of parameters)", key, list(cells[key].values())))
        axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
        axes.grid(axis="y", visible=False)
        axes.set_title("unchanged in the bf16 view" if key == "sparsity_bf16" else "changed by at most 1e-5")
    _name_rows(axes_list[0], methods)
    own_key = Line2D([], [], color=MUTED, linewidth=5, alpha=0.85, label="this study")
    null_key = Line2D([], [], linestyle="none", marker="|", color=INK, markersize=9, markeredgewidth=1.6, label="null")
    key_below(figure, [], [own_key, null_key, *reference_key()])
    return Drawing(
        "sparsity",
        "How much stayed as it was",
        "The bar is the share of parameters that training left unchanged, and the upright tick what an isotropic "
        "update of the same norm leaves unchanged after rounding to bf16; the grey marks are published "
        "values for the same kind of training on models of 1.5 to 30 billion parameters "
        f"({', '.join(SOURCES[key].cited for key in published_sources())}). "
        "Sparsity moves with the size of the update before anything else: compare it "
        "together with the relative norm and with the figure at matched norm.",
        "Sparsity per method: " + ", ".join(told) + ". Published values are drawn as grey marks.",
        figure,
        _against(report, ["sparsity_bf16"]),
    )


def _against(report: dict[str, Any], keys: Sequence[str], *, at: str = "end") -> tuple[str, ...]:
    """What value and null of the methods say, statistic by statistic, over the matrices that all of them have."""
    methods = methods_of(report)
    said = [
        against_null(key, [(label_of(n, m), compared_cell(report, n, key, at=at)) for n, m in methods.items()])
        for key in keys
    ]
    return tuple(text for text in said if text)


def _name_rows(axes: Axes, methods: Methods) -> None:
    axes.set_yticks(range(len(methods)), [label_of(name, method) for name, method in methods.items()])
    looks = looks_of(methods)
    for tick, name in zip(axes.get_yticklabels(), methods, strict=True):
        tick.set_color(looks[name].text)
        tick.set_fontweight("bold")
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


_ROTATION = (
    ("angle_left_mean_deg", "Rotation, output side", "mean principal angle, left (°)"),
    ("angle_right_mean_deg", "Rotation, input side", "mean principal angle, right (°)"),
    ("nss", "Spectral drift", "NSS (relative)"),
)


def rotation(report: dict[str, Any]) -> Drawing | None:
    """Rotation and drift by layer."""
    methods = methods_of(report)
    figure, axes_list = panels(1, 3, 2.75)
    layers = ((report.get("matched") or {}).get("end") or {}).get("layers") or {}
    looks = looks_of(methods)
    groups = {
        name: (
            looks[name],
            {"layer": layers[name]} if name in layers else method.get("groups"),
            label_of(name, method),
        )
        for name, method in methods.items()
    }
    drawn = draw_by_layer(figure, axes_list, _ROTATION, groups)
    if not drawn:
        return None
    key_below(figure, ["measured", "null"])
    told = "; ".join(
        f"{label_of(name, method)}: "
        f"{triple('angle_left_mean_deg', compared_cell(report, name, 'angle_left_mean_deg'))} left, "
        f"NSS {triple('nss', compared_cell(report, name, 'nss'))}"
        for name, method in methods.items()
    )
    return Drawing(
        "rotation",
        "Rotation and drift by layer",
        "Solid lines show how far training turned the leading singular subspaces of the weights and moved their "
        "spectrum; the dashed line of the same colour is what an isotropic random update of the same Frobenius norm "
        "does, over the same matrices. A method rotates less than chance only where its solid line runs below its own "
        "dashed one: the height alone mostly repeats the size of the update.",
        f"Mean principal angles and normalized spectral shift by layer with their nulls. {told}.",
        figure,
        (*capped_angles(report), *_against(report, [key for key, _, _ in _ROTATION])),
    )


def overlaps(report: dict[str, Any]) -> Drawing | None:
    """Overlap of the changed entries with two reference masks, beside the rounding null."""
    methods = methods_of(report)
    looks = looks_of(methods)
    rows = {
        label_of(name, method): (looks[name], {key: compared_cell(report, name, key) for key, _ in OVERLAPS})
        for name, method in methods.items()
    }
    if all(c.value is None for _, cells in rows.values() for c in cells.values()):
        return None
    figure, axes_list = panels(1, 2, 0.75 + 0.42 * len(methods) + 0.55, sharey=True)
    published = {METHOD_FAMILY.get(name): row for row, name in enumerate(methods) if name != "sft_continued"}
    for mark in references("low_magnitude_overlap"):
        if mark.family in published:
            reference_mark(axes_list[1], mark.value, published[mark.family], controlled=True)
    draw_overlaps(axes_list, rows)
    _name_rows(axes_list[0], methods)
    key_below(figure, [], [*overlap_key(), reference_key()[0]])
    told = "; ".join(
        f"{label}: {', '.join(f'{title.lower()} {triple(key, cells[key])}' for key, title in OVERLAPS)}"
        for label, (_, cells) in rows.items()
    )
    alt, found = f"Overlaps with their nulls. {told}.", _against(report, [key for key, _ in OVERLAPS])
    return Drawing("overlaps", "Where the visible changes fall", OVERLAP_TEXT, alt, figure, found)


def ranks(report: dict[str, Any]) -> Drawing | None:
    """Stable rank in both precision views, norm and Hill index along training."""
    methods = compared_tracks(report)
    figure, axes_list = panels(2, 2, 4.6)
    tracks = TRACKS
    if all(v is None for m in methods.values() for v in track(m.get("trajectory"), "relative_norm")):
        tracks = (*TRACKS[:2], ("fro_norm", "Size of the update", "‖ΔW‖ (Frobenius)"), TRACKS[3])
    if not draw_tracks(figure, axes_list, tracks, methods, label_columns=2):
        return None
    seeds = any(len(seeds_of(m)) > 1 for m in methods.values())
    key_below(figure, ["measured", "null", "seed"] if seeds else ["measured", "null"])
    ends = "; ".join(
        f"{label_of(name, m)} {_first_last(m, 'stable_rank')}" for name, m in methods.items() if m.get("trajectory")
    )
    return Drawing(
        "ranks",
        "Rank, size and tail of the update along training",
        "Each solid line follows the cumulative update of a run from its first to its last checkpoint; " + TRACK_NULLS,
        f"Stable rank along training, first to last checkpoint: {ends}.",
        figure,
    )


def _first_last(method: dict[str, Any], key: str) -> str:
    values = [v for v in track(method.get("trajectory"), key) if v is not None]
    return f"{format_value(key, values[0])} to {format_value(key, values[-1])}" if values else "undefined"


def subspace(report: dict[str, Any]) -> Drawing | None:
    """Similarity to the final right subspace, cumulative and disjoint."""
    methods = compared_tracks(report)
    figure, axes_list = panels(1, 2, 2.9)
    if not draw_tracks(figure, axes_list, SUBSPACE, methods, label_columns=2):
        return None
    key_below(figure, ["measured", "null"])
    told = "; ".join(
        f"{label_of(n, m)} {_first_last(m, 'sim_to_final')}" for n, m in methods.items() if m.get("trajectory")
    )
    return Drawing(
        "subspace",
        "When the update finds its subspace",
        SUBSPACE_TEXT,
        f"Similarity to the final subspace, first to last checkpoint: {told}.",
        figure,
        _early(report),
    )


def _early(report: dict[str, Any]) -> tuple[str, ...]:
    said = _against(report, ["sim_to_final"], at="early")
    where = f"At {early_words(report)} of the steps, the checkpoints nearest to {percent(EARLY)}"
    return tuple(f"{where}: {text[0].lower()}{text[1:]}" for text in said)


_UNITS = {"share": "(%)", "deg": "(degrees)", "relative": "(NSS)", "rank": "(of ΔW)", "": "(of ΔW)"}
_MATCHED = (
    *("sparsity_bf16", "overlap_low", "angle_right_mean_deg", "nss", "stable_rank"),
    *("stable_rank_bf16", "hill", "sim_to_final"),
)


def matched(report: dict[str, Any]) -> Drawing | None:
    """The methods at the same step and at the same relative norm."""
    blocks = report.get("matched") or {}
    methods = methods_of(report)
    sides = {"step": "same\nstep", "relative_norm": "same\nnorm"}
    sides = {at: side for at, side in sides.items() if matched_rows(blocks.get(at))}
    held = {
        key: {name: [compared_cell(report, name, key, at=at) for at in sides] for name in methods} for key in _MATCHED
    }
    keys = [k for k in _MATCHED if any(own.value is not None for cells in held[k].values() for own in cells)][:5]
    if not keys:
        return None
    figure, axes_list = panels(1, len(keys), 2.6)
    looks = looks_of(methods)
    for position, (axes, key) in enumerate(zip(axes_list, keys, strict=True)):
        labels, every = [], []
        for index, (name, method) in enumerate(methods.items()):
            style, offset = looks[name], 0.07 * (index - (len(methods) - 1) / 2)
            cells = held[key][name]
            xs = [x + offset for x in range(len(sides))]
            for x, own in zip(xs, cells, strict=True):
                if own.value is not None and own.null is not None:
                    axes.plot([x - 0.09, x + 0.09], [own.null, own.null], color=style.color, linewidth=1.4, zorder=2.2)
            axes.plot(
                xs,
                [float("nan") if c.value is None else c.value for c in cells],
                color=style.color,
                marker=style.marker,
                linewidth=0.7,
            )
            every += [c.value for c in cells] + [c.null for c in cells]
            if cells[-1].value is not None:
                labels.append((cells[-1].value, label_of(name, method), style.text))
        unit = statistic(key).unit
        axes.set_title(f"{statistic(key).short or statistic(key).label}\n{_UNITS[unit]}", fontsize=7)
        axes.set_xticks(range(len(sides)), list(sides.values()))
        everyone = [own for cells in held[key].values() for own in cells]
        axes.set_xlabel(population_range(key, everyone).replace(" matrices", "").replace(" tensors", ""), fontsize=6.5)
        axes.set_xlim(-0.4, len(sides) - 0.6)
        scale_y(axes, every, share=unit == "share")
        if position == len(keys) - 1:
            label_ends(figure, axes, labels)
    null_key = Line2D(
        [], [], linestyle="none", marker="_", markersize=9, markeredgewidth=1.4, color=MUTED, label="null"
    )
    key_below(figure, ["measured"], [null_key])
    step = (blocks.get("step") or {}).get("step")
    norm = number((blocks.get("relative_norm") or {}).get("relative_norm"))
    at_step = f" ({step})" if step is not None else ""
    at_norm = f" ({format_value('relative_norm', norm)})" if norm is not None else ""
    return Drawing(
        "matched",
        "At the same step and at the same size",
        f"Left in each panel, the methods are compared after the same number of steps{at_step}; right, at the point of "
        f"each run where its update has the same relative norm{at_norm}. Where lines that were apart meet on the "
        "right, the difference was one of size; where they stay apart and off their null (bars), it is one of kind.",
        "Statistics of the methods at matched steps and at matched relative norm, with nulls.",
        figure,
        _at_one_size(report, keys),
    )


def _at_one_size(report: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    said = _against(report, keys, at="relative_norm")
    what = (
        "n counts the matrices (for sparsity, the parameter tensors) that are defined in every method, over which each "
        "value and its null are averaged. At the same relative norm:"
    )
    return (what, *said) if said else ()
