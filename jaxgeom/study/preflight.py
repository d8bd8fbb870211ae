"""What is looked at before a study writes anything: models, tokenizer, teacher, data files, the measuring device."""

import dataclasses
from pathlib import Path

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison.algebra.devices import choose_algebra
from jaxgeom.comparison.one_matrix.scan import require_finite
from jaxgeom.data.chat import chat_format, load_tokenizer
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, qwen3_tensors
from jaxgeom.progress import Reporter
from jaxgeom.study.experiment import DataFiles, Experiment
from jaxgeom.training import RunInputs, RunSettings
from jaxgeom.training.checkpointing import tokenizer_directory
from jaxgeom.training.rows import RunRows, read_run_rows
from jaxgeom.training.vocabulary import require_tokens_fit, shared_vocabulary

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
            different vocabularies, rows that are no demonstrations or prompts, a device that is not there; the message
            names it.
    """
    choose_algebra(experiment.measure.device)
    base, teacher = (_check_model(path) for path in (experiment.base, experiment.teacher))
    tokenizer = load_tokenizer(tokenizer_directory(experiment.base))
    require_tokens_fit(base, tokenizer, experiment.base)
    of_teacher = tokenizer_directory(experiment.teacher)
    shared_vocabulary(tokenizer, base.vocab_size, of_teacher, teacher.vocab_size, experiment.teacher)
    if not isinstance(experiment.data, DataFiles):
        for settings in (experiment.anchor, *experiment.methods().values()):
            rows = settings.rows
            tokenizer = load_tokenizer(tokenizer_directory(experiment.base), chat_template=rows.chat_template)
            chat_format(tokenizer, rows.template_argument)
        return []
    data = experiment.data
    continued = data.demonstrations_continued or data.demonstrations
    files = {"opd": data.prompts, "rlvr": data.prompts, "sft_continued": continued}
    found = [_rows(experiment.anchor, experiment, data.demonstrations, data.heldout, reporter)]
    for name, settings in experiment.methods().items():
        # They start from the anchor, whose tokenizer has the template that the anchor was trained with.
        template = settings.rows.chat_template or experiment.anchor.rows.chat_template
        settings = dataclasses.replace(settings, rows=dataclasses.replace(settings.rows, chat_template=template))
        found.append(_rows(settings, experiment, files[name], data.heldout, reporter))
    return found


def _rows(
    settings: RunSettings, experiment: Experiment, data: Path, heldout: Path, reporter: Reporter | None
) -> RunRows:
    inputs = RunInputs(model=experiment.base, data=data, eval_data=heldout)
    return read_run_rows(settings, inputs, reporter=reporter)


def _check_model(path: Path) -> Qwen3Config:
    checkpoint = open_checkpoint(path)
    if checkpoint.config is None:
        raise UserError(f"{path}: no config.json")
    config = Qwen3Config.from_hf(checkpoint.config)
    for name, tensor in qwen3_tensors(checkpoint, config).items():
        for block in tensor.row_blocks(_BLOCK_ENTRIES):
            require_finite(block, f"{path}: {name}")
    return config
