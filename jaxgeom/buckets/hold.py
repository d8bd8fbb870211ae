"""One command at a time on a folder of a bucket: an object `.lock`, rewritten as a sign of life."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from jaxgeom.buckets import store
from jaxgeom.errors import UserError

NAME = ".lock"
SIGN = 15.0
"""Seconds between signs of life."""

SILENCE = 60.0
"""Seconds without one, watched here, after which a process that cannot be asked counts as dead."""

_SETTLED = 0.5  # seconds after which a lock that was just made is looked at again


class Hold:
    """A lock that this process has.

    Args:
        url: the folder.
        own: what stands in the lock.
        generation: which object the lock is.
    """

    def __init__(self, url: str, own: dict[str, Any], generation: str) -> None:
        self.url, self._own, self._generation, self._ended = url, own, generation, threading.Event()
        self._signs = threading.Thread(target=self._signs_of_life, daemon=True)
        self._signs.start()

    def require(self) -> None:
        """Raises BucketLost where this process has the lock no more: another one took over, and may be done by now."""
        found = _look(f"{self.url}/{NAME}")
        if found is None or found[0].get("id") != self._own["id"]:
            other = "another process" if found is None else f"process {_who(found[0])}"
            raise store.BucketLost(
                f"{self.url}: {other} has taken over, for this one was silent for {SILENCE:.0f} s; this one stops"
            )

    def release(self) -> None:
        """Takes the lock away, if it still is this one's."""
        self._ended.set()
        self._signs.join(SIGN)  # a last sign would be a lock that nobody takes away
        with contextlib.suppress(store.BucketError):
            found = _look(f"{self.url}/{NAME}")
            if found is not None and found[0].get("id") == self._own["id"]:
                store.remove_generation(f"{self.url}/{NAME}", found[1])

    def _signs_of_life(self) -> None:
        beat = 0
        while not self._ended.wait(SIGN):
            beat += 1
            with contextlib.suppress(store.BucketError):  # the bucket is away for a while: tried again
                self._sign(beat)

    def _sign(self, beat: int) -> None:
        """Rewrites the lock, if it still is the one that this process wrote last: the bucket itself compares.

        Whoever was silent, and has been taken over meanwhile, so never writes over the other's lock.
        """
        lock = f"{self.url}/{NAME}"
        try:
            self._generation = store.write_over(lock, _text(self._own | {"alive": beat}), self._generation)
        except FileExistsError:
            found = _look(lock)
            # A sign that was written, and of which no answer came, was tried again: then the lock is this one's too.
            if found is not None and found[0].get("id") == self._own["id"]:
                self._generation = found[1]


@contextlib.contextmanager
def held(url: str, say: Callable[[str], None] | None = None) -> Iterator[Hold]:
    """Holds a folder of a bucket for this process.

    A lock of a process on this machine tells whether that lives. One of another machine is watched: it lives if the
    lock is rewritten, and is got past after `SILENCE` seconds without.

    Args:
        url: the folder.
        say: told where a lock is watched, or got past.

    Raises:
        UserError: a living process holds it; its host and number are named.
    """
    hold = Hold(url, *_taken(url, say or (lambda _: None)))
    try:
        yield hold
    finally:
        hold.release()


def _taken(url: str, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """What stands in the lock that this process has made, and which object it is."""
    lock = f"{url}/{NAME}"
    own = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    own |= {"id": uuid.uuid4().hex, "machine": _machine(), "started": _started(os.getpid())}
    while True:
        found = _look(lock)
        if found is None:
            with contextlib.suppress(FileExistsError):
                store.write_over(lock, _text(own), store.ABSENT)
            time.sleep(_SETTLED)  # of two that came at once the later one's stands, should the store know no conditions
            found = _look(lock)
            if found is not None and found[0].get("id") == own["id"]:
                return own, found[1]
            continue
        holder, generation = found
        alive = _is_alive(holder)
        if alive is None:
            say(f"{url}: is held by process {_who(holder)}; whether that lives is known in {SILENCE:.0f} s")
            alive = _changes(lock, generation)
        if alive:
            since = f", since {holder['since']}" if "since" in holder else ""
            raise UserError(
                f"{url}: process {_who(holder)} works in this folder{since}; wait for it, stop it, or choose another"
            )
        say(f"{url}: the process {_who(holder)} that held it is gone; going on")
        store.remove_generation(lock, generation)


def _changes(lock: str, generation: str) -> bool:
    """Whether a lock is rewritten within `SILENCE` seconds; one that goes away is nobody's."""
    until = time.monotonic() + SILENCE
    while time.monotonic() < until:
        time.sleep(min(2.0, SILENCE / 4))
        found = _look(lock)
        if found is None:
            return False
        if found[1] != generation:
            return True
    return False


def _look(lock: str) -> tuple[dict[str, Any], str] | None:
    """What stands in a lock, and which object it is; None where there is none."""
    found = store.listed(lock).get("")
    if found is None:
        return None
    try:
        held = json.loads(store.read(lock))
    except FileNotFoundError:
        return None
    except ValueError:
        held = None
    return (held if isinstance(held, dict) else {}), found.generation


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the process of a lock lives; None where it is of another machine, or of another container's numbers."""
    machine, pid = _machine(), holder.get("pid")
    if machine is None or holder.get("machine") != machine or not isinstance(pid, int):
        return None
    return _started(pid) is not None and _started(pid) == holder.get("started")


def _machine() -> str | None:
    """This start of this machine, and the room in which process numbers count; None where the system does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, by the system's count; None where it does not live."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _text(held: dict[str, Any]) -> bytes:
    return json.dumps(held).encode()


def _who(held: dict[str, Any]) -> str:
    return f"{held.get('pid', 'unknown')} on {held.get('host', 'unknown')}"
