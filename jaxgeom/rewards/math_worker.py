"""The algebra of answers, as a process of its own serves it.

Time is counted as processor time, so that a busy machine does not turn right answers into wrong ones. At the limit an
exception is raised; what no Python handler can interrupt, or what swallows it (one long operation on huge integers), is
ended soon after by the profiling timer, whose default action kills the process, and by the memory limit.
"""

import signal

from .math_exact import equal
from .math_judgement import is_right


def serve(answer: str, truths: list[str], seconds: float) -> bool:
    """Whether an answer is one of the right ones; False where that takes longer, or raises anything.

    Args:
        answer: the model's.
        truths: the right ones, which have this one limit together.
        seconds: of processor time.
    """
    right = False
    signal.signal(signal.SIGVTALRM, _give_up)
    try:
        # The second is for the handler to get through.
        signal.setitimer(signal.ITIMER_PROF, seconds + 1.0)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.2)
        right = is_right(answer, truths, equal)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except Exception:  # sympy raises anything on what models write: no answer is right then
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return right


def _give_up(_signal: int, _frame: object) -> None:
    raise TimeoutError


# Once, so that the grammar's own start-up is not charged to the first answer.
equal("\\frac{x}{2}", "0.5 x")
