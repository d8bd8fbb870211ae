"""Measuring what the runs of a study did: each against its start, and those of one start against one another."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgeom import __version__, processes
from jaxgeom.checkpoints import Checkpoint, open_checkpoint, saved_steps
from jaxgeom.comparison import CompareSettings, between_runs, compare_checkpoints, trajectory_checkpoints
from jaxgeom.comparison.files.summary import flat_summary
from jaxgeom.comparison.run.processes import Apart
from jaxgeom.files import write_atomically
from jaxgeom.progress import Reporter
from jaxgeom.study.marks import is_marked, keep, kept, key_of, mark, run_key
from jaxgeom.study.plan import Run
from jaxgeom.study.results import add_along
from jaxgeom.training import run_learning_rates
from jaxgeom.training.identity import model_content


def _written(run: Run) -> list[Path]:
    return [run.measures / name for name in ("report.json", "trajectory.json", "matrices.csv")]


def _key(run: Run, settings: CompareSettings) -> str:
    return key_of(settings.to_json(), model_content(run.origin), run_key(run.directory), __version__)


def is_measured(run: Run, settings: CompareSettings) -> bool:
    """Whether a finished run has been measured, as it is and with these settings."""
    return is_marked(run.measures / "done", _key(run, settings), _written(run))


def measure(
    run: Run, settings: CompareSettings, reporter: Reporter, team: Apart | None = None,
    publish: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """`report.json`, `matrices.csv` and `trajectory.json` of one run against its start.

    What is measured of a checkpoint is kept until all are, so that an interrupted measurement goes on.

    Args:
        run: finished.
        settings: what is measured.
        reporter: where to say how far it is.
        team: the processes that call this together.
        publish: called by process 0 when something is kept.
    """
    directory = run.measures
    if processes.from_first(lambda: is_measured(run, settings)):
        return
    # Listed by one: what a network file system shows may differ for a while, and at each step they meet.
    steps = processes.from_first(lambda: [step for step in saved_steps(run.directory) if step > 0])
    initial, *opened = processes.together(lambda: _opened(run.origin, *(f"{run.directory}@{step}" for step in steps)))
    checkpoints = list(zip(steps, opened, strict=True))
    along = []
    with reporter.task(f"measure {run.label}", len(steps) + 1) as task:
        for step, checkpoint in checkpoints:
            out = directory if step == steps[-1] else None
            along.append(_measured(run, step, initial, checkpoint, settings, out, team))
            processes.from_first(publish)
            task.advance(1, f"step {step}")
        rates = processes.from_first(lambda: run_learning_rates(run.directory))
        trajectory = trajectory_checkpoints(initial, checkpoints, settings, learning_rates=rates, team=team)

    def write() -> None:
        add_along(trajectory, along, parameters_of(run.origin))
        write_atomically(directory / "trajectory.json", json.dumps(trajectory, allow_nan=False) + "\n")
        mark(directory / "done", _key(run, settings), _written(run))
        for path in directory.glob("report-*.json"):
            path.unlink()

    processes.from_first(write)


def _measured(
    run: Run, step: int, initial: Checkpoint, final: Checkpoint, settings: CompareSettings, out: Path | None,
    team: Apart | None,
) -> dict[str, Any]:  # fmt: skip
    """The report of a checkpoint, with files in `out`; without it from what was kept, and kept. Process 0 has it."""
    place = run.measures / f"report-{step}.json"

    def key() -> str:
        ends = model_content(run.origin), model_content(f"{run.directory}@{step}")
        return key_of(settings.to_json(), ends, __version__)

    held: list[dict[str, Any]] = []

    def look() -> bool:
        found = kept(place, key()) if out is None else None
        held.extend([] if found is None else [found])
        return found is not None

    if processes.from_first(look):
        return held[0] if held else {}
    cache = run.measures.parents[1] / "base_spectra"
    # Whatever is in `out` is an earlier measurement of this study's, with other settings or of other steps.
    report = compare_checkpoints(
        initial, final, settings, out=out, cache=cache, command=run.label, force=True, team=team
    ).to_json()
    if out is None:
        processes.from_first(lambda: keep(place, key(), report))
    return report


def _opened(*places: str | Path) -> list[Checkpoint]:
    return [open_checkpoint(place) for place in places]


def parameters_of(checkpoint: Path) -> int:
    """Parameters of a checkpoint."""
    tensors = open_checkpoint(checkpoint)
    return sum(tensors[name].size for name in tensors)


def pairs_of_runs(learned: Mapping[str, Sequence[int]]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Which runs are compared with one another: each a method and a seed.

    Args:
        learned: by method the seeds that learned something, in order.

    Returns:
        Every pair of methods at the first seed that both have (else each at its own first), then every method against
        itself at its next seed.
    """
    names, pairs = list(learned), []
    for place, a in enumerate(names):
        for b in names[place + 1 :]:
            shared = [seed for seed in learned[a] if seed in learned[b]]
            first = [shared or learned[name] for name in (a, b)]
            pairs += [((a, first[0][0]), (b, first[1][0]))] if all(first) else []
    return pairs + [((name, seeds[0]), (name, seeds[1])) for name, seeds in learned.items() if len(seeds) > 1]


def compare_runs(
    runs: Mapping[tuple[str, int], Run], learned: Mapping[str, Sequence[int]], settings: CompareSettings, out: Path,
    team: Apart | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What runs of one start share, pair by pair, in `between.json`.

    Args:
        runs: of the study, by arm and seed.
        learned: by arm the seeds that learned something.
        settings: what is measured.
        out: the study's directory.
        team: the processes that call this together.
    """
    pairs = []
    for names in arms_of_one_start(list(runs.values())).values():
        pairs += [
            (one, other) for one, other in pairs_of_runs({name: learned[name] for name in names})
            if runs[one].origin == runs[other].origin
        ]  # fmt: skip
    path = out / "measures" / "between.json"
    done = path.with_suffix(".done")
    last = processes.from_first(lambda: {key: saved_steps(run.directory)[-1] for key, run in runs.items()})
    ends = {key: f"{run.directory}@{last[key]}" for key, run in runs.items()}

    def held() -> tuple[str, list[dict[str, Any]] | None]:
        told = [[one, model_content(ends[one]), other, model_content(ends[other])] for one, other in pairs]
        origins = [model_content(runs[one].origin) for one, _ in pairs]
        key = key_of(settings.to_json(), origins, told, __version__)
        return key, json.loads(path.read_text(encoding="utf-8")) if is_marked(done, key, [path]) else None

    key, found = processes.from_first(held)
    if found is not None:
        return found
    rows = []
    for one, other in pairs:
        places = runs[one].origin, ends[one], ends[other]
        origin, first, second = processes.together(lambda places=places: _opened(*places))
        row = {"a": one[0], "b": other[0], "seed_a": one[1], "seed_b": other[1]}
        said = between_runs(origin, first, second, settings, team=team)
        rows.append(row | flat_summary(said.pop("summary")) | said)

    def write() -> None:
        write_atomically(path, json.dumps(rows, allow_nan=False) + "\n")
        mark(done, key, [path])

    processes.from_first(write)
    return rows


def arms_of_one_start(runs: Sequence[Run]) -> dict[Any, list[str]]:
    """The arms by where they start, a model or another arm at a step; starts that one arm alone has are left out."""
    found: dict[Any, list[str]] = {}
    for run in runs:
        names = found.setdefault(run.arm.start, [])
        if run.arm.name not in names:
            names.append(run.arm.name)
    return {start: names for start, names in found.items() if len(names) > 1}
