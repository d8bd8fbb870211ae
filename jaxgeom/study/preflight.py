"""What is looked at before a study writes anything: models, tokenizer, teacher, data files, the measuring device."""

from pathlib import Path

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison.algebra.devices import choose_algebra
from jaxgeom.comparison.one_matrix.scan import require_finite
from jaxgeom.data.chat import load_tokenizer
from jaxgeom.data.rows import check_demonstrations, check_prompts, read_rows
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, qwen3_tensors
from jaxgeom.study.experiment import DataFiles, Experiment
from jaxgeom.training.checkpointing import tokenizer_directory
from jaxgeom.training.vocabulary import require_same_tokens, require_tokens_fit, require_vocabulary

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
    tokenizer = load_tokenizer(tokenizer_directory(experiment.base))
    require_tokens_fit(base, tokenizer, experiment.base)
    require_same_tokens(tokenizer, tokenizer_directory(experiment.teacher), experiment.teacher)
    require_vocabulary(teacher.vocab_size, base.vocab_size, tokenizer, experiment.teacher)
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
    for name, tensor in qwen3_tensors(checkpoint, config).items():
        for block in tensor.row_blocks(_BLOCK_ENTRIES):
            require_finite(block, f"{path}: {name}")
    return config
