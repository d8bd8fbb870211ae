"""jaxgeom: train language models by SFT, RLVR and on-policy distillation, and measure what each did to the weights."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxgeom import checkpoints as checkpoints
    from jaxgeom import comparison as comparison
    from jaxgeom import data as data
    from jaxgeom import diagnostics as diagnostics
    from jaxgeom import models as models
    from jaxgeom import objectives as objectives
    from jaxgeom import optimizers as optimizers
    from jaxgeom import report as report
    from jaxgeom import rewards as rewards
    from jaxgeom import rollout as rollout
    from jaxgeom import study as study
    from jaxgeom import training as training
    from jaxgeom import validation as validation
    from jaxgeom.checkpoints import open_checkpoint as open_checkpoint
    from jaxgeom.comparison import CompareSettings as CompareSettings
    from jaxgeom.comparison import Report as Report
    from jaxgeom.comparison import between_runs as between_runs
    from jaxgeom.comparison import compare as compare
    from jaxgeom.comparison import compare_checkpoints as compare_checkpoints
    from jaxgeom.comparison import trajectory_checkpoints as trajectory_checkpoints
    from jaxgeom.diagnostics.matrix_spec import MatrixSpec as MatrixSpec
    from jaxgeom.errors import UserError as UserError
    from jaxgeom.models import Qwen3 as Qwen3
    from jaxgeom.models import Qwen3Config as Qwen3Config
    from jaxgeom.models import load_model as load_model
    from jaxgeom.models import parameter_specs as parameter_specs
    from jaxgeom.models import save_model as save_model
    from jaxgeom.rollout import SamplingSettings as SamplingSettings
    from jaxgeom.rollout import sample as sample
    from jaxgeom.training import train as train
else:
    import_when_asked(__name__)
