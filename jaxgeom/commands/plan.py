"""`jaxgeom plan --model M --topology T --objective O`."""

from collections.abc import Callable
from typing import Annotated, Any

from jaxgeom.commands.options import SomeFile, offered
from jaxgeom.planning.settings import PlanSettings


def plan(settings: Annotated[PlanSettings, offered(PlanSettings)], json: SomeFile = None) -> Callable[[str], int]:
    """Compile a run's programs ahead of time for devices that need not be there: does it fit, what binds it.

    The programs are those that `train` runs, built from shapes: no weights are read, nothing is run. Loops count as
    often as they turn, sampling to the last of `max_new_tokens`. Exit 1 where the run does not fit.

    Args:
        settings: Of the run.
        json: Where all numbers are written: a file that is not there, or an earlier plan's.
    """

    def run(command: str) -> int:
        from jaxgeom.interruption import goes_on
        from jaxgeom.planning.apart import Process, plan_apart
        from jaxgeom.planning.place import require_place, write_numbers
        from jaxgeom.planning.topologies import LOCAL, slice_of

        goes_on("the same command begins anew")
        if json is not None:
            require_place(json)
        if settings.topology != LOCAL:
            slice_of(settings.topology)
            if not Process.is_apart:
                return plan_apart(command)
            import jax

            # The compiler for TPUs needs no TPU, and one that is here stays free.
            jax.config.update("jax_platforms", "cpu")
        from jaxgeom.planning.planning import make_plan
        from jaxgeom.planning.writing import print_judgement, print_programs, to_json
        from jaxgeom.progress import Reporter

        reporter = Reporter()

        def show(write: Callable[[Any], Any], what: Any) -> None:
            try:
                write(what)
            except BrokenPipeError:
                if json is None:
                    raise
                reporter.fall_silent()  # who wants a file gets it, and the status

        def to_console(write: Callable[[Any, Any], None]) -> Callable[[Any], None]:
            return lambda plan: show(lambda what: write(what, reporter.console), plan)

        made = make_plan(settings, lambda text: show(reporter.say, text), to_console(print_programs))
        if json is not None:
            write_numbers(json, to_json(made, command))
        to_console(print_judgement)(made)
        return 0 if made.fits else 1

    return run
