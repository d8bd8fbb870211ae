"""For CPU runs alone: freed memory kept for the next step in place of being returned to the system each time."""

import ctypes
import sys

import jax

from jaxgeom.sharding import platform_of

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(device: str = "auto") -> bool:
    """Lets this process keep what it frees, where its work is done on the CPU.

    By default glibc maps large blocks anew each time and the kernel clears every page again. XLA on CPU takes and frees
    its scratch memory in every call, where a step of a small model spends a quarter of its time so; a comparison of
    checkpoints takes and frees arrays as large as a matrix. Memory in use at the peak then stays with the process.
    XLA's programs for the CPU run on the thread that calls them, since glibc maps large blocks anew for any thread but
    the first, whatever its settings. Called by the commands that train and measure, before anything else touches a
    device (JAX looks once at how programs for the CPU are to run).

    Args:
        device: "cpu", or the name of an accelerator, whose runs are left alone; "auto" asks JAX where it computes.

    Returns:
        Whether the allocator took the settings; False on an accelerator, or where the C library is not glibc.
    """
    if device not in ("auto", "cpu") or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Before the question, which starts the devices; it says nothing of programs for an accelerator.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if device == "auto" and platform_of(None) != "cpu":
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
