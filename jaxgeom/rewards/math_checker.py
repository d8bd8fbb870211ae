"""The processes that do the algebra of answers."""

from jaxgeom.cores import usable_cores

from .workers import Pool

DEFAULT_TIMEOUT = 5.0
CHECKERS = min(8, usable_cores())
_WALL_FACTOR, _WALL_MORE = 20.0, 120.0

pool = Pool("math_worker", CHECKERS, 2 * 2**30)


def check_by_algebra(answer: str, truths: tuple[str, ...], timeout: float) -> bool:
    """The verdict on an answer that algebra is needed for; False where that hangs, dies or cannot read it.

    Args:
        answer: the model's.
        truths: the right ones; one is enough.
        timeout: seconds of processor time; the start of a process not counted.

    Raises:
        RuntimeError: the process cannot be started.
    """
    with pool.lent() as worker:
        # The process counts its own processor time; the wall clock only catches what does not even run.
        return bool(worker.ask([answer, truths, timeout], _WALL_FACTOR * timeout + _WALL_MORE))
