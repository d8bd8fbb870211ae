"""The runs of an experiment in the order in which they are made, and how long what is left of them will take."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgeom.checkpoints import saved_steps
from jaxgeom.errors import UserError, listed
from jaxgeom.files import write_atomically
from jaxgeom.progress import Reporter, duration
from jaxgeom.study.arms import Arm, At
from jaxgeom.study.data import DataFiles, data_files
from jaxgeom.study.experiment import Experiment
from jaxgeom.training import RunInputs, RunSettings
from jaxgeom.training.checkpointing import find_resume


class Run(NamedTuple):
    """One training of an arm.

    Attributes:
        arm: of the experiment.
        settings: with the run's seed.
        inputs: what it reads; other arms as `RUN@STEP`.
        directory: where it is.
        measures: where what is measured of it is.
        needed: steps from which other runs take something: saved whatever `save_every` says.
    """

    arm: Arm
    settings: RunSettings
    inputs: RunInputs
    directory: Path
    measures: Path
    needed: tuple[int, ...]

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.settings.seed

    @property
    def label(self) -> str:
        """What it is called on the screen."""
        return self.arm.title if self.arm.shared else f"{self.arm.title}, seed {self.seed}"

    @property
    def origin(self) -> Path:
        """Where it starts, which its update is taken from."""
        return self.inputs.model


def planned_runs(experiment: Experiment, out: Path) -> list[Run]:
    """Every run, each after those that it takes from; first all arms at their first seed, then at their second, …

    Args:
        experiment: what to do.
        out: the study's directory.
    """
    arms = {arm.name: arm for arm in experiment.every_arm()}
    seeds = {name: arm.seeds_among(experiment.seeds) for name, arm in arms.items()}
    files = data_files(experiment.data, out)
    needed: dict[str, set[int]] = {name: set() for name in arms}
    for arm in arms.values():
        for source in arm.sources.values():
            needed[source.arm].add(source.step_of(arms[source.arm].settings.steps))
    runs: dict[tuple[str, int], Run] = {}

    def directory(name: str, seed: int) -> Path:
        return out / "runs" / name / (f"seed{seed}" if not arms[name].shared else "")

    def place(source: Any, seed: int) -> Path | None:
        """A path as it is; a step of another arm as a checkpoint of its run, which is planned first."""
        if not isinstance(source, At):
            return source
        own = seed if seed in seeds[source.arm] else seeds[source.arm][0]
        plan(source.arm, own)
        return Path(f"{directory(source.arm, own)}@{source.step_of(arms[source.arm].settings.steps)}")

    def plan(name: str, seed: int) -> None:
        if (name, seed) in runs:
            return
        arm = arms[name]
        start, basis_from, mask_from = (place(one, seed) for one in (arm.start, arm.basis_from, arm.mask_from))
        assert start is not None
        inputs = RunInputs(
            model=start, data=getattr(files, rows_of(arm, files)), eval_data=files.heldout,
            teacher=experiment.teachers_of(arm), basis_from=basis_from, mask_from=mask_from,
        )  # fmt: skip
        settings = dataclasses.replace(arm.settings, seed=seed)
        measures = out / "measures" / name / f"seed{seed}"
        runs[name, seed] = Run(arm, settings, inputs, directory(name, seed), measures, tuple(sorted(needed[name])))

    for turn in range(max(map(len, seeds.values()))):
        for name in arms:
            for seed in seeds[name][turn : turn + 1]:
                plan(name, seed)
    return list(runs.values())


def rows_of(arm: Arm, files: DataFiles) -> str:
    """The field of the data that an arm learns from."""
    if arm.data is not None:
        wanted = arm.data
    elif arm.settings.reads == "prompts":
        wanted = "prompts"
    else:
        wanted = "demonstrations_continued" if isinstance(arm.start, At) else "demonstrations"
    return wanted if getattr(files, wanted) is not None else "demonstrations"


def require_steps(runs: Sequence[Run]) -> None:
    """Refuses a study whose earlier runs have gone past a step that an arm takes from without saving it.

    Args:
        runs: of the study.

    Raises:
        UserError: naming the run, the step and those that there are.
    """
    for run in runs:
        if not run.needed or not run.directory.is_dir():
            continue
        held, reached = saved_steps(run.directory), find_resume(run.directory, contents=False).step or 0
        for step in run.needed:
            if step <= reached and step not in held:
                raise UserError(
                    f"{run.directory}: an arm takes from step {step}, and this run went past it without saving it; "
                    f"take one of {listed(map(str, held))}, or delete this run"
                )


class Clock:
    """The stages of a study: how long each took, over interruptions (`stages.json`), and how long the rest will take.

    What is left is judged by the stages that were done: those of the same arm, else of the same kind of work.

    Args:
        path: the file.
        reporter: where the plan and each stage are said.
    """

    def __init__(self, path: Path, reporter: Reporter):
        self._path, self._reporter = path, reporter
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            self._seconds: dict[str, float] = {str(name): float(seconds) for name, seconds in held.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            self._seconds = {}  # none yet, or damaged: times are said, and nothing depends on them
        self._left: dict[str, Stage] = {}
        self._count, self._place = 0, 0
        self._rates: dict[str, list[float]] = {}

    def plan(self, stages: Iterable["Stage"]) -> None:
        """What will be done, in order; stages that are finished already count for nothing but their time."""
        every = list(stages)
        for stage in every:
            if stage.is_done and stage.name in self._seconds:
                self._learn(stage, self._seconds[stage.name])
        self._left = {stage.name: stage for stage in every if not stage.is_done}
        self._count = len(self._left)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Does a stage: says its place and the time left, and keeps how long it took."""
        planned = self._left.get(name)
        if planned is not None:
            self._place += 1
            self._reporter.say(f"{planned.said} (stage {self._place} of {self._count}{self._time_left()})")
        begun = time.monotonic()
        result = work()
        took = time.monotonic() - begun
        if planned is not None:
            self._learn(planned, took)
            del self._left[name]
        self._seconds[name] = self._seconds.get(name, 0.0) + took
        write_atomically(self._path, json.dumps(self._seconds, indent=1) + "\n")
        return result

    def rows(self) -> list[dict[str, Any]]:
        """The stages for the report."""
        return [{"name": n, "seconds": round(s, 2), "status": "done"} for n, s in self._seconds.items()]

    def _learn(self, stage: "Stage", seconds: float) -> None:
        for kind in stage.kinds:
            self._rates.setdefault(kind, []).append(seconds / stage.units)

    def _time_left(self) -> str:
        total, unknown = 0.0, 0
        for stage in self._left.values():
            rates = next((self._rates[kind] for kind in stage.kinds if kind in self._rates), None)
            unknown += rates is None
            total += 0.0 if rates is None else stage.units * sum(rates) / len(rates)
        if not total:
            return ""
        return f", about {duration(total)} left" + (f" and {unknown} not yet known" if unknown else "")


