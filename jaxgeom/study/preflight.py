"""What is looked at before a study writes anything: models, tokenizer, teacher, data files, the measuring device."""

from pathlib import Path

from jaxgeom.checkpoints import Checkpoint, open_checkpoint
from jaxgeom.comparison.algebra.devices import choose_algebra
from jaxgeom.comparison.one_matrix.scan import require_finite
from jaxgeom.data.chat import load_tokenizer
from jaxgeom.data.rows import check_demonstrations, check_prompts, read_rows
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, hf_tensors
from jaxgeom.study.experiment import DataFiles, Experiment
from jaxgeom.training.checkpointing import tokenizer_directory

_BLOCK_ENTRIES = 1 << 24


def check_inputs(experiment: Experiment) -> None:
    """Opens everything that the experiment names.

    Raises:
        UserError: a file that is missing or broken, a tensor that is missing, of another shape or not finite, models of
            different vocabularies, rows that are no demonstrations or prompts, a device that is not there; the message
            names it.
    """
    choose_algebra(experiment.measure.device)
    base, teacher = (_check_model(path) for path in (experiment.base, experiment.teacher))
    if base.vocab_size != teacher.vocab_size:
        raise UserError(
            f"{experiment.teacher}: a vocabulary of {teacher.vocab_size}, the base has {base.vocab_size};"
            " on-policy distillation scores the same tokens with both"
        )
    load_tokenizer(tokenizer_directory(experiment.base))
    if isinstance(experiment.data, DataFiles):
        data = experiment.data
        for path in {data.demonstrations, data.demonstrations_continued or data.demonstrations}:
            check_demonstrations(read_rows(path), str(path))
        for path in (data.prompts, data.heldout):
            check_prompts(read_rows(path), str(path))


def _check_model(path: Path) -> Qwen3Config:
    checkpoint = open_checkpoint(path)
    if checkpoint.config is None:
        raise UserError(f"{path}: no config.json")
    config = Qwen3Config.from_hf(checkpoint.config)
    _check_shapes(checkpoint, config, path)
    for name in checkpoint:
        for block in checkpoint[name].row_blocks(_BLOCK_ENTRIES):
            require_finite(block, f"{path}: {name}")
    return config


def _check_shapes(checkpoint: Checkpoint, config: Qwen3Config, path: Path) -> None:
    wanted = {tensor.name: tensor.shape for tensor in hf_tensors(config)}
    missing = sorted(set(wanted) - set(checkpoint))
    if missing:
        raise UserError(f"{path}: {len(missing)} tensors are missing: {', '.join(missing)}")
    odd = [
        f"{name} is {list(checkpoint[name].shape)} where config.json says {list(shape)}"
        for name, shape in wanted.items()
        if tuple(checkpoint[name].shape) != shape
    ]
    if odd:
        raise UserError(f"{path}: {'; '.join(odd)}")
