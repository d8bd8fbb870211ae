"""The C allocator's habits: freed memory kept for the next step in place of being returned to the system each time."""

import ctypes
import sys

import jax

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, in place of giving it back and asking for it again.

    By default glibc maps large blocks anew each time and the kernel clears every page again. XLA on CPU takes and frees
    its scratch memory in every call, where a step of a small model spends a quarter of its time so; a comparison of
    checkpoints takes and frees arrays as large as a matrix. Memory in use at the peak then stays with the process.
    XLA's programs run on the thread that calls them, since glibc maps large blocks anew for any thread but the first,
    whatever its settings. Called by the commands that train and measure, before any device is touched.

    Returns:
        Whether the allocator took the settings; False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
