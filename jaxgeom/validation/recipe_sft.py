"""SFT as a whole recipe, in PyTorch and here: the same rows in the same order, step by step to the final weights.

Our side is `jaxgeom train sft` itself: its loop, log and checkpoints. PyTorch's has the arrays that the same data
pipeline gives. Beside every error stands what rounding alone does: PyTorch against itself, the rows of each batch the
other way round, which changes the order in which sums are taken and nothing else.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgeom.progress import Reporter
from jaxgeom.training.rows import read_run_rows
from jaxgeom.validation import torch_recipe, torch_side
from jaxgeom.validation.checks import Check, worst_tensor
from jaxgeom.validation.recipe_runs import Rows, norm, relative, run_ours
from jaxgeom.validation.recipe_settings import RecipeSettings
from jaxgeom.validation.tolerances import RECIPE_TOLERANCES, ROUNDINGS

CURVES = {"loss": "loss", "grad_norm": "gradient norm", "learning_rate": "learning rate", "target_tokens": "targets"}
"""What is compared step by step: names in the logs, and what they are called."""


@dataclass(frozen=True)
class Side:
    """What one side came to with one data order.

    Attributes:
        rows: A dict a step with the names of `CURVES`.
        weights: Final parameters by Hugging Face name, float32.
    """

    rows: Rows
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class SeedResult:
    """One data order.

    Attributes:
        seed: Of the order.
        ours: Rows of our run.
        torch: Rows of PyTorch's.
        again: Rows of PyTorch's with the rows of each batch the other way round.
        weights: `‖W − W'‖ / ‖W' − W0‖` over all parameters: of ours, and of PyTorch's own repetition.
        worst: The same of the tensor where ours is largest, and its name.
    """

    seed: int
    ours: Rows
    torch: Rows
    again: Rows
    weights: tuple[float, float]
    worst: tuple[float, str]


def run_sft(
    model: Path, settings: RecipeSettings, out: Path, reporter: Reporter, *, reference: Any = None
) -> list[SeedResult]:
    """Trains both sides by the recipe, seed by seed.

    Args:
        model: Hugging Face directory with a tokenizer.
        settings: the recipe.
        out: where our runs lie: `ours/seedN`; an interrupted one goes on.
        reporter: where to say what is done.
        reference: the same model of `load_torch`; loaded where None. It is trained.

    Returns:
        A result a seed.

    Raises:
        UserError: a model, rows or a directory that cannot be used.
    """
    reference = torch_side.load_torch(model, "float32") if reference is None else reference
    start = {name: value.detach().clone() for name, value in reference.state_dict().items()}
    found = []
    for seed in settings.all_seeds:
        run, inputs = settings.run_settings(seed), settings.inputs(model)
        mine = run_ours(run, inputs, out / "ours" / f"seed{seed}", reporter)
        ours = Side([{key: row[key] for key in CURVES} for row in mine.rows], mine.weights)
        rows = read_run_rows(run, inputs).batches(run)
        batches = list(itertools.islice(rows, run.steps))

        def theirs(
            label: str, taken: list[dict[str, np.ndarray]], seed: int = seed, names: list[str] = mine.names
        ) -> Side:
            reference.load_state_dict(start)
            with reporter.task(f"{label}, seed {seed}", len(taken)) as task:
                curves = torch_recipe.train_sft(reference, taken, settings.optimizer, task=task)
            return Side(curves, torch_side.torch_weights(reference, names))

        torch = theirs("PyTorch", batches)
        again = theirs("PyTorch, other rounding", [_turned(one) for one in batches])
        found.append(_result(seed, ours, torch, again, mine.start))
    return found


def compare_sft(results: list[SeedResult]) -> list[Check]:
    """The table: the worst step of each curve and the final weights, over all seeds.

    Args:
        results: of `run_sft`.

    Returns:
        A `Check` a row, its `null` from PyTorch against itself.
    """
    checks = []
    for key, label in CURVES.items():
        rows = []
        for one in results:
            errors = errors_of(one.ours, one.torch, key).tolist()
            nulls, limits = errors_of(one.again, one.torch, key).tolist(), limits_of(one, key).tolist()
            rows += [
                (_excess(errors[step], limits[step]), one.seed, step, errors[step], limits[step], nulls[step])
                for step in range(len(errors))
            ]
        _, seed, step, error, limit, _ = max(rows, key=_nan_first)
        null = float(np.max([row[-1] for row in rows]))
        checks.append(Check(f"{label}, worst step", error, limit, f"seed {seed}, step {step + 1}", null))
    floor = RECIPE_TOLERANCES["sft"]["weights"]
    held = [(_excess(one.weights[0], max(floor, ROUNDINGS * one.weights[1])), one) for one in results]
    last = max(held, key=_nan_first)[1]
    where = f"seed {last.seed}; worst {last.worst[1]}: {last.worst[0]:.3g}"
    limit = max(floor, ROUNDINGS * last.weights[1])
    return [*checks, Check("final weights", last.weights[0], limit, where, last.weights[1])]


def errors_of(ours: Rows, theirs: Rows, key: str) -> np.ndarray:
    """The relative difference of every step, float64 `[steps]`."""
    return np.array([relative(a[key], b[key]) for a, b in zip(ours, theirs, strict=True)], np.float64)


def limits_of(result: SeedResult, key: str) -> np.ndarray:
    """The tolerance of every step, float64 `[steps]`: the stated one, or `ROUNDINGS` times rounding alone up to there.

    Args:
        result: of one seed.
        key: of `CURVES`.
    """
    grown = np.maximum.accumulate(errors_of(result.again, result.torch, key))
    return np.maximum(RECIPE_TOLERANCES["sft"][key], ROUNDINGS * grown)


def _excess(error: float, limit: float) -> float:
    """Error over tolerance; of a tolerance of 0, 0 or infinite."""
    return error / limit if limit != 0 else (0.0 if error == 0 else np.inf)


def _nan_first(row: tuple[Any, ...]) -> float:
    return np.inf if np.isnan(row[0]) else row[0]


def _turned(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array[::-1]) for name, array in batch.items()}


def _result(seed: int, ours: Side, torch: Side, again: Side, start: dict[str, np.ndarray]) -> SeedResult:
    moved = {name: torch.weights[name] - start[name] for name in start}
    updates = {name: ours.weights[name] - start[name] for name in start}
    repeated = {name: again.weights[name] - start[name] for name in start}
    floor = 1e-6 * norm(moved)
    weights = _distance(updates, moved), _distance(repeated, moved)
    return SeedResult(seed, ours.rows, torch.rows, again.rows, weights, worst_tensor(updates, moved, floor))


def _distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    return norm({name: ours[name].astype(np.float64) - theirs[name] for name in theirs}) / max(norm(theirs), 1e-30)
