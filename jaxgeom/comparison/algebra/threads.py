"""How many threads BLAS uses: one a call, where several matrices are measured side by side.

LAPACK is called in SciPy's own library, products of NumPy arrays in NumPy's: two copies of a BLAS, often, each with
threads of its own. `threadpoolctl` finds whichever are loaded (OpenBLAS, MKL, BLIS) and sets them.
"""

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import scipy
import threadpoolctl

_UNCONTROLLED = "accelerate"
"""Apple's BLAS has no setting for its threads."""


def limit_this_thread() -> None:
    """One BLAS thread for the calls of this thread, where a BLAS (one with OpenMP) has a setting for each thread."""
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def _why_not() -> str | None:
    """Why the threads of some BLAS that is in use are not limited; None where all are."""
    for package in (np, scipy):
        name = package.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
        if _UNCONTROLLED in str(name).lower():
            return f"{package.__name__} was built with {name}"
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    if not found:
        return "threadpoolctl finds no BLAS that it knows"
    many = [str(library["filepath"]) for library in found if library["num_threads"] not in (1, None)]
    return f"{', '.join(many)} went on with several" if many else None


class _Limit:
    """The limit of the whole process, held as long as anybody is inside.

    A thread of its own sets it and puts it back: threadpoolctl lets the thread that set a shared pool change it, and
    whoever is out last may not be the one who was in first.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._thread, self._stack, self._reason = ThreadPoolExecutor(1), ExitStack(), None

    def enter(self) -> str | None:
        """Sets it; why it does not hold, None where it does."""
        with self._lock:
            if self._inside == 0:
                self._thread = ThreadPoolExecutor(1, "blas-limit")
                self._reason = self._thread.submit(self._set).result()
            self._inside += 1
            return self._reason

    def leave(self) -> None:
        """Puts back what was before, if nobody is left inside."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._thread.submit(self._stack.close).result()
                self._thread.shutdown()

    def _set(self) -> str | None:
        self._stack = ExitStack()
        self._stack.enter_context(threadpoolctl.threadpool_limits(limits=1, user_api="blas"))
        return _why_not()


_limit = _Limit()


@contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Within it each BLAS call of the process uses one thread, so that several matrices run side by side.

    Threads started inside call `limit_this_thread` first. Several may be inside at a time.

    Yields:
        Whether that took hold; where it did not, a warning says so and why.
    """
    reason = _limit.enter()
    try:
        if reason is not None:
            warnings.warn(
                f"the threads of BLAS cannot be limited ({reason}): matrices are measured one after another, which may "
                "take several times as long",
                RuntimeWarning,
                stacklevel=3,
            )
        yield reason is None
    finally:
        _limit.leave()
