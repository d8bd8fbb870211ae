"""What Orbax's threads and tasks still say after the error of a save or a read has been raised: nothing.

One error of the disk comes to each of them. The first is raised and told to the user; the others would each print a
traceback, some after the command has said its last line.
"""

import functools
import logging
import sys
import warnings
from typing import Any

_REPEATED = (
    "_SignalingThread.run() raised",
    "Commit callback in background save thread",
    "Failed to write metadata=",
    "Failed to update metadata=",
)


def hush_orbax() -> None:
    """From here on Orbax does not log its repetitions; to be called once in a process."""
    logging.getLogger("absl").addFilter(lambda record: not any(said in str(record.msg) for said in _REPEATED))


@functools.cache
def hush_process() -> None:
    """From here on nothing of them is printed. For a process of our own: others' tasks are silenced with them."""
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in str(record.msg))
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if not (isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == "Event loop is closed"):
            hook(lost)

    sys.unraisablehook = unraisable
