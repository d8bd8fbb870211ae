"""Progress of a measurement, counted in entries of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxgeom.progress import Reporter, Task


@contextmanager
def entry_progress(reporter: Reporter, label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A callback `(entries done, entries in all, name)` that drives a progress bar in permille."""
    tasks: list[Task] = []
    shown = 0

    def progress(done: int, total: int, name: str) -> None:
        nonlocal shown
        if not tasks:
            tasks.append(reporter.task(f"{label} (‰ of the entries)", 1000).__enter__())
        place = int(1000 * done / max(total, 1))
        tasks[0].advance(place - shown, name)
        shown = place

    try:
        yield progress
    finally:
        if tasks:
            tasks[0].__exit__(None, None, None)
