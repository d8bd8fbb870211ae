"""What recipes share: our side's run by `jaxgeom train` itself, and how numbers and tensors are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgeom.models import hf_tensors
from jaxgeom.progress import Reporter
from jaxgeom.training import RunInputs, RunSettings, load_start, train
from jaxgeom.training.logs import read_json_lines
from jaxgeom.validation.checks import by_name

Rows = list[dict[str, float | int]]
"""A dict a step."""


@dataclass(frozen=True)
class OurRun:
    """A run of `jaxgeom train`, finished.

    Attributes:
        rows: What it logged of every step.
        log: All rows of its log, those of evaluations too.
        start: Parameters before the first step, by Hugging Face name, float32.
        weights: After the last.
        names: Of the parameters, in the order of the architecture.
    """

    rows: Rows
    log: list[dict[str, Any]]
    start: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    names: list[str]


def run_ours(settings: RunSettings, inputs: RunInputs, out: Path, reporter: Reporter) -> OurRun:
    """Trains, or goes on, or finds the run finished; reads what it came to.

    Args:
        settings: of the run.
        inputs: what it reads.
        out: its directory.
        reporter: where to say what is done.

    Raises:
        UserError: see `train`.
    """
    train(settings, inputs, out, reporter=reporter)
    log = read_json_lines(out / "metrics.jsonl")
    logged = {row["step"]: row for row in log if "loss" in row}
    held = []
    for step in (0, settings.steps):
        model, params = load_start(f"{out}@{step}", mesh=None, compute_dtype="float32")
        held.append((by_name(model, jax.device_get(params)), [tensor.name for tensor in hf_tensors(model.config)]))
    (start, names), (weights, _) = held
    return OurRun([logged[step] for step in range(1, settings.steps + 1)], log, start, weights, names)


def relative(ours: float, theirs: float) -> float:
    """`|a − b| / |b|`, 0 where both are 0."""
    return 0.0 if ours == theirs else abs(ours - theirs) / max(abs(theirs), 1e-30)


def norm(tensors: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm over all tensors, summed in float64."""
    return float(np.sqrt(sum(float(np.sum(tensor.astype(np.float64) ** 2)) for tensor in tensors.values())))
