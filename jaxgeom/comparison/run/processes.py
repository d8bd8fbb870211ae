"""Several processes at one comparison: who measures what, and how they meet again.

A `Team` shares the output folder. Each process measures its share and appends the rows to a journal of its own; when
all have finished, each reads all journals and has the whole report, which process 0 writes. They meet by small status
files in that folder rather than by a collective: a process may be done hours before another, collectives time out
earlier than that, and a file carries the message of a process that failed to all the others.

Processes that are `Apart` share no folder, as those of a study in a bucket. Each tells all others the rows that it has
measured, by a collective, before which they wait for one another by JAX's coordination service, for hours if need be.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgeom import processes
from jaxgeom.comparison.files.population import Part
from jaxgeom.comparison.run.journal import ProcessFailed, is_resumable
from jaxgeom.differences import unequal
from jaxgeom.errors import UserError, listed
from jaxgeom.files import write_atomically

PATIENCE = 3600.0
"""Seconds without a sign of any other process after which waiting ends with an error."""

LATE = 4 * 3600
"""Seconds that one process that is `Apart` may be done after another; one that is lost is known long before."""

_INTERVAL = 0.2
_LAG = 60.0
_SPREAD = 1 << 30


def share(parts: Sequence[Part], index: int, count: int) -> list[Part]:
    """The parts that process `index` of `count` measures, in their order.

    The costliest part left goes to the process with the least to do. The division depends on the parts alone, not on
    what a journal holds: processes that read a shared folder at different moments must not disagree.
    """
    cost = [part.size * (min(part.shape) if part.is_matrix else 1) for part in parts]
    load, mine = [0] * count, set()
    for place in sorted(range(len(parts)), key=lambda i: (-cost[i], i)):
        process = load.index(min(load))
        load[process] += cost[place]
        if process == index:
            mine.add(place)
    return [part for place, part in enumerate(parts) if place in mine]


def initialize() -> "Team | None":
    """Joins the other processes by `jax.distributed`, to be called before anything that touches a device.

    TPU pods, SLURM, MPI and Kubernetes are detected; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say who is who.

    Returns:
        The team, or None where this is the only process.

    Raises:
        UserError: the other processes could not be found.
    """
    processes.join()
    return Team.here() if jax.process_count() > 1 else None


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of one run of a comparison.

    Attributes:
        index: this process.
        count: number of processes.
        run: a number that tells this run's status files from those of an earlier one.
        patience: seconds without a sign of the others after which waiting ends.
    """

    index: int
    count: int
    run: int
    patience: float = PATIENCE

    @staticmethod
    def here(*, patience: float = PATIENCE) -> "Team":
        """The processes that `jax.distributed` has joined; called by all of them."""
        run = multihost_utils.broadcast_one_to_all(np.int32(secrets.randbelow(_SPREAD)))
        return Team(jax.process_index(), jax.process_count(), int(run), patience)

    def share(self, parts: Sequence[Part]) -> list[Part]:
        """The parts that this process measures."""
        return share(parts, self.index, self.count)

    def tell(self, folder: pathlib.Path, state: str, **more: Any) -> None:
        """Writes this process's status: `measuring`, `finished`, `gathered` or `failed`.

        Args:
            folder: that all share.
            state: where it is.
            more: `of`, what it measures, in which all agree; of a failure `message` and `keep`.
        """
        write_atomically(self._path(folder, self.index), json.dumps({"run": self.run, "state": state, **more}))

    @contextlib.contextmanager
    def telling(self, folder: pathlib.Path) -> Iterator[None]:
        """Within it an error of this process reaches the others, who then stop too."""
        try:
            yield
        except ProcessFailed:
            raise
        except BaseException as error:
            keep = is_resumable(error)
            with contextlib.suppress(OSError):  # on a full disk the others notice by their patience
                self.tell(folder, "failed", message=str(error) or type(error).__name__, keep=keep)
            raise

    def check(self, folder: pathlib.Path) -> None:
        """Raises ProcessFailed where another process has failed, or measures something else than this one."""
        mine = self._status(folder, self.index).get("of")
        for index in range(self.count):
            status = self._status(folder, index)
            if index != self.index and status.get("state") == "failed":
                raise ProcessFailed(f"process {index} failed: {status['message']}", status["keep"])
            theirs = status.get("of")
            if index == self.index or mine is None or theirs is None:
                continue
            differing = unequal(*((mine, theirs) if self.index < index else (theirs, mine)))
            if differing:
                raise ProcessFailed(_disagreement(differing[0], *sorted((index, self.index))), keep=False)

    def wait(self, folder: pathlib.Path, *states: str) -> None:
        """Waits until every process is in one of the states.

        Raises:
            ProcessFailed: one failed, or for `patience` seconds no process gave a sign.
        """
        seen, since = None, time.monotonic()
        while True:
            self.check(folder)
            late = [i for i in range(self.count) if self._status(folder, i).get("state") not in states]
            if not late:
                return
            signs = _signs(folder)
            if signs != seen:
                seen, since = signs, time.monotonic()
            elif time.monotonic() - since > self.patience:
                raise ProcessFailed(
                    f"{folder}: no sign of process {listed(map(str, late))} for {self.patience:g} s; do all "
                    "processes share this directory? What was measured is kept, the same command goes on",
                    keep=True,
                )
            time.sleep(_INTERVAL)

    def until_complete(
        self, folder: pathlib.Path, load: Callable[[], Any], missing: Callable[[], list[str]],
        fault: Callable[[], str | None] = lambda: None,
    ) -> None:  # fmt: skip
        """Reads the journals until they hold every part; a network file system may show the last rows late.

        Args:
            folder: that all share.
            load: reads the journals.
            missing: the parts that are in none.
            fault: what another process has measured that is not what this one has; None where it is.

        Raises:
            ProcessFailed: rows are of something else, or missing after a minute.
        """
        start = time.monotonic()
        while True:
            load()
            said = fault()
            if said is not None:
                raise ProcessFailed(
                    f"{folder}: the processes disagree: {said}; start all with the same files", keep=True
                )
            names = missing()
            if not names:
                return
            if time.monotonic() - start > min(_LAG, self.patience):
                raise ProcessFailed(
                    f"{folder}: all processes have finished, but {len(names)} rows ({names[0]}, …) are not there; "
                    "is the directory shared?",
                    keep=True,
                )
            time.sleep(_INTERVAL)

    def tidy(self, folder: pathlib.Path) -> None:
        """Removes the status files of all processes."""
        for path in folder.glob(".process.*.json"):
            path.unlink(missing_ok=True)

    def _path(self, folder: pathlib.Path, index: int) -> pathlib.Path:
        return folder / f".process.{index}.json"

    def _status(self, folder: pathlib.Path, index: int) -> dict[str, Any]:
        """Status of a process in this run, empty where it has not told any."""
        try:
            status = json.loads(self._path(folder, index).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if status.get("run") == self.run else {}


@dataclasses.dataclass(frozen=True)
class Apart:
    """The processes of one run of a comparison where each has a disk of its own: rows go from each to all.

    Attributes:
        index: this process.
        count: number of processes.
        late: seconds that one may be done after another.
    """

    index: int
    count: int
    late: int = LATE

    @staticmethod
    def here() -> "Apart | None":
        """The processes that `jax.distributed` has joined; None where this is the only one."""
        return Apart(jax.process_index(), processes.count()) if processes.count() > 1 else None

    def share(self, parts: Sequence[Part]) -> list[Part]:
        """The parts that this process measures."""
        return share(parts, self.index, self.count)

    def gather(self, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What all processes have measured; all call it together.

        Args:
            measure: measures the share of this process.

        Raises:
            UserError: of this process, or what another raised, with its number in front.
            ProcessLost: another process is lost, or is done so much later.
        """

        def measured() -> list[dict[str, Any]]:
            try:
                rows = measure()
            except (UserError, OSError):
                self._wait()
                raise
            self._wait()
            return rows

        return [row for rows in processes.of_all(measured) for row in rows]

    def _wait(self) -> None:
        """Until all have come here."""
        from orbax.checkpoint import multihost  # heavy, and whoever trains has loaded it

        try:
            multihost.get_barrier_sync_fn()(key=f"jaxgeom_measured_{next(_MEETINGS)}", timeout_ms=self.late * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise processes.as_loss(error, "measuring") from error


def _disagreement(difference: str, first: int, second: int) -> str:
    """What is said of two processes that measure different things."""
    said = difference.replace(" there, ", f" in process {first}, ").replace(" asked for", f" in process {second}")
    return f"the processes disagree: {said}; start all with the same arguments"


_MEETINGS = itertools.count()  # a barrier has a name of its own; all come to the same ones in the same order


def _signs(folder: pathlib.Path) -> list[tuple[str, int, int]]:
    """What changes in the folder while anybody works."""
    found = []
    for path in sorted([*folder.glob(".partial*.jsonl"), *folder.glob(".process.*.json")]):
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return found
