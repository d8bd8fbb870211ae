"""The stages of an experiment, in order, each resumable: data, training, measuring, comparing, reporting."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxgeom import __version__
from jaxgeom.checkpoints import open_checkpoint, saved_steps
from jaxgeom.comparison import CompareSettings, between_runs, compare_checkpoints, trajectory_checkpoints
from jaxgeom.comparison.files.summary import flat_summary
from jaxgeom.data import arithmetic
from jaxgeom.data.rows import write_jsonl
from jaxgeom.files import write_atomically
from jaxgeom.interruption import goes_on, stoppable
from jaxgeom.lock import locked, refuse_if_held
from jaxgeom.progress import Reporter
from jaxgeom.report import nothing_learned, print_table, study_findings, write_report
from jaxgeom.study.experiment import DataFiles, Experiment
from jaxgeom.study.preflight import check_inputs
from jaxgeom.study.results import Result, add_along, matched_results, method_results, read_result, write_matrices
from jaxgeom.study.stages import is_marked, key_of, mark, run_key, study_config, study_differences
from jaxgeom.training import RunInputs, RunSettings, is_finished, run_learning_rates, train
from jaxgeom.training.identity import model_content
from jaxgeom.training.run_directory import Claim, claim_directory, mark_done
from jaxgeom.training.settings import to_json

# What between.json has of a pair of runs and the report leaves out.
_BETWEEN_DETAILS = ("schema", "kind", "version", "command", "inputs", "settings", "matrices")
LABELS = {"sft_anchor": "SFT (anchor)", "opd": "OPD", "rlvr": "RLVR", "sft_continued": "SFT continued"}


def run_study(
    experiment: Experiment,
    out: Path,
    *,
    reporter: Reporter | None = None,
    command: str = "",
    force: bool = False,
) -> Path:
    """Trains every stage, measures, compares, and writes the report; stopped anywhere, it goes on where it was.

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
    refuse_if_held(out)
    with stoppable():
        goes_on("the same command goes on from what is kept", out)
        config = study_config(experiment, __version__)
        read = [experiment.base, experiment.teacher]
        if isinstance(experiment.data, DataFiles):
            read += [path for path in vars(experiment.data).values() if path is not None]

        def claim() -> Claim:
            return claim_directory(
                out, "study", lambda held: study_differences(held, config), force=force, inputs=read
            )  # fmt: skip

        # Before anything is written: a wrong input must leave no trace.
        ready = [] if claim().goes_on else check_inputs(experiment, reporter)
        with locked(out, reporter.say):
            claim().carry_out(config, reporter.say)
            for rows in ready:
                rows.keep(out / "rows")
            (out / "done").unlink(missing_ok=True)
            return _stages(experiment, out, reporter, command)


