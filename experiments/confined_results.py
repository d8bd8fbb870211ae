"""What `experiments/confined.py` found: a JSON file, a figure and the page, from the study's directory.

    python experiments/confined_results.py runs/confined experiments/results/confined

The numbers are those of the study's `report.json`. One is added, from the checkpoints: how much of every run's update
lies outside the early subspace of its own method and seed (rank 16, right side), which says of a free run how far it
leaves that subspace by itself, beside 1 − K/n, what an update without direction has.
"""

import json
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from jaxgeom.checkpoints import open_checkpoint, saved_steps
from jaxgeom.report import write_report
from jaxgeom.report.reading import interval
from jaxgeom.report.style import INK, MUTED, Drawing, house_style, key_below, panels, save, scale_y

RANK = 16
METHODS = {"opd": "OPD", "rlvr": "RLVR", "sft": "SFT"}
COLORS = {"early": MUTED, "free": INK, "gradients": "#0072b2", "coordinates": "#009e73", "random": "#d55e00"}
GEOMETRY = ("relative_norm", "density_bf16", "stable_rank", "nss", "overlap_low", "angle_right_mean_deg")
_ARM = re.compile(r"(opd|rlvr|sft)_(early|free|gradients|coordinates|random)(?:_(\d+))?")
_MATRIX = re.compile(r"\.(?:[qkvo]|gate|up|down)_proj\.weight$")


