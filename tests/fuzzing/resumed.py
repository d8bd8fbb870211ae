"""A finished run with one damage, gone on with: it ends as an undamaged one, or is refused in one line.

The run has two steps, each saved; going on takes a third. It may begin at an earlier step, which it says.
"""

import contextlib
import io
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from tests.fuzzing.cases import LONGEST_LINE, Outcome
from tests.fuzzing.inputs import write_base
from tests.fuzzing.mutations import ODD, damaged_bytes, damaged_value, json_text, pick

KIND = "resumed"
_STEPS, _MORE = 2, 3
# Nothing is learned from these, and a run that finds them damaged writes them anew, or goes on without them.
_LOGS = ("metrics.jsonl", "samples.jsonl")


def write_resumed_base(directory: Path) -> None:
    """A run of two steps in `run`, and the same gone on with to the third in `whole`."""
    write_base(directory)
    for name, steps in (("run", _STEPS), ("whole", _MORE)):
        if name == "whole":
            shutil.copytree(directory / "run", directory / "whole")
        status, said, told = _train(directory, directory / name, steps)
        assert status == 0, said + told


def run_resumed(base: Path, number: int, *, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Damages a copy of the run as the number says, and goes on with it.

    Args:
        base: what `write_resumed_base` wrote; it is only read.
        number: of the case.
        seed: of all cases.
        keep: where the damaged run is left, after it was gone on with.
    """
    rng = np.random.default_rng([seed, number, 1])
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        shutil.copytree(base / "run", run)
        damage = _damage(rng, run)
        before, begun = _files(run), time.process_time()
        try:
            status, said, told = _train(base, run, _MORE)
        except BaseException as error:  # whatever comes out of the command line is what is looked for
            status, said, told = f"raised {type(error).__name__}: {error}", "", ""
        seconds = time.process_time() - begun
        result = _judge(base / "whole", run, before, status, said, told)
        if keep is not None:
            shutil.copytree(run, keep, dirs_exist_ok=True)
    return Outcome(KIND, number, result, f"[{damage}] {said.strip()}", seconds)


def _train(base: Path, out: Path, steps: int) -> tuple[Any, str, str]:
    from jaxgeom.cli import main

    given = ["--model", base / "base", "--data", base / "demonstrations.jsonl", "--out", out, "--steps", steps]
    given += ["--batch-size", 8, "--lr", 1e-3, "--max-length", 64, "--save-every", 1]
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
        status = main(["train", "sft", *map(str, given)])
    return status, said.getvalue(), told.getvalue()


def _damage(rng: Generator, run: Path) -> str:
    """One accident to one file, or to one checkpoint; returns what was done."""
    # Orbax's names are drawn by chance; the order is the same in every run.
    files = sorted(
        (path for path in run.rglob("*") if path.is_file()), key=lambda path: (path.parent, path.stat().st_size)
    )
    # Those by which a run is known, those of the newest checkpoint, and any.
    named = [path for path in files if path.parent == run or path.name == "checksums.json"]
    newest = [path for path in files if run / "checkpoints" / str(_STEPS) in path.parents]
    path = pick(rng, pick(rng, (named, newest, files)))
    what, accident = path.relative_to(run).as_posix(), int(rng.integers(8))
    others = [other for other in files if other.name == path.name and other != path]
    if accident <= 2 and path.suffix == ".json":
        with contextlib.suppress(ValueError):
            value = json.loads(path.read_text(encoding="utf-8"))
            for _ in range(int(rng.integers(1, 3))):
                value = damaged_value(rng, value, (*ODD, 1, 2, 3, _MORE))
            path.write_text(json_text(value))
            return f"other JSON in {what}"
    if accident == 3:
        path.unlink()
        return f"removed {what}"
    if accident == 4 and others:
        other = pick(rng, others)
        held = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(held)
        return f"swapped {what} and {other.relative_to(run).as_posix()}"
    if accident == 5:
        one, two = (run / "checkpoints" / str(step) for step in rng.permutation(_STEPS + 1)[:2])
        if rng.random() < 0.5:
            shutil.rmtree(one)
            return f"removed {one.name}"
        shutil.rmtree(two)
        shutil.copytree(one, two)
        return f"copied {one.name} over {two.name}"
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    return f"other bytes in {what}"


def _judge(whole: Path, run: Path, before: dict[str, bytes], status: Any, said: str, told: str) -> str:
    if not isinstance(status, int):
        return str(status)
    if "Traceback" in said + told or "fault of this program" in said:
        return "was a fault that nothing foresaw"
    if status == 2:
        if said.count("\n") != 1 or not said.startswith("jaxgeom: ") or len(said) > LONGEST_LINE:
            return "refused in other than one short line"
        after = _files(run)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return f"refused, but changed {', '.join(changed[:4])}" if changed else "refused"
    if status != 0:
        return f"ended with status {status}"
    begun = re.search(r"goes on from step (\d+)", told)
    if begun is None and "finished already" not in told:
        return "went on from nobody knows where"
    if begun is not None and int(begun[1]) < _STEPS and not re.search(r"damaged|is not what|is gone", told + said):
        return f"went back to step {begun[1]} without a reason"
    return _differs(whole, run, told + said) or "accepted"


def _differs(whole: Path, run: Path, told: str) -> str:
    """What of a run is not as in the undamaged one; empty where all is."""
    from jaxgeom.checkpoints import open_checkpoint
    from jaxgeom.training.timing import is_time

    ours, theirs = (open_checkpoint(f"{path}@{_MORE}") for path in (run, whole))
    if set(ours) != set(theirs):
        return "ended with other tensors"
    for name in theirs:
        if not np.array_equal(np.asarray(ours[name].read()), np.asarray(theirs[name].read())):
            return f"ended with other weights ({name})"
    for name in _LOGS:
        texts = [(path / name).read_text() if (path / name).exists() else "" for path in (run, whole)]
        rows = [
            [{key: value for key, value in json.loads(line).items() if not is_time(key)} for line in text.splitlines()]
            for text in texts
        ]
        if rows[0] != rows[1] and f"{name} is gone" not in told:
            return f"ended with another {name}"
    return "" if (run / "done").exists() else "ended without done"


def _files(run: Path) -> dict[str, bytes]:
    """All that lies there, but for the lock, which is no part of the run."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
