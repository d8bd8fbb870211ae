"""The program of a checking process: reads answer and truth, a JSON line each time, and writes 1 or 0.

It is run by path and imports nothing of jaxgeom, so that it starts without JAX. Time is counted as processor time, so
that a busy machine does not turn right answers into wrong ones (math-verify's own timeouts are by the wall clock and
are switched off). At the limit an exception is raised; what no Python handler can interrupt, or what swallows it (one
long operation on huge integers), is ended soon after by the profiling timer, whose default action kills the process,
and by the memory limit.
"""

import json
import os
import signal
import sys


def main() -> None:
    """Serves requests until standard input closes."""
    import resource

    memory = int(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    from math_verify import LatexExtractionConfig, parse, verify

    def give_up(_signal: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Once, so that the grammar's own start-up is not charged to the first answer.
    verify(parse("\\boxed{\\frac{x}{2}}"), parse("\\boxed{0.5 x}"))
    os.dup2(devnull, 2)  # until here a complaint reaches the parent; from here nobody empties that pipe
    replies.write("ready\n")
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    for line in sys.stdin:
        answer, truth, seconds = json.loads(line)
        right = False
        try:
            signal.setitimer(signal.ITIMER_PROF, 1.25 * seconds + 1.0)
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.2)
            # Their annotation leaves out None, which is "no timer of their own": the two above do it.
            found, gold = (
                parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None)  # type: ignore[arg-type]
                for text in (answer, truth)
            )
            right = bool(found) and bool(gold) and bool(verify(gold, found, timeout_seconds=None))
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except Exception:  # math-verify and sympy raise anything on what models write: no answer is right then
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write("1\n" if right else "0\n")


if __name__ == "__main__":
    main()
