"""Several processes at one program: how they find each other, agree, and learn that one of them is lost.

JAX runs one program in all of them: each must come to the same computations in the same order. What the host decides
(from a file, a clock, a signal) is therefore decided by one process and told to the others, or by all from what all
have said. An error in work that each does for itself reaches the others where they meet next; where one is lost in a
computation the others are told so by JAX and end.

With one process every function here does the plain thing and computes nothing.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgeom.buckets.places import named
from jaxgeom.differences import unequal
from jaxgeom.errors import UserError
from jaxgeom.gathering import concatenated, gathered
from jaxgeom.surroundings import surroundings

JOINING = 300
"""Seconds that a process waits for the others to come."""

SIGN_OF_LIFE = 60
"""Seconds without a sign of life after which JAX counts a process as lost and ends the others."""

SEEING = 60.0
"""Seconds in which a file that process 0 has written must be seen by the others."""

_SLACK = 60  # seconds in which JAX's own end of waiting, which is no error but an abort, comes after ours
_VARIABLES = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
_OF_SEVERAL = re.compile(r"\bGloo\b|\bNCCL\b|[Cc]oordination ?[Ss]ervice")
"""Who speaks where a computation of several processes fails; JAX raises some of that as a plain `ValueError`."""
_T = TypeVar("_T")


class ProcessLost(UserError):
    """A computation that all processes take part in has failed: another is lost, most likely.

    No mistake of the user's: whoever starts commands again by their exit status starts this one again.
    """

    status = 1


class ShareError(UserError):
    """A mistake in what all processes have, found by one of them in its share: all say it, in the same words.

    Attributes:
        order: of several that were found, those of the lowest stage of the work are said, and of these that of the
            first process.
    """

    def __init__(self, message: str, order: int) -> None:
        super().__init__(message)
        self.order = order


def join(*, patience: int | None = None, sign_of_life: int | None = None) -> None:
    """Joins the other processes by `jax.distributed`, to be called before anything that touches a device.

    TPU pods, SLURM, MPI and Kubernetes are detected; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say who is who.

    Args:
        patience: seconds that it waits for the others, `JOINING` where None.
        sign_of_life: seconds of silence after which a process counts as lost, `SIGN_OF_LIFE` where None.

    Raises:
        UserError: what says who is who is missing or wrong; a process has another number of devices than the others.
            Where the others do not come in that time, or their coordinator cannot be reached, the process itself
            ends, with a line: JAX's waiting can neither be interrupted nor raises. Its exit status is 2 where the
            address was given, which may be wrong, and 1 where it was detected: a host is missing then, and a later
            start may find it.
    """
    if jax.distributed.is_initialized():
        return
    patience = JOINING if patience is None else patience
    way_out = f"start on a TPU pod, under SLURM or MPI, or set {_VARIABLES}"
    where = os.environ.get("JAX_COORDINATOR_ADDRESS")
    missing = (
        f"--distributed: not all processes came within {patience} s"
        f"{f', or the coordinator {where} cannot be reached' if where else ''}; start the same command in all of them"
        f"{', each with a JAX_PROCESS_ID of its own' if where else ''}"
    )
    if where is not None and not re.fullmatch(r".+:\d+", where):
        raise UserError(f"JAX_COORDINATOR_ADDRESS={where}: HOST:PORT is needed")
    number, several = _number("JAX_PROCESS_ID"), _number("JAX_NUM_PROCESSES")
    if several is not None and several < 1:
        raise UserError(f"JAX_NUM_PROCESSES={several}: must be positive")
    if number is not None and several is not None and not 0 <= number < several:
        raise UserError(
            f"JAX_PROCESS_ID={number}: one of 0 to {several - 1} is needed, each once: JAX_NUM_PROCESSES is {several}"
        )
    # JAX's own notice of SIGTERM would take the place of the handler that saves (`interruption`, `Signals`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _ended_after(patience, missing, 2 if where else ProcessLost.status):
            jax.distributed.initialize(
                num_processes=several,
                process_id=number,
                initialization_timeout=patience + _SLACK,
                heartbeat_timeout_seconds=SIGN_OF_LIFE if sign_of_life is None else sign_of_life,
            )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"--distributed: {said.rstrip('.')}; {way_out}") from error
    _require_equal_devices()


def refuse_unjoined() -> None:
    """Two processes that write into one directory without knowing of each other would destroy each other's work.

    Raises:
        UserError: the variables that JAX joins processes by are set for more than one, and they were not joined.
    """
    number = os.environ.get("JAX_NUM_PROCESSES") or ("several" if os.environ.get("JAX_COORDINATOR_ADDRESS") else "1")
    if number != "1" and not jax.distributed.is_initialized():
        raise UserError(f"JAX_NUM_PROCESSES says {number}: give --distributed to join them, or unset {_VARIABLES}")


def is_joined() -> bool:
    """Whether this process has joined others."""
    return bool(jax.distributed.is_initialized())


def count() -> int:
    """The number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def exchanged(value: Any, *, at: str = "exchanged") -> list[Any]:
    """What every process says, in their order; all call it together.

    Args:
        value: what this one says; it is pickled.
        at: the place in the program, which is that of all.

    Raises:
        UserError: they have come to different places, as they do that were given different commands.
    """
    if count() == 1:
        return [value]
    found = gathered((at, value))
    lost = [str(index) for index, (place, _) in enumerate(found) if place != found[0][0]]
    if lost:
        raise UserError(
            f"the processes disagree: process {', '.join(lost)} does something else than process 0; start all with the"
            " same command, the same arguments and the same files"
        )
    return [said for _, said in found]


