"""Where the time of a step goes, on the host and on the devices, which work on while the host goes on.

Nothing waits for what is measured: a thread beside waits for the devices' results and notes when they are there.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxgeom.rewards.combined import Judged, Rewards

PHASES = ("rollout", "scoring", "update", "verifying", "saving")
"""What a step's time is told apart into. They need not add up: some overlap, and some time is none of them."""


def is_time(name: str) -> bool:
    """Whether a number of a log is one of time: all others are the same whenever the run is."""
    return name in ("seconds", "tokens_per_second") or name.startswith("time/")


@dataclass(frozen=True)
class TimedRewards(Rewards):
    """Rewards whose judging is measured.

    Attributes:
        watch: Makes what it is done within.
    """

    watch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def __call__(self, *given: Any, **named: Any) -> Judged:
        with self.watch():
            return super().__call__(*given, **named)


class _Span(NamedTuple):
    step: int
    name: str
    begun: float
    ended: float


class StepClock:
    """The times of a run's steps; a context manager.

    A step begins where the one before was done on the devices, and ends where it is. `rollout` is sampling, or reading
    rows; `verifying` the judging of answers; `saving` what the steps wait for it (writing goes on beside them); these
    three are the host's. `scoring` and `update` are the devices'.
    """

    def __init__(self) -> None:
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="clock")
        self._spans: list[_Span] = []
        self._ready: list[tuple[int, str, Future[tuple[float, float]]]] = []
        self._ended = self._free = time.monotonic()

    def __enter__(self) -> "StepClock":
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def host(self, name: str, step: int) -> Iterator[None]:
        """Measures what the host does within it.

        Args:
            name: one of `PHASES`; any other is left out of the step's seconds.
            step: whose time it is.
        """
        begun = time.monotonic()
        try:
            yield
        finally:
            self._spans.append(_Span(step, name, begun, time.monotonic()))

    @contextlib.contextmanager
    def devices(self, name: str, step: int) -> Iterator[Callable[[Any], None]]:
        """Measures, beside, what the devices are given within it: until the arrays are there that its value is called
        with, from the beginning on or from when the devices were done with what they had.
        """
        begun = time.monotonic()
        yield lambda arrays: self._ready.append((step, name, self._beside.submit(self._wait, begun, arrays)))

    def row(self, step: int) -> dict[str, float]:
        """The times of a step that the devices are done with: `seconds`, and the shares of them, `time/PHASE`."""
        for number, name, found in self._ready:
            if number <= step:
                self._spans.append(_Span(number, name, *found.result()))
        self._ready = [entry for entry in self._ready if entry[0] > step]
        mine = [span for span in self._spans if span.step <= step]
        self._spans = [span for span in self._spans if span.step > step]
        before, self._ended = self._ended, max((span.ended for span in mine), default=time.monotonic())
        # What came earlier was waiting for the step before.
        mine = [span._replace(begun=max(span.begun, before)) for span in mine if span.ended > before]
        spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for span in mine:
            spent[span.name] = spent.get(span.name, 0.0) + span.ended - span.begun
        rollouts = [span for span in mine if span.name == "rollout"]
        within = _merged([span for span in mine if span.name in ("verifying", "scoring")])
        spent["rollout"] -= sum(_overlap(one, other) for one in rollouts for other in within)
        others = sum(value for name, value in spent.items() if name not in PHASES)
        seconds = max(self._ended - before - others, 1e-9)
        return {"seconds": seconds} | {f"time/{name}": spent[name] / seconds for name in PHASES}

    def _wait(self, begun: float, arrays: Any) -> tuple[float, float]:
        begun = max(begun, self._free)
        with contextlib.suppress(Exception):  # whoever reads the result is told
            jax.block_until_ready(arrays)
        self._free = time.monotonic()
        return begun, self._free


def _merged(spans: list[_Span]) -> list[_Span]:
    """The same time, none of it twice."""
    found: list[_Span] = []
    for span in sorted(spans, key=lambda span: span.begun):
        if found and span.begun <= found[-1].ended:
            found[-1] = found[-1]._replace(ended=max(found[-1].ended, span.ended))
        else:
            found.append(span)
    return found


def _overlap(one: _Span, other: _Span) -> float:
    return max(0.0, min(one.ended, other.ended) - max(one.begun, other.begun))
