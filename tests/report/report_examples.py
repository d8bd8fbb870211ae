"""Reports as the engine and the study write them, with plausible random numbers, nulls and undefined values."""

import json
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {
    "q": (128, 128),
    "k": (64, 128),
    "v": (64, 128),
    "o": (128, 128),
    "gate": (256, 128),
    "up": (256, 128),
    "down": (128, 256),
}
PARTS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}

# sparsity, relative norm, then with its null each: overlap low, overlap principal, angle, NSS
LEVELS = {
    "sft_anchor": (0.06, 0.21, 0.315, 0.318, 0.297, 0.296, 14.0, 15.2, 1.1e-2, 1.4e-2),
    "opd": (0.47, 0.012, 0.541, 0.545, 0.201, 0.199, 0.95, 1.08, 7.4e-4, 8.0e-4),
    "rlvr": (0.61, 0.008, 0.652, 0.640, 0.157, 0.161, 0.55, 0.71, 4.2e-4, 5.2e-4),
    "sft_continued": (0.41, 0.016, 0.498, 0.507, 0.221, 0.219, 1.31, 1.30, 1.2e-3, 1.1e-3),
}
LABELS = {"sft_anchor": "SFT", "opd": "OPD", "rlvr": "RLVR", "sft_continued": "SFT continued"}


def _with_null(row: dict[str, Any], key: str, value: float | None, null: float | None) -> None:
    row[key] = value
    row[f"{key}_null"] = null
    row[f"{key}_excess"] = None if value is None or null is None else value - null


