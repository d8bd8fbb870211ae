"""How many cores this process has."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: those of its affinity mask, which a container or `taskset` narrows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
