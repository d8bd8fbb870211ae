"""What is looked at before a study writes anything: models, tokenizer, teacher, data files, the measuring device."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison.algebra.devices import choose_algebra
from jaxgeom.comparison.one_matrix.scan import require_finite
from jaxgeom.comparison.run.plan import check_pair, plan_parts
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.data.chat import chat_format, declared_stop_tokens, load_tokenizer, stop_tokens
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, checked_config, qwen3_tensors
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.rewards import Verifier
from jaxgeom.study.arms import Arm, At, root, with_inherited_template
from jaxgeom.study.data import DataFiles
from jaxgeom.study.experiment import Experiment
from jaxgeom.study.plan import rows_of
from jaxgeom.training import OPDSettings, RunInputs, RunSettings
from jaxgeom.training.checkpointing import tokenizer_directory
from jaxgeom.training.confine_settings import ConfineSettings
from jaxgeom.training.confinement import require_alike, require_source
from jaxgeom.training.distillation_checks import check_models
from jaxgeom.training.geometry_settings import GeometrySettings
from jaxgeom.training.mesh_fit import mesh_notes, require_batch_divides, split_devices
from jaxgeom.training.rows import RunRows, read_run_rows
from jaxgeom.training.run_rewards import run_rewards
from jaxgeom.training.teachers import assigned
from jaxgeom.training.vocabulary import emitted_tokens, require_tokens_fit, shared_vocabulary

_BLOCK_ENTRIES = 1 << 24


def check_inputs(experiment: Experiment, reporter: Reporter | None = None) -> list[RunRows]:
    """Opens everything that the experiment names.

    Args:
        experiment: what is to be done.
        reporter: where to say which rows are left out.

    Returns:
        The rows of every run, tokenized, where they are in files; none of rows that are yet to be made.

    Raises:
        UserError: a file that is missing or broken, a tensor that is missing, of another shape or not finite, models of
            different vocabularies, rows that are no demonstrations or prompts, a device that is not there, a verifier
            that cannot be imported, a basis of other shapes; the message names it.
    """
    choose_algebra(experiment.measure.device)
    arms = {arm.name: arm for arm in experiment.every_arm()}
    models: dict[Path, Qwen3Config] = {}
    started: set[Path] = set()
    for arm in arms.values():
        for path in (arm.start, *experiment.teachers_of(arm)):
            if isinstance(path, Path) and path not in models:
                models[path] = _check_model(path)
        if isinstance(arm.start, Path) and arm.start not in started:
            started.add(arm.start)
            _require_measured(arm.start, experiment.measure, several=len(arms) > 1 or len(experiment.seeds) > 1)
    for arm in arms.values():
        with _named(arm):
            _require_trainable(experiment, arms, arm, models)
    found: list[tuple[_What, RunRows | None]] = []
    taught: set[tuple[Path, Path]] = set()
    for arm in arms.values():
        model, settings = root(arms, arm), with_inherited_template(arms, arm)
        if model not in (one for one, _ in taught):
            require_tokens_fit(models[model], load_tokenizer(tokenizer_directory(model)), model)
        for teacher in experiment.teachers_of(arm):
            if (model, teacher) not in taught:
                tokenizer, of_teacher = load_tokenizer(tokenizer_directory(model)), tokenizer_directory(teacher)
                shared_vocabulary(
                    tokenizer, models[model].vocab_size, of_teacher, models[teacher].vocab_size, teacher
                )  # fmt: skip
                taught.add((model, teacher))
        if isinstance(experiment.data, DataFiles):
            what = _What(_rows_alone(settings), model, getattr(experiment.data, rows_of(arm, experiment.data)))
        else:
            what = _What(_rows_alone(settings), model, None)
        if what not in (one for one, _ in found):
            found.append((what, _rows(what, experiment, reporter)))
        rows = next(rows for one, rows in found if one == what)
        with _named(arm):
            _require_taught(arm.settings, experiment.teachers_of(arm), rows, what.data)
    return [rows for _, rows in found if rows is not None]


@contextlib.contextmanager
def _named(arm: Arm) -> Iterator[None]:
    """What is wrong with an arm is said with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{arm.name}: {error}") from error


