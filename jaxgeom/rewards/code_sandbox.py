"""Running `code_runner` under bubblewrap, or without it, so that nothing of it is left and its time is bounded."""

import contextlib
import functools
import itertools
import json
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import code_runner

_RUNNER = Path(code_runner.__file__)
_LOOK_EVERY = 0.05
_LONGEST_OUTPUT = 8 * 2**20
_PROCESSES = 64
_DIRECTORY_BYTES = 64 * 2**20
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/nix/store")
# Users that are nobody: each sandbox that root starts has one of its own, and with it a count of processes of its own.
_NOBODY = 1_900_000_000
_numbers = itertools.count(os.getpid() % 1000 * 1000)


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: Of wall time for one test.
        memory_bytes: Of memory, of each process' address space and of all processes together.
    """

    seconds: float = 10.0
    memory_bytes: int = 1024 * 2**20


@dataclass(frozen=True)
class Way:
    """How the sandbox is made on this machine.

    Attributes:
        other_user: the program runs as a user that is nobody (only root can give it one).
        proc: a /proc of its own can be mounted.
    """

    other_user: bool
    proc: bool


def isolation_problem() -> str | None:
    """Why programs cannot be shut in on this machine, or None where they can."""
    return None if _way() else _problem()


def converse(
    request: dict[str, Any], limits: Limits, *, isolated: bool, goes_on: Callable[[bytes, float], bool] | None = None
) -> tuple[bytes, int | None]:
    """Runs `code_runner` on a request.

    Args:
        request: `program` and `input` or `calls`.
        limits: seconds are those of the run, or from one line of output to the next where `goes_on` is given.
        isolated: under bubblewrap.
        goes_on: told each line of output and the seconds that are left; False ends the program.

    Returns:
        The output, and the exit status; None where the program was ended: by `goes_on`, or a limit of time, of memory
        of all processes together, of processes, or of output.
    """
    way = _way() if isolated else None
    if isolated and way is None:
        raise RuntimeError(_problem())
    with _directory(isolated) as directory:
        return _converse(way, request, limits, directory, goes_on)


def _converse(
    way: Way | None,
    request: dict[str, Any],
    limits: Limits,
    directory: str | None,
    goes_on: Callable[[bytes, float], bool] | None = None,
) -> tuple[bytes, int | None]:
    settings = {
        "isolated": way is not None,
        "memory": limits.memory_bytes,
        "seconds": int(limits.seconds) + 1,
        "directory_bytes": _DIRECTORY_BYTES,
        "other_user": way is not None and way.other_user,
        # Before 5.14 the kernel counted all of a user's processes together, those outside of the sandbox too.
        "processes": _PROCESSES if way is not None and (way.other_user or _kernel() >= (5, 14)) else None,
    }
    message = json.dumps(settings | request).encode()
    with _started(way, directory) as process:
        assert process.popen.stdin is not None and process.popen.stdout is not None
        # The runner reads all of it before the program is there, so this waits for nothing that a program does.
        with contextlib.suppress(BrokenPipeError), process.popen.stdin as stream:
            stream.write(message)
        output, told = bytearray(), 0
        looked = time.monotonic()
        deadline = looked + limits.seconds
        source = process.popen.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while (now := time.monotonic()) < deadline:
                if now - looked > _LOOK_EVERY:
                    looked = now
                    if not process.within(limits.memory_bytes, _PROCESSES):
                        return bytes(output), None
                if not selector.select(min(_LOOK_EVERY, deadline - now)):
                    if process.popen.poll() is not None:
                        break  # a process that it left behind holds the pipe open; there is no end to wait for
                    continue
                piece = os.read(source, 1 << 16)
                if not piece:
                    return bytes(output), process.ended(deadline)
                output += piece
                if len(output) > _LONGEST_OUTPUT:
                    return bytes(output), None
                while goes_on is not None and (end := output.find(b"\n", told)) >= 0:
                    if not goes_on(bytes(output[told:end]), deadline - time.monotonic()):
                        return bytes(output), None
                    told = end + 1
                    deadline = time.monotonic() + limits.seconds
        return bytes(output), process.popen.poll()


class _Process:
    """A running sandbox, or a bare process and what it started."""

    def __init__(self, popen: subprocess.Popen, init: int | None):
        self.popen = popen
        self.init = init
        self.handle = os.pidfd_open(init) if init is not None else None

    def within(self, memory: int, processes: int) -> bool:
        """Whether all of it together is within its limits."""
        members = list(_descendants(self.popen.pid))
        if len(members) > processes + 8:
            return False
        if sum(_resident(pid) for pid in members) <= memory:
            return True
        return sum(_share(pid) for pid in members) <= memory

    def ended(self, deadline: float) -> int | None:
        """The exit status once its output is closed; None where it goes on beyond the deadline."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(max(0.0, deadline - time.monotonic()))
        return None

    def end(self) -> None:
        """Ends everything and waits until it is gone."""
        if self.handle is not None:
            # The first process of its namespace: the kernel ends all others with it, and bubblewrap then ends itself.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            os.close(self.handle)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(5.0)
        else:
            for _ in range(20):
                members = list(_descendants(self.popen.pid))
                for pid in members:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                if not members:
                    break
            if self.popen.poll() is None:
                # Not reaped yet, so the number still is that of its own group, which start_new_session made it lead.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.kill()
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


