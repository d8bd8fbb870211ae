"""One training run from start to `done`: resume, step, log, save, evaluate, stop."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxgeom import lock, processes
from jaxgeom.buckets import copies
from jaxgeom.buckets.places import checkpoints_of
from jaxgeom.buckets.store import BucketError
from jaxgeom.data.pipelines import Prompt
from jaxgeom.differences import unequal
from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error
from jaxgeom.interruption import Interrupted, asked, goes_on, held, listening, said_within, saving, stoppable
from jaxgeom.lock import locked, refuse_if_held
from jaxgeom.progress import Reporter, Task
from jaxgeom.surroundings import refuse_64_bits
from jaxgeom.training.checkpointing import Checkpoints, Resume
from jaxgeom.training.evaluation import evaluate, held_out_row
from jaxgeom.training.logs import NAMES, Log, gone, read_json_lines
from jaxgeom.training.monitor import Monitor
from jaxgeom.training.objectives import Prepared, Tools
from jaxgeom.training.optimizer import make_optimizer
from jaxgeom.training.programs import make_train_step
from jaxgeom.training.ready import Ready, from_where, make_ready, require_same_command
from jaxgeom.training.remarks import cannot_go_on, closing_remarks, last_numbers, learned_nothing, truncated_evaluation
from jaxgeom.training.rollouts import Actor, Answers
from jaxgeom.training.rows import write_tokenizer
from jaxgeom.training.run_directory import Claim, mark_done
from jaxgeom.training.settings import RunInputs, RunSettings, to_json
from jaxgeom.training.state import Batch, TrainState, initial_state, on_mesh
from jaxgeom.training.step import Step
from jaxgeom.training.stock import Stock
from jaxgeom.training.timing import StepClock, TimedRewards


def train(
    settings: RunSettings,
    inputs: RunInputs,
    out: Path,
    *,
    reporter: Reporter | None = None,
    force: bool = False,
    kept_rows: Path | None = None,
    save_steps: Collection[int] = (),
) -> Path:
    """Runs, or resumes, one training run.

    A run that was stopped anywhere goes on from its last whole checkpoint and ends bit for bit as it would have (same
    machine, same devices). SIGTERM and Ctrl-C save the step that was reached, and end.

    Args:
        settings: `SFTSettings`, `RLVRSettings` or `OPDSettings`.
        inputs: Model, data, held-out prompts, teacher.
        out: The run directory.
        reporter: Where to say what is done.
        force: Delete another run that is in `out`, if nothing else is there.
        kept_rows: Where the tokens of the rows are kept, `out/rows` where None; several runs may share it.
        save_steps: Steps that are saved whatever `save_every` says, and stay whatever `keep` says.

    Returns:
        The run directory: `config.json`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`, `tokenizer/`, TensorBoard
        events, `done`.

    Raises:
        UserError: data, model, teacher or directory that cannot be used, or JAX's 64 bits; nothing has been written
            then. A disk that is full.
        Interrupted: after SIGTERM or SIGINT, with the step from which the same call goes on.
    """
    reporter = reporter or Reporter(quiet=True)
    refuse_64_bits()
    processes.refuse_unjoined()
    if not processes.is_first():
        reporter = Reporter(quiet=True)
    with stoppable(), said_within(), processes.told(out):
        require_same_command(settings, inputs, out, force=force, kept_rows=kept_rows)
        processes.from_first(lambda: refuse_if_held(out))
        with copies.opened(out, "run", reporter.say, force=force) as copy:
            ready = make_ready(settings, inputs, out, reporter, force=force, kept_rows=kept_rows)
            if ready is None:
                reporter.say(f"{settings.objective}: finished already in {out}")
                try:
                    _say_if_nothing_was_learned(settings, read_json_lines(out / "metrics.jsonl"), reporter)
                except UserError as error:  # a finished run stays finished without its log
                    reporter.say(str(error))
                return out
            with processes.held_by_first(lambda: locked(out, reporter.say)):
                try:
                    _carry_out(settings, ready, out, reporter, save_steps, copy)
                except BucketError:
                    raise
                except OSError as error:
                    raise as_user_error(error, out) from error
    return out


def _carry_out(
    settings: RunSettings, run: Ready, out: Path, reporter: Reporter, save_steps: Collection[int], copy: copies.Copy
) -> None:  # fmt: skip
    """Trains, with the directory held: from the newest whole checkpoint on, or from the start."""
    name = settings.objective
    if not copy.is_stored:
        processes.require_shared(out / lock.NAME)
    found, resume = processes.from_first(run.claim)
    for fault in resume.faults:
        reporter.say(f"{out}: {fault}")
    if found.goes_on:
        _say_if_the_end_is_gone(reporter, out, found)
    anew = found.goes_on and resume.step is None and bool(resume.faults)
    if anew and not run.force:
        raise UserError(f"{out}: {_no_way_on(resume)}; --force deletes all and begins anew")

    def furnish() -> None:
        if found.goes_on:  # before the new number of steps stands there, of which nothing was finished
            (out / "done").unlink(missing_ok=True)
        (found.begin_anew if anew else found.carry_out)(run.config, reporter.say)
        write_tokenizer(run.tokenizer_files, out / "tokenizer", run.rows, settings)
        run.rows.keep(run.kept_rows)
        copy.publish()

    processes.from_first(furnish)
    copy.follow()
    if copy.is_stored:  # each machine has its own
        processes.together(lambda: run.rows.keep(run.kept_rows))
    goes_on(from_where(found, resume), out)
    done = resume.step if found.goes_on else None
    optimizer = make_optimizer(settings, run.params, run.confinement)
    state, stock = initial_state(run.params, optimizer), Stock()
    iterator = run.rows.batches(settings)
    always = {0, settings.steps, settings.geometry.geometry_step or 0, *save_steps}

    def saved(step: int) -> None:
        goes_on(f"the same command goes on from step {step}", out)

    with Checkpoints(
        out,
        reporter.say,
        keep=settings.keeping,
        always=always,
        ends=(*resume.ends, settings.steps),
        saved=saved,
        publish=copy.publish,
        require=copy.require,
    ) as checkpoints:
        if done is not None:
            state, data_state, pending = checkpoints.restore(done, state)
            state = state.on_schedule()  # of a checkpoint that counted learned-from steps alone
            iterator.set_state(data_state)
            stock = Stock.unpacked(pending, lambda batch: on_mesh(batch, run.mesh))
            _say_how(reporter, name, out, done, found, resume, settings, run.config)

        def judge(number: int, row: dict[str, float]) -> None:
            _stop_if_lost(number, row, run, out, checkpoints)

        positions = resume.logs if done is not None else {}
        with StepClock() as clock, Log(settings, out, done, positions, clock=clock, judge=judge) as log:
            step = make_train_step(run.objective, optimizer, state, run.confinement)
            loop = _Loop(
                settings, run, out, step, state, stock, iterator, checkpoints, log, clock, reporter, saved=done,
                save_steps=save_steps,
            )  # fmt: skip
            try:
                with _stopping_together():
                    with reporter.task(name, settings.steps, done=done or 0) as task:
                        loop.run(done or 0, task)
                    checkpoints.wait()
            except Interrupted as stop:
                saving()
                loop.rescue()
                raise Interrupted(stop.number) from None
    processes.from_first(lambda: _end(settings, out, reporter))


@contextlib.contextmanager
def _stopping_together() -> Iterator[None]:
    """Within it, where there are several processes, none leaves the others alone: they stop where all have been told.

    What reaches one of them too late for another step stops all of them at the end.
    """
    if processes.count() == 1:
        yield
        return
    with listening():
        try:
            yield
            if signal := max(processes.exchanged(asked())):
                raise Interrupted(signal)
        except Interrupted:
            saving()
            raise


def _end(settings: RunSettings, out: Path, reporter: Reporter) -> None:
    """What is said of a run that has taken its steps, and its `done`."""
    name, rows = settings.objective, read_json_lines(out / "metrics.jsonl")
    for sentence in (*last_numbers(rows), *closing_remarks(rows, settings)):
        reporter.say(f"{name}: {sentence}")
    _say_if_nothing_was_learned(settings, rows, reporter)
    mark_done(out)


def _say_if_nothing_was_learned(settings: RunSettings, rows: list[dict[str, Any]], reporter: Reporter) -> None:
    why = learned_nothing(rows, settings)
    if why is not None:
        reporter.warn(f"{settings.objective}: NOTHING WAS LEARNED: {why}")


class _Loop:
    """The steps of a run. What is kept for a stop is always of one step: its state, what it left of its rollout, and
    the data's position after that rollout.

    A signal raises anywhere but in what is `held`, where a step's end and a save are done whole.
    """

    def __init__(
        self, settings: RunSettings, run: Ready, out: Path, step: Step, state: TrainState, stock: Stock,
        iterator: Any, checkpoints: Checkpoints, log: Log, clock: StepClock, reporter: Reporter, *, saved: int | None,
        save_steps: Collection[int],
    ):  # fmt: skip
        self._settings, self._run, self._out, self._iterator, self._reporter = settings, run, out, iterator, reporter
        self._checkpoints, self._log, self._clock, self._saved = checkpoints, log, clock, saved
        self._save_steps = {settings.steps, *save_steps}
        start = None if run.confinement is None else run.frozen.start
        self._take_step, self._inputs = step, dataclasses.replace(run.objective.step_inputs(run.frozen), start=start)
        rewards = TimedRewards(**vars(run.rows.rewards), watch=lambda: clock.host("verifying", self._step + 1))
        scoring = partial(clock.devices, "scoring")
        self._tools = Tools(iterator, run.rows.tokenizer, rewards, lambda: scoring(self._step + 1))
        self._state, self._stock, self._data_state, self._step = state, stock, iterator.get_state(), saved or 0
        self._prompts, self._signals = run.rows.evaluated, processes.Signals()
        self._monitor = None
        if settings.geometry.geometry_every:
            self._monitor = Monitor(
                settings.geometry, run.model, run.frozen.start, out, saved or 0, run.mesh, reporter.say
            )

    def run(self, first: int, task: Task) -> None:
        """Steps `first` … `settings.steps` − 1."""
        settings = self._settings
        if first < settings.steps:
            task.note("compiling first, which takes minutes for a large model")
        self._evaluate()
        if self._saved is None:
            # Evaluated before it is saved, here and below: a kill between the two repeats both and loses neither.
            self._save()
        for number in range(first, settings.steps):
            stock, drawn = self._stock.for_step(number, self._run.objective.rollouts_ahead, self._prepare)
            with held():
                with self._clock.devices("update", number + 1) as until:
                    metrics = self._learn(stock.batches[:1])
                    until(metrics)
                self._step, self._stock = number + 1, stock.after_step()
                self._data_state = self._iterator.get_state()
                self._log.step(self._step, metrics, drawn.metrics, drawn.answers)
                self._measure()
            self._evaluate()
            if self._step % settings.save_every == 0 or self._step in self._save_steps:
                self._save()
            self._checkpoints.check()
            task.advance(1, self._log.status())
            if processes.count() > 1 and (signal := self._signals.turn(asked())):
                raise Interrupted(signal)

    def rescue(self) -> None:
        """Saves what was reached, after a signal."""
        if self._saved != self._step:
            self._save()
        self._checkpoints.wait()

    def _prepare(self, number: int) -> Prepared:
        """A rollout, and what the next steps learn from it."""
        objective, params, frozen = self._run.objective, self._state.params, self._run.frozen
        with self._clock.host("rollout", self._step + 1):
            drawn = objective.draw(params, frozen, self._tools, number)
        with self._clock.devices("scoring", self._step + 1) as until:
            prepared = objective.prepare(params, frozen, drawn, number)
            until(prepared.batches)
        return prepared

    def _learn(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """One step on the batch that there is; where there is none the step counts and changes nothing."""
        if not batches:
            self._state = self._state.skipped()
            return {"skipped": 1.0}
        if self._monitor is not None:
            self._monitor.before(self._step + 1, self._state.params)
        self._state, metrics = self._take_step(self._state, batches[0], self._inputs)
        return metrics

    def _measure(self) -> None:
        """The geometry into the log where it is due at this step."""
        if self._monitor is None:
            return
        with self._clock.host("geometry", self._step + 1):
            row = self._monitor.after(self._step, self._state.params)
            if row:
                self._log.flush()
                self._log.write(self._step, row)

    def _evaluate(self) -> None:
        """Held-out accuracy into the log where it is due at this step and not there yet."""
        settings, step = self._settings, self._step
        due = step in (0, settings.steps) or (settings.eval_every and step % settings.eval_every == 0)
        if due and self._prompts and not self._log.is_evaluated(step):
            with self._clock.host("evaluation", step + 1):
                self._answer_held_out(step)

    def _answer_held_out(self, step: int) -> None:
        settings = self._settings
        row: dict[str, float] = {}
        stops = self._run.model.config.stop_tokens
        for name, prompts in self._prompts.items():
            greedy = self._answers(prompts)
            drawn = self._answers(prompts, samples=settings.eval_samples) if settings.eval_samples else []
            found = held_out_row(greedy, drawn, samples=settings.eval_samples, stops=stops, name=name)
            row |= found
            remark = truncated_evaluation(found[f"accuracy_truncated/{name}".rstrip("/")], settings, stops)
            if remark is not None:
                self._reporter.say(f"step {step}: {f'{name}: ' if name else ''}{remark}")
        with held():
            self._log.flush()
            self._log.write(step, row)

    def _answers(self, prompts: Sequence[Prompt], samples: int = 0) -> list[Answers]:
        """Greedy answers to held-out prompts, or several drawn ones to each."""
        settings, rows = self._settings, self._run.rows
        return evaluate(
            Actor(self._run.model, self._state.params),
            rows.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            rewards=rows.rewards,
            samples=samples,
            temperature=settings.eval_temperature,
            seed=settings.seed,
        )[1]

    def _save(self) -> None:
        """Begins to write the step that was reached; a signal waits for its copy, not for the step before it."""
        with self._clock.host("saving", self._step + 1):
            self._checkpoints.wait()
            self._write()

    def _write(self) -> None:
        with held():
            self._log.flush()
            positions, pending = self._log.positions(), self._stock.packed()
            self._checkpoints.save(self._state, self._data_state, self._settings.seed, positions, pending)
            self._saved = self._step


def _stop_if_lost(step: int, row: dict[str, float], run: Ready, out: Path, checkpoints: Checkpoints) -> None:
    """Stops a run whose numbers say that it is lost, before they are logged and its state is saved."""
    vocabulary = run.model.config.vocab_size if run.objective.is_in_nats else None
    why = cannot_go_on(row, vocabulary)
    if why is None:
        return
    checkpoints.wait()
    at_start = cannot_go_on({name: row[name] for name in ("loss", "grad_norm") if name in row}, vocabulary)
    if step == 1 and at_start is not None:  # these are of the weights before the step
        raise UserError(
            f"step 1: {at_start}, with the weights that the run began with: {run.config['inputs']['model']} cannot be"
            " trained on these data as it is"
        )
    raise UserError(
        f"step {step}: {why}; the last good checkpoint is {out}@{checkpoints.last()}: begin another run from it"
        " (--model) with a lower --lr"
    )


def _no_way_on(resume: Resume) -> str:
    """Why a run that goes on has nothing to go on from; checkpoints may be whole and their log alone damaged."""
    log = next((fault for fault in resume.faults if fault.startswith(NAMES)), None)
    if log is None:
        return f"no checkpoint is whole ({resume.faults[0]})"
    return f"{log}: put it back, or remove it to go on without it from the newest whole checkpoint"


def _say_if_the_end_is_gone(reporter: Reporter, out: Path, found: Claim) -> None:
    """Says that a run was finished, where its last checkpoint is not there."""
    end = (found.held or {}).get("settings", {}).get("steps")
    if (out / "done").exists() and not (checkpoints_of(out) / str(end)).exists():
        reporter.warn(f"{out}: it was finished, and checkpoints/{end} is gone")


def _say_how(
    reporter: Reporter,
    name: str,
    out: Path,
    step: int,
    found: Claim,
    resume: Resume,
    settings: RunSettings,
    config: dict[str, Any],
) -> None:
    """From where a run goes on, and with which other settings."""
    changed = unequal((found.held or {}).get("settings", {}), to_json(settings))
    for reward, digest in config.get("verifiers", {}).items():
        before = (found.held or {}).get("verifiers", {}).get(reward, digest)
        if digest != before:
            reporter.warn(f"{name}: reward {reward}: its module is not what it was when the run began")
    reporter.say(f"{name}: goes on from step {step}" + (f" ({'; '.join(changed)})" if changed else ""))
    for log in gone(out, resume.logs):
        reporter.warn(f"{out}: {log} is gone: it begins anew, without the rows of the first {step} steps")
    if any(fault.startswith(NAMES) for fault in resume.faults):
        reporter.say(f"{out}: to go on from a later step without its log, stop this and remove the damaged log")
