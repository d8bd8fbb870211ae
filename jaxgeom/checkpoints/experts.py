"""Experts stacked on the leading axis of one tensor, and the matrices in it: how they lie there, decided here alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgeom.checkpoints.tensors import Tensor
from jaxgeom.errors import UserError

_MODULES = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
}  # fmt: skip
PAIR = "gate_up_proj"


class ExpertMatrix(NamedTuple):
    """One expert's matrix in a stacked tensor.

    Attributes:
        module: gate, up or down.
        expert: index on the leading axis.
        shape: `[out, in]`.
        rows: rows of the expert's slice that belong to it, None for all; before any transposition.
        columns: columns likewise; with a step where gate and up alternate.
        transposed: the slice is `[in, out]`.
    """

    module: str
    expert: int
    shape: tuple[int, int]
    rows: tuple[int, int] | None
    columns: tuple[int, ...] | None
    transposed: bool


def stacked_kind(name: str, shape: tuple[int, ...]) -> str | None:
    """Which stack a tensor is by its last word (`gate_up_proj`, `down_proj`, `w1`, …); None for any other tensor."""
    last = name.removesuffix(".weight").split(".")[-1]
    return last if len(shape) == 3 and 0 not in shape and (last == PAIR or last in _MODULES) else None


def half(name: str, shape: tuple[int, ...], out: int) -> int:
    """Outputs of either of gate and up, which share a tensor.

    Raises:
        UserError: an odd number of outputs.
    """
    if out % 2:
        raise UserError(f"{name}: shape {list(shape)} does not split into gate and up: {out} is odd")
    return out // 2


def expert_matrices(
    name: str, shape: tuple[int, ...], text: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> list[ExpertMatrix]:
    """The matrices of a stack: `[expert, out, in]`, or `[expert, in, out]` where the hidden size says so.

    A square stack lies as the others of its layer do. GPT-OSS stores `[expert, in, out]`, of a square one too, and
    takes gate and up from every other output.

    Args:
        name: a tensor for which `stacked_kind` is not None.
        shape: its shape.
        text: the configuration of the text model, with `hidden_size` and `model_type`.
        shapes: of all tensors of the checkpoint.

    Raises:
        UserError: gate and up of unequal size; every stack of the layer is square, so that nothing says how they lie.
    """
    last = stacked_kind(name, shape) or ""
    experts, rows, columns = shape
    interleaved, is_pair = text.get("model_type") == "gpt_oss", last == PAIR
    swapped = interleaved or _is_turned(name, shape, text.get("hidden_size"), shapes)
    out, in_ = (columns, rows) if swapped else (rows, columns)
    if not is_pair:
        return [ExpertMatrix(_MODULES[last], expert, (out, in_), None, None, swapped) for expert in range(experts)]
    middle = half(name, shape, out)
    cuts: tuple[Any, ...] = ((0, out, 2), (1, out, 2)) if interleaved else ((0, middle), (middle, out))
    return [
        ExpertMatrix(module, expert, (middle, in_), None if swapped else cut, cut if swapped else None, swapped)
        for expert in range(experts)
        for module, cut in zip(("gate", "up"), cuts, strict=True)
    ]


def _is_turned(name: str, shape: tuple[int, ...], hidden: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a stack is `[expert, in, out]`: what its inputs (the outputs of down) are is the hidden size."""
    stem, dot, last = name.removesuffix(".weight").rpartition(".")
    if shape[1] == shape[2] == hidden:
        suffix = name[len(stem) + len(dot) + len(last) :]
        for other in (PAIR, *_MODULES):
            beside = shapes.get(f"{stem}{dot}{other}{suffix}", ())
            if len(beside) == 3 and beside[1] != beside[2] and hidden in beside[1:]:
                return _is_turned(f"{stem}{dot}{other}{suffix}", beside, hidden, shapes)
        raise UserError(
            f"{name}: experts of shape {list(shape[1:])} are square, and no other stack beside it says whether they are"
            " [out, in] or [in, out]; store the experts one by one"
        )
    is_down = _MODULES.get(last) == "down"
    return shape[2 if is_down else 1] == hidden and shape[1 if is_down else 2] != hidden


def read_piece(
    tensor: Tensor, expert: int | None, rows: tuple[int, int] | None, columns: tuple[int, ...] | None
) -> np.ndarray:
    """A piece of a tensor in the stored dtype; of an expert or a range of rows only that is read."""
    if expert is not None:
        array = tensor.read_rows(expert, expert + 1)[0]
        array = array if rows is None else array[slice(*rows)]
    else:
        array = tensor.read() if rows is None else tensor.read_rows(*rows)
    return array if columns is None else array[:, slice(*columns)]


class _Single:
    """Reads one expert's matrix `[out, in]`."""

    def __init__(self, tensor: Tensor, matrix: ExpertMatrix) -> None:
        self.tensor, self.matrix = tensor, matrix

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        one = self.matrix
        array = read_piece(self.tensor, one.expert, one.rows, one.columns)
        array = array.T if one.transposed else array
        return np.ascontiguousarray(array if start is None else array[start:stop])


def unstacked(tensors: Mapping[str, Tensor], text: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with stacks cut into the matrices that hubs store, `….experts.3.gate_proj.weight`; the rest as it is.

    Args:
        tensors: by stored name.
        text: the configuration of the text model.
    """
    found: dict[str, Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if stacked_kind(name, tensor.shape) is None or tensor.tower is not None:
            found[name] = tensor
            continue
        stem = name.removesuffix(".weight").rpartition(".")[0]
        for one in expert_matrices(name, tensor.shape, text, shapes):
            single = f"{stem}.{one.expert}.{one.module}_proj.weight"
            if single in found or single in tensors:
                raise UserError(f"tensors {name!r} and {single!r} hold the same expert")
            found[single] = Tensor(single, one.shape, tensor.dtype, _Single(tensor, one), tensor.tower)
    return found
