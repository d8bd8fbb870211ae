"""Training: state, pure step, rollouts, the loop, and the run directory."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .checkpointing import Checkpoints as Checkpoints
    from .checkpointing import load_start as load_start
    from .evaluation import evaluate as evaluate
    from .evaluation import wilson_interval as wilson_interval
    from .functional_distance import functional_distance as functional_distance
    from .learning_rates import run_learning_rates as run_learning_rates
    from .loop import train as train
    from .ready import is_finished as is_finished
    from .rollouts import Actor as Actor
    from .rollouts import collect as collect
    from .scoring import score as score
    from .scoring import sequence_log_probs as sequence_log_probs
    from .settings import MeshSettings as MeshSettings
    from .settings import OPDSettings as OPDSettings
    from .settings import RLVRSettings as RLVRSettings
    from .settings import RunInputs as RunInputs
    from .settings import RunSettings as RunSettings
    from .settings import SFTSettings as SFTSettings
    from .step import Batch as Batch
    from .step import TrainState as TrainState
    from .step import initial_state as initial_state
    from .step import make_train_step as make_train_step
else:
    import_when_asked(__name__)
