"""`jaxgeom report DIR`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(directory: Annotated[Positional[Path], arg(metavar="DIR")]) -> Callable[[str], None]:
    """Writes figures and page anew from the `report.json` and `trajectory.json` that DIR holds, or from a run's log.

    Args:
        directory: Output of `study`, `compare`, `between`, `trajectory` or `train`.
    """

    def run(command: str) -> None:
        from jaxgeom.progress import Reporter
        from jaxgeom.report import write_report

        Reporter().say(f"page: {write_report(directory)}")

    return run
