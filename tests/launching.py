"""Real processes on loopback, each with devices of its own, that run commands of ours together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
_DEVICES = "--xla_force_host_platform_device_count"

# One command after the other in one process, which loads its packages once. Waiting is short, but for a busy machine.
# A process may be one that falls: it kills itself as soon as a path is there. The others then do not wait for it. Or it
# is told to stop, by a signal that it can hear: for each path once, in their order.
SCRIPT = """
import contextlib, io, json, os, pathlib, signal, sys, threading, time
from jaxgeom import cli, processes
processes.JOINING, processes.SIGN_OF_LIFE, processes.SEEING = json.loads(sys.argv[2])
paths, by, others_fall = json.loads(sys.argv[3])
def fall():
    for path in paths:
        while not os.path.exists(path):
            time.sleep(0.005)
        os.kill(os.getpid(), by)
threading.Thread(target=fall, daemon=True).start()
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    print("ENDED", json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
if status and others_fall:
    os._exit(status)
"""

ALONE = """
import json, sys
from jaxgeom import cli, processes
processes.JOINING, processes.SIGN_OF_LIFE, processes.SEEING = json.loads(sys.argv[2])
sys.argv = ["jaxgeom", *json.loads(sys.argv[1])[0]]
sys.exit(cli.main())
"""
"""The same for one command, as a command of its own ends."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def start(
    commands: Sequence[Sequence[Sequence[str]]], *, devices: int = 2, count: int | None = None, script: str = SCRIPT,
    patience: tuple[float, float, float] = (300, 100, 2.0), directories: Mapping[int, pathlib.Path] | None = None,
    falls: Mapping[int, pathlib.Path] | None = None, told: Mapping[int, Sequence[pathlib.Path]] | None = None,
    alone: bool = False,
    environment: Mapping[str, str] | None = None, caches: Mapping[int, pathlib.Path] | None = None,
) -> list[subprocess.Popen[str]]:  # fmt: skip
    """One process for each list of commands.

    Args:
        commands: of each process, in order.
        devices: simulated ones of each.
        count: processes that are to come, where these are not all.
        script: what runs the commands.
        patience: seconds to join, without a sign of life, and until a file is seen.
        directories: where a process works, by its number.
        falls: by its number a path, as soon as which is there a process kills itself.
        told: by its number paths, at each of which a process gets SIGTERM.
        alone: whether one process is told, as several are, where it would find the others.
        environment: further variables, of all.
        caches: by its number where a process has its copies of what lies in buckets, as on a machine of its own.
    """
    count = count or len(commands)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if _DEVICES not in flag]
    shared = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{_DEVICES}={devices}"]),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # fmt: skip
    started = []
    for index, words in enumerate(commands):
        own = {}
        if count > 1 or alone:
            own = {"JAX_NUM_PROCESSES": str(count), "JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
        more = ["--distributed"] if count > 1 else []
        paths, by = (told or {}).get(index, ()), signal.SIGTERM
        if falls and index in falls:
            paths, by = [falls[index]], signal.SIGKILL
        fate = [list(map(os.fspath, paths)), int(by), bool(falls)]
        said = [[[*one, *more] for one in words], patience, fate]
        own |= {"JAX_PROCESS_ID": str(index)} | dict(environment or {})
        own |= {"XDG_CACHE_HOME": os.fspath(caches[index])} if caches and index in caches else {}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", script, *map(json.dumps, said)], env=shared | own, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=(directories or {}).get(index, ROOT),
            )
        )  # fmt: skip
    return started


def end(started: Sequence[subprocess.Popen[str]], seconds: float = 1500.0) -> list[Ended]:
    """Waits for all; one that still goes on after so many seconds is killed, and its status is −9."""
    until, found = time.monotonic() + seconds, []
    for process in started:
        try:
            said = process.communicate(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()
        found.append(Ended(process.returncode, *said))
    return found


def each(ended: Sequence[Ended]) -> list[list[Ended]]:
    """What every process says of every command that `SCRIPT` has run."""
    return [
        [Ended(*json.loads(line.removeprefix("ENDED "))) for line in one.out.splitlines() if line.startswith("ENDED ")]
        for one in ended
    ]
