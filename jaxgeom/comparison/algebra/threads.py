"""How many threads BLAS uses: one, where several matrices are measured side by side."""

import contextlib
import ctypes
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy


def _thread_controls() -> list[tuple[Any, Any]]:
    """(getter, setter) of the number of threads of each OpenBLAS that NumPy and SciPy brought along."""
    controls = []
    for package in (np, scipy):
        folder = pathlib.Path(package.__file__ or "").parent.parent / f"{package.__name__}.libs"
        for path in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
                name = f"{prefix}openblas_%s_num_threads{suffix}"
                if hasattr(library, name % "get") and hasattr(library, name % "set"):
                    controls.append((getattr(library, name % "get"), getattr(library, name % "set")))
                    break
    return controls


_controls_lock = threading.Lock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Within it each BLAS call uses one thread, so that several matrices run side by side.

    Yields whether that took hold.
    """
    with _controls_lock:
        controls = _thread_controls()
        before = [get() for get, _ in controls]
        for _, put in controls:
            put(1)
    try:
        yield len(controls) >= 2
    finally:
        with _controls_lock:
            for (_, put), count in zip(controls, before, strict=True):
                put(count)