def _stages(experiment: Experiment, out: Path, reporter: Reporter, command: str) -> Path:
    """Every stage in order, with the directory held."""
    clock = _Clock(out / "stages.json")
    files = clock.stage("data", lambda: _data(experiment, out))

    anchor_run = out / "runs" / "sft_anchor"
    inputs = RunInputs(model=experiment.base, data=files.demonstrations, eval_data=files.heldout)
    clock.stage("train SFT anchor", lambda: _train("SFT anchor", experiment.anchor, inputs, anchor_run, out, reporter))
    anchor = Path(f"{anchor_run}@{experiment.anchor.steps}")
    runs = {("sft_anchor", experiment.anchor.seed): (anchor_run, experiment.base)}
    told = {"sft_anchor": experiment.anchor, **experiment.methods()}
    for name, settings in experiment.methods().items():
        demonstrations = files.demonstrations_continued or files.demonstrations
        data = demonstrations if name == "sft_continued" else files.prompts
        teacher = experiment.teacher if name == "opd" else None
        inputs = RunInputs(model=anchor, data=data, eval_data=files.heldout, teacher=teacher)
        for seed in experiment.seeds:
            run = out / "runs" / name / f"seed{seed}"
            seeded = dataclasses.replace(settings, seed=seed)
            label = f"{LABELS[name]}, seed {seed}"
            clock.stage(f"train {label}", _bind(_train, label, seeded, inputs, run, out, reporter))
            runs[name, seed] = (run, anchor)

    results: dict[str, list[Result]] = {}
    for (name, seed), (run, origin) in runs.items():
        label = LABELS[name] if name == "sft_anchor" else f"{LABELS[name]}, seed {seed}"
        directory = out / "measures" / name / f"seed{seed}"
        stage = _bind(_measure, run, origin, experiment.measure, directory, label, reporter)
        clock.stage(f"measure {label}", stage)
        seeded = dataclasses.replace(told[name], seed=seed)
        results.setdefault(name, []).append(read_result(directory, run, seeded, _size(origin)))
    learned = {name: [r.said["seed"] for r in seeds if r.learned] for name, seeds in results.items()}
    between = clock.stage("compare runs", lambda: _between(experiment, runs, learned, anchor, out))
    report = _report(experiment, results, between, clock, command)
    write_atomically(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    tables = [(name, seed, out / "measures" / name / f"seed{seed}" / "matrices.csv") for name, seed in runs]
    write_matrices(out / "matrices.csv", tables)
    reporter.say("report: figures and page")
    page = write_report(out)
    mark_done(out)
    print_table(report, reporter.console)
    for sentence in nothing_learned(report):
        reporter.warn(sentence)
    reporter.say(f"page: {page}")
    return page


class _Clock:
    """How long each stage took, over interruptions, in `stages.json`."""

    def __init__(self, path: Path):
        self._path = path
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            self._seconds: dict[str, float] = {str(name): float(seconds) for name, seconds in held.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._seconds = {}  # none yet, or damaged: times are said, and nothing depends on them

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        result = work()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - begun
        write_atomically(self._path, json.dumps(self._seconds, indent=1) + "\n")
        return result

    def rows(self) -> list[dict[str, Any]]:
        return [{"name": n, "seconds": round(s, 2), "status": "done"} for n, s in self._seconds.items()]


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _data(experiment: Experiment, out: Path) -> DataFiles:
    if isinstance(experiment.data, DataFiles):
        return experiment.data
    data, directory = experiment.data, out / "data"
    files = DataFiles(
        demonstrations=directory / "demonstrations.jsonl",
        prompts=directory / "prompts.jsonl",
        heldout=directory / "heldout.jsonl",
        demonstrations_continued=directory / "demonstrations_continued.jsonl",
    )
    assert files.demonstrations_continued is not None
    written = [files.demonstrations, files.demonstrations_continued, files.prompts, files.heldout]
    key = key_of(to_json(data))
    if not is_marked(directory / "done", key, written):
        directory.mkdir(exist_ok=True)
        task, seed = data.task, data.seed
        count = data.demonstrations
        write_jsonl(files.demonstrations, arithmetic.demonstrations(task, count, seed=seed, uneven=data.uneven))
        write_jsonl(files.demonstrations_continued, arithmetic.demonstrations(task, count, seed=seed + 2))
        write_jsonl(files.prompts, arithmetic.prompts(task, data.prompts, seed=seed + 1))
        write_jsonl(files.heldout, arithmetic.prompts(task, data.heldout, split="heldout", seed=seed))
        mark(directory / "done", key, written)
    return files


def _train(label: str, settings: RunSettings, inputs: RunInputs, run: Path, out: Path, reporter: Reporter) -> None:
    if is_finished(settings, inputs, run):
        return
    reporter.say(f"training {label}")
    train(settings, inputs, run, reporter=reporter, kept_rows=out / "rows")


def _measure(
    run: Path, origin: Path, settings: CompareSettings, directory: Path, label: str, reporter: Reporter
) -> None:
    """`report.json`, `matrices.csv` and `trajectory.json` of one run against its origin."""
    key = key_of(settings.to_json(), model_content(origin), run_key(run), __version__)
    written = [directory / name for name in ("report.json", "trajectory.json", "matrices.csv")]
    if is_marked(directory / "done", key, written):
        return
    reporter.say(f"measuring {label}")
    steps = [step for step in saved_steps(run) if step > 0]
    initial = open_checkpoint(origin)
    directory.mkdir(parents=True, exist_ok=True)
    cache = directory.parents[1] / "base_spectra"
    checkpoints = [(step, open_checkpoint(f"{run}@{step}")) for step in steps]
    along = []
    with reporter.task(f"measure {label}", len(steps) + 1) as task:
        for step, checkpoint in checkpoints:
            last = directory if step == steps[-1] else None
            # Whatever is there is an earlier measurement of this study's, with other settings or of other steps.
            report = compare_checkpoints(
                initial, checkpoint, settings, out=last, cache=cache, command=label, force=True
            )  # fmt: skip
            along.append(report.to_json())
            task.advance(1, f"step {step}")
        trajectory = trajectory_checkpoints(initial, checkpoints, settings, learning_rates=run_learning_rates(run))
    add_along(trajectory, along, _size(origin))
    write_atomically(directory / "trajectory.json", json.dumps(trajectory, allow_nan=False) + "\n")
    mark(directory / "done", key, written)


def _size(checkpoint: Path) -> int:
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


def _between(
    experiment: Experiment, runs: dict, learned: Mapping[str, Sequence[int]], anchor: Path, out: Path
) -> list[dict[str, Any]]:
    """What the runs from the anchor share, pair by pair."""
    pairs = pairs_of_runs({name: learned[name] for name in experiment.methods()})
    path = out / "measures" / "between.json"
    ends = [[key, model_content(f"{runs[key][0]}@{saved_steps(runs[key][0])[-1]}")] for pair in pairs for key in pair]
    key = key_of(experiment.measure.to_json(), model_content(anchor), ends, __version__)
    if is_marked(path.with_suffix(".done"), key, [path]):
        return json.loads(path.read_text(encoding="utf-8"))
    origin = open_checkpoint(anchor)
    rows = []
    for one, other in pairs:
        first_end, second_end = (
            open_checkpoint(f"{runs[key][0]}@{saved_steps(runs[key][0])[-1]}") for key in (one, other)
        )
        row = {"a": one[0], "b": other[0], "seed_a": one[1], "seed_b": other[1]}
        shared = between_runs(origin, first_end, second_end, experiment.measure)
        rows.append(row | flat_summary(shared.pop("summary")) | shared)
    write_atomically(path, json.dumps(rows, allow_nan=False) + "\n")
    mark(path.with_suffix(".done"), key, [path])
    return rows


def _report(
    experiment: Experiment, results: dict[str, list[Result]], between: list[dict], clock: _Clock, command: str
) -> dict[str, Any]:
    methods = {
        name: {"label": LABELS[name], "origin": "base" if name == "sft_anchor" else "anchor"}
        | method_results(seeds)
        | {"per_seed": [result.said for result in seeds]}
        for name, seeds in results.items()
    }
    report = {
        "schema": 1,
        "kind": "study",
        "name": experiment.name,
        "version": __version__,
        "command": command,
        "created": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "settings": to_json(experiment) | {"measure": experiment.measure.to_json() | {"used": _used(results)}},
        "stages": clock.rows(),
        "seeds": list(experiment.seeds),
        "methods": methods,
        "matched": matched_results(results, list(experiment.methods())),
        "between": [{k: v for k, v in row.items() if k not in _BETWEEN_DETAILS} for row in between],
        "matrices_csv": "matrices.csv",
    }
    return report | {"findings": study_findings(report)}


def _used(results: dict[str, list[Result]]) -> dict[str, dict[str, int]]:
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
