"""Real processes on loopback, each with devices of its own, that run one command of ours together."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]

# Waiting is short here: what is lost must be noticed within the patience of a test.
SCRIPT = """
import sys
from jaxgeom import cli, processes
processes.JOINING, processes.SIGN_OF_LIFE, processes.SEEING = 120, 10, 2.0
sys.argv = ["jaxgeom", *sys.argv[1:]]
sys.exit(cli.main())
"""


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


def start(
    arguments: Sequence[Sequence[str]], *, devices: int = 2, count: int | None = None, **environment: str
) -> list[subprocess.Popen[str]]:
    """One process for each list of arguments, all with `--distributed`; they are `count`, where more are to come."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    count = count or len(arguments)
    of_all = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_NUM_PROCESSES": str(count),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "PYTHONPATH": str(ROOT), **environment,
    }  # fmt: skip
    if count == 1:
        of_all = {name: value for name, value in of_all.items() if not name.startswith(("JAX_NUM", "JAX_COORD"))}
    more = ["--distributed"] if count > 1 else []
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words, *more], env={**of_all, "JAX_PROCESS_ID": str(index)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        )
        for index, words in enumerate(arguments)
    ]  # fmt: skip


def end(started: Sequence[subprocess.Popen[str]], seconds: float = 400.0) -> list[Ended]:
    """Waits for all; those that still go on after so many seconds are killed and have the status −9."""
    until, found = time.monotonic() + seconds, []
    for process in started:
        try:
            said = process.communicate(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()
        found.append(Ended(process.returncode, *said))
    return found
