"""`jaxgeom trajectory INITIAL CKPT… --out DIR`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxgeom.buckets.places import local
from jaxgeom.checkpoints import open_checkpoint, saved_steps
from jaxgeom.checkpoints.adapters import require_base_is_read
from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.runs import is_a_checkpoint, named_run, split_step, step_folders, step_of_path
from jaxgeom.commands.options import INITIAL, Directory, SomeCount, SomeDirectory, SomeNumber, offered
from jaxgeom.comparison import CompareSettings
from jaxgeom.errors import UserError

_UNREAD = ("mask_fraction", "permutation_draws")  # no mask and no permuted update along a run


def trajectory(
    initial: INITIAL,
    checkpoints: Annotated[Positional[tuple[str, ...]], arg(metavar="CKPT [CKPT …]")],
    settings: Annotated[CompareSettings, offered(CompareSettings, without=_UNREAD)],
    out: Directory,
    learning_rate: SomeNumber = None,
    initial_step: SomeCount = None,
    spectra: bool = False,
    cache: SomeDirectory = None,
    base: SomeDirectory = None,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """Trajectory diagnostics, each with its null, over checkpoints in the order of training.

    The step of a checkpoint is the number after `@`, or the one in its path (`checkpoint-20`, `step20-lr1e-5`,
    `global_step_20/actor/huggingface`); where there is none, its place in the list. A single run directory stands for
    all its checkpoints after step 0, a single folder of such steps for all of them. For checkpoints of one run of
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
        base: The model that a LoRA adapter belongs to, where its adapter_config.json does not lead there.
        force: Take over a directory that holds another measurement.
        distributed: Share the work with the other processes that were started with this command (TPU pod, SLURM, MPI,
            or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); they need a shared --out.
    """

    def run(command: str) -> None:
        from jaxgeom.commands.entries import (
            entry_progress,
            other_processes,
            say_notes,
            say_what_is_replaced,
            writes_report,
        )
        from jaxgeom.comparison import trajectory_checkpoints
        from jaxgeom.cpu_memory import keep_freed_memory
        from jaxgeom.progress import Reporter
        from jaxgeom.report import trajectory_findings, write_report

        reporter = Reporter()
        say_what_is_replaced(out, force, reporter)
        with other_processes(distributed, out) as team:
            keep_freed_memory(settings.device)
            first = open_checkpoint(initial, base=base)
            opened = [(step, open_checkpoint(path, base=base)) for step, path in numbered(checkpoints)]
            require_base_is_read(base, (initial, *checkpoints))
            if left_out := model_above(checkpoints):
                reporter.say(left_out)
            rates, said = rates_of(initial, checkpoints, learning_rate, initial_step)
            reporter.say(said)
            with entry_progress(reporter, "trajectory") as progress:
                result = trajectory_checkpoints(
                    first, opened, settings, learning_rates=rates, spectra=spectra, out=out, cache=cache,
                    progress=progress, force=force, command=command, team=team,
                )  # fmt: skip
        if not writes_report(team, reporter):
            return
        say_notes(result["coverage"], reporter)
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
    named = _by_name(paths)
    return list(enumerate(paths, start=1)) if named is None else named


def model_above(paths: Sequence[str]) -> str | None:
    """That the model above the steps of a single folder is no step, where there is one."""
    if len(paths) != 1 or not is_a_checkpoint(Path(paths[0])):
        return None
    steps = step_folders(Path(paths[0]))
    return f"{paths[0]}: its {len(steps)} steps are taken, not the model beside them" if steps else None


def _by_name(paths: Sequence[str]) -> list[tuple[int, str]] | None:
    """Checkpoints with the steps that their names tell; None where they tell none, or one and the same for all."""
    if len(paths) == 1 and named_run(paths[0]) is not None and (steps := saved_steps(Path(paths[0]))):
        return [(step, f"{paths[0]}@{step}") for step in steps if step > 0]
    if len(paths) == 1 and (found := step_folders(Path(paths[0]))):
        return found
    named = [(step, path) for path in paths if (step := _step_in(path)) is not None]
    # A step that all share is that of the folder that they lie in, or of several runs: it orders nothing.
    alike = len(named) > 1 and len({step for step, _ in named}) == 1
    return named if len(named) == len(paths) and not alike else None


def _step_in(path: str) -> int | None:
    """The step that a checkpoint argument names: after its `@`, or in its path."""
    step = split_step(path)[1]
    return step if step is not None else step_of_path(path)


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
        if run is None and _by_name(paths) is None:
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
    from jaxgeom.training import run_learning_rates

    rates = run_learning_rates(run, initial_step=initial_step)
    return rates, f"learning rate: {rates.source}"


def _run_of(path: str) -> Path | None:
    """The run directory of ours that a checkpoint argument names; None for any other directory."""
    found = named_run(path)
    return found.run.resolve() if found is not None else None


def _began_at(run: Path, initial: str) -> bool:
    """Whether a run's configuration names `initial` as its start."""
    try:
        start = str(read_json(run / "config.json")["inputs"]["model"])
    except (UserError, KeyError, TypeError):
        return False
    return local(start).resolve() == Path(initial).resolve()