@contextlib.contextmanager
def _started(way: Way | None, directory: str | None) -> Iterator[_Process]:
    pipe = subprocess.PIPE
    common: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.DEVNULL, "env": {}}
    if way is None:
        popen = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_RUNNER)], cwd=directory, start_new_session=True, **common
        )
        process = _Process(popen, None)
    else:
        report, reported = os.pipe()
        gate, opened = os.pipe()
        try:
            popen = subprocess.Popen(_command(way, reported, gate), pass_fds=[reported, gate], cwd="/", **common)
        finally:
            os.close(reported)
            os.close(gate)
        with os.fdopen(report, "rb") as stream, os.fdopen(opened, "wb", buffering=0) as key:
            told = stream.read()
            if way.other_user:
                with contextlib.suppress(ValueError, KeyError, OSError):
                    _give_users(int(json.loads(told)["child-pid"]))
                with contextlib.suppress(BrokenPipeError):
                    key.write(b"1")
        try:
            init = int(json.loads(told)["child-pid"])
            process = _Process(popen, init)
        except (ValueError, KeyError, OSError):
            process = _Process(popen, None)  # it ended before it said more
    try:
        yield process
    finally:
        process.end()


def _give_users(init: int) -> None:
    """Two users for a new namespace: its root is ours, who may read what is mounted; user 1 is nobody, the program's.

    The kernel does not count root's processes, and counts nobody's for each number apart.
    """
    nobody = _NOBODY + next(_numbers) % 10**8
    for kind in ("uid", "gid"):
        Path(f"/proc/{init}/{kind}_map").write_text(f"0 0 1\n1 {nobody} 1\n", encoding="ascii")


def _command(way: Way, report: int, gate: int) -> list[str]:
    """bubblewrap's arguments."""
    command = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--info-fd", str(report)]
    # Root of its own namespace until the runner has mounted its directories and gives all capabilities up.
    command += ["--uid", "0", "--gid", "0", "--cap-drop", "ALL"]
    for capability in ("SYS_ADMIN", "SETPCAP", *(("SETUID", "SETGID") if way.other_user else ())):
        command += ["--cap-add", f"CAP_{capability}"]
    if way.other_user:
        command += ["--userns-block-fd", str(gate)]
    if way.other_user:
        # Left to itself, bubblewrap gives a parent the mode that it has outside: /root would be closed to nobody.
        parents = {str(parent) for path in _read_only() for parent in Path(path).parents if str(parent) != "/"}
        for parent in sorted(parents):
            command += ["--perms", "0755", "--dir", parent]
    for path in _read_only():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    command += ["--proc", "/proc"] if way.proc else ["--dir", "/proc"]
    command += ["--dev", "/dev", "--dir", code_runner.WORK]
    if not any(path.startswith("/tmp/") for path in _read_only()):
        command += ["--symlink", code_runner.WORK.lstrip("/"), "/tmp"]
    # What all hangs in is a tmpfs without bounds.
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    return [*command, "--", sys.executable, "-I", "-B", "-c", _RUNNER.read_text(encoding="utf-8")]


@functools.cache
def _read_only() -> tuple[str, ...]:
    """What a program can read: the system and this Python, nothing of the user's."""
    scheme = sysconfig.get_paths()
    own = [sys.prefix, sys.base_prefix, scheme["purelib"], scheme["platlib"], scheme["stdlib"]]
    paths = [path for path in _SYSTEM if os.path.lexists(path)]
    for path in sorted({os.path.realpath(path) for path in own} | set(own)):
        if not any(path == other or path.startswith(other + "/") for other in paths):
            paths.append(path)
    return tuple(paths)


@functools.cache
def _way() -> Way | None:
    """The strictest way that works here, tried once."""
    if shutil.which("bwrap") is None or not hasattr(os, "pidfd_open"):
        return None
    users = (True, False) if os.geteuid() == 0 else (False,)
    for other_user, proc in itertools.product(users, (True, False)):
        way = Way(other_user, proc)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            # The import shows that the program's user can read this Python.
            request = {"program": "import decimal\nprint(input())", "input": "ready"}
            output, status = _converse(way, request, Limits(seconds=20.0), None)
            if output == b"ready\n" and status == 0:
                return way
    return None


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


def _problem() -> str:
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    return "bubblewrap cannot make its namespaces here (a container without user namespaces?)"


@contextlib.contextmanager
def _directory(isolated: bool) -> Iterator[str | None]:
    """A directory for a program without a sandbox; gone afterwards, whatever the program made of it."""
    if isolated:
        yield None
        return
    directory = tempfile.mkdtemp(prefix="jaxgeom-code-")
    try:
        yield directory
    finally:
        # rm does not follow links and does not mind depth; Python's own removal raises on both.
        for command in (["rm", "-rf", "--"], ["chmod", "-R", "u+rwX", "--"], ["rm", "-rf", "--"]):
            if os.path.lexists(directory):
                subprocess.run([*command, directory], stderr=subprocess.DEVNULL, check=False)


def _descendants(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                    children = [int(child) for child in file.read().split()]
                waiting += children
                yield from children


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _share(pid: int) -> int:
    """Its memory, what it shares with others counted by parts; what cannot be read counts whole."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return _resident(pid)