def together(make: Callable[[], _T]) -> _T:
    """`make()`, done by every process for itself; an error in one is raised in all, before anything goes on.

    Args:
        make: host work, without a computation that other processes take part in.

    Raises:
        UserError: of this process, or with the number of another in front; where one found a `ShareError`, that.
    """
    if count() == 1:
        return make()
    value: Any = None
    own: Exception | None = None
    try:
        value = make()
    except (UserError, OSError) as error:
        own = error
    said = exchanged(None if own is None else (*_said(own), getattr(own, "order", None)), at="together")
    failed = [(index, *error) for index, error in enumerate(said) if error is not None]
    of_shares = [(order, index, text, status) for index, text, status, order in failed if order is not None]
    if of_shares:
        _, index, text, status = min(of_shares)
        raise own if own is not None and index == jax.process_index() else _failed(text, status)
    if own is not None:
        raise own
    for index, text, status, _ in failed:
        raise _failed(f"process {index}: {text}", status)
    return value


def by_itself(make: Callable[[], _T]) -> _T:
    """`make()`: what stands in the place of `together` where one process works and the others wait for it."""
    return make()


def of_all(make: Callable[[], _T]) -> list[_T]:
    """`make()` of every process, in their order; otherwise as `together`."""
    if count() == 1:
        return [make()]
    return exchanged(together(make), at="of_all")


def from_first(make: Callable[[], _T]) -> _T:
    """`make()`, done by process 0 alone; its value, or its error, is that of all.

    Args:
        make: host work, without a computation that other processes take part in.

    Raises:
        UserError: what process 0 raised.
    """
    if count() == 1:
        return make()
    said: tuple[Any, tuple[str, int] | None] = (None, None)
    own: Exception | None = None
    if is_first():
        try:
            said = make(), None
        except (UserError, OSError) as error:
            said, own = (None, _said(error)), error
    value, failed = exchanged(said, at="from_first")[0]
    if own is not None:
        raise own
    if failed is not None:
        raise _failed(*failed)
    return value


def as_first_has(array: np.ndarray) -> np.ndarray:
    """An array of one shape and dtype in all processes, with the numbers that it has in process 0.

    What a host computes in floating point may differ between machines, by their kind and by the number of their cores.

    Args:
        array: what this process has computed, float32 or bool.
    """
    return array if count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))


def joined(array: np.ndarray, *, at: str = "joined") -> np.ndarray:
    """The arrays of all processes, one after another in the processes' order; all call it together.

    Args:
        array: `[rows]`, of this one; the dtype is that of all. Besides it and the result there are only pieces of
            bounded size in memory.
        at: the place in the program, which is that of all.

    Returns:
        `[rows of all]`, the same bits.

    Raises:
        UserError: they have come to different places.
    """
    if count() == 1:
        return array
    return concatenated(array, exchanged(array.nbytes, at=at))


