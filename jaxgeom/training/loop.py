"""One training run from start to `done`: resume, step, log, save, evaluate."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgeom.data import chat, pipelines
from jaxgeom.data.rows import check_demonstrations, check_prompts, read_rows
from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error
from jaxgeom.interruption import Interrupted, goes_on, held, saving, stoppable
from jaxgeom.lock import locked, refuse_if_held
from jaxgeom.models import Qwen3, copy_tokenizer
from jaxgeom.optimizers import adamw
from jaxgeom.progress import Reporter
from jaxgeom.sharding import batch_divisor, batch_sharding, make_mesh
from jaxgeom.training.checkpointing import Checkpoints, Resume, find_resume, load_start, tokenizer_directory
from jaxgeom.training.evaluation import evaluate
from jaxgeom.training.identity import differences, run_config, unequal
from jaxgeom.training.logs import NAMES, Log
from jaxgeom.training.rollouts import Actor, Answers, collect
from jaxgeom.training.run_directory import Claim, claim_directory, held_config, mark_done
from jaxgeom.training.settings import (
    OnPolicySettings,
    OPDSettings,
    RunInputs,
    RunSettings,
    SFTSettings,
    objective_name,
    to_json,
)
from jaxgeom.training.step import Batch, TrainState, initial_state, make_train_step

Source = Callable[[TrainState, int], tuple[Batch | None, dict[str, float], Answers | None]]


def train(
    settings: RunSettings, inputs: RunInputs, out: Path, *, reporter: Reporter | None = None, force: bool = False
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

    Returns:
        The run directory: `config.json`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`, `tokenizer/`, TensorBoard
        events, `done`.

    Raises:
        UserError: data, model, teacher or directory that cannot be used; nothing has been written then. A disk that is
            full.
        Interrupted: after SIGTERM or SIGINT, with the step from which the same call goes on.
    """
    reporter = reporter or Reporter(quiet=True)
    _refuse_several_processes()
    refuse_if_held(out)
    with stoppable():
        prepared = _prepare(settings, inputs, out, reporter, force)
        if prepared is None:
            reporter.say(f"{objective_name(settings)}: finished already in {out}")
            return out
        with locked(out, reporter.say):
            try:
                _carry_out(settings, prepared, out, reporter)
            except OSError as error:
                raise as_user_error(error, out) from error
    return out


class _Prepared(NamedTuple):
    """All that a run needs, read and checked; nothing has been written yet."""

    claim: Callable[[], tuple[Claim, Resume]]
    config: dict[str, Any]
    force: bool
    model: Qwen3
    params: Any
    teacher: Actor | None
    tokenizer: Any
    tokenizer_files: Path
    rows: list[dict]
    held_out: list[pipelines.Prompt]
    mesh: jax.sharding.Mesh


def _prepare(settings: RunSettings, inputs: RunInputs, out: Path, reporter: Reporter, force: bool) -> _Prepared | None:
    """Reads and checks everything; None where the run is finished already."""
    name = objective_name(settings)
    if inputs.teacher is not None and not isinstance(settings, OPDSettings):
        raise UserError(f"teacher={inputs.teacher}: {name} has no teacher")
    mesh = _mesh(settings)
    if settings.batch_size % (batch_divisor(mesh) * settings.micro_batches):
        raise UserError(
            f"batch_size={settings.batch_size} is not divisible by the {batch_divisor(mesh)} batch shards of the mesh"
            f" times micro_batches={settings.micro_batches}"
        )
    config = run_config(settings, inputs)

    def claim() -> tuple[Claim, Resume]:
        resume = find_resume(out)
        given = [path for path in dataclasses.astuple(inputs) if path is not None]
        found = claim_directory(
            out, "run", lambda held: differences(held, config, resume.step or 0), force=force, inputs=given
        )
        return found, resume

    found, resume = claim()
    if found.goes_on and _is_finished(out, settings, resume):
        for fault in resume.faults:
            reporter.say(f"{out}: {fault}")
        return None
    tokenizer_files = tokenizer_directory(inputs.model)
    tokenizer = chat.load_tokenizer(tokenizer_files)
    rows = _read_data(settings, inputs.data)
    held_out = _read_held_out(settings, inputs.eval_data, tokenizer)
    load = {"mesh": mesh, "compute_dtype": settings.compute_dtype}
    model, params = load_start(inputs.model, remat=settings.remat, **load)
    _require_finite(params, inputs.model)
    teacher = _load_teacher(settings, inputs.teacher, model, **load)
    config["model"] = model.config.to_hf()
    return _Prepared(claim, config, force, model, params, teacher, tokenizer, tokenizer_files, rows, held_out, mesh)


