"""Comparing methods where they are comparable: at the same step, and at the same relative norm of the update."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MATCHED_STATISTICS = (
    "relative_norm",
    "fro_norm",
    "sparsity_bf16",
    "overlap_principal",
    "overlap_low",
    "angle_left_mean_deg",
    "angle_right_mean_deg",
    "nss",
    "stable_rank",
    "stable_rank_bf16",
    "hill",
    "sim_to_final",
)


def at_step(trajectories: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every method's statistics at the last step that all of them saved.

    Args:
        trajectories: By method: a trajectory's `steps` and `summary`.

    Returns:
        `{"step": n, "rows": [{"method", statistic: value, statistic + "_null": value}]}`; empty rows where the methods
        share no step.
    """
    shared = set.intersection(*(set(t["steps"]) for t in trajectories.values())) - {0} if trajectories else set()
    if not shared:
        return {"step": None, "rows": []}
    step = max(shared)
    rows = []
    for method, trajectory in trajectories.items():
        index = list(trajectory["steps"]).index(step)
        rows.append({"method": method} | {key: curve[index] for key, curve in _curves(trajectory).items()})
    return {"step": step, "rows": rows}


def at_relative_norm(trajectories: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every method's statistics where its update first has the relative norm that all of them reach.

    That norm is the smallest of the methods' largest; between two checkpoints the statistics are interpolated linearly
    in the relative norm. A method that is past that norm at its first checkpoint has no value there: its row is empty.

    Returns:
        `{"relative_norm": x, "rows": [{"method", "step", statistic: value, …}]}`.
    """
    norms = {m: _numbers(t["summary"]["relative_norm"]["mean"]) for m, t in trajectories.items()}
    if not norms or any(np.all(np.isnan(values)) for values in norms.values()):
        return {"relative_norm": None, "rows": []}
    target = float(min(np.nanmax(values) for values in norms.values()))
    rows = []
    for method, trajectory in trajectories.items():
        place = _crossing(norms[method], target)
        curves = {"step": trajectory["steps"]} | _curves(trajectory)
        rows.append({"method": method} | {key: _interpolate(curve, place) for key, curve in curves.items()})
    return {"relative_norm": target, "rows": rows}


def _curves(trajectory: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    curves = {}
    for name in MATCHED_STATISTICS:
        entry = trajectory["summary"].get(name)
        if entry is None:
            continue
        curves[name] = entry["mean"]
        if entry.get("null") is not None:
            curves[name + "_null"] = entry["null"]
    return curves


def _crossing(values: np.ndarray, target: float) -> float | None:
    """The first place, in checkpoints and fractions of one, where a curve reaches `target`; None if before them all."""
    # Rounding must not push the method that sets the target past its own end.
    reached = np.flatnonzero(values >= target * (1 - 1e-12))
    index = int(reached[0])
    if index == 0 or np.isnan(values[index - 1]):
        return float(index) if values[index] <= target * (1 + 1e-12) else None
    return float(index - 1 + (target - values[index - 1]) / (values[index] - values[index - 1]))


def _interpolate(curve: Sequence[Any], place: float | None) -> float | None:
    """A curve's value between two checkpoints; None where one of the two is undefined, or there is no place."""
    if place is None:
        return None
    values = _numbers(curve)
    low = int(np.floor(place))
    share = place - low
    value = values[low] if share == 0 else (1 - share) * values[low] + share * values[low + 1]
    return None if np.isnan(value) else float(value)


def _numbers(curve: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in curve], float)
