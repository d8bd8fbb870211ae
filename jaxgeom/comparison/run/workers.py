"""Measuring parts on all cores, in order, within a bound on memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jaxgeom.comparison.algebra.threads import limit_this_thread, one_blas_thread
from jaxgeom.comparison.files.population import Part
from jaxgeom.cores import usable_cores

Progress = Callable[[int, int, str], None]
"""Called with entries done, entries in all, and the name of what was finished."""

_IN_FLIGHT_ENTRIES = 1 << 27
"""Entries of the parts that are read ahead or measured at a time, per device: 1 GiB for two sides in float32."""


def worker_count(devices: int = 0) -> int:
    """Matrices measured side by side: one per core that this process may use, at most 8, or two for each device."""
    return min(usable_cores(), max(8, 2 * devices))


class _Flight:
    """Bounds the memory of what is read ahead or measured: by the number of its entries.

    A part that alone is beyond the bound is let in once nothing else is there.
    """

    def __init__(self, entries: int) -> None:
        self.entries, self.used = entries, 0
        self.condition = threading.Condition()

    def take(self, size: int) -> None:
        with self.condition:
            while self.used and self.used + size > self.entries:
                self.condition.wait()
            self.used += size

    def give(self, size: int) -> None:
        with self.condition:
            self.used -= size
            self.condition.notify_all()


def measure_parts(
    parts: Sequence[Part],
    read: Callable[[Part], Any],
    measure: Callable[[Part, Any], dict[str, Any]],
    finished: Callable[[Part, dict[str, Any]], None],
    *,
    devices: int = 0,
) -> None:
    """Measures parts on all cores, one BLAS thread each, reading ahead by one part per worker within a memory bound.

    Args:
        parts: what is measured, in this order.
        read: reads a part, on a thread of its own.
        measure: measures what was read.
        finished: takes the row, in the order of the parts.
        devices: accelerators at work; a host with several has the memory to keep them busy.
    """
    with one_blas_thread() as single:
        workers, limit = (worker_count(devices), limit_this_thread) if single else (1, None)
        flight = _Flight(_IN_FLIGHT_ENTRIES * max(1, devices))
        pending: list[tuple[Part, Future[dict[str, Any]]]] = []

        def work(part: Part, loaded: "Future[Any]") -> dict[str, Any]:
            try:
                return measure(part, loaded.result())
            finally:
                flight.give(part.size)

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(workers, initializer=limit) as pool:
            try:
                for part in parts:
                    while len(pending) > 2 * workers:
                        first, future = pending.pop(0)
                        finished(first, future.result())
                    flight.take(part.size)
                    pending.append((part, pool.submit(work, part, reader.submit(read, part))))
                while pending:
                    first, future = pending.pop(0)
                    finished(first, future.result())
            except BaseException:  # an interrupt too: leaving the pools would wait for all that is queued
                reader.shutdown(cancel_futures=True)
                pool.shutdown(cancel_futures=True)
                raise
