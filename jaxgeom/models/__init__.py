"""Qwen3, dense and mixture of experts: configuration, module, Hugging Face names, reading and writing."""

from jaxgeom.models.config import Qwen3Config as Qwen3Config
from jaxgeom.models.load import abstract_parameters as abstract_parameters
from jaxgeom.models.load import checked_config as checked_config
from jaxgeom.models.load import load_model as load_model
from jaxgeom.models.load import qwen3_tensors as qwen3_tensors
from jaxgeom.models.load import read_config as read_config
from jaxgeom.models.names import HFTensor as HFTensor
from jaxgeom.models.names import from_hf as from_hf
from jaxgeom.models.names import hf_tensors as hf_tensors
from jaxgeom.models.names import leaf_slice as leaf_slice
from jaxgeom.models.names import leaf_slice_shape as leaf_slice_shape
from jaxgeom.models.names import module_of as module_of
from jaxgeom.models.names import parameter_specs as parameter_specs
from jaxgeom.models.names import to_hf as to_hf
from jaxgeom.models.qwen3 import Qwen3 as Qwen3
from jaxgeom.models.rope import RopeScaling as RopeScaling
from jaxgeom.models.save import copy_tokenizer as copy_tokenizer
from jaxgeom.models.save import save_model as save_model
