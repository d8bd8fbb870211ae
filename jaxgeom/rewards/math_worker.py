"""The program of a checking process: reads answer and truth, a JSON line each time, and writes 1 or 0.

It is run by path and imports nothing of jaxgeom but its neighbours, so that it starts without JAX. Time is counted as
processor time, so that a busy machine does not turn right answers into wrong ones. At the limit an exception is raised;
what no Python handler can interrupt, or what swallows it (one long operation on huge integers), is ended soon after by
the profiling timer, whose default action kills the process, and by the memory limit.
"""

import importlib
import json
import os
import signal
import sys
import types
from pathlib import Path


def main() -> None:
    """Serves requests until standard input closes."""
    import resource

    memory = int(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    # The neighbours under a name of their own: jaxgeom itself would bring JAX.
    package = types.ModuleType("verifier")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules["verifier"] = package
    equal = importlib.import_module("verifier.math_exact").equal
    is_right = importlib.import_module("verifier.math_judgement").is_right

    def give_up(_signal: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Once, so that the grammar's own start-up is not charged to the first answer.
    equal("\\frac{x}{2}", "0.5 x")
    os.dup2(devnull, 2)  # until here a complaint reaches the parent; from here nobody empties that pipe
    replies.write("ready\n")
    for line in sys.stdin:
        answer, truths, seconds = json.loads(line)
        right = False
        try:
            # The second is for the handler to get through; all allowed answers together have this one limit.
            signal.setitimer(signal.ITIMER_PROF, seconds + 1.0)
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.2)
            right = is_right(answer, truths, equal)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except Exception:  # sympy raises anything on what models write: no answer is right then
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write("1\n" if right else "0\n")


if __name__ == "__main__":
    main()
