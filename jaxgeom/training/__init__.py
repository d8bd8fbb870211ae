"""Training: state, pure step, rollouts, the loop, and the run directory."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .checkpointing import Checkpoints as Checkpoints
    from .checkpointing import load_start as load_start
    from .confine_settings import ConfineSettings as ConfineSettings
    from .evaluation import evaluate as evaluate
    from .evaluation import wilson_interval as wilson_interval
    from .geometry_settings import GeometrySettings as GeometrySettings
    from .keep_settings import KeepSettings as KeepSettings
    from .learning_rates import run_learning_rates as run_learning_rates
    from .loop import train as train
    from .model_distance import functional_distance as functional_distance
    from .objectives import objective_of as objective_of
    from .optimizer import make_optimizer as make_optimizer
    from .programs import make_train_step as make_train_step
    from .programs import run_programs as run_programs
    from .programs import score as score
    from .ready import is_finished as is_finished
    from .rollouts import Actor as Actor
    from .scoring import sequence_log_probs as sequence_log_probs
    from .settings import MeshSettings as MeshSettings
    from .settings import OPDSettings as OPDSettings
    from .settings import RLVRSettings as RLVRSettings
    from .settings import RunInputs as RunInputs
    from .settings import RunSettings as RunSettings
    from .settings import SFTSettings as SFTSettings
    from .state import Batch as Batch
    from .state import Frozen as Frozen
    from .state import TrainState as TrainState
    from .state import initial_state as initial_state
else:
    import_when_asked(__name__)
