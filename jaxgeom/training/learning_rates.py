"""The learning rates that a run of ours took, read from its directory."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxgeom.checkpoints import saved_steps
from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings, learning_rate_schedule
from jaxgeom.training.logs import read_json_lines


def run_learning_rates(run: Path, *, initial_step: int = 0) -> LearningRates:
    """Learning rates per optimizer step, from `metrics.jsonl` where it has every step, else by the schedule.

    A step that the run skipped (no group with a gradient) has rate 0: it changed nothing.

    Args:
        run: The run directory.
        initial_step: The step of the run from which updates are taken.

    Returns:
        The rates, by step, and where they were found.

    Raises:
        UserError: the directory tells neither.
    """
    logged, log = {}, run / "metrics.jsonl"
    if log.is_file():
        for row in read_json_lines(log):
            if "learning_rate" in row:
                rate = row["learning_rate"]
                if type(rate) not in (int, float):
                    raise UserError(f"{log}: step {row['step']}: learning_rate={str(rate)[:40]} is no number")
                logged[int(row["step"])] = 0.0 if row.get("skipped") else float(rate)
    if logged and sorted(logged) == list(range(1, len(logged) + 1)):
        rates = tuple(logged[step] for step in sorted(logged))
        return LearningRates(rates, f"{log}: the rate of every step", initial_step)
    path = run / "config.json"
    try:
        settings = read_json(path)["settings"]
        optimizer, steps = AdamWSettings(**settings["optimizer"]), int(settings["steps"])
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: tells no learning rate ({error})") from error
    last = min(steps, max(saved_steps(run), default=steps))  # of no later step is anything known
    rates = np.asarray(learning_rate_schedule(optimizer, steps)(jnp.arange(last)), np.float64)
    source = f"{path}: its {optimizer.schedule} schedule, steps that were skipped counted"
    return LearningRates(tuple(rates.tolist()), source, initial_step)
