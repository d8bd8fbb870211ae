"""Stopping a command by SIGTERM or Ctrl-C: within seconds, in a place from which the same command goes on.

The main thread may be in a compiler or a library for minutes and run no Python signal handler meanwhile. So signals
also reach a watching thread (by `signal.set_wakeup_fd`), which ends the process where the main thread does not come to
it in time. What is on disk then is what a kill would have left, and every command goes on from that.

Nor does an exception come through everywhere. Raised while an extension is imported it becomes an `ImportError`, so
there it waits; raised in a callback of the garbage collector it is printed and lost. The watching thread then has it
raised once more.
"""

import _thread
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

GRACE = 8.0
"""Seconds that the main thread has to begin to save, or to end."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN = 0.2  # seconds until it is tried again
_TWICE = 1.0  # a wrapper may pass on the Ctrl-C that the terminal has sent to all: that is no second one


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asked to stop.

    Its message is what `goes_on` was told last, unless another is given.

    Attributes:
        status: the exit status, 128 and the number of the signal.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or _State.said)
        self.number, self.status = number, 128 + number


class _State:
    """Of this process: signals are."""

    installed = False
    held = 0
    listening = 0
    pending: int | None = None
    said = ""
    leaving = threading.Event()
    again = False  # the exception did not come through
    echoes = 0  # signals that are on their way from the watching thread
    bottom: FrameType | None = None  # who asked to be stoppable


@contextlib.contextmanager
def stoppable(grace: float = GRACE) -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise `Interrupted`; inside another, or off the main thread, it does nothing.

    Args:
        grace: seconds until the process is ended from beside.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    _State.installed, _State.pending, _State.said = True, None, ""
    _State.again, _State.echoes, _State.bottom = False, 0, _caller()
    _State.leaving.clear()
    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if isinstance(lost.exc_value, Interrupted):
            _State.again = True
        else:
            hook(lost)

    sys.unraisablehook = unraisable
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    descriptor = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read, grace), daemon=True)
    watch.start()
    try:
        yield
    finally:
        if sys.unraisablehook is unraisable:  # else another's stands before it and passes on to it
            sys.unraisablehook = hook
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.installed, _State.again, _State.bottom = False, False, None
        os.write(write, b"\0")
        watch.join()
        os.close(read)
        os.close(write)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it a signal waits until the end: what belongs together is done whole."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
    if _State.pending is not None and not _State.held and not _State.leaving.is_set():
        _State.again = False
        raise Interrupted(_State.pending)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within it a first signal does nothing but that `asked` tells it: who stops together with others says when.

    Nor does the time run that the main thread has to begin to save; a second signal ends the process.
    """
    _State.held += 1
    _State.listening += 1
    try:
        yield
    finally:
        _State.held -= 1
        _State.listening -= 1


def asked() -> int:
    """The signal that waits in `held` or `listening`, 0 where none does."""
    return _State.pending or 0


def saving() -> None:
    """The main thread has come to it and saves: however long that takes, only a second signal ends it."""
    _State.leaving.set()


def goes_on(sentence: str, where: str | os.PathLike[str] | None = None) -> None:
    """What is said last where a signal ends the process now, by itself or from beside.

    Args:
        sentence: from where the same command goes on.
        where: the directory that it writes to.
    """
    _State.said = f"stopped; {sentence}" if where is None else f"{os.fspath(where)}: stopped; {sentence}"


@contextlib.contextmanager
def said_within() -> Iterator[None]:
    """What `goes_on` is told within it is forgotten after it: the part of a command that it was said of is done."""
    before = _State.said
    yield
    _State.said = before


def end_soon(status: int, seconds: float = 3.0) -> None:
    """Ends this process with a status in a few seconds, if it has not ended by itself.

    A library that was interrupted may leave a thread that Python waits for: JAX's, on a TPU that does not answer, for a
    minute.
    """

    def end() -> None:
        time.sleep(seconds)
        os._exit(status)

    threading.Thread(target=end, daemon=True).start()


def _handle(number: int, frame: FrameType | None) -> None:
    first = _State.pending is None
    if first:
        _State.pending = number
    # Raised once, for what ends then is not to be cut short; a second signal is the watching thread's affair.
    if _State.held or _State.leaving.is_set() or not (first or _State.again):
        return
    _State.again = _is_importing(frame)
    if not _State.again:
        raise Interrupted(number)


def _caller() -> FrameType | None:
    """The frame that entered `stoppable`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in (__file__, contextlib.__file__):
        frame = frame.f_back
    return frame


def _is_importing(frame: FrameType | None) -> bool:
    """Whether something is being imported, above the frame that asked to be stoppable."""
    while frame is not None and frame is not _State.bottom:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(read: int, grace: float) -> None:
    got, since = 0, 0.0
    while True:
        ready, _, _ = select.select([read], [], [], _AGAIN if got and not _State.leaving.is_set() else None)
        if not ready:
            if _State.leaving.is_set():
                continue
            if _State.listening:
                since = time.monotonic()
                continue
            if time.monotonic() >= since + grace:
                _end(got)
            if _State.again:
                _State.echoes += 1
                _thread.interrupt_main(signal.Signals(got))
            continue
        byte = os.read(read, 1)
        if byte in (b"", b"\0"):
            return
        if byte[0] in _SIGNALS:
            if _State.echoes:
                _State.echoes -= 1
            elif not got:
                got, since = byte[0], time.monotonic()
            elif time.monotonic() - since > _TWICE:
                _end(got)


def _end(number: int) -> None:
    said = _State.said or "stopped; the same command goes on from what is kept"
    with contextlib.suppress(OSError):
        os.write(2, f"jaxgeom: {said}\n".encode())
    os._exit(128 + number)
