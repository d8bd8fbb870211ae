"""The figures of a trajectory: rank, size and tail along the checkpoints, and the similarity of every pair of them."""

from typing import Any

from .drawing import SUBSPACE, SUBSPACE_TEXT, TRACK_NULLS, TRACKS, against_null, draw_tracks
from .figures_compare import draw_grid
from .formatting import format_value
from .reading import number, numbers, track, track_cells
from .style import Drawing, key_below, panels
from .used import capped_angles

_NAME = "opd"  # one series: any one look, always the same


def trajectory_drawings(trajectory: dict[str, Any]) -> list[Drawing]:
    """Every figure that the trajectory's numbers allow."""
    drawings = (
        ranks(trajectory),
        spectra(trajectory),
        path(trajectory),
        subspace(trajectory),
        similarity(trajectory, "full"),
        similarity(trajectory, "disjoint"),
    )
    return [d for d in drawings if d is not None]


def _ends(trajectory: dict[str, Any], key: str) -> str:
    values = [v for v in track(trajectory, key) if v is not None]
    return f"{format_value(key, values[0])} to {format_value(key, values[-1])}" if values else "undefined"


def _at_the_end(trajectory: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """What value and null say at the last step that has both, statistic by statistic."""
    said = []
    for key in keys:
        cells = zip(numbers(trajectory.get("steps")), track_cells(trajectory, key), strict=True)
        known = [(step, own) for step, own in cells if own.value is not None and own.null is not None]
        if known:
            step, own = known[-1]
            said.append(against_null(key, [("", own)], where=f"at step {step:.0f}" if step is not None else ""))
    return tuple(text for text in said if text)


def ranks(trajectory: dict[str, Any]) -> Drawing | None:
    """Stable rank in both precision views, norm and Hill index along the checkpoints."""
    figure, axes_list = panels(2, 2, 4.4)
    methods = {_NAME: {"trajectory": trajectory}}
    if not draw_tracks(figure, axes_list, TRACKS, methods, label_columns=2, progress=False):
        return None
    key_below(figure, ["measured", "null"])
    return Drawing(
        "trajectory",
        "Rank, size and tail of the update along the checkpoints",
        "Each solid line follows the update from the initial checkpoint to each later one, averaged over the matrices; "
        + TRACK_NULLS,
        f"Along the checkpoints: stable rank {_ends(trajectory, 'stable_rank')}, "
        f"Hill index {_ends(trajectory, 'hill')}.",
        figure,
        _at_the_end(trajectory, ("stable_rank", "hill")),
    )


_SPECTRA = (
    ("angle_left_mean_deg", "Rotation, output side", "mean principal angle, left (°)"),
    ("angle_right_mean_deg", "Rotation, input side", "mean principal angle, right (°)"),
    ("nss", "Spectral drift", "NSS (relative)"),
)
_PATH = (
    ("lr_diffusion_ratio", "Against diffusion", "‖ΔW‖ rms over lr·√T"),
    ("lr_drift_ratio", "Against drift", "‖ΔW‖ rms over lr·T"),
)


def spectra(trajectory: dict[str, Any]) -> Drawing | None:
    """Spectral drift and rotation against W0 along the checkpoints, where they were asked for."""
    return _asked_for(
        trajectory,
        _SPECTRA,
        "spectra",
        "Rotation and spectral drift along the checkpoints",
        "Each solid line follows the spectrum of the weights away from that of the initial checkpoint; the dashed line "
        "is what an isotropic update of the same norm does. Both grow with the norm: only the distance between the two "
        "is the method's.",
        f"Along the checkpoints: spectral shift {_ends(trajectory, 'nss')}.",
    )


def path(trajectory: dict[str, Any]) -> Drawing | None:
    """Size of the update in units of the learning rate along the checkpoints, where the rate is known."""
    return _asked_for(
        trajectory,
        _PATH,
        "path",
        "Diffusion or drift",
        "Both panels give the size of the update in units of the learning rate. Left, steps of that size which add up "
        "at random stay at the dashed 1, right, steps which all go one way do; a run that keeps its direction rises on "
        "the left and stays level on the right.",
        f"Along the checkpoints: over lr·√T {_ends(trajectory, 'lr_diffusion_ratio')}, "
        f"over lr·T {_ends(trajectory, 'lr_drift_ratio')}.",
    )


def _asked_for(
    trajectory: dict[str, Any], tracks: tuple[tuple[str, str, str], ...], name: str, title: str, text: str, alt: str
) -> Drawing | None:
    """One row of panels of statistics that a trajectory has only on request."""
    if all(v is None for key, _, _ in tracks for v in track(trajectory, key)):
        return None
    figure, axes_list = panels(1, len(tracks), 2.6)
    methods = {_NAME: {"trajectory": trajectory}}
    draw_tracks(figure, axes_list, tracks, methods, label_columns=len(tracks), progress=False)
    key_below(figure, ["measured", "null"])
    spectra = name == "spectra"
    found = _at_the_end(trajectory, tuple(key for key, _, _ in tracks)) if spectra else ()
    found = (*capped_angles(trajectory), *found) if spectra else found
    return Drawing(name, title, text, alt, figure, found)


def subspace(trajectory: dict[str, Any]) -> Drawing | None:
    """Similarity to the final right subspace, cumulative and disjoint."""
    figure, axes_list = panels(1, 2, 2.7)
    methods = {_NAME: {"trajectory": trajectory}}
    if not draw_tracks(figure, axes_list, SUBSPACE, methods, label_columns=2, progress=False):
        return None
    key_below(figure, ["measured", "null"])
    alt = f"Similarity to the final subspace along the checkpoints: {_ends(trajectory, 'sim_to_final')}."
    found = _at_the_end(trajectory, ("sim_disjoint",))
    return Drawing("subspace", "When the update finds its subspace", SUBSPACE_TEXT, alt, figure, found)


_TEXT = {
    "full": (
        "Similarity of the subspaces of every pair of checkpoints",
        "Each cell compares the leading right subspaces of the updates up to two checkpoints; a bright block that "
        "reaches back to early steps is a subspace that was found early. The null is a random walk with the same "
        "steps, which is bright near the diagonal by itself: the panel on the right shows what is left above it.",
    ),
    "disjoint": (
        "Similarity of disjoint stretches of training",
        "Each cell compares the update up to step s with the update from a later step t to the end, which share no "
        "step; hatched cells have no such pair. The null is that of independent stretches, K/n, or what "
        "rounding leaves of it where checkpoints are in bfloat16: every cell that is clearly red on the right "
        "shows that training went on in the directions that it had used before.",
    ),
}


def similarity(trajectory: dict[str, Any], kind: str) -> Drawing | None:
    """The step × step similarity matrix, its null, and the excess."""
    blocks = trajectory.get("similarity") or {}
    grid, null = _grid(blocks.get(kind)), _grid(blocks.get(f"{kind}_null"))
    if not any(v is not None for row in grid for v in row) or len(grid) < 2:
        return None
    named = [("measured", grid, False)]
    if [len(r) for r in null] == [len(r) for r in grid]:
        pairs = [list(zip(a, b, strict=True)) for a, b in zip(grid, null, strict=True)]
        excess = [[None if a is None or b is None else a - b for a, b in row] for row in pairs]
        named += [("null", null, False), ("excess over the null (pp)", excess, True)]
    top = 1.0  # for shares of the whole; the disjoint ones stay near their null, about K/n
    if kind == "disjoint":
        top = max(v for values in (grid, null) for row in values for v in row if v is not None) or 1.0
    steps = trajectory.get("steps") or list(range(len(grid)))
    figure, axes_list = panels(1, len(named), 3.5 if len(named) > 1 else 5.0, sharey=True)
    for axes, (title, values, diverging) in zip(axes_list, named, strict=True):
        draw_grid(figure, axes, values, diverging=diverging, share=True, limits=None if diverging else (0.0, top))
        axes.set_title(title)
        axes.set_box_aspect(1)
        every = max(1, len(grid) // 8)
        places = range(0, len(grid), every)
        axes.set_xticks(places, [str(s) for s in steps[: len(grid) : every]], rotation=90)
        axes.set_xlabel("step t" if kind == "full" else "update from step t to the end")
    axes_list[0].set_yticks(places, [str(s) for s in steps[: len(grid) : every]])
    axes_list[0].set_ylabel("step s" if kind == "full" else "update up to step s")
    title, text = _TEXT[kind]
    off = [v for i, row in enumerate(grid) for j, v in enumerate(row) if i != j and v is not None]
    mean = number(sum(off) / len(off)) if off else None
    alt = f"{title}: heat map of {len(grid)} checkpoints, mean off the diagonal {format_value('sim_to_final', mean)}."
    return Drawing(f"similarity_{kind}", title, text, alt, figure, _population(trajectory, kind))


def _population(trajectory: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Over how many matrices the cells are."""
    counts = [n for row in _grid((trajectory.get("similarity") or {}).get(f"{kind}_count")) for n in row if n]
    if not counts:
        return ()
    low, high = int(min(counts)), int(max(counts))
    many = f"{high}" if low == high else f"{low} to {high}"
    return (f"Value and null of a cell are means over the same matrices, n = {many}.",)


def _grid(rows: Any) -> list[list[float | None]]:
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return []
    return [numbers(row) for row in rows]