def summary(study: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Everything that the figure and the documentation say, arm by arm.

    Args:
        study: the directory, for its checkpoints.
        report: its `report.json`.
    """
    arms = {}
    for name, method in report["methods"].items():
        found = _ARM.fullmatch(name)
        if found is None:
            continue
        seeds = {seed["seed"]: seed for seed in method["per_seed"]}
        final = {seed: own["accuracy"]["final"] for seed, own in seeds.items()}
        arms[name] = {
            "method": found[1],
            "way": found[2],
            "rank": int(found[3] or RANK) if found[2] not in ("early", "free") else None,
            "steps": method["steps"],
            "accuracy_start": over_seeds({seed: own["accuracy"]["initial"] for seed, own in seeds.items()}),
            "accuracy": over_seeds(final),
            "curve": {seed: own["accuracy"]["curve"] for seed, own in seeds.items()},
            "leakage": _leakage(seeds, "mean"),
            "leakage_largest": _leakage(seeds, "largest"),
            "outside_early": over_seeds({seed: outside(study, name, found[1], seed) for seed in seeds}),
            "geometry": {key: _statistic(method, key) for key in GEOMETRY if key in method["summary"]},
        }
    for own in arms.values():
        free = arms.get(f"{own['method']}_free")
        if own["rank"] is not None and free is not None:
            mine, its = own["accuracy"]["seeds"], free["accuracy"]["seeds"]
            differences = {seed: mine[seed] - its[seed] for seed in mine if seed in its}
            own["accuracy_less_free"] = over_seeds(differences) if differences else None
    columns = _columns(study)
    return {
        "experiment": "experiments/confined.py",
        "command": report["command"],
        "date": report["created"],
        "machine": report["machine"],
        "version": report["version"],
        "seconds": round(sum(stage["seconds"] for stage in report["stages"])),
        "columns": sorted(set(columns)),
        "outside_by_chance": float(np.mean([1 - RANK / count for count in columns])),
        "arms": arms,
        "findings": report["findings"],
    }


def over_seeds(values: dict[int, float]) -> dict[str, Any]:
    """Mean, 95 % interval (three seeds and more; Student's t, not cut at what is possible) and each seed's own."""
    held = list(values.values())
    span = interval(held) if len(held) > 2 else None
    return {"mean": float(np.mean(held)), "interval": None if span is None else list(span), "seeds": values}


def outside(study: Path, arm: str, method: str, seed: int) -> float:
    """Share of the energy of a run's update outside the early subspace of its method and seed, mean over matrices."""
    shares = []
    for name, update in _update(study / "runs" / arm / f"seed{seed}").items():
        basis = early_bases(study, method, seed)[name]
        rest = update - update @ basis @ basis.T
        shares.append(float((rest**2).sum() / (update**2).sum()))
    return float(np.mean(shares))


@cache
def early_bases(study: Path, method: str, seed: int) -> dict[str, np.ndarray]:
    """By matrix the leading right directions of an early run's update, `[in, RANK]` float64."""
    updates = _update(study / "runs" / f"{method}_early" / f"seed{seed}")
    return {name: np.linalg.svd(update, full_matrices=False)[2][:RANK].T for name, update in updates.items()}


def _update(run: Path) -> dict[str, np.ndarray]:
    start, end = open_checkpoint(f"{run}@0"), open_checkpoint(f"{run}@{saved_steps(run)[-1]}")
    return {
        name: end[name].read().astype(np.float64) - start[name].read().astype(np.float64)
        for name in filter(_MATRIX.search, start)
    }


def _columns(study: Path) -> list[int]:
    """The columns of every matrix."""
    run = next((study / "runs" / "sft_early").iterdir())
    checkpoint = open_checkpoint(f"{run}@0")
    return [checkpoint[name].shape[-1] for name in filter(_MATRIX.search, checkpoint)]


def _leakage(seeds: dict[int, dict[str, Any]], which: str) -> dict[str, Any] | None:
    held = {seed: own["leakage"][which] for seed, own in seeds.items() if "leakage" in own}
    return over_seeds(held) if held else None


def _statistic(method: dict[str, Any], key: str) -> dict[str, Any]:
    entry = method["summary"][key]
    own = {seed["seed"]: seed["summary"][key]["mean"] for seed in method["per_seed"]}
    return {name: entry[name] for name in ("mean", "null", "excess", "count")} | {
        "interval": entry.get("ci") if len(own) > 2 else None,
        "seeds": own,
    }


def figure(found: dict[str, Any]) -> Drawing:
    """Accuracy along the 160 steps, the second part in every way, a panel a method."""
    sheet, every_axes = panels(1, 3, 2.7, sharey=True)
    told = []
    for axes, (method, label) in zip(every_axes, METHODS.items(), strict=True):
        values = []
        for own in found["arms"].values():
            if own["method"] != method or own["rank"] not in (None, RANK):
                continue
            first = 0 if own["way"] == "early" else found["arms"][f"{method}_early"]["steps"]
            curves = [np.array(curve, float) for curve in own["curve"].values()]
            color = COLORS[own["way"]]
            for curve in curves:
                axes.plot(first + curve[:, 0], curve[:, 1], color=color, linewidth=0.5, alpha=0.5)
            mean = np.mean([curve[:, 1] for curve in curves], axis=0)
            steps = first + curves[0][:, 0]
            axes.plot(steps, mean, color=color, marker="o", linestyle="--" if own["way"] == "gradients" else "-")
            values += [value for curve in curves for value in curve[:, 1]]
            if own["way"] != "early":
                told.append(f"{label} {own['way']} {100 * own['accuracy']['mean']:.1f} %")
        axes.axvline(found["arms"][f"{method}_early"]["steps"], color=MUTED, linewidth=0.6, linestyle=(0, (1, 2)))
        axes.set_title(label)
        axes.set_xlabel("optimizer steps from the anchor")
        scale_y(axes, [*values, 1.0], share=True, log=False)
    every_axes[0].set_ylim(0.4, 1.02)
    every_axes[0].set_ylabel("held-out accuracy, greedy (%)")
    handles = []
    for way, color in COLORS.items():
        line = "--" if way == "gradients" else "-"
        handles.append(Line2D([], [], color=color, linestyle=line, marker="o", markersize=3.2, label=way))
    key_below(sheet, ["seed"], handles)
    return Drawing(
        "confined",
        "Going on inside the early subspace",
        "Held-out accuracy of three methods that go on, from step 32 on, free, with projected gradients, on the "
        "coordinates in their own early rank-16 subspace, and in a random one of the same rank; thin lines are seeds.",
        f"Held-out accuracy at the end: {', '.join(told)}.",
        sheet,
    )


def portable(study: Path) -> str:
    """The study's `report.json` with places of this machine as a clone of the repository has them."""
    text = (study / "report.json").read_text(encoding="utf-8")
    clone = json.loads(text)["settings"]["base"].removesuffix("jaxgeom/data/embedded_models/base")
    return text.replace(clone, "").replace(str(study), "runs/confined")


def main(study: str, to: str) -> None:
    """Writes `confined.json`, `confined.svg`, `confined.png` and `report.html`.

    Args:
        study: the directory of the study, finished.
        to: where to.
    """
    source, target = Path(study), Path(to)
    target.mkdir(parents=True, exist_ok=True)
    text = portable(source)
    found = summary(source, json.loads(text))
    (target / "confined.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with house_style():
        save(figure(found), target)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "report.json").write_text(text, encoding="utf-8")
        shutil.copyfile(source / "matrices.csv", Path(folder) / "matrices.csv")
        shutil.copyfile(write_report(Path(folder)), target / "report.html")
    size = sum(path.stat().st_size for path in target.iterdir())
    for name, own in found["arms"].items():
        less = own.get("accuracy_less_free")
        leaks = own["leakage"]
        print(
            f"{name:22} {100 * own['accuracy_start']['mean']:6.1f} → {100 * own['accuracy']['mean']:5.1f} %"
            + (f"  {100 * less['mean']:+6.1f} pp" if less else " " * 11)
            + (f"  leakage {leaks['mean']:.2g}" if leaks else " " * 15)
            + f"  outside the early subspace {100 * own['outside_early']['mean']:.2g} %"
        )
    print(f"{target}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
