"""The figures of what runs measured of themselves while they trained: live geometry, and one run's own curves."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .drawing import Methods, draw_tracks
from .formatting import format_number, format_value
from .looks import looks_of
from .reading import label_of, number, track
from .style import Drawing, key_below, panels, plot_track, scale_x, scale_y

_COLUMNS = 3
_UPDATE = (
    ("density_bf16", "Visibly changed since the start", "visible density (bf16, %)"),
    ("relative_norm", "Size of the update", "‖ΔW‖/‖W0‖"),
    ("stable_rank", "Stable rank of ΔW", "stable rank"),
    ("basis_similarity", "Against the early subspace", "similarity (%)"),
    ("leakage", "Outside the early subspace", "energy outside (%)"),
)
_STEP = (("density_bf16", "Visibly changed by one step", "visible density (bf16, %)"),)
_LEARNING = (
    ("loss", "Loss", "loss"),
    ("reward", "Reward", "mean reward"),
    ("gap", "Gap to the teacher", "log-ratio (nats)"),
    ("entropy", "Entropy", "entropy (nats)"),
    ("grad_norm", "Gradient", "gradient norm"),
)


def run_drawings(report: dict[str, Any]) -> list[Drawing]:
    """Every figure that one training run's log allows."""
    name = report["objective"]
    drawings = (learning(report["log"], name), live_geometry({name: {"live": report["live"]}}))
    return [one for one in drawings if one is not None]


def live_geometry(methods: Methods) -> Drawing | None:
    """What the runs measured of themselves (`--geometry-every`), beside its nulls; None where none did."""
    drawn = []
    for tracks, section in ((_UPDATE, "geometry"), (_STEP, "step_geometry")):
        held = _of_section(methods, section)
        known = [one for one in tracks if any(_defined(method, one[0]) for method in held.values())]
        drawn.append((tuple(known), held))
    count = sum(len(tracks) for tracks, _ in drawn)
    if not count:
        return None
    figure, axes = _grid(count, 2.4)
    place = 0
    for tracks, held in drawn:
        part = axes[place : place + len(tracks)]
        draw_tracks(figure, part, tracks, held, label_columns=min(_COLUMNS, count), progress=False)
        place += len(tracks)
    key_below(figure, ["measured", "null"])
    ends = []
    for name, method in drawn[0][1].items():
        values = _defined(method, "density_bf16")
        ends += [f"{label_of(name, method)} {format_value('density_bf16', values[-1])}"] if values else []
    return Drawing(
        "live",
        "What the runs measured of themselves",
        "Each solid line is measured inside the run, on the parameters where they lie, against its own start; the "
        "dashed line is the null of an isotropic update of that norm (of the early subspace: of a random one). The "
        "panel of one step shows what a single optimizer step changes for a bfloat16 reader. Density follows the norm: "
        "only the distance to the dashed line is the method's.",
        f"Live geometry; visible density at the end: {', '.join(ends) or 'undefined'}.",
        figure,
    )


def learning(rows: list[dict[str, Any]], name: str) -> Drawing | None:
    """The curves of one run's log, step by step."""
    steps = [row for row in rows if "loss" in row]
    held = [(*one, steps) for one in _LEARNING if any(number(row.get(one[0])) is not None for row in steps)]
    evaluations = [row for row in rows if number(row.get("accuracy")) is not None]
    if evaluations:
        held.insert(0, ("accuracy", "Held-out accuracy", "accuracy, greedy (%)", evaluations))
    if not held:
        return None
    figure, axes = _grid(len(held), 2.2)
    style, said = looks_of({name: {}})[name], []
    for one, (key, title, axis, among) in zip(axes, held, strict=True):
        x, y = [float(row["step"]) for row in among], [number(row.get(key)) for row in among]
        plot_track(one, x, y, style)
        one.set_title(title)
        one.set_xlabel("step")
        one.set_ylabel(axis)
        scale_x(one, x)
        scale_y(one, y, share=key == "accuracy", log=False)
        known = [value for value in y if value is not None]
        ends = [format_value(key, v) if key == "accuracy" else format_number(v) for v in (known[0], known[-1])]
        said.append(f"{title.lower()} {ends[0]} to {ends[1]}")
    return Drawing(
        "learning",
        "What the run learned",
        "Every panel follows one number of the run's log, step by step. Geometry means little of a run that did not "
        "learn, so read these first.",
        "Along training: " + "; ".join(said) + ".",
        figure,
    )


def _curves(method: dict[str, Any], section: str = "geometry") -> Any:
    held = method.get("live")
    return held.get(section) if isinstance(held, dict) else None


def _of_section(methods: Methods, section: str) -> dict[str, dict[str, Any]]:
    """The methods with the curves of one section in the place of their trajectory; seeds likewise."""
    found = {}
    for name, method in methods.items():
        seeds = [seed | {"trajectory": _curves(seed, section)} for seed in method.get("per_seed") or []]
        found[name] = method | {"trajectory": _curves(method, section), "per_seed": seeds}
    return found


def _defined(method: dict[str, Any], key: str) -> list[float]:
    """A statistic at the steps that have it."""
    return [value for value in track(method.get("trajectory"), key) if value is not None]


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in rows of at most three, each row so high."""
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure, axes = panels(rows, columns, height * rows)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]