class Stage(NamedTuple):
    """A piece of work of a study.

    Attributes:
        name: in `stages.json`.
        said: on the screen, `training OPD, seed 0`.
        units: how much of it there is: optimizer steps, checkpoints.
        kinds: what its speed is like, the nearest first.
        is_done: whether it is finished already.
    """

    name: str
    said: str
    units: float
    kinds: tuple[str, ...]
    is_done: bool = False


def say_plan(experiment: Experiment, runs: Sequence[Run], reporter: Reporter) -> None:
    """One line an arm: its steps, its seeds, where it starts, what it is confined to.

    Args:
        experiment: whose arms they are.
        runs: of the study.
        reporter: where to say it.
    """
    titles = {arm.name: arm for arm in experiment.every_arm()}

    def at(source: At) -> str:
        parent = titles[source.arm]
        step = source.step_of(parent.settings.steps)
        return parent.title if step == parent.settings.steps else f"{parent.title} at step {step}"

    reporter.say(f"plan: {len(titles)} arms, {len(runs)} runs")
    for arm in titles.values():
        seeds = arm.seeds_among(experiment.seeds)
        many = "" if len(seeds) == 1 else f" × {len(seeds)} seeds"
        start = at(arm.start) if isinstance(arm.start, At) else str(arm.start)
        confine = arm.settings.confine
        line = f"  {arm.title}: {arm.settings.objective}, {arm.settings.steps} steps{many}, from {start}"
        if confine.confine is not None:
            source = arm.basis_from or arm.mask_from
            of = f" of {at(source) if isinstance(source, At) else source}" if source is not None else ""
            what = f"mask {confine.mask}" if confine.confine == "mask" else f"{confine.basis} basis"
            line += f", confined by {confine.confine} ({what}{of})"
        reporter.say(line)
