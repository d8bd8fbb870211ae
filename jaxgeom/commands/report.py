"""`jaxgeom report DIR`."""

from collections.abc import Callable
from pathlib import Path

from tyro.conf import Positional

from jaxgeom.progress import Reporter
from jaxgeom.report import write_report


def report(directory: Positional[Path]) -> Callable[[str], None]:
    """Writes figures and page anew from the `report.json` and `trajectory.json` that DIRECTORY holds.

    Args:
        directory: Output of `study`, `compare` or `trajectory`.
    """

    def run(command: str) -> None:
        Reporter().say(f"page: {write_report(directory)}")

    return run
