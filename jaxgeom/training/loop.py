"""One training run from start to `done`: resume, step, log, save, evaluate."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom import __version__
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3
from jaxgeom.optimizers import adamw, learning_rate_schedule
from jaxgeom.progress import Reporter
from jaxgeom.rewards import Verifier, logged
from jaxgeom.sharding import batch_divisor, batch_sharding, make_mesh
from jaxgeom.training.checkpointing import Checkpoints, load_start, tokenizer_directory
from jaxgeom.training.evaluation import evaluate
from jaxgeom.training.mesh_fit import mesh_notes
from jaxgeom.training.remarks import closing_remarks, truncated_evaluation
from jaxgeom.training.rollouts import Actor, Answers, collect, truncated_share
from jaxgeom.training.rows import read_run_rows, write_tokenizer
from jaxgeom.training.run_directory import JsonLines, claim_directory, mark_done, read_json_lines
from jaxgeom.training.settings import (
    OPDSettings,
    RunInputs,
    RunSettings,
    SFTSettings,
    objective_name,
    to_json,
)
from jaxgeom.training.step import Batch, TrainState, initial_state, make_train_step
from jaxgeom.training.vocabulary import cut_vocabulary, require_same_tokens, require_tokens_fit, require_vocabulary

_SAMPLES_LOGGED = 4

Source = Callable[[TrainState, int], tuple[Batch | None, dict[str, float], Answers | None]]


def train(
    settings: RunSettings,
    inputs: RunInputs,
    out: Path,
    *,
    reporter: Reporter | None = None,
    force: bool = False,
    kept_rows: Path | None = None,
) -> Path:
    """Runs, or resumes, one training run.

    A run that was stopped anywhere goes on from its last checkpoint and ends bit for bit as it would have (same
    machine, same devices).

    Args:
        settings: `SFTSettings`, `RLVRSettings` or `OPDSettings`.
        inputs: Model, data, held-out prompts, teacher.
        out: The run directory.
        reporter: Where to say what is done.
        force: Delete another run that is in `out`.
        kept_rows: Where the tokens of the rows are kept, `out/rows` where None; several runs may share it.

    Returns:
        The run directory: `config.json`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`, `tokenizer/`, TensorBoard
        events, `done`.

    Raises:
        UserError: data, model, teacher or directory that cannot be used; nothing has been written then.
    """
    reporter = reporter or Reporter(quiet=True)
    name = objective_name(settings)
    if inputs.teacher is not None and not isinstance(settings, OPDSettings):
        raise UserError(f"teacher={inputs.teacher}: {name} has no teacher")
    kept = out / "rows" if kept_rows is None else kept_rows
    rows = read_run_rows(settings, inputs, kept=kept, reporter=reporter)
    tokenizer = rows.tokenizer
    verifier = Verifier(settings.allow_unisolated_code, settings.code_timeout)
    verifier.require([truth for truth in rows.truths if truth is not None])
    mesh = _mesh(settings)
    if settings.batch_size % (batch_divisor(mesh) * settings.micro_batches):
        raise UserError(
            f"batch_size={settings.batch_size} is not divisible by the {batch_divisor(mesh)} batch shards of the mesh"
            f" times micro_batches={settings.micro_batches}"
        )
    load = {"mesh": mesh, "compute_dtype": settings.compute_dtype, "base": inputs.base, "say": reporter.say}
    model, params = load_start(inputs.model, remat=settings.remat, **load)
    for note in mesh_notes(model.config, mesh):
        reporter.say(f"{name}: {note}")
    require_tokens_fit(model.config, tokenizer, inputs.model)
    # What ends an answer is part of the model from here on: sampling, evaluation, export, runs that start from it.
    model = model.clone(config=dataclasses.replace(model.config, eos_token_id=rows.stops))
    _require_finite(params, inputs.model)
    teacher = _load_teacher(settings, inputs.teacher, model, tokenizer, **load)
    config = {
        "schema": 1,
        "kind": "run",
        "version": __version__,
        "objective": name,
        "settings": to_json(settings),
        "inputs": to_json(inputs),
        "model": model.config.to_hf(),
    }
    if claim_directory(out, config, force=force):
        reporter.say(f"{name}: finished already in {out}")
        return out
    write_tokenizer(tokenizer_directory(inputs.model, inputs.base), out / "tokenizer", rows, settings)
    rows.keep(kept)

    optimizer = adamw(settings.optimizer, settings.steps)
    state = initial_state(params, optimizer)
    step = make_train_step(model, optimizer, settings, state)
    iterator = rows.batches(settings)
    source = _sft_source(iterator, mesh) if isinstance(settings, SFTSettings) else None
    with Checkpoints(out) as checkpoints:
        done = checkpoints.latest_step()
        if done is not None:
            state, data_state = checkpoints.restore(done, state)
            iterator.set_state(data_state)
            reporter.say(f"{name}: goes on from step {done}")
        if source is None:
            source = _on_policy_source(settings, model, teacher, tokenizer, iterator, mesh, verifier)
        log = _Log(settings, out, -1 if done is None else done)
        evaluation = _Evaluation(settings, model, tokenizer, rows.evaluated, log, reporter, verifier)
        if done is None:
            # Evaluated before it is saved, here and below: a kill between the two repeats both and loses neither.
            evaluation.run(state, 0)
            checkpoints.save(state, iterator.get_state(), settings.seed)
        with reporter.task(name, settings.steps, done=done or 0) as task:
            for number in range(done or 0, settings.steps):
                begun = time.monotonic()
                batch, host_metrics, answers = source(state, number)
                metrics: dict[str, Any] = {}
                if batch is None:
                    state = _skip(state)
                    host_metrics["skipped"] = 1.0
                else:
                    state, metrics = step(state, batch)
                finished = number + 1
                log.step(finished, metrics, host_metrics, answers, begun)
                last = finished == settings.steps
                if finished % settings.save_every == 0 or last:
                    log.flush()
                    if last or (settings.eval_every and finished % settings.eval_every == 0):
                        evaluation.run(state, finished)
                    checkpoints.save(state, iterator.get_state(), settings.seed)
                elif settings.eval_every and finished % settings.eval_every == 0:
                    evaluation.run(state, finished)
                task.advance(1, log.status())
        log.close()
    for remark in closing_remarks(read_json_lines(out / "metrics.jsonl"), settings):
        reporter.say(f"{name}: {remark}")
    mark_done(out)
    return out


class _Log:
    """`metrics.jsonl`, `samples.jsonl` and TensorBoard; a step's device metrics are fetched one step later."""

    def __init__(self, settings: RunSettings, out: Path, done: int):
        from tensorboardX import SummaryWriter

        self._metrics = JsonLines(out / "metrics.jsonl", last_step=done)
        self._samples = JsonLines(out / "samples.jsonl", last_step=done)
        self._events = SummaryWriter(str(out), purge_step=done + 1)
        self._schedule = learning_rate_schedule(settings.optimizer, settings.steps)
        self._pending: tuple[int, dict[str, Any], dict[str, float]] | None = None
        self._last: dict[str, float] = {}

    def step(
        self, step: int, metrics: dict[str, Any], host: dict[str, float], answers: Answers | None, begun: float
    ) -> None:
        self.flush()
        rate = float(self._schedule(jnp.int32(step - 1)))
        self._pending = (step, metrics, host | {"learning_rate": rate, "seconds": time.monotonic() - begun})
        if answers is not None:
            self._samples.write(
                {
                    "step": step,
                    "prompt": prompt.row,
                    "response": text,
                    "ground_truth": logged(prompt.ground_truth),
                    "reward": float(reward),
                }
                for prompt, text, reward in list(zip(answers.prompts, answers.texts, answers.rewards, strict=True))[
                    :_SAMPLES_LOGGED
                ]
            )

    def flush(self) -> None:
        if self._pending is None:
            return
        step, metrics, host = self._pending
        self._pending = None
        row = {key: float(value) for key, value in metrics.items()} | host
        if metrics and not np.isfinite(row["loss"]):
            raise UserError(f"step {step}: the loss is {row['loss']}; a lower learning rate may help")
        self.write(step, row)
        self._last = row

    def write(self, step: int, row: dict[str, float]) -> None:
        self._metrics.write([{"step": step, **row}])
        for key, value in row.items():
            self._events.add_scalar(key, value, step)

    def status(self) -> str:
        shown = [key for key in ("loss", "reward", "gap") if key in self._last]
        return " ".join(f"{key} {self._last[key]:.3g}" for key in shown)

    def close(self) -> None:
        self.flush()
        self._metrics.close()
        self._samples.close()
        self._events.close()


class _Evaluation:
    """Held-out accuracy into the log."""

    def __init__(
        self,
        settings: RunSettings,
        model: Qwen3,
        tokenizer: Any,
        prompts: list,
        log: _Log,
        reporter: Reporter,
        verifier: Verifier,
    ):
        self._settings, self._model, self._tokenizer = settings, model, tokenizer
        self._prompts, self._log, self._reporter = prompts, log, reporter
        self._verifier = verifier

    def run(self, state: TrainState, step: int) -> None:
        if not self._prompts:
            return
        accuracy, answers = evaluate(
            Actor(self._model, state.params),
            self._tokenizer,
            self._prompts,
            max_new_tokens=self._settings.max_new_tokens,
            verifier=self._verifier,
        )
        self._log.flush()
        stops = self._model.config.stop_tokens
        truncated = truncated_share(answers, stops)
        self._log.write(
            step,
            {"accuracy": accuracy, "accuracy_count": float(len(self._prompts)), "accuracy_truncated": truncated},
        )
        remark = truncated_evaluation(truncated, self._settings, stops)
        if remark is not None:
            self._reporter.say(f"step {step}: {remark}")


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
    settings: Any,
    model: Qwen3,
    teacher: Actor | None,
    tokenizer: Any,
    iterator: Any,
    mesh: jax.sharding.Mesh,
    verifier: Verifier,
) -> Source:
    def source(state: TrainState, number: int) -> tuple[Batch | None, dict[str, float], Answers]:
        batch, metrics, answers = collect(
            settings, Actor(model, state.params), teacher, tokenizer, iterator, step=number, verifier=verifier
        )
        return jax.device_put(batch, batch_sharding(mesh)), metrics, answers

    return source


def _skip(state: TrainState) -> TrainState:
    return TrainState(step=state.step + 1, params=state.params, opt_state=state.opt_state)


def _load_teacher(
    settings: RunSettings, path: Path | None, student: Qwen3, tokenizer: Any, **load: Any
) -> Actor | None:
    if not isinstance(settings, OPDSettings):
        return None
    if path is None:
        raise UserError("on-policy distillation needs a teacher")
    require_same_tokens(tokenizer, tokenizer_directory(path, load["base"]), path)
    model, params = load_start(path, **load)
    require_vocabulary(model.config.vocab_size, student.config.vocab_size, tokenizer, path)
    _require_finite(params, path)
    if model.config.vocab_size > student.config.vocab_size:
        masked = model.config.vocab_size - student.config.vocab_size
        load["say"](f"{path}: its last {masked} tokens, which the model does not have, are masked")
        model, params = cut_vocabulary(model, params, student.config.vocab_size)
    return Actor(model, params)
