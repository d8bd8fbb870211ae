"""Which parameters there are: the matrices that spectral statistics are taken of, and the groups that sparsity has."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgeom.checkpoints.tensors import Tensor
from jaxgeom.errors import UserError

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
"""Modules whose matrices spectral statistics and overlaps are taken of."""

_ALIASES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "w1": "gate", "w3": "up", "w2": "down", "fc1": "up", "fc2": "down",
}  # fmt: skip

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names that configurations have for the number of experts a router chooses from."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One matrix (or one parameter that is no matrix) as the report knows it: a tensor, or a piece of one.

    Attributes:
        name: name in the report, `NAME[expert]` or `NAME[q]` for pieces.
        tensor: Hugging Face name of the tensor that holds it.
        group: `matrices`, `embedding`, `head`, `norm`, `bias`, `router` or `other`.
        module: q, k, v, o, gate, up, down for matrices, otherwise the group.
        layer: index of the layer, None outside the layers.
        shape: shape of the piece, `[out, in]` for matrices.
        expert: index on the leading axis of a fused expert tensor.
        rows: rows of the (expert's) matrix that belong to it, None for all; before any transposition.
        columns: columns likewise; with a step where gate and up alternate.
        transposed: the tensor stores `[in, out]`.
        heads: number of heads of an interleaved `[heads, 3, head_dim]` projection, with `which` of the three it is.
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
        if self.expert is not None:
            array = tensor.read_rows(self.expert, self.expert + 1)[0]
            array = array if self.rows is None else array[slice(*self.rows)]
        elif self.rows is not None:
            array = tensor.read_rows(*self.rows)
        else:
            array = tensor.read()
        if self.columns is not None:
            array = array[:, slice(*self.columns)]
        if self.heads is not None:
            array = array.reshape(self.heads, 3, -1, array.shape[-1])[:, self.which].reshape(self.shape)
        return np.ascontiguousarray(array.T if self.transposed else array)


def layer_of(name: str) -> int | None:
    """Index of the layer that a parameter name contains."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.", name)
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
    text = config.get("text_config") or config
    return words[-2] == "mlp" or "moe" in words[-2] or shape[0] in {text.get(count) for count in _EXPERT_COUNTS}


def _group(name: str, shape: tuple[int, ...]) -> str:
    words = name.removesuffix(".weight").split(".")
    if re.search(r"embed|wte|wpe", name):
        return "embedding"
    if re.search(r"(?:^|\.)(?:lm_head|output|embed_out|head)(?:\.|$)", name) and len(shape) == 2:
        return "head"
    if name.endswith("bias"):
        return "bias"
    if re.search(r"norm|(?:^|\.)ln_", name):
        return "norm"
    if (words[-1] == "gate" or "router" in words) and len(shape) == 2:
        return "router"
    return "other"


def _heads(config: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads")
    if not heads:
        raise UserError(f"{name}: a fused projection, but config.json gives no num_attention_heads to split it by")
    kv = text.get("num_key_value_heads") or heads
    return heads, kv, text.get("head_dim") or 0


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


def _half(tensor: Tensor, out: int) -> int:
    """Outputs of either of gate and up, which share a tensor."""
    if out % 2:
        raise UserError(f"{tensor.name}: shape {list(tensor.shape)} does not split into gate and up: {out} is odd")
    return out // 2


def _fused_experts(tensor: Tensor, config: Mapping[str, Any], layer: int | None, last: str) -> list[Part]:
    """Experts stacked on the leading axis: `[expert, out, in]`, or `[expert, in, out]` where hidden size says so.

    GPT-OSS stores `[expert, in, out]`, of a square one too, and takes gate and up from every other output.
    """
    experts, rows, columns = tensor.shape
    text = config.get("text_config") or config
    hidden, interleaved = text.get("hidden_size"), text.get("model_type") == "gpt_oss"
    is_pair = last.startswith("gate_up")
    into = hidden is not None and (columns if last.startswith("down") else rows) == hidden
    swapped = interleaved or (into and not (hidden == (rows if last.startswith("down") else columns)))
    out, in_ = (columns, rows) if swapped else (rows, columns)
    half = _half(tensor, out) if is_pair else 0
    cuts = ((0, out, 2), (1, out, 2)) if interleaved else ((0, half), (half, out))
    parts = []
    for expert in range(experts):
        if not is_pair:
            module = _ALIASES[last]
            part = Part(
                f"{tensor.name}[{expert}]",
                tensor.name,
                "matrices",
                module,
                layer,
                (out, in_),
                expert=expert,
                transposed=swapped,
            )
            parts.append(part)
            continue
        for module, cut in zip(("gate", "up"), cuts, strict=True):
            where: dict[str, Any] = {"columns" if swapped else "rows": cut}
            name, shape = f"{tensor.name}[{expert},{module}]", (half, in_)
            parts.append(
                Part(name, tensor.name, "matrices", module, layer, shape, expert=expert, transposed=swapped, **where)
            )
    return parts


def parts_of(tensor: Tensor, config: Mapping[str, Any] | None) -> list[Part]:
    """The pieces of a tensor; together they hold each of its entries once.

    Raises:
        UserError: a fused projection that the configuration does not explain.
    """
    config, layer, shape = config or {}, layer_of(tensor.name), tensor.shape
    last = tensor.name.removesuffix(".weight").split(".")[-1]
    if len(shape) == 2 and 0 not in shape:
        if last in ("qkv_proj", "query_key_value", "Wqkv"):
            return _fused_attention(tensor, config, layer)
        if last == "gate_up_proj":
            half = _half(tensor, shape[0])
            return [
                Part(f"{tensor.name}[{module}]", tensor.name, "matrices", module, layer, (half, shape[1]), rows=rows)
                for module, rows in (("gate", (0, half)), ("up", (half, shape[0])))
            ]
        if (module := _module(tensor.name, shape, config)) is not None and not tensor.name.endswith("bias"):
            return [Part(tensor.name, tensor.name, "matrices", module, layer, shape)]
    if len(shape) == 3 and (last in _ALIASES or last == "gate_up_proj") and 0 not in shape:
        return _fused_experts(tensor, config, layer, last)
    group = _group(tensor.name, shape)
    return [Part(tensor.name, tensor.name, group, group, layer, shape)]
