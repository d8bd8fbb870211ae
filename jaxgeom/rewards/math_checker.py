"""A few processes that do the algebra of answers, started when first needed and replaced when they die."""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

from jaxgeom.cores import usable_cores

DEFAULT_TIMEOUT = 5.0
CHECKERS = min(8, usable_cores())
_START_TIMEOUT = 120.0
_WALL_FACTOR = 20.0
_MEMORY_BYTES = 2 * 2**30
_WORKER = Path(__file__).with_name("math_worker.py")


class _Checker:
    """One checking process; used by one thread at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(_MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="surrogatepass",
        )
        if self._reply(_START_TIMEOUT) != "ready":
            self.process.kill()
            _, complaint = self.process.communicate()
            last = (complaint.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the process that checks math answers did not start: {last}")

    def check(self, answer: str, truths: tuple[str, ...], timeout: float) -> bool | None:
        """The verdict, or None where the process died or did not answer in time (it is then of no more use)."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([answer, truths, timeout]) + "\n")
            self.process.stdin.flush()
        except OSError:
            return None
        # The process counts its own processor time; the wall clock only catches what does not even run.
        return {"1": True, "0": False}.get(self._reply(_WALL_FACTOR * timeout + _START_TIMEOUT))

    def _reply(self, timeout: float) -> str:
        assert self.process.stdout is not None
        # Replies are a line each and one at a time, so nothing waits in Python's own buffer when select looks.
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        return self.process.stdout.readline().strip() if ready else ""

    def close(self) -> None:
        """Ends the process and its pipes."""
        self.process.kill()
        self.process.communicate()


class _Pool:
    """Idle checkers, at most CHECKERS in being at once."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.idle: list[_Checker] = []
        self.lock = threading.Lock()
        self.places = threading.BoundedSemaphore(CHECKERS)

    def check(self, answer: str, truths: tuple[str, ...], timeout: float) -> bool:
        with self.places:
            with self.lock:
                checker = self.idle.pop() if self.idle else None
            if checker is None:
                checker = _Checker()
            verdict = None
            try:
                verdict = checker.check(answer, truths, timeout)
            finally:
                if verdict is None:
                    checker.close()
                else:
                    with self.lock:
                        self.idle.append(checker)
            return bool(verdict)

    def close(self) -> None:
        """Ends the idle checkers."""
        with self.lock:
            checkers, self.idle = self.idle, []
        for checker in checkers:
            checker.close()


_pool = _Pool()
_pool_lock = threading.Lock()


def check_by_algebra(answer: str, truths: tuple[str, ...], timeout: float) -> bool:
    """The verdict on an answer that algebra is needed for; False where that hangs, dies or cannot read it.

    Args:
        answer: the model's.
        truths: the right ones; one is enough.
        timeout: seconds of processor time; the start of a process not counted.

    Raises:
        RuntimeError: the process cannot be started.
    """
    global _pool
    with _pool_lock:
        if _pool.pid != os.getpid():  # after a fork: the processes belong to the parent
            _pool = _Pool()
        pool = _pool
    return pool.check(answer, truths, timeout)


def close_checkers() -> None:
    """Ends the idle checking processes; new ones start when needed. Done at exit by itself."""
    if _pool.pid == os.getpid():
        _pool.close()


atexit.register(close_checkers)
