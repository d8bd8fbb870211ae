"""`jaxgeom study FILE`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxgeom.commands.options import SomeCount, SomeDirectory


def study(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    out: SomeDirectory = None,
    seeds: SomeCount = None,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """Runs the experiment that FILE defines: trains every stage, measures, compares, writes the report.

    Interrupted and started again with the same arguments, it goes on where it was.

    Args:
        file: A Python file with a variable `experiment`.
        out: Output directory; runs/NAME of the experiment where not given.
        seeds: Run every method with the seeds 0 … N−1 in place of the file's.
        force: Delete another study that is in the output directory.
        distributed: Every training and measurement over all devices of the processes that were started with this
            command (TPU pod, SLURM, MPI, Kubernetes, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID);
            all must see `out`, a directory or `gs://…`.
    """

    def run(command: str) -> None:
        from jaxgeom import processes
        from jaxgeom.cpu_memory import keep_freed_memory
        from jaxgeom.progress import Reporter
        from jaxgeom.study import load_experiment, run_study

        if distributed:
            processes.join()
        keep_freed_memory()
        with processes.told(file):
            experiment = processes.together(lambda: load_experiment(file))
        if seeds is not None:
            experiment = experiment.with_seeds(seeds)
        where = out or Path("runs") / experiment.name
        run_study(
            experiment,
            where,
            reporter=Reporter(quiet=distributed and not processes.is_first()),
            command=command,
            force=force,
        )

    return run