@contextlib.contextmanager
def held_by_first(hold: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Within it process 0 holds something for all, as a lock."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(hold())

        from_first(enter)
        yield


def require_same(described: dict[str, Any]) -> None:
    """Refuses processes that were told to do different things, or would do the same in different ways.

    Args:
        described: what this one does, as JSON; `surroundings` are compared with it.

    Raises:
        UserError: naming the first field that differs, and both values.
    """
    if count() == 1:
        return
    mine = described | {"surroundings": surroundings()}
    own = json.loads(named(json.dumps(mine, default=str)))  # each has copies of its own
    first, *others = exchanged(own, at="require_same")
    for index, other in enumerate(others, 1):
        differing = unequal(first, other)
        if differing:
            field = differing[0].replace(" there, ", " in process 0, ").replace(" asked for", f" in process {index}")
            raise UserError(
                f"the processes disagree: {field}; start all with the same arguments, files, packages and environment"
            )


def require_shared(path: pathlib.Path) -> None:
    """Refuses a directory that is not the same for all.

    Args:
        path: a file in it that process 0 alone has written, with content that no other has.

    Raises:
        UserError: naming the processes that do not see what process 0 has written.
    """
    if count() == 1:
        return
    written, until = from_first(lambda: _text(path)), time.monotonic() + SEEING
    while not (seen := _text(path) == written) and time.monotonic() < until:
        time.sleep(0.2)
    blind = [str(index) for index, sees in enumerate(exchanged(seen, at="require_shared")) if not sees]
    if blind:
        raise UserError(
            f"{path.parent}: process {', '.join(blind)} does not see what process 0 writes there; choose a directory"
            " that all processes share"
        )


def whole(tree: Any) -> Any:
    """A tree's arrays, whole, on the host of every process."""
    if count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def placed(value: Any, sharding: Any) -> Any:
    """An array on devices of all, whose shards each process puts that are its own.

    JAX itself moves no array between two meshes over the same processes (`device_put`: "input and target sharding
    should have the same set of devices"): one that lies on other devices goes through the hosts. It is gathered there,
    and waited for.

    Args:
        value: what every process has whole on its host, or what lies on devices of all; all call it together then.
        sharding: where it is to lie.
    """
    if count() == 1 or sharding is None:
        return jax.device_put(value, sharding)
    host = _whole(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def share_of(rows: int) -> slice:
    """The rows that this process's host works on: as many as the others' within one."""
    ends = np.linspace(0, rows, count() + 1).round().astype(int)
    return slice(int(ends[jax.process_index()]), int(ends[jax.process_index() + 1]))


class Signals:
    """What every process has been told by its own system, known to all a step later: nothing waits for it."""

    def __init__(self) -> None:
        self._before: jax.Array | None = None
        self._mesh: Any = None
        if count() > 1:
            devices = np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
            self._mesh = jax.sharding.Mesh(devices.reshape(count(), -1), ("processes", "local"))

    def turn(self, mine: int) -> int:
        """The largest number that a process gave at the last turn; called by all at the same places."""
        if self._mesh is None:
            return mine
        before, spec = self._before, jax.sharding.PartitionSpec
        split = jax.sharding.NamedSharding(self._mesh, spec("processes"))
        given = jax.make_array_from_callback((count(),), split, lambda _: np.full(1, mine, np.int32))
        same = jax.sharding.NamedSharding(self._mesh, spec())
        self._before = jax.jit(_largest, out_shardings=same)(given)
        return 0 if before is None else int(before)


def tells_of_loss(error: BaseException) -> bool:
    """Whether an error is that of a computation, or of a meeting, that another process did not come through.

    Args:
        error: of JAX, or of a library that uses it.
    """
    said = str(error)
    if count() == 1 or isinstance(error, UserError) or "RESOURCE_EXHAUSTED" in said:
        return False
    is_of_jax = any(isinstance(one, jax.errors.JaxRuntimeError) for one in (error, error.__cause__))
    return is_of_jax or _OF_SEVERAL.search(said) is not None


def as_loss(error: BaseException, where: str | os.PathLike[str]) -> ProcessLost:
    """What is said of an error that tells of a loss.

    Args:
        error: of which `tells_of_loss` says so.
        where: what this process was working on.
    """
    said = " ".join(str(error).split())
    return ProcessLost(
        f"{os.fspath(where)}: another process is lost (process {jax.process_index()} was told: {said[:200]}); start all"
        " of them again with the same command, it goes on from what is kept"
    )


@contextlib.contextmanager
def told(where: str | os.PathLike[str]) -> Iterator[None]:
    """Within it the failure of a computation that all take part in is one line.

    Raises:
        ProcessLost: another process is lost, or the computation fails for a reason that its words tell.
    """
    try:
        yield
    except Exception as error:
        if not tells_of_loss(error):
            raise
        raise as_loss(error, where) from error


@contextlib.contextmanager
def _ended_after(seconds: int, said: str, status: int) -> Iterator[None]:
    """What takes longer than so many seconds within it ends this process, with a line and an exit status."""
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            with contextlib.suppress(OSError):
                os.write(2, f"jaxgeom: {said}\n".encode())
            os._exit(status)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _said(error: Exception) -> tuple[str, int]:
    """What is told of an error to the others, whose copies lie elsewhere, and the exit status that it is to have."""
    return named(str(error)), getattr(error, "status", UserError.status)


def _failed(said: str, status: int) -> UserError:
    error = UserError(said)
    error.status = status
    return error


def _require_equal_devices() -> None:
    found = collections.Counter(device.process_index for device in jax.devices())
    first = found[0]
    for index, devices in sorted(found.items()):
        if devices != first:
            raise UserError(
                f"--distributed: process 0 has {first} devices, process {index} has {devices}; each needs as many"
            )


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{variable}={value}: a number is needed") from None


def _text(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def _largest(given: jax.Array) -> jax.Array:
    return given.max()