def is_finished(settings: RunSettings, inputs: RunInputs, out: Path) -> bool:
    """Whether a directory holds exactly this run with nothing left to do; checkpoints are judged by their sizes.

    Args:
        settings: of the run.
        inputs: what it reads.
        out: the run directory.
    """
    held = held_config(out, "run")
    if held is None or not (out / "done").exists():
        return False
    resume = find_resume(out, contents=False)
    same = not differences(held, run_config(settings, inputs), resume.step or 0)
    return same and not resume.faults and _is_finished(out, settings, resume)


def _is_finished(out: Path, settings: RunSettings, resume: Resume) -> bool:
    return (out / "done").exists() and resume.step == settings.steps


def _carry_out(settings: RunSettings, run: _Prepared, out: Path, reporter: Reporter) -> None:
    """Trains, with the directory held: from the newest whole checkpoint on, or from the start."""
    name = objective_name(settings)
    found, resume = run.claim()
    for fault in resume.faults:
        reporter.say(f"{out}: {fault}")
    if found.goes_on and resume.step is None and resume.faults:
        if not run.force:
            raise UserError(f"{out}: no checkpoint is whole ({resume.faults[0]}); --force deletes all and begins anew")
        found.begin_anew(run.config, reporter.say)
    else:
        found.carry_out(run.config, reporter.say)
    (out / "done").unlink(missing_ok=True)
    done = resume.step if found.goes_on else None
    copy_tokenizer(run.tokenizer_files, out / "tokenizer")
    optimizer = adamw(settings.optimizer, settings.steps)
    state = initial_state(run.params, optimizer)
    iterator = _iterator(settings, run.rows, run.tokenizer)
    with Checkpoints(out, reporter.say) as checkpoints:
        if done is not None:
            state, data_state = checkpoints.restore(done, state)
            iterator.set_state(data_state)
            _say_how(reporter, name, out, done, found, resume, settings)
        goes_on(f"the same command goes on from step {done}" if done is not None else "the same command begins anew")
        with Log(settings, out, done, resume.logs if done is not None else {}) as log:
            loop = _Loop(settings, run, state, iterator, checkpoints, log, saved=done)
            try:
                with reporter.task(name, settings.steps, done=done or 0) as task:
                    loop.run(done or 0, lambda: task.advance(1, log.status()))
            except Interrupted as stop:
                saving()
                raise Interrupted(stop.number, f"{out}: stopped; {loop.rescue()}") from None
    mark_done(out)


class _Loop:
    """The steps of a run. What is kept for a stop is always of one step: its state, and the data's position after it.

    A signal raises anywhere but in what is `held`, where a step's end and a save are done whole.
    """

    def __init__(
        self, settings: RunSettings, run: _Prepared, state: TrainState, iterator: Any, checkpoints: Checkpoints,
        log: Log, *, saved: int | None,
    ):  # fmt: skip
        self._settings, self._run, self._iterator = settings, run, iterator
        self._checkpoints, self._log, self._saved = checkpoints, log, saved
        self._state, self._data_state, self._step = state, iterator.get_state(), saved or 0
        if isinstance(settings, SFTSettings):
            self._source = _sft_source(iterator, run.mesh)
        else:
            self._source = _on_policy_source(settings, run.model, run.teacher, run.tokenizer, iterator, run.mesh)

    def run(self, first: int, finished: Callable[[], None]) -> None:
        """Steps `first` … `settings.steps` − 1."""
        settings = self._settings
        step = make_train_step(self._run.model, adamw(settings.optimizer, settings.steps), settings, self._state)
        self._evaluate()
        if self._saved is None:
            # Evaluated before it is saved, here and below: a kill between the two repeats both and loses neither.
            with held():
                self._save()
        for number in range(first, settings.steps):
            begun = time.monotonic()
            batch, host_metrics, answers = self._source(self._state, number)
            with held():
                metrics: dict[str, Any] = {}
                if batch is None:
                    self._state = _skip(self._state)
                    host_metrics["skipped"] = 1.0
                else:
                    self._state, metrics = step(self._state, batch)
                self._step, self._data_state = number + 1, self._iterator.get_state()
                self._log.step(self._step, metrics, host_metrics, answers, begun)
            self._evaluate()
            if self._step % settings.save_every == 0 or self._step == settings.steps:
                with held():
                    self._save()
            finished()

    def rescue(self) -> str:
        """Saves what was reached, after a signal; says from where the same command goes on."""
        if self._saved != self._step:
            with held():
                self._save()
        return f"the same command goes on from step {self._saved}"

    def _evaluate(self) -> None:
        """Held-out accuracy into the log where it is due at this step and not there yet."""
        settings, step = self._settings, self._step
        due = step in (0, settings.steps) or (settings.eval_every and step % settings.eval_every == 0)
        if not (due and self._run.held_out) or self._log.is_evaluated(step):
            return
        accuracy, _ = evaluate(
            Actor(self._run.model, self._state.params),
            self._run.tokenizer,
            self._run.held_out,
            max_new_tokens=settings.max_new_tokens,
        )
        with held():
            self._log.flush()
            self._log.write(step, {"accuracy": accuracy, "accuracy_count": float(len(self._run.held_out))})

    def _save(self) -> None:
        self._log.flush()
        self._checkpoints.save(self._state, self._data_state, self._settings.seed, self._log.positions())
        self._saved = self._step
        goes_on(f"the same command goes on from step {self._step}")


