"""Which parameters there are: the matrices that spectral statistics are taken of, and the groups that sparsity has."""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxgeom.checkpoints.experts import PAIR, expert_matrices, half, read_piece, stacked_kind
from jaxgeom.checkpoints.huggingface import text_config
from jaxgeom.checkpoints.tensors import Tensor
from jaxgeom.errors import UserError

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
"""Modules whose matrices spectral statistics and overlaps are taken of."""

_ALIASES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "w1": "gate", "w3": "up", "w2": "down", "fc1": "up", "fc2": "down",
}  # fmt: skip

_FUSED = ("qkv_proj", "query_key_value", "Wqkv")

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names that configurations have for the number of experts a router chooses from."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One matrix (or one parameter that is no matrix) as the report knows it: a tensor, or a piece of one.

    Attributes:
        name: name in the report, `NAME[expert]` or `NAME[q]` for pieces.
        tensor: Hugging Face name of the tensor that holds it.
        group: `matrices`, `embedding`, `head`, `norm`, `bias`, `router` or `other`.
        module: q, k, v, o, gate, up, down for matrices, otherwise the group; in a tower, the tower's name before it.
        layer: index of the layer, None outside the layers of the text model.
        shape: shape of the piece, `[out, in]` for matrices.
        expert: index on the leading axis of a fused expert tensor.
        rows: rows of the (expert's) matrix that belong to it, None for all; before any transposition.
        columns: columns likewise; with a step where gate and up alternate.
        transposed: the tensor stores `[in, out]`.
        heads: number of heads of an interleaved `[heads, 3, head_dim]` projection, with `which` of the three it is.
        tower: the part beside the text model that it belongs to (`vision_tower`, `mtp`, …), which is a group of its own
            and in no mean over the text model; None for the text model.
    """

    name: str
    tensor: str
    group: str
    module: str
    layer: int | None
    shape: tuple[int, ...]
    expert: int | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, ...] | None = None
    transposed: bool = False
    heads: int | None = None
    which: int = 0
    tower: str | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether spectral statistics are taken of it."""
        return self.group == "matrices"

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_whole(self) -> bool:
        """Whether it is its tensor, with nothing cut off."""
        return self.name == self.tensor

    def read(self, tensor: Tensor) -> np.ndarray:
        """Reads it in the stored dtype; of an expert or a row range only that is read."""
        array = read_piece(tensor, self.expert, self.rows, self.columns)
        if self.heads is not None:
            array = array.reshape(self.heads, 3, -1, array.shape[-1])[:, self.which].reshape(self.shape)
        return np.ascontiguousarray(array.T if self.transposed else array)


def layer_of(name: str) -> int | None:
    """Index of the layer that a parameter name contains."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,9})\.", name)
    return int(found.group(1)) if found else None


def _module(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> str | None:
    words = name.removesuffix(".weight").removesuffix(".kernel").split(".")
    if words[-1] in MODULES and len(words) > 1 and not _is_router(words, shape, config):
        return words[-1]
    return _ALIASES.get(words[-1])


def _is_router(words: list[str], shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a weight named `gate` scores experts instead of gating an MLP.

    It does in an `mlp`, where the other one is called `gate_proj`, in what is called a mixture (`block_sparse_moe`),
    and where it has a row for each of the experts that the configuration announces.
    """
    if words[-1] != "gate":
        return False
    announced = [text_config(config).get(count) for count in _EXPERT_COUNTS]
    return words[-2] == "mlp" or "moe" in words[-2] or shape[0] in announced


def _group(name: str, shape: tuple[int, ...]) -> str:
    words = name.removesuffix(".weight").split(".")
    if re.search(r"(?:^|\.)(?:lm_head|output|output_layer|embed_out|head)(?:\.|$)", name) and len(shape) == 2:
        return "head"
    # A table with a row for each token or position; the projection of patches of a picture is none.
    if len(shape) == 2 and re.search(r"embed|wte|wpe", words[-1]) and "patch" not in words[-1]:
        return "embedding"
    if name.endswith("bias"):
        return "bias"
    if re.search(r"norm|(?:^|\.)ln_", name, re.IGNORECASE):
        return "norm"
    if (words[-1] == "gate" or "router" in words) and len(shape) == 2:
        return "router"
    return "other"


def _heads(config: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    text = text_config(config)
    found = [text.get(field) for field in ("num_attention_heads", "num_key_value_heads", "head_dim")]
    if not all(value is None or (type(value) is int and value >= 0) for value in found):
        raise UserError(f"{name}: a fused projection, but the heads in config.json are no whole numbers: {found}")
    heads, kv, head_dim = (value or 0 for value in found)
    if not heads:
        raise UserError(f"{name}: a fused projection, but config.json gives no num_attention_heads to split it by")
    return heads, kv or heads, head_dim


def _fused_attention(tensor: Tensor, config: Mapping[str, Any], layer: int | None) -> list[Part]:
    out, in_ = tensor.shape
    heads, kv, head_dim = _heads(config, tensor.name)
    if "query_key_value" in tensor.name:
        if out % (3 * heads) or kv != heads:
            raise UserError(f"{tensor.name}: shape {list(tensor.shape)} does not split into 3 x {heads} heads")
        return [
            Part(
                f"{tensor.name}[{module}]",
                tensor.name,
                "matrices",
                module,
                layer,
                (out // 3, in_),
                heads=heads,
                which=which,
            )
            for which, module in enumerate(("q", "k", "v"))
        ]
    head_dim = head_dim or out // (heads + 2 * kv)
    sizes = (heads * head_dim, kv * head_dim, kv * head_dim)
    if sum(sizes) != out:
        raise UserError(
            f"{tensor.name}: shape {list(tensor.shape)} does not split into {heads} + 2 x {kv} heads of {head_dim}"
        )
    parts, start = [], 0
    for module, size in zip(("q", "k", "v"), sizes, strict=True):
        rows = (start, start + size)
        parts.append(Part(f"{tensor.name}[{module}]", tensor.name, "matrices", module, layer, (size, in_), rows=rows))
        start += size
    return parts


def _fused_experts(
    tensor: Tensor, text: Mapping[str, Any], layer: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> list[Part]:
    """The matrices of experts that are stacked on the leading axis, `NAME[expert]` or `NAME[expert,gate]`."""
    parts = []
    for one in expert_matrices(tensor.name, tensor.shape, text, shapes):
        which = f"{one.expert},{one.module}" if stacked_kind(tensor.name, tensor.shape) == PAIR else f"{one.expert}"
        parts.append(
            Part(
                f"{tensor.name}[{which}]",
                tensor.name,
                "matrices",
                one.module,
                layer,
                one.shape,
                expert=one.expert,
                rows=one.rows,
                columns=one.columns,
                transposed=one.transposed,
            )  # fmt: skip
        )
    return parts


def parts_of(
    tensor: Tensor, config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> list[Part]:
    """The pieces of a tensor; together they hold each of its entries once.

    Args:
        tensor: of a checkpoint.
        config: the checkpoint's.
        shapes: of the checkpoint's tensors by name: how square stacked experts lie, those beside them tell.

    Raises:
        UserError: a fused projection that the configuration does not explain.
    """
    if tensor.tower is not None:
        return [_part_of_tower(tensor, tensor.tower)]
    config, layer, shape = config or {}, layer_of(tensor.name), tensor.shape
    last = tensor.name.removesuffix(".weight").split(".")[-1]
    if len(shape) == 2 and 0 not in shape:
        if last in _FUSED:
            return _fused_attention(tensor, config, layer)
        if last == PAIR:
            middle = half(tensor.name, shape, shape[0])
            return [
                Part(f"{tensor.name}[{module}]", tensor.name, "matrices", module, layer, (middle, shape[1]), rows=rows)
                for module, rows in (("gate", (0, middle)), ("up", (middle, shape[0])))
            ]
        if (module := _module(tensor.name, shape, config)) is not None and not tensor.name.endswith("bias"):
            return [Part(tensor.name, tensor.name, "matrices", module, layer, shape)]
    if stacked_kind(tensor.name, shape) is not None:
        return _fused_experts(tensor, text_config(config), layer, shapes)
    group = _group(tensor.name, shape)
    return [Part(tensor.name, tensor.name, group, group, layer, shape)]


def _part_of_tower(tensor: Tensor, tower: str) -> Part:
    """A tower's tensor, whole: the configuration's heads are the text model's, so nothing is split by them."""
    last = tensor.name.removesuffix(".weight").split(".")[-1]
    in_layer = len(tensor.shape) == 2 and 0 not in tensor.shape and layer_of(tensor.name) is not None
    if in_layer and not tensor.name.endswith("bias"):
        module = _module(tensor.name, tensor.shape, {}) or last
        return Part(tensor.name, tensor.name, "matrices", f"{tower}.{module}", None, tensor.shape, tower=tower)
    return Part(tensor.name, tensor.name, tower, tower, None, tensor.shape, tower=tower)