def matrix_rows(method: str, *, layers: int = 4, experts: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """One row per matrix, as in report.json; the first layer's value projection did not change at all."""
    rng = np.random.default_rng(seed)
    sparsity, norm, low, low_null, top, top_null, angle, angle_null, nss, nss_null = LEVELS[method]
    rows = []

    def jitter(scale: float = 0.06) -> float:
        return float(np.exp(scale * rng.standard_normal()))

    for layer in range(layers):
        for module, shape in MODULES.items():
            part = PARTS.get(module, f"mlp.{module}_proj")
            names = [f"model.layers.{layer}.{part}.weight"]
            if experts and module in ("gate", "up", "down"):
                names = [f"model.layers.{layer}.mlp.experts.{module}_proj[{e}]" for e in range(experts)]
            for name in names:
                row: dict[str, Any] = {"name": name, "shape": list(shape), "layer": layer, "module": module}
                unchanged = layer == 0 and module == "v"
                row["sparsity_bf16"] = 1.0 if unchanged else min(1.0, sparsity * jitter())
                row["sparsity_stored"] = row["sparsity_bf16"] * 0.2
                row["sparsity_abs_1e-5"] = min(1.0, row["sparsity_bf16"] * 1.2)
                row["density_bf16"] = 1 - row["sparsity_bf16"]
                row["fro_norm"] = norm * 9 * jitter()
                row["relative_norm"] = norm * jitter()
                _with_null(row, "stable_rank", 4.2 * jitter() * (1 + 0.1 * layer), 31.0 * jitter(0.01))
                _with_null(row, "stable_rank_bf16", 5.8 * jitter() * (1 + 0.1 * layer), 6.4 * jitter(0.01))
                row["participation_ratio"] = 11.0 * jitter()
                row["entropy_rank"] = 38.0 * jitter()
                _with_null(row, "hill", None if unchanged else 3.1 * jitter(), 4.4 * jitter(0.02))
                _with_null(row, "nss", nss * jitter(0.3), nss_null * jitter(0.05))
                row["nss_without_decay"] = nss * 0.97
                row["decay"] = -2.0e-4 * jitter()
                for side in ("left", "right"):
                    _with_null(row, f"angle_{side}_mean_deg", angle * jitter(0.15), angle_null * jitter(0.02))
                    _with_null(row, f"angle_{side}_max_deg", min(90.0, angle * 6 * jitter()), angle_null * 5)
                row["angle_k"] = 63
                _with_null(
                    row, "overlap_principal", None if unchanged else top * jitter(0.02), None if unchanged else top_null
                )
                _with_null(
                    row, "overlap_low", None if unchanged else low * jitter(0.02), None if unchanged else low_null
                )
                for kind, factor in (("profile", 1.01), ("permutation", 0.98)):
                    row[f"overlap_low_{kind}_null"] = None if unchanged else low_null * factor
                    row[f"overlap_low_{kind}_excess"] = None if unchanged else row["overlap_low"] - low_null * factor
                row["overlap_low_z"] = None if unchanged else float(rng.standard_normal())
                _with_null(row, "projection_joint", 0.051 * jitter(), 0.04)
                rows.append(row)
    return rows


_IDENTITY = ("name", "shape", "layer", "module")


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of rows: mean, median, count, null, excess of each statistic."""
    found: dict[str, Any] = {}
    for key in rows[0]:
        if key in _IDENTITY or key.endswith(("_null", "_excess", "_z")):
            continue
        mean = {}
        for suffix in ("", "_null", "_excess"):
            values = [r[key + suffix] for r in rows if r.get(key + suffix) is not None]
            mean[suffix] = float(np.mean(values)) if values else None
        values = [r[key] for r in rows if r[key] is not None]
        median = float(np.median(values)) if values else None
        found[key] = {
            "mean": mean[""],
            "median": median,
            "count": len(values),
            "null": mean["_null"],
            "excess": mean["_excess"],
        }
        for kind in ("profile", "permutation"):
            for name in ("null", "excess"):
                values = [r[k] for r in rows if r.get(k := f"{key}_{kind}_{name}") is not None]
                if values:
                    found[key] |= {f"{kind}_{name}": float(np.mean(values)), f"{kind}_count": len(values)}
    return found


def groups_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Groups by module, by layer, and of sparsity by kind of parameter."""
    layers = sorted({r["layer"] for r in rows})
    summary = summarize(rows)["sparsity_bf16"]
    return {
        "module": {m: summarize([r for r in rows if r["module"] == m]) for m in MODULES},
        "layer": {str(n): summarize([r for r in rows if r["layer"] == n]) for n in layers},
        "sparsity": {
            name: {
                "sparsity_bf16": {
                    "mean": min(1.0, summary["mean"] * f),
                    "median": None,
                    "count": 1,
                    "null": None,
                    "excess": None,
                }
            }
            for name, f in (("all", 1.02), ("matrices", 1.0), ("embedding", 1.3), ("norm", 0.5))
        },
    }


def compare_report(*, layers: int = 4, experts: int = 0, method: str = "opd") -> dict[str, Any]:
    """A comparison's report.json."""
    rows = matrix_rows(method, layers=layers, experts=experts)
    summary = summarize(rows)
    return {
        "schema": 1,
        "version": "0.1.0",
        "command": "jaxgeom compare base final --out out --angle-k 512",
        "inputs": {
            "initial": {"name": "base", "dtype": "float32", "sha256": "a" * 64},
            "final": {"name": "final", "dtype": "float32", "sha256": "b" * 64},
        },
        "settings": {
            "suite": "full",
            "eta": 1e-3,
            "angle_k": 512,
            "mask_rank": 64,
            "mask_fraction": 0.3,
            "hill_k": None,
        },
        "coverage": {k: {"parameters": 0.91, "matrices": v["count"]} for k, v in summary.items()},
        "summary": summary,
        "groups": groups_of(rows),
        "matrices": rows,
    }


def trajectory(
    method: str = "opd", *, points: int = 10, steps: int = 200, seed: int = 0, matrices: bool = False
) -> dict[str, Any]:
    """A trajectory.json; without its matrices, the trajectory of a study's method."""
    rng = np.random.default_rng(seed + 7)
    norm = LEVELS[method][1]
    t = np.linspace(1 / points, 1, points)
    slope = {"opd": 0.05, "sft_anchor": 0.6, "rlvr": -0.35, "sft_continued": 0.3}[method]

    def entry(values: Any, null: Any = None) -> dict[str, Any]:
        values = [float(v) for v in np.asarray(values) * np.exp(0.02 * rng.standard_normal(points))]
        null = None if null is None else [float(v) for v in np.broadcast_to(null, points)]
        excess = None if null is None else [a - b for a, b in zip(values, null, strict=True)]
        return {"mean": values, "median": values, "null": null, "excess": excess}

    final = entry(0.35 + 0.64 * t**0.5, 0.05 + 0.95 * t**1.2)
    final["mean"][-1] = 1.0
    disjoint = entry(0.22 + 0.1 * t, np.full(points, 0.125))
    disjoint["mean"][-1] = None
    full = 1 - 0.7 * np.abs(np.subtract.outer(t, t)) ** 0.7
    result = {
        "schema": 1,
        "kind": "trajectory",
        "steps": [int(v) for v in np.round(t * steps)],
        "settings": {"subspace_k": 16},
        "coverage": {},
        "summary": {
            "stable_rank": entry(4.2 * (1 + slope * t), 31.0),
            "stable_rank_bf16": entry(9.0 - 4.0 * t, 10.0 - 4.2 * t),
            "fro_norm": entry(9 * norm * t**0.6),
            "relative_norm": entry(norm * t**0.6),
            "hill": entry(3 + 0.3 * slope * t, 4.4),
            "sim_to_final": final,
            "sim_disjoint": disjoint,
        },
        "similarity": {
            "full": full.tolist(),
            "full_null": (full * 0.8 + 0.2 * np.eye(points)).tolist(),
            "disjoint": [
                [None if i == j else float(0.2 + 0.1 * rng.random()) for j in range(points)] for i in range(points)
            ],
            "disjoint_null": np.full((points, points), 0.125).tolist(),
        },
    }
    if matrices:
        result["matrices"] = [
            {k: r[k] for k in _IDENTITY}
            | {"stable_rank": [4.0] * points, "hill": [None] * points, "sim_to_final": [0.5] * points}
            for r in matrix_rows(method)
        ]
    return result


def method_entry(method: str, *, seed: int = 0, layers: int = 4) -> dict[str, Any]:
    """One method of a study's report.json, of one seed."""
    rng = np.random.default_rng(seed + 100)
    rows = matrix_rows(method, layers=layers, seed=seed)
    start, end = (
        (0.02, 0.52) if method == "sft_anchor" else (0.52, {"opd": 0.74, "rlvr": 0.69, "sft_continued": 0.63}[method])
    )
    start, end = start + 0.01 * rng.standard_normal(), end + 0.01 * rng.standard_normal()
    curve = [[20 * i, float(start + (end - start) * (i / 10) ** 0.7)] for i in range(11)]
    return {
        "label": LABELS[method],
        "origin": "base" if method == "sft_anchor" else "anchor",
        "steps": 200,
        "learning_rate": 3e-5,
        "accuracy": {"initial": start, "final": end, "curve": curve, "ci": [end - 0.04, end + 0.04]},
        "training": {"steps": [1, 2], "loss": [1.0, 0.9], "reward": None, "gap": None},
        "summary": summarize(rows),
        "groups": groups_of(rows),
        "trajectory": trajectory(method, seed=seed),
    }


def study_report(*, seeds: int = 1, layers: int = 4) -> dict[str, Any]:
    """A study's report.json."""
    methods = {}
    for method in LEVELS:
        entries = [method_entry(method, seed=s, layers=layers) for s in range(seeds)]
        methods[method] = entries[0] | {"per_seed": entries}
    after = [m for m in LEVELS if m != "sft_anchor"]

    def matched_row(method: str, factor: float) -> dict[str, Any]:
        summary = methods[method]["summary"]
        row: dict[str, Any] = {"method": method}
        for key in ("sparsity_bf16", "overlap_low", "angle_right_mean_deg", "nss", "stable_rank"):
            row |= {
                key: summary[key]["mean"] * factor,
                f"{key}_null": summary[key]["null"] and summary[key]["null"] * factor,
            }
        return row

    between = {"jaccard": 0.41, "jaccard_null": 0.30, "overlap_a_in_b": 0.6, "overlap_a_in_b_null": 0.5}
    between |= {
        "overlap_b_in_a": 0.55,
        "orthogonal_share": 0.93,
        "subspace_similarity": 0.31,
        "subspace_similarity_null": 0.125,
    }
    return {
        "schema": 1,
        "kind": "study",
        "version": "0.1.0",
        "command": "jaxgeom study experiments/quickstart.py --out out",
        "created": "2026-01-01T00:00:00Z",
        "machine": {"cpu": "a processor", "cores": 2, "jax": "0.10.2", "python": "3.11", "device": "cpu"},
        "settings": {"seed": 0, "sft": {"steps": 1500, "learning_rate": 1e-3}, "mask_fraction": 0.3},
        "stages": [
            {"name": "sft", "seconds": 93.2, "status": "done"},
            {"name": "opd", "seconds": 61.0, "status": "done"},
        ],
        "seeds": list(range(seeds)),
        "methods": methods,
        "matched": {
            "step": {"step": 200, "rows": [matched_row(m, 1.0) for m in after]},
            "relative_norm": {"relative_norm": 0.008, "rows": [matched_row(m, 0.9) | {"step": 100} for m in after]},
        },
        "between": [{"a": "opd", "b": "rlvr"} | between, {"a": "opd", "b": "sft_continued"} | between],
        "findings": [],
        "matrices_csv": "matrices.csv",
    }


def write(directory: Path, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file as the engine does: no NaN."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def write_study_rows(directory: Path) -> None:
    """The study's matrices.csv: the rows of every method, empty where undefined."""
    rows = [{"method": m} | r for m in LEVELS for r in matrix_rows(m)]
    lines = [",".join(rows[0])]
    for row in rows:
        values = ["×".join(map(str, v)) if isinstance(v, list) else "" if v is None else str(v) for v in row.values()]
        lines.append(",".join(values))
    (directory / "matrices.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
