"""`jaxgeom …` in a process of its own, as a user runs it.

A process takes seconds to import what it needs: one a command shows that the whole holds together, and mistakes call
the same `main` through the fixture `jaxgeom` (conftest.py).
"""

import os
import subprocess
import sys
from typing import Any, NamedTuple


class Said(NamedTuple):
    """What came back: the exit status and both streams."""

    status: int
    out: str
    err: str


def command(*arguments: Any) -> tuple[list[str], dict[str, str]]:
    """The command line and its environment, with one device."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return [sys.executable, "-m", "jaxgeom.cli", *map(str, arguments)], environment


def process(*arguments: Any) -> Said:
    """Runs the command to its end."""
    line, environment = command(*arguments)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    return Said(done.returncode, done.stdout, done.stderr)
