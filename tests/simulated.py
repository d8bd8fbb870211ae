"""Several processes simulated by threads: what JAX brings from one to the others goes through a barrier."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import multihost_utils

PATIENCE = 60.0
"""Seconds after which a meeting that not all came to is broken: that is an error of all, where processes would hang."""


class Wire:
    """What stands in JAX's place between so many processes.

    Attributes:
        sizes: bytes of each process at every exchange.
    """

    def __init__(self, count: int):
        self.count = count
        self.sizes: list[int] = []
        self._own = threading.local()
        self._said: list[Any] = [None] * count
        self._met = threading.Barrier(count, timeout=PATIENCE)

    def index(self) -> int:
        return self._own.index

    def gather(self, held: np.ndarray) -> np.ndarray:
        self._said[self.index()] = held.copy()
        self._met.wait()
        found = np.stack(self._said)  # of one shape and dtype, as JAX asks for
        self._met.wait()
        if self.index() == 0:
            self.sizes.append(held.nbytes)
        return found

    def run(self, index: int, work: Callable[[int], Any]) -> Any:
        self._own.index = index
        return work(index)


@contextlib.contextmanager
def several(count: int) -> Iterator[Wire]:
    """Within it there are so many processes."""
    wire = Wire(count)
    with (
        mock.patch.object(jax, "process_count", lambda: count),
        mock.patch.object(jax, "process_index", wire.index),
        mock.patch.object(multihost_utils, "process_allgather", wire.gather),
    ):
        yield wire


def in_each(wire: Wire, work: Callable[[int], Any]) -> list[Any]:
    """What `work` returns or raises in each process, which is given its number."""
    with ThreadPoolExecutor(wire.count) as pool:
        futures = [pool.submit(wire.run, index, work) for index in range(wire.count)]
        return [future.exception() or future.result() for future in futures]
