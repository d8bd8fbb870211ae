"""The figures of two runs from one start: their changed masks and their updates, by module, beside their nulls."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .drawing import against_null, triple, write_beside
from .figures_compare import counted_label, layer_map, module_label
from .formatting import MODULES, format_value
from .reading import Cell, cell
from .style import INK, MUTED, SINGLE, Drawing, key_below, panels

_MASKS = (
    ("jaccard", "Changed in both, of either's", "Jaccard index (%)"),
    ("overlap_a_in_b", "Of B's changes, A's too", "|A ∩ B| / |B| (%)"),
    ("overlap_b_in_a", "Of A's changes, B's too", "|A ∩ B| / |A| (%)"),
)
_UPDATES = (
    ("orthogonal_share", "Orthogonal share of the updates", "1 − cos² (%)"),
    ("subspace_similarity", "Leading right subspaces", "similarity of the top-K subspaces (%)"),
)
_MAP = ("jaccard_rounding_excess", "orthogonal_share", "subspace_similarity_excess")


def between_drawings(report: dict[str, Any], rows: list[dict[str, Any]]) -> list[Drawing]:
    """Every figure that the numbers of two runs allow, in the order of the page."""
    drawings = (masks(report), updates(report), layer_map(rows, _MAP))
    return [drawing for drawing in drawings if drawing is not None]


def masks(report: dict[str, Any]) -> Drawing | None:
    """Jaccard index and one-sided overlaps by module, beside independence and rounding null."""
    text = (
        "The filled mark is the measured overlap of the entries that the two runs changed visibly; the open mark is "
        "what masks of the same sizes laid at random give, and the upright tick what two independent random updates of "
        "the same densities give after rounding, which makes small weights change first in both. The number is the "
        "excess over the tick in percentage points: only that distance speaks of a common choice of entries."
    )
    return _by_module(report, _MASKS, "masks", "Do they change the same entries?", text, "Overlaps", True)


def updates(report: dict[str, Any]) -> Drawing | None:
    """Orthogonal share and subspace similarity by module, beside their nulls."""
    text = (
        "Left, the filled mark is the share of one update's energy that is orthogonal to the other, and the open mark "
        "its null, next to 100 %, since independent updates of a large matrix are orthogonal almost entirely. Right, "
        "it is how far the leading right subspaces of the two updates agree, beside the chance level K/n: a mark off "
        "its null, below it on the left or above it on the right, means that the runs share directions."
    )
    return _by_module(report, _UPDATES, "updates", "Do they move the same way?", text, "Updates", False)


def _by_module(
    report: dict[str, Any], columns: tuple[tuple[str, str, str], ...], name: str, title: str, text: str, noun: str,
    rounding: bool,
) -> Drawing | None:  # fmt: skip
    modules = (report.get("groups") or {}).get("module") or {}
    order = [m for m in MODULES if m in modules] + [m for m in modules if m not in MODULES]
    sources = {"all": report.get("summary")} | {module: modules[module] for module in order}
    if all(cell(source, key).value is None for source in sources.values() for key, _, _ in columns):
        return None
    figure, axes_list = panels(1, len(columns), 1.0 + 0.25 * len(sources), sharey=True)
    for axes, (key, heading, label) in zip(axes_list, columns, strict=True):
        for row, source in enumerate(sources.values()):
            _draw_row(axes, row, key, source)
        axes.set_title(heading)
        axes.set_xlabel(label)
        axes.set_xlim(0, 1.03)
        axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    labels = [
        counted_label(module_label(name), [_shown(source, key) for key, _, _ in columns])
        for name, source in sources.items()
    ]
    axes_list[0].set_yticks(range(len(sources)), labels)
    axes_list[0].set_ylim(len(sources) - 0.4, -0.6)
    axes_list[0].get_yticklabels()[0].set_fontweight("bold")
    key_below(figure, [], _key(rounding))
    told = ", ".join(
        f"{heading.lower()} {triple(key, _shown(report.get('summary'), key))}" for key, heading, _ in columns
    )
    name_of_null = "rounding null" if rounding else "null"
    cells = ((key, _shown(report.get("summary"), key)) for key, _, _ in columns)
    said = (against_null(key, [("", own)], null=name_of_null) for key, own in cells)
    return Drawing(name, title, text, f"{noun}: {told}.", figure, tuple(sentence for sentence in said if sentence))


def _shown(source: Any, key: str) -> Cell:
    """What a row shows: against the rounding null where there is one, over the matrices that have it."""
    rounding = cell(source, key, "rounding")
    return rounding if rounding.null is not None else cell(source, key)


def _draw_row(axes: Axes, row: int, key: str, source: Any) -> None:
    own, plain, rounding = _shown(source, key), cell(source, key), cell(source, key, "rounding")
    if own.value is None:
        axes.text(0.01, row, "undefined", va="center", color=MUTED, fontsize=6.5)
        return
    # The null of independence is drawn where it is one of the same matrices.
    independent = plain.null if plain.count == own.count else None
    if own.null is not None:
        axes.plot([own.null, own.value], [row, row], color=SINGLE.color, linewidth=2.4, alpha=0.5, zorder=3)
    if independent is not None:
        axes.plot([independent], [row], marker="o", markerfacecolor="none", color=MUTED, markersize=5, zorder=4)
    if rounding.null is not None:
        axes.plot([rounding.null], [row], marker="|", color=INK, markersize=9, markeredgewidth=1.6, zorder=5)
    axes.plot([own.value], [row], marker=SINGLE.marker, color=SINGLE.color, markersize=4.5, zorder=6)
    if own.excess is not None:
        text = format_value(key, own.excess, signed=True)
        write_beside(axes, row, text, [own.value, independent, own.null], SINGLE.text, limit=0.78, gap=0.03)


def _key(rounding: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], linestyle="none", marker=SINGLE.marker, color=SINGLE.color, markersize=4.5, label="measured"),
        Line2D(
            [], [], linestyle="none", marker="o", color=MUTED, markerfacecolor="none", markersize=5,
            label="null: independence" if rounding else "null",
        ),
    ]  # fmt: skip
    if rounding:
        handles.append(
            Line2D(
                [], [], linestyle="none", marker="|", color=INK, markersize=9, markeredgewidth=1.6,
                label="rounding null",
            )
        )  # fmt: skip
    return handles
