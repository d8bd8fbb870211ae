"""Progress of a measurement, counted in entries of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxgeom.progress import Reporter


@contextmanager
def entry_progress(reporter: Reporter, label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A callback `(entries done, entries in all, name)` that drives a progress bar in permille.

    It is shown from the start on, before anything is finished.
    """
    shown = 0

    with reporter.task(f"{label} (‰ of the entries)", 1000) as task:

        def progress(done: int, total: int, name: str) -> None:
            nonlocal shown
            place = int(1000 * done / max(total, 1))
            task.advance(place - shown, name)
            shown = place

        yield progress
