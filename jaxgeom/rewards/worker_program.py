"""The program of a process that judges: asks its module for each line of JSON, and writes 1 or 0.

It is run by path and imports nothing of jaxgeom but its neighbours, so that it starts without JAX.
"""

import importlib
import json
import os
import sys
import types
from pathlib import Path


def main() -> None:
    """Serves questions until standard input closes."""
    import resource

    memory, module = int(sys.argv[1]), sys.argv[2]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    # The neighbours under a name of their own: jaxgeom itself would bring JAX.
    package = types.ModuleType("verifier")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules["verifier"] = package
    serve = importlib.import_module(f"verifier.{module}").serve
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(devnull, 2)  # until here a complaint reaches the parent; from here nobody empties that pipe
    replies.write("ready\n")
    for line in sys.stdin:
        replies.write("1\n" if serve(*json.loads(line)) else "0\n")


if __name__ == "__main__":
    main()
