"""The C allocator's habits: freed memory kept for the next step in place of being returned to the system each time."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees: on CPU, XLA takes and frees its scratch memory in every call.

    By default glibc maps large blocks anew each time and the kernel clears every page again; a step of a small model
    spends a quarter of its time there. Memory in use at the peak then stays with the process. Called by the commands
    that train; it changes nothing but glibc's settings and is for processes of one's own.

    Returns:
        Whether the allocator took the settings; False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 26))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
