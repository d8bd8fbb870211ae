"""The stages of a study, in order, each resumable: data, training, measuring, comparing, reporting."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxgeom import __version__, lock, processes
from jaxgeom.buckets import copies
from jaxgeom.comparison.run.processes import Apart
from jaxgeom.errors import UserError
from jaxgeom.files import write_atomically
from jaxgeom.interruption import goes_on, stoppable
from jaxgeom.lock import locked, refuse_if_held
from jaxgeom.progress import Reporter
from jaxgeom.report import nothing_learned, print_table, study_findings, write_report
from jaxgeom.study.arms import At
from jaxgeom.study.data import DataFiles, make_data
from jaxgeom.study.experiment import Experiment
from jaxgeom.study.identity import experiment_json, has_new_arms, study_config, study_differences
from jaxgeom.study.measuring import arms_of_one_start, compare_runs, is_measured, measure, parameters_of
from jaxgeom.study.plan import Clock, Run, Stage, planned_runs, require_steps, say_plan
from jaxgeom.study.preflight import check_inputs
from jaxgeom.study.results import Result, matched_results, method_results, read_result, write_matrices
from jaxgeom.training import is_finished, train
from jaxgeom.training.rows import RunRows
from jaxgeom.training.run_directory import Claim, claim_directory, mark_done

# What between.json has of a pair of runs and the report leaves out.
_BETWEEN_DETAILS = ("schema", "kind", "version", "command", "inputs", "settings", "matrices")


def run_study(
    experiment: Experiment,
    out: Path,
    *,
    reporter: Reporter | None = None,
    command: str = "",
    force: bool = False,
) -> Path:
    """Trains every arm, measures, compares, and writes the report; stopped anywhere, it goes on where it was.

    Several processes that were joined (`jaxgeom.processes.join`) call it together, with the same arguments: all train
    and measure, process 0 alone writes what is not a checkpoint.

    Args:
        experiment: What to do.
        out: The output directory: `data/`, `runs/`, `measures/`, `report.json`, `matrices.csv`, `figures/`,
            `report.html`.
        reporter: Where to say what is done.
        command: The command line, for the report.
        force: Delete another study that is in `out`, if nothing else is there.

    Returns:
        The path of the page, `report.html`.

    Raises:
        UserError: inputs that cannot be used, or `out` holds another run.
    """
    reporter = reporter or Reporter(quiet=True)
    processes.refuse_unjoined()
    if not processes.is_first():
        reporter = Reporter(quiet=True)
    with stoppable(), processes.told(out):
        processes.from_first(lambda: refuse_if_held(out))
        goes_on("the same command goes on from what is kept", out)
        config = processes.together(lambda: study_config(experiment, __version__))
        processes.require_same(config | {"out": os.fspath(out), "force": force})
        runs = planned_runs(experiment, out)
        read = _read(experiment)

        def claim() -> Claim:
            return claim_directory(
                out, "study", lambda held: study_differences(held, config), force=force, inputs=read
            )  # fmt: skip

        ready: list[RunRows] = []

        def look() -> None:
            held = claim()
            if not (held.goes_on and held.held is not None and not has_new_arms(held.held, config)):
                ready.extend(check_inputs(experiment, reporter))
            if held.goes_on:
                require_steps(runs)

        def begin() -> None:
            claim().carry_out(config, reporter.say)
            for rows in ready:
                rows.keep(out / "rows")
            (out / "done").unlink(missing_ok=True)

        with copies.opened(out, "study", reporter.say, force=force) as copy:
            # Before anything is written: a wrong input must leave no trace.
            processes.from_first(look)
            with processes.held_by_first(lambda: locked(out, reporter.say)):
                if not copy.is_stored:
                    processes.require_shared(out / lock.NAME)
                processes.from_first(begin)
                return _stages(experiment, runs, out, reporter, command, copy)


def _read(experiment: Experiment) -> list[Path]:
    """Whatever a study reads that is not its own."""
    read: list[Path] = []
    for arm in experiment.every_arm():
        sources = (arm.start, arm.basis_from, arm.mask_from)
        read += [path for path in sources if isinstance(path, Path)] + list(experiment.teachers_of(arm))
    if isinstance(experiment.data, DataFiles):
        read += [path for path in vars(experiment.data).values() if path is not None]
    return list(dict.fromkeys(read))


def _stages(
    experiment: Experiment, runs: Sequence[Run], out: Path, reporter: Reporter, command: str, copy: copies.Copy
) -> Path:
    """Every stage in order, with the directory held."""
    team = Apart.here()
    is_first = processes.is_first()
    clock = Clock(out / "stages.json" if is_first else None, reporter)

    def show() -> None:
        """What process 0 has written is where all, or a later start on other machines, find it."""
        processes.from_first(copy.publish)
        copy.follow()

    clock.stage("data", lambda: processes.from_first(lambda: make_data(experiment.data, out)))
    show()
    say_plan(experiment, runs, reporter)
    if is_first:
        clock.plan([*(_training(run) for run in runs), *(_measuring(run, experiment) for run in runs)])
    for run in runs:
        clock.stage(f"train {run.label}", _bind(_train, run, out, reporter))
        show()
    results: dict[str, list[Result]] = {arm.name: [] for arm in experiment.every_arm()}
    for run in runs:
        clock.stage(f"measure {run.label}", _bind(measure, run, experiment.measure, reporter, team, copy.publish))
        show()

    def read() -> dict[str, list[int]]:
        for run in runs:
            size = parameters_of(run.origin)
            results[run.arm.name].append(read_result(run.measures, run.directory, run.settings, size))
        return {name: [r.said["seed"] for r in seeds if r.learned] for name, seeds in results.items()}

    learned = processes.from_first(read)
    by_key = {(run.arm.name, run.seed): run for run in runs}
    between = clock.stage("compare runs", lambda: compare_runs(by_key, learned, experiment.measure, out, team))
    show()

    def finish() -> Path:
        report = _report(experiment, runs, results, between, clock, command)
        return _write(report, runs, list(results), out, reporter)

    return processes.from_first(finish)


def _write(
    report: dict[str, Any], runs: Sequence[Run], arms: Sequence[str], out: Path, reporter: Reporter
) -> Path:  # fmt: skip
    """The report's files, and what is said last."""
    write_atomically(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    by_arm = sorted(runs, key=lambda run: arms.index(run.arm.name))
    write_matrices(out / "matrices.csv", [(r.arm.name, r.seed, r.measures / "matrices.csv") for r in by_arm])
    reporter.say("report: figures and page")
    page = write_report(out)
    mark_done(out)
    print_table(report, reporter.console)
    for sentence in nothing_learned(report):
        reporter.warn(sentence)
    reporter.say(f"page: {page}")
    return page


def _training(run: Run) -> Stage:
    try:
        done = is_finished(run.settings, run.inputs, run.directory)
    except UserError:  # what it starts from is yet to be made
        done = False
    kinds = (f"train {run.arm.name}", f"train {run.settings.objective}")
    return Stage(f"train {run.label}", f"training {run.label}", run.settings.steps, kinds, done)


def _measuring(run: Run, experiment: Experiment) -> Stage:
    try:
        done = is_finished(run.settings, run.inputs, run.directory) and is_measured(run, experiment.measure)
    except UserError:
        done = False
    count = -(-run.settings.steps // run.settings.save_every) + 1
    return Stage(f"measure {run.label}", f"measuring {run.label}", count, ("measure",), done)


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _train(run: Run, out: Path, reporter: Reporter) -> None:
    if not processes.from_first(lambda: is_finished(run.settings, run.inputs, run.directory)):
        train(
            run.settings, run.inputs, run.directory, reporter=reporter, kept_rows=out / "rows", save_steps=run.needed
        )  # fmt: skip


def _report(
    experiment: Experiment, runs: Sequence[Run], results: Mapping[str, list[Result]], between: list[dict],
    clock: Clock, command: str,
) -> dict[str, Any]:  # fmt: skip
    methods = {
        arm.name: _said(experiment, arm.name)
        | method_results(results[arm.name])
        | {"per_seed": [result.said for result in results[arm.name]]}
        for arm in experiment.every_arm()
    }
    report = {
        "schema": 1,
        "kind": "study",
        "name": experiment.name,
        "version": __version__,
        "command": command,
        "created": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "settings": experiment_json(experiment) | {"measure": experiment.measure.to_json() | {"used": _used(results)}},
        "stages": clock.rows(),
        "seeds": list(experiment.seeds),
        "methods": methods,
        "matched": matched_results(results, list(arms_of_one_start(runs).values())),
        "between": [{k: v for k, v in row.items() if k not in _BETWEEN_DETAILS} for row in between],
        "matrices_csv": "matrices.csv",
    }
    return report | {"findings": study_findings(report)}


def _said(experiment: Experiment, name: str) -> dict[str, Any]:
    """What the report says of an arm beside its numbers."""
    arms = {arm.name: arm for arm in experiment.every_arm()}
    arm = arms[name]
    if not isinstance(arm.start, At):
        origin = "base" if arm.start == experiment.base else str(arm.start)
    else:
        parent = arms[arm.start.arm]
        step = arm.start.step_of(parent.settings.steps)
        origin = parent.title if step == parent.settings.steps else f"{parent.title} at step {step}"
        origin = "anchor" if origin == "SFT (anchor)" else origin
    said: dict[str, Any] = {"label": arm.title, "origin": origin, "objective": arm.settings.objective}
    confine = arm.settings.confine
    if confine.confine is not None:
        said["confined"] = {"by": confine.confine} | (
            {"mask": confine.mask}
            if confine.confine == "mask"
            else {"basis": confine.basis, "rank": confine.basis_rank, "side": confine.basis_side}
        )
    return said | ({} if arm.color is None else {"color": arm.color})


def _used(results: Mapping[str, list[Result]]) -> dict[str, dict[str, int]]:
    """At which k statistics were taken, by how many matrices; alike in every run, whose matrices are the same."""
    return {key: by_value for seeds in results.values() for key, by_value in seeds[0].said["used"].items()}


def _machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": str(jax.devices()[0].device_kind),
    }
