"""`jaxgeom plan --model M --topology T --objective O`."""

import os
from collections.abc import Callable
from typing import Annotated

from jaxgeom.commands.options import SomeFile, offered
from jaxgeom.errors import UserError
from jaxgeom.planning.settings import PlanSettings


def plan(settings: Annotated[PlanSettings, offered(PlanSettings)], json: SomeFile = None) -> Callable[[str], int]:
    """Compile a run's programs ahead of time for devices that need not be there: does it fit, what binds it.

    The programs are those that `train` runs, built from shapes: no weights are read, nothing is run. Loops count as
    often as they turn, sampling to the last of `max_new_tokens`. Exit 1 where the run does not fit.

    Args:
        settings: Of the run.
        json: Where all numbers are written.
    """

    def run(command: str) -> int:
        from jaxgeom.interruption import goes_on
        from jaxgeom.planning.topologies import LOCAL

        goes_on("the same command begins anew")
        if json is not None and (json.is_dir() or not os.access(json.parent, os.W_OK)):  # before minutes of compiling
            raise UserError(f"--json {json}: no file can be written there")

        if settings.topology != LOCAL:
            import jax

            # The compiler for TPUs needs no TPU, and one that is here stays free.
            jax.config.update("jax_platforms", "cpu")
        from json import dumps

        from jaxgeom.files import write_atomically
        from jaxgeom.planning.planning import make_plan
        from jaxgeom.planning.writing import print_plan, to_json
        from jaxgeom.progress import Reporter

        reporter = Reporter()
        made = make_plan(settings, reporter.say)
        print_plan(made, reporter.console)
        if json is not None:
            write_atomically(json, dumps(to_json(made, command), indent=1) + "\n")
        return 0 if made.fits else 1

    return run
