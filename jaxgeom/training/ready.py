"""All that a run needs, read and checked before anything is written, and whether it is finished already."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgeom import processes
from jaxgeom.buckets.places import checkpoints_of
from jaxgeom.checkpoints import checksums
from jaxgeom.checkpoints.adapters import require_base_is_read
from jaxgeom.checkpoints.run_models import model_fault
from jaxgeom.checkpoints.runs import step_names
from jaxgeom.errors import UserError, listed
from jaxgeom.interruption import goes_on
from jaxgeom.models import Qwen3
from jaxgeom.optimizers.leaves import own_copy
from jaxgeom.progress import Reporter
from jaxgeom.rewards import Verifier
from jaxgeom.sharding import batch_divisor
from jaxgeom.training.checkpointing import Resume, find_resume, load_start, tokenizer_directory
from jaxgeom.training.confinement import Confinement, make_confinement
from jaxgeom.training.distillation_checks import check_number_of_teachers
from jaxgeom.training.identity import differences, run_config
from jaxgeom.training.mesh_fit import mesh_notes, require_batch_divides, split_devices, undivided
from jaxgeom.training.objectives import OPD, Objective, objective_of
from jaxgeom.training.remarks import float32_on_accelerator, repeated_prompts, twin_teacher
from jaxgeom.training.rollouts import Actor
from jaxgeom.training.rows import RunRows, read_run_rows
from jaxgeom.training.run_directory import Claim, claim_directory, held_config
from jaxgeom.training.scoring import sequence_log_probs
from jaxgeom.training.settings import OnPolicySettings, OPDSettings, RunInputs, RunSettings, to_json
from jaxgeom.training.state import Frozen
from jaxgeom.training.teachers import are_equal, assigned, load_teachers
from jaxgeom.training.vocabulary import emitted_tokens, require_tokens_fit

_LARGEST_TRAINED = 1e4  # of weights; those of language models stay below some hundreds
_TRIED = 16  # tokens of the gradient of larger ones


class Ready(NamedTuple):
    """A run before its first step.

    Attributes:
        claim: looks at the directory once more, with the newest whole checkpoint in it.
        config: what `config.json` says.
        force: whether another run in the directory may be deleted.
        model: the module that is trained.
        params: its float32 parameters at the start.
        objective: of the run, with its modules.
        frozen: parameters of its teachers, and of its start where something is counted from it.
        confinement: what its update is confined to.
        rows: tokenizer, rows, held-out prompts.
        kept_rows: where their tokens are kept.
        tokenizer_files: where the model's tokenizer lies.
        mesh: the devices.
    """

    claim: Callable[[], tuple[Claim, Resume]]
    config: dict[str, Any]
    force: bool
    model: Qwen3
    params: Any
    objective: Objective
    frozen: Frozen
    confinement: Confinement | None
    rows: RunRows
    kept_rows: Path
    tokenizer_files: Path
    mesh: jax.sharding.Mesh


def make_ready(
    settings: RunSettings, inputs: RunInputs, out: Path, reporter: Reporter, *, force: bool, kept_rows: Path | None
) -> Ready | None:
    """Reads and checks everything; writes nothing.

    Args:
        settings: of the run.
        inputs: what it reads.
        out: the run directory.
        reporter: where to say what is odd.
        force: whether another run in `out` may be deleted.
        kept_rows: where the tokens of the rows are kept, `out/rows` where None.

    Returns:
        What the run needs, or None where it is finished already.

    Raises:
        UserError: something that cannot be used.
    """
    name = settings.objective
    if inputs.teachers and not settings.is_taught:
        raise UserError(f"teacher={inputs.teachers[0]}: {name} has no teacher")
    check_number_of_teachers(settings, len(inputs.teachers))
    settings.confine.require_sources(inputs.basis_from, inputs.mask_from)
    mesh, taught_on = split_devices(settings.mesh, getattr(settings, "teacher_devices", None))
    require_batch_divides(settings, mesh)
    config = processes.together(lambda: run_config(settings, inputs))
    require_base_is_read(inputs.base, (inputs.model, *inputs.teachers), names="model and teachers")
    processes.require_same(config)
    template = settings.rows.chat_template
    given = [*inputs.paths, *([] if template is None else [template])]

    def claim() -> tuple[Claim, Resume]:
        resume = find_resume(out)
        taken = resume.step or 0
        return claim_directory(
            out, "run", lambda held: differences(held, config, taken), force=force, inputs=given
        ), resume  # fmt: skip

    found, resume = processes.from_first(claim)
    goes_on(from_where(found, resume), out)

    def changed_model() -> str | None:
        return model_fault(out, resume.step) if found.goes_on and resume.step is not None else None

    changed = processes.from_first(changed_model)
    if changed is None and processes.from_first(lambda: found.goes_on and _is_finished(out, settings, resume)):
        for fault in resume.faults:
            reporter.say(f"{out}: {fault}")
        return None
    reference = settings.geometry.geometry_step
    if found.goes_on and reference is not None and reference <= (resume.step or 0):
        processes.from_first(lambda: _require_reference(out, reference))
    kept = out / "rows" if kept_rows is None else kept_rows
    rows = read_run_rows(settings, inputs, kept=kept, reporter=reporter, by_shares=True)
    if processes.count() > 1:  # each has its own tokenizer and verifiers
        processes.require_same(rows.digests())
    if settings.is_taught:
        rows = dataclasses.replace(rows, data=assigned(rows.data, inputs.data, inputs.teachers))
    verifier = Verifier(settings.allow_unisolated_code, settings.code_timeout)
    processes.together(lambda: verifier.require(rows.truths))
    load = {"mesh": mesh, "compute_dtype": settings.compute_dtype, "base": inputs.base, "say": reporter.say}
    model, params = load_start(inputs.model, remat=settings.remat, **load)
    exact = float32_on_accelerator(model.platform, settings.compute_dtype)
    for note in (*mesh_notes(model.config, mesh), *([] if exact is None else [exact])):
        reporter.say(f"{name}: {note}")
    require_tokens_fit(model.config, rows.tokenizer, inputs.model)
    # What ends an answer is part of the model from here on: sampling, evaluation, export, runs that start from it.
    # So is what no answer can hold.
    model = model.clone(
        config=dataclasses.replace(model.config, eos_token_id=rows.stops),
        vocabulary=emitted_tokens(rows.tokenizer, model.config.vocab_size, rows.stops),
    )
    if model.vocabulary is not None and (settings.reads == "prompts" or rows.evaluated):
        reporter.say(
            f"{name}: the embedding has {model.config.vocab_size} rows, the tokenizer {model.vocabulary} ids: rows from"
            f" {model.vocabulary} on have no probability"
            + ("" if settings.reads == "prompts" else " in sampled answers; the loss counts them, as PyTorch's does")
        )
    tokens = rows.data.row(0).tokens
    _require_finite(Actor(model, params), inputs.model, tokens, mesh)
    teachers: list[Actor] = []
    if isinstance(settings, OPDSettings):
        teachers = load_teachers(settings, inputs.teachers, model, rows.tokenizer, **load | {"mesh": taught_on})
        for path, actor in zip(inputs.teachers, teachers, strict=True):
            _require_finite(actor, path, tokens, taught_on)
            for note in undivided(actor.model.config, taught_on):
                reporter.say(f"{path}: {note}")
    config["model"] = model.config.to_hf()
    if changed is not None:
        reporter.say(f"{out}: {changed}: written anew")
    if rows.rewards.own:
        config["verifiers"] = rows.verifiers
    if (repeated := repeated_prompts(settings, len(rows.data))) is not None:
        reporter.say(f"{name}: {repeated}")
    files = tokenizer_directory(inputs.model, inputs.base)
    # Cross-entropy is over every row, as everyone's is: what is comparable with it would else be no more.
    student = model if settings.reads == "prompts" else model.clone(vocabulary=None)
    objective = objective_of(settings, student, [actor.model for actor in teachers], mesh)
    if isinstance(objective, OPD):
        twins = [are_equal(params, actor.params) for actor in teachers]
        objective = dataclasses.replace(objective, has_twin=any(twins))
        if objective.settings.support != "sampled":
            for path in itertools.compress(inputs.teachers, twins):
                reporter.warn(f"{name}: {twin_teacher(objective.settings.support, path)}")
    confinement = make_confinement(
        settings.confine, model.config, model=inputs.model, base=inputs.base, basis_from=inputs.basis_from,
        mask_from=inputs.mask_from, seed=settings.seed, mesh=mesh,
    )  # fmt: skip
    for note in () if confinement is None else confinement.notes:
        reporter.say(f"{name}: {note}")
    # A copy: a step takes its state's own buffers.
    counted = confinement is not None or settings.geometry.geometry_every
    referred = isinstance(settings, OnPolicySettings) and settings.kl_coefficient is not None
    start = own_copy(params) if counted or referred else None
    frozen = Frozen(
        teachers=tuple(actor.params for actor in teachers),
        reference=start if referred else None,
        start=start if counted else None,
    )
    return Ready(claim, config, force, model, params, objective, frozen, confinement, rows, kept, files, mesh)


def require_same_command(
    settings: RunSettings, inputs: RunInputs, out: Path, *, force: bool, kept_rows: Path | None
) -> None:
    """Refuses processes that were told to do different things: before anything that one of them alone may refuse.

    Args:
        settings: of the run.
        inputs: what it reads.
        out: the run directory.
        force: whether another run in `out` may be deleted.
        kept_rows: where the tokens of the rows are kept, `out/rows` where None.

    Raises:
        UserError: naming the first field that differs, and both values.
    """
    processes.require_same(
        {
            "kind": "run", "objective": settings.objective, "settings": to_json(settings), "inputs": to_json(inputs),
            "out": os.fspath(out), "force": force,
            "kept_rows": None if kept_rows is None else os.fspath(kept_rows),
        }
    )  # fmt: skip


def from_where(found: Claim, resume: Resume) -> str:
    """What the same command would do with a directory as it stands."""
    if found.goes_on and resume.step is not None:
        return f"the same command goes on from step {resume.step}"
    return "the same command begins anew"


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
    whole = same and not resume.faults and _is_finished(out, settings, resume)
    return whole and model_fault(out, settings.steps) is None


def _is_finished(out: Path, settings: RunSettings, resume: Resume) -> bool:
    return (out / "done").exists() and resume.step == settings.steps


def _require_reference(out: Path, step: int) -> None:
    """Refuses a step to compare later ones with that the run went past and does not hold."""
    folder = checkpoints_of(out)
    fault = checksums.fault_of(folder / str(step))
    if fault is not None:
        raise UserError(
            f"geometry_step={step}: the run went past it, and checkpoints/{step} is not whole ({fault}); there are"
            f" {listed(map(str, step_names(folder)))}"
        )


def _require_finite(actor: Actor, source: Path, tokens: np.ndarray, mesh: jax.sharding.Mesh) -> None:
    """Refuses weights that are not finite, and finite ones so large that what they compute is not.

    Where some weight is larger than any that is trained, a gradient is taken, for which a program more is compiled.

    Args:
        actor: the model with its parameters.
        source: where they are from.
        tokens: of a row, to take it of.
        mesh: the devices.

    Raises:
        UserError: the tensor is named.
    """
    largest = jax.jit(lambda tree: jax.tree.map(_largest, tree))(actor.params)
    found = [(float(size), path) for path, size in jax.tree_util.tree_leaves_with_path(processes.whole(largest))]
    named = {path: jax.tree_util.keystr(path, simple=True, separator=".") for _, path in found}
    for size, path in found:
        if not np.isfinite(size):
            raise UserError(f"{source}: {named[path]} has NaN or infinity")
    size, path = max(found, key=lambda one: one[0])
    if size <= _LARGEST_TRAINED:
        return
    # Alike for every shard of the batch; of one token nothing is predicted.
    rows = np.tile(np.resize(tokens, _TRIED), (batch_divisor(mesh), 1)).astype(np.int32)

    def total(params: Any) -> jax.Array:
        return sequence_log_probs(actor.model, params, jnp.asarray(rows), jnp.asarray(rows >= 0), mesh=mesh).sum()

    def computed(params: Any) -> dict[str, jax.Array]:
        value, gradient = jax.value_and_grad(total)(params)
        norms = {"its gradient": optax.tree.norm(gradient), "its norm": optax.tree.norm(params)}
        return {"what it computes": value} | norms

    said = processes.whole(jax.jit(computed)(actor.params))
    for what, number in said.items():
        if not np.isfinite(number):
            raise UserError(f"{source}: {what} is not finite in float32: {named[path]} has entries of up to {size:.3g}")


def _largest(leaf: jax.Array) -> jax.Array:
    """The largest magnitude; NaN where there is one."""
    return jnp.max(jnp.abs(leaf)) if leaf.size else jnp.zeros((), leaf.dtype)
