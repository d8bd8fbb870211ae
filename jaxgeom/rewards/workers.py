"""A few processes that judge what models write: started when first needed, bounded, replaced when they die.

What a model's answer makes Python do (powers of powers, sets of equal hashes) cannot be interrupted in the process that
does it. So it is done in one that can be ended.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_START_TIMEOUT = 120.0
_PROGRAM = Path(__file__).with_name("worker_program.py")


class Worker:
    """One process; used by one thread at a time.

    Attributes:
        process: The process.
        usable: It waits for a question. Once it died, or did not answer in time, it never is again.
    """

    def __init__(self, module: str, memory_bytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), str(memory_bytes), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="surrogatepass",
        )
        self.usable = self._reply(_START_TIMEOUT) == "ready"
        if not self.usable:
            self.process.kill()
            _, complaint = self.process.communicate()
            last = (complaint.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the process that checks answers ({module}) did not start: {last}")

    def ask(self, question: list[Any], seconds: float) -> bool | None:
        """What `module.serve(*question)` says, or None where it died or took longer (it is then of no more use).

        Args:
            question: its arguments, JSON.
            seconds: of wall time.
        """
        assert self.process.stdin is not None
        self.usable = False
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError:
            return None
        verdict = {"1": True, "0": False}.get(self._reply(seconds))
        self.usable = verdict is not None
        return verdict

    def _reply(self, timeout: float) -> str:
        assert self.process.stdout is not None
        # Replies are a line each and one at a time, so nothing waits in Python's own buffer when select looks.
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        return self.process.stdout.readline().strip() if ready else ""

    def close(self) -> None:
        """Ends the process and its pipes."""
        self.usable = False
        self.process.kill()
        self.process.communicate()


class Pool:
    """Workers of one module, at most so many in being at once.

    Attributes:
        idle: Those that wait.
    """

    def __init__(self, module: str, places: int, memory_bytes: int) -> None:
        """A pool without workers.

        Args:
            module: of this package, imported in the worker without JAX; its `serve` answers with True or False.
            places: how many workers there may be.
            memory_bytes: of one worker's address space.
        """
        self.module = module
        self.memory_bytes = memory_bytes
        self._places = places
        self._begin()
        _pools.append(self)

    def _begin(self) -> None:
        self.pid = os.getpid()
        self.idle: list[Worker] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(self._places)

    @contextlib.contextmanager
    def lent(self) -> Iterator[Worker]:
        """A worker for this thread.

        Raises:
            RuntimeError: it cannot be started.
        """
        with _forked:
            if self.pid != os.getpid():  # after a fork: the processes belong to the parent
                self._begin()
        with self._free:
            worker = self._taken() or Worker(self.module, self.memory_bytes)
            try:
                yield worker
            finally:
                if worker.usable:
                    with self._lock:
                        self.idle.append(worker)
                else:
                    worker.close()

    def _taken(self) -> Worker | None:
        while True:
            with self._lock:
                if not self.idle:
                    return None
                worker = self.idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.close()  # somebody ended it while it waited

    def close(self) -> None:
        """Ends the idle workers."""
        if self.pid != os.getpid():
            return
        with self._lock:
            workers, self.idle = self.idle, []
        for worker in workers:
            worker.close()


_pools: list[Pool] = []
_forked = threading.Lock()


def close_checkers() -> None:
    """Ends the idle processes that check answers; new ones start when needed. Done at exit by itself."""
    for pool in _pools:
        pool.close()


atexit.register(close_checkers)