def _require_trainable(
    experiment: Experiment, arms: dict[str, Arm], arm: Arm, models: Mapping[Path, Qwen3Config]
) -> None:
    """Refuses what training an arm would refuse, but for what the rows decide: the arms before it may take hours."""
    settings, model = arm.settings, root(arms, arm)
    mesh, _ = split_devices(settings.mesh, getattr(settings, "teacher_devices", None))
    require_batch_divides(settings, mesh)
    mesh_notes(models[model], mesh)
    rewards = run_rewards(settings)
    if not isinstance(experiment.data, DataFiles):
        rewards.require(["0"], lambda _: "the rows that are made")
        context = models[model].max_position_embeddings
        if settings.max_new_tokens >= context:
            raise UserError(f"max_new_tokens={settings.max_new_tokens}: the model's context is of {context} tokens")
    for field in ("basis_from", "mask_from"):
        source = getattr(arm, field)
        if isinstance(source, At):
            of_arm = models[root(arms, arms[source.arm])]
            require_alike(of_arm, models[model], f"{field}={source.arm!r}")
        elif source is not None:
            require_source(source, models[model])
    if isinstance(settings, OPDSettings):
        directory = tokenizer_directory(model)
        tokenizer, size = load_tokenizer(directory), models[model].vocab_size
        stops = stop_tokens(tokenizer, {*declared_stop_tokens(directory), *models[model].stop_tokens})
        check_models(settings, emitted_tokens(tokenizer, size, stops) or size, len(experiment.teachers_of(arm)))


def _require_taught(settings: RunSettings, teachers: Sequence[Path], rows: RunRows | None, path: Path | None) -> None:
    """Refuses rows that name none of several teachers, or whose programs cannot be run here."""
    if rows is not None and path is not None:
        Verifier(settings.allow_unisolated_code, settings.code_timeout).require(rows.truths)
        if settings.is_taught:
            assigned(rows.data, path, teachers)
    elif settings.is_taught and len(teachers) > 1:
        raise UserError(f"{len(teachers)} teachers are given, and no row that is made names its own")


class _What(NamedTuple):
    """What decides how rows are read: settings, the model with its tokenizer, the file (None: yet to be made)."""

    settings: RunSettings
    model: Path
    data: Path | None


def _rows_alone(settings: RunSettings) -> RunSettings:
    """Settings with what does not touch the rows made alike, so that arms share what is read for one of them."""
    plain = dict(steps=1, seed=0, save_every=1, eval_every=0, confine=ConfineSettings(), geometry=GeometrySettings())
    return dataclasses.replace(settings, optimizer=AdamWSettings(learning_rate=1.0), **plain)


def _rows(what: _What, experiment: Experiment, reporter: Reporter | None) -> RunRows | None:
    if what.data is None:
        rows = what.settings.rows
        tokenizer = load_tokenizer(tokenizer_directory(what.model), chat_template=rows.chat_template)
        chat_format(tokenizer, rows.template_argument)
        return None
    assert isinstance(experiment.data, DataFiles)
    inputs = RunInputs(model=what.model, data=what.data, eval_data=experiment.data.heldout)
    return read_run_rows(what.settings, inputs, reporter=reporter)


def _require_measured(start: Path, settings: CompareSettings, *, several: bool) -> None:
    """Refuses settings that leave nothing of a model to be measured, or no matrix where runs are compared."""
    side = open_checkpoint(start)
    parts = plan_parts(side, check_pair(side, side, settings), settings)
    if several and not any(part.is_matrix for part in parts):
        raise UserError("include/exclude leave no matrix to compare")


def _check_model(path: Path) -> Qwen3Config:
    checkpoint = open_checkpoint(path)
    config = checked_config(checkpoint)
    for name, tensor in qwen3_tensors(checkpoint, config).items():
        for block in tensor.row_blocks(_BLOCK_ENTRIES):
            require_finite(block, f"{path}: {name}")
    return config
