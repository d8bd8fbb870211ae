"""For CPUs alone: a large batch is sampled in parts side by side, each on a thread of its own.

XLA on CPU runs a small operation on one thread: products of less than about 30 MFLOP, and all of attention. Two
programs of half the rows then keep two cores busy.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxgeom.cores import usable_cores

# With fewer rows to a part, reading the weights once more costs what the second thread gains.
_ROWS_OF_A_PART = 32


def count_parts(rows: int, platform: str | None, mesh: Mesh | None) -> int:
    """How many parts a batch is sampled in: a power of two, up to one a core; 1 but on a single CPU device.

    Args:
        rows: of the batch, a power of two on a single device.
        platform: of the devices, as `sharding.platform_of` says.
        mesh: what the parameters lie on.
    """
    if platform != "cpu" or (mesh is not None and mesh.size > 1):
        return 1
    parts = min(usable_cores(), rows // _ROWS_OF_A_PART)
    return 1 << max(parts.bit_length() - 1, 0)


def run_parts(
    run: Callable[..., tuple[np.ndarray, ...]], arrays: Sequence[np.ndarray], parts: int
) -> tuple[np.ndarray, ...]:
    """`run(*arrays)`, by so many parts of the rows.

    Args:
        run: takes and returns arrays `[rows, ...]`, each row of what it returns from the same row of what it takes.
        arrays: `[batch, ...]` each, `batch` divisible by `parts`.
        parts: 1 calls `run` as it is.
    Returns:
        What `run` returns, `[batch, ...]` each.
    """
    first, *others = zip(*(np.split(x, parts) for x in arrays), strict=True)
    if not others:
        return run(*first)
    with ThreadPoolExecutor(len(others)) as threads:
        pending = [threads.submit(run, *part) for part in others]
        found: list[Any] = [run(*first), *(part.result() for part in pending)]
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))
