"""Any checkpoint on disk as a lazily read mapping from Hugging Face names to tensors."""

from .opening import open_checkpoint as open_checkpoint
from .runs import saved_steps as saved_steps
from .tensors import Checkpoint as Checkpoint
from .tensors import Tensor as Tensor