def _say_how(
    reporter: Reporter, name: str, out: Path, step: int, found: Claim, resume: Resume, settings: RunSettings
) -> None:
    """From where a run goes on, and with which other settings."""
    changed = unequal((found.held or {}).get("settings", {}), to_json(settings), "settings")
    reporter.say(f"{name}: goes on from step {step}" + (f" ({'; '.join(changed)})" if changed else ""))
    if any(fault.startswith(NAMES) for fault in resume.faults):
        reporter.say(f"{out}: to go on from a later step without its log, stop this and remove the damaged log")


def _refuse_several_processes() -> None:
    """Training is one process's work so far; two that write into one directory would destroy each other's."""
    number = os.environ.get("JAX_NUM_PROCESSES") or ("several" if os.environ.get("JAX_COORDINATOR_ADDRESS") else "1")
    if jax.distributed.is_initialized():
        number = str(jax.process_count())
    if number != "1":
        raise UserError(
            f"train runs in one process, and JAX_NUM_PROCESSES says {number}: unset JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, and start it once"
        )


def _require_finite(params: Any, source: Path) -> None:
    finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), tree))(params)
    for path, good in jax.tree_util.tree_leaves_with_path(jax.device_get(finite)):
        if not good:
            raise UserError(f"{source}: {jax.tree_util.keystr(path, simple=True, separator='.')} has NaN or infinity")


def _mesh(settings: RunSettings) -> jax.sharding.Mesh:
    try:
        return make_mesh(*dataclasses.astuple(settings.mesh))
    except ValueError as error:
        raise UserError(str(error)) from error


def _sft_source(iterator: Any, mesh: jax.sharding.Mesh) -> Source:
    def source(state: TrainState, number: int) -> tuple[Batch, dict[str, float], None]:
        arrays = next(iterator)
        tokens = float(arrays["loss_mask"].sum())
        return jax.device_put(Batch(**arrays), batch_sharding(mesh)), {"target_tokens": tokens}, None

    return source


def _on_policy_source(
    settings: Any, model: Qwen3, teacher: Actor | None, tokenizer: Any, iterator: Any, mesh: jax.sharding.Mesh
) -> Source:
    def source(state: TrainState, number: int) -> tuple[Batch | None, dict[str, float], Answers]:
        batch, metrics, answers = collect(
            settings, Actor(model, state.params), teacher, tokenizer, iterator, step=number
        )
        return jax.device_put(batch, batch_sharding(mesh)), metrics, answers

    return source


def _skip(state: TrainState) -> TrainState:
    return TrainState(step=state.step + 1, params=state.params, opt_state=state.opt_state)


def _read_data(settings: RunSettings, path: Path) -> list[dict]:
    rows = read_rows(path)
    (check_demonstrations if isinstance(settings, SFTSettings) else check_prompts)(rows, str(path))
    return rows


def _read_held_out(settings: RunSettings, path: Path | None, tokenizer: Any) -> list[pipelines.Prompt]:
    if path is None:
        return []
    rows = read_rows(path)[: settings.eval_limit]
    check_prompts(rows, str(path))
    return [pipelines.encode_prompt_row({**row, "row": index}, tokenizer) for index, row in enumerate(rows)]


def _iterator(settings: RunSettings, rows: list[dict], tokenizer: Any) -> Any:
    if isinstance(settings, SFTSettings):
        return pipelines.demonstration_batches(
            rows, tokenizer, batch_size=settings.batch_size, max_length=settings.max_length, seed=settings.seed
        )
    assert isinstance(settings, OnPolicySettings)
    return pipelines.prompt_batches(rows, tokenizer, batch_size=settings.prompts_per_step, seed=settings.seed)


def _load_teacher(settings: RunSettings, path: Path | None, student: Qwen3, **load: Any) -> Actor | None:
    if not isinstance(settings, OPDSettings):
        return None
    if path is None:
        raise UserError("on-policy distillation needs a teacher")
    model, params = load_start(path, **load)
    if model.config.vocab_size != student.config.vocab_size:
        raise UserError(
            f"{path}: a vocabulary of {model.config.vocab_size}, the model's has {student.config.vocab_size};"
            " on-policy distillation scores the same tokens with both"
        )
    _require_finite(params, path)
    return Actor(model, params)
