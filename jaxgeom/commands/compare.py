"""`jaxgeom compare INITIAL FINAL --out DIR`."""

from collections.abc import Callable
from typing import Annotated

from jaxgeom.commands.options import FINAL, INITIAL, Directory, SomeDirectory, SomeFile, offered
from jaxgeom.comparison import CompareSettings
from jaxgeom.errors import UserError


def compare(
    initial: INITIAL,
    final: FINAL,
    settings: Annotated[CompareSettings, offered(CompareSettings)],
    out: Directory,
    cache: SomeDirectory = None,
    prompts: SomeFile = None,
    base: SomeDirectory = None,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """Every diagnostic, with its null, between two checkpoints.

    A checkpoint is a Hugging Face directory, a training run (its last step), or RUN@STEP. An interrupted comparison
    goes on when the same command is given again.

    Args:
        initial: The checkpoint that holds W0.
        final: The checkpoint that holds W+.
        settings: What is measured, and how.
        out: Where report.json, matrices.csv, figures and page are written.
        cache: Directory of base spectra, keyed by content: later comparisons with the same W0 are faster.
        prompts: Rows with `prompt` or `messages`: adds the functional distance, the forward KL between the two models
            on answers that the initial one samples. Both must be Qwen3 models, the initial one with its tokenizer.
            Without it the distance that a finished comparison of the same weights in `out` has is kept.
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
        from jaxgeom.commands.kept_distance import distance_of, finished_report, prompts_of, with_distance
        from jaxgeom.comparison import compare_checkpoints
        from jaxgeom.comparison.run.plan import check_sides, match_sides
        from jaxgeom.comparison.two_checkpoints import require_free_folder
        from jaxgeom.cpu_memory import keep_freed_memory
        from jaxgeom.progress import Reporter
        from jaxgeom.report import print_table, write_report
        from jaxgeom.training import functional_distance

        reporter = Reporter()
        say_what_is_replaced(out, force, reporter)
        with other_processes(distributed, out) as team:
            keep_freed_memory(settings.device)
            first, second = (open_checkpoint(path, base=base) for path in (initial, final))
            require_base_is_read(base, (initial, final))
            held = finished_report(out)
            if prompts is not None and not force and prompts_of(held) not in (None, str(prompts)):
                raise UserError(
                    f"{out}: holds the functional distance on {prompts_of(held)}; give another --out or --force"
                )
            distance = None
            if prompts is not None and (team is None or team.index == 0):
                check_sides(match_sides([first, second]), settings)  # before the models answer, which may take long
                if not force and team is None:
                    require_free_folder(first, second, settings, out)
                reporter.say("functional distance: the initial model answers, both score")
                distance = functional_distance(initial, final, prompts, seed=settings.seed, base=base)
            with entry_progress(reporter, "compare") as progress:
                report = compare_checkpoints(
                    first, second, settings, out=out, cache=cache, progress=progress, force=force, command=command,
                    team=team,
                )  # fmt: skip
        if not writes_report(team, reporter):
            return
        if prompts is not None and distance is not None:
            report = with_distance(report, distance.to_json(), str(prompts))
            report.write(out)
        elif (found := distance_of(held, report)) is not None:
            reporter.say(f"functional distance: kept from the earlier run with --prompts {found[1]}")
            report = with_distance(report, *found)
            report.write(out)
        say_notes(report.coverage, reporter)
        page = write_report(out)
        print_table(report.to_json(), reporter.console)
        reporter.say(f"page: {page}")

    return run
