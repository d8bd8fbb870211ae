"""Damaged checkpoints, configurations, tokenizers, rows and experiment files through the command line.

    python experiments/fuzz.py --cases 5000

Every case is made by its number and the seed alone. It is good where the command takes the input, or refuses it with
status 2, one line and nothing written, within seconds. Cases run in processes of a few hundred each, so that one that
ends its process is one case. The counts are printed as a table and what did not end well below it; the exit status is 1
where there is any. `--only N` runs one case and leaves its input in `fuzz-N/`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Behind the line that makes `tests` importable from where the script lies.
from tests.fuzzing.cases import Outcome, one_line_of, run_case, table  # noqa: E402
from tests.fuzzing.inputs import KINDS, write_base  # noqa: E402
from tests.fuzzing.resumed import KIND, run_resumed, write_resumed_base  # noqa: E402

_A_PROCESS = 250  # cases
_MEMORY = 16 << 30  # bytes of address space: a case that asks for more fails in its own process


def _child(base: Path, numbers: range, seed: int, resumed: bool) -> None:
    """Runs cases, one JSON line each."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Packages and the first programs count for no case; and no case's limit cuts an import in two.
    from transformers import AutoTokenizer  # noqa: F401 (imported for its time alone)

    import jaxgeom.commands.compare
    import jaxgeom.commands.study
    import jaxgeom.commands.train
    import jaxgeom.training.loop  # noqa: F401 (imported for its time alone)

    if resumed:
        import jax

        # Every run compiles the same programs.
        jax.config.update("jax_compilation_cache_dir", str(base / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        if not (base / "whole").exists():
            write_resumed_base(base)
    else:
        for number in range(len(KINDS)):
            run_case(base, number, seed=seed)
    for number in numbers:
        outcome = (run_resumed if resumed else run_case)(base, number, seed=seed)
        print(json.dumps([outcome.kind, number, outcome.result, outcome.said, outcome.seconds]), flush=True)


def _run(base: Path, numbers: range, seed: int, resumed: bool = False) -> list[Outcome]:
    """Cases in processes; the case at which a process died has that as its result."""
    found: list[Outcome] = []
    while len(found) < len(numbers):
        left = numbers[len(found) :][:_A_PROCESS]
        line = [sys.executable, __file__, "--child", str(base), str(left.start), str(left.stop), "--seed", str(seed)]
        line += ["--resumed", "1"] if resumed else []
        done = subprocess.run(line, capture_output=True, text=True)
        held = [Outcome(*json.loads(text)) for text in done.stdout.splitlines() if text.startswith('["')]
        found += held
        if len(held) < len(left):
            number, said = left[len(held)], done.stderr.strip()[-300:]
            kind = KIND if resumed else list(KINDS)[number % len(KINDS)]
            found.append(Outcome(kind, number, f"ended its process with status {done.returncode}", said, 0.0))
        print(f"{len(found)} of {len(numbers)} cases, {sum(not o.good for o in found)} not good", file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="how many, from number 0 on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resumed", type=int, default=0, help="how many damaged runs are gone on with")
    parser.add_argument("--only", type=int, metavar="N", help="one case, its input left in fuzz-N/")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if given.child:
        base, start, stop = given.child
        _child(Path(base), range(int(start), int(stop)), given.seed, bool(given.resumed))
        return 0
    with tempfile.TemporaryDirectory() as name:
        write_base(Path(name))
        if given.only is not None:
            outcome = run_case(Path(name), given.only, seed=given.seed, keep=Path(f"fuzz-{given.only}").absolute())
            print(one_line_of(outcome))
            return 0 if outcome.good else 1
        outcomes = _run(Path(name), range(given.cases), given.seed)
        if given.resumed:
            (Path(name) / "runs").mkdir()
            outcomes += _run(Path(name) / "runs", range(given.resumed), given.seed, resumed=True)
    bad = [outcome for outcome in outcomes if not outcome.good]
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    print(
        f"{len(outcomes)} cases, seed {given.seed}; the slowest took {slowest.seconds:.1f} s (case {slowest.number})\n"
    )
    print(table(outcomes))
    print("\n".join(["", *map(one_line_of, bad)]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
