"""`jaxgeom between INITIAL FINAL_A FINAL_B --out DIR`."""

from collections.abc import Callable
from typing import Annotated

from tyro.conf import Positional, arg

from jaxgeom.commands.options import INITIAL, Directory, SomeDirectory, offered
from jaxgeom.comparison import CompareSettings

# Closed forms of the entries and subspaces of the two updates: no spectrum of W0, no mask of it, no draw.
_UNREAD = (
    "suite", "angle_k", "mask_rank", "mask_fraction", "hill_k", "projection_fraction", "null_draws",
    "permutation_draws", "seed",
)  # fmt: skip


def between(
    initial: INITIAL,
    final_a: Annotated[Positional[str], arg(metavar="FINAL_A")],
    final_b: Annotated[Positional[str], arg(metavar="FINAL_B")],
    settings: Annotated[CompareSettings, offered(CompareSettings, without=_UNREAD)],
    out: Directory,
    base: SomeDirectory = None,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """What the updates of two runs from one checkpoint share, beside what chance makes them share.

    Overlap of the changed entries, orthogonal share of the updates, similarity of their right subspaces. A checkpoint
    is a Hugging Face directory, a training run (its last step), or RUN@STEP. An interrupted measurement goes on when
    the same command is given again.

    Args:
        initial: The checkpoint that both runs started from.
        final_a: The end of run A.
        final_b: The end of run B.
        settings: What is measured, and how.
        out: Where report.json, matrices.csv, figures and page are written.
        base: The model that a LoRA adapter belongs to, where its adapter_config.json does not lead there.
        force: Take over a directory that holds another comparison.
        distributed: Share the work with the other processes that were started with this command (TPU pod, SLURM, MPI,
            or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); they need a shared --out.
    """

    def run(command: str) -> None:
        from jaxgeom.checkpoints import open_checkpoint
        from jaxgeom.checkpoints.adapters import require_base_is_read
        from jaxgeom.commands.entries import (
            entry_progress,
            other_processes,
            say_notes,
            say_what_is_replaced,
            writes_report,
        )
        from jaxgeom.comparison import between_runs
        from jaxgeom.cpu_memory import keep_freed_memory
        from jaxgeom.progress import Reporter
        from jaxgeom.report import print_table, write_report

        reporter = Reporter()
        say_what_is_replaced(out, force, reporter)
        with other_processes(distributed, out) as team:
            keep_freed_memory(settings.device)
            sides = [open_checkpoint(path, base=base) for path in (initial, final_a, final_b)]
            require_base_is_read(base, (initial, final_a, final_b))
            with entry_progress(reporter, "between") as progress:
                report = between_runs(
                    sides[0], sides[1], sides[2], settings, out=out, progress=progress, force=force, command=command,
                    team=team,
                )  # fmt: skip
        if not writes_report(team, reporter):
            return
        say_notes(report["coverage"], reporter)
        page = write_report(out)
        print_table(report, reporter.console)
        reporter.say(f"page: {page}")

    return run
