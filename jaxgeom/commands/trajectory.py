"""`jaxgeom trajectory INITIAL CKPT… --out DIR`."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tyro.conf import Positional

from jaxgeom.checkpoints import open_checkpoint, saved_steps
from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.checkpoints.runs import named_run, split_step
from jaxgeom.commands.entries import entry_progress, other_processes, say_what_is_replaced, writes_report
from jaxgeom.comparison import CompareSettings, trajectory_checkpoints
from jaxgeom.cpu_memory import keep_freed_memory
from jaxgeom.errors import UserError
from jaxgeom.progress import Reporter
from jaxgeom.report import trajectory_findings, write_report
from jaxgeom.training import run_learning_rates


def trajectory(
    initial: Positional[str],
    checkpoints: Positional[tuple[str, ...]],
    settings: CompareSettings,
    out: Path,
    learning_rate: float | None = None,
    initial_step: int | None = None,
    spectra: bool = False,
    cache: Path | None = None,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """Trajectory diagnostics, each with its null, over checkpoints in the order of training.

    The step of a checkpoint is the number after `@`, or at the end of its directory's name; where there is none, its
    place in the list. A single run directory stands for all its checkpoints after step 0. For checkpoints of one run of
    ours that began at INITIAL, the learning rates are read from the run, and the update's size is given in units of
    what steps of that size make, at random and all one way.

    Args:
        initial: The checkpoint that holds W0.
        checkpoints: The checkpoints after it.
        settings: What is measured, and how.
        out: Where trajectory.json, figures and page are written.
        learning_rate: Constant rate of the optimizer steps, where it is not to be read from the run.
        initial_step: Step of the run at which INITIAL stands; where not given, the number after its `@` if INITIAL is a
            step of the same run, else 0.
        spectra: Spectral drift and rotation of every step against INITIAL too, which is decomposed once; one
            decomposition more per step.
        cache: Directory of base spectra, shared with `compare`; used with spectra.
        force: Take over a directory that holds another measurement.
        distributed: Share the work with the other processes that were started with this command (TPU pod, SLURM, MPI,
            or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); they need a shared --out.
    """

    def run(command: str) -> None:
        reporter = Reporter()
        say_what_is_replaced(out, force, reporter)
        with other_processes(distributed, out) as team:
            keep_freed_memory(settings.device)
            first = open_checkpoint(initial)
            opened = [(step, open_checkpoint(path)) for step, path in numbered(checkpoints)]
            rates, said = rates_of(initial, checkpoints, learning_rate, initial_step)
            reporter.say(said)
            with entry_progress(reporter, "trajectory") as progress:
                result = trajectory_checkpoints(
                    first, opened, settings, learning_rates=rates, spectra=spectra, out=out, cache=cache,
                    progress=progress, force=force, command=command, team=team,
                )  # fmt: skip
        if not writes_report(team, reporter):
            return
        page = write_report(out)
        for sentence in trajectory_findings(result):
            reporter.say(sentence)
        reporter.say(f"page: {page}")

    return run


def numbered(paths: Sequence[str]) -> list[tuple[int, str]]:
    """Checkpoints with their steps.

    >>> numbered(["run@63", "out/checkpoint-127"]), numbered(["early", "late"])
    ([(63, 'run@63'), (127, 'out/checkpoint-127')], [(1, 'early'), (2, 'late')])
    """
    if len(paths) == 1 and (steps := saved_steps(Path(paths[0]))):
        return [(step, f"{paths[0]}@{step}") for step in steps if step > 0]
    steps = [_step_in(path) for path in paths]
    if any(step is None for step in steps):
        return list(enumerate(paths, start=1))
    return [(step, path) for step, path in zip(steps, paths, strict=True) if step is not None]


def _step_in(path: str) -> int | None:
    """The step that a checkpoint argument ends in: after its `@`, or in the last name of its path."""
    step = split_step(path)[1]
    found = re.search(r"(\d+)/*$", path)
    return step if step is not None or found is None else int(found.group(1))


def rates_of(
    initial: str, paths: Sequence[str], learning_rate: float | None, initial_step: int | None
) -> tuple[LearningRates | None, str]:
    """Learning rates of the steps between INITIAL and the checkpoints, and a sentence on where they are from.

    Args:
        initial: The checkpoint that holds W0.
        paths: The checkpoints after it.
        learning_rate: A constant rate, which wins over what the run says.
        initial_step: Step of the run at which INITIAL stands, where that is said.

    Raises:
        UserError: a constant rate for checkpoints whose steps are unknown.
    """
    runs = {_run_of(path) for path in paths}
    run = runs.pop() if len(runs) == 1 else None
    same_run = run is not None and _run_of(initial) == run
    known_start = same_run or initial_step is not None
    if initial_step is None:
        start = named_run(initial) if same_run else None
        initial_step = 0 if start is None else start.saved_step() if start.step is None else start.step
    if learning_rate is not None:
        if run is None and any(_step_in(path) is None for path in paths):
            raise UserError("learning_rate: the checkpoints' names end in no step, so how many steps lie between them?")
        return LearningRates(
            learning_rate, "--learning-rate, constant", initial_step
        ), "learning rate: constant, as given"
    if run is None:
        return None, "learning rate: unknown; --learning-rate gives a constant one"
    if not known_start and not _began_at(run, initial):
        return (
            None,
            f"learning rate: not used, {run} did not begin at {initial}; --learning-rate or --initial-step says it",
        )
    rates = run_learning_rates(run, initial_step=initial_step)
    return rates, f"learning rate: {rates.source}"


def _run_of(path: str) -> Path | None:
    """The run directory of ours that a checkpoint argument names; None for any other directory."""
    found = named_run(path)
    return found.run.resolve() if found is not None else None


def _began_at(run: Path, initial: str) -> bool:
    """Whether a run's configuration names `initial` as its start."""
    try:
        start = str(json.loads((run / "config.json").read_text(encoding="utf-8"))["inputs"]["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return Path(start).resolve() == Path(initial).resolve()
