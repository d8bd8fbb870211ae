"""How the parameter tree maps to Hugging Face names, and which axes of each leaf are its matrix's."""

import re
from typing import Any, NamedTuple

import numpy as np

from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.models.config import Qwen3Config


class HFTensor(NamedTuple):
    """One tensor of a Hugging Face file and where it lives in the tree.

    Attributes:
        name: Hugging Face parameter name.
        path: keys from the root of the parameter tree to the leaf.
        layer: index on the leaf's leading axis, or None.
        expert: index on the leaf's second axis, or None.
        shape: shape in the Hugging Face file, `[out, in]` for matrices.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    expert: int | None
    shape: tuple[int, ...]


_MODULES = (
    (r"\.self_attn\.([qkvo])_proj\.(?:weight|bias)$", None),
    (r"\.mlp\.(?:experts\.\d+\.)?(gate|up|down)_proj\.weight$", None),
    (r"\.mlp\.gate\.weight$", "router"),
    (r"embed_tokens\.weight$", "embedding"),
    (r"lm_head\.weight$", "head"),
    (r"norm\.weight$", "norm"),
)


def module_of(hf_name: str) -> str:
    """The module that a Hugging Face parameter belongs to: q, k, v, o, gate, up, down, router, embedding, head or norm.

    Args:
        hf_name: such as `model.layers.3.self_attn.q_proj.weight`.

    Returns:
        Its short name.

    >>> module_of("model.layers.3.self_attn.q_proj.weight"), module_of("model.layers.0.mlp.experts.7.down_proj.weight")
    ('q', 'down')

    Raises:
        ValueError: the name is none of Qwen3's.
    """
    for pattern, module in _MODULES:
        if found := re.search(pattern, hf_name):
            return module or found.group(1)
    raise ValueError(f"hf_name={hf_name!r} is not the name of a Qwen3 parameter")


def parameter_specs(config: Qwen3Config) -> dict[str, Any]:
    """The tree of parameters with a `MatrixSpec` per leaf, None where the leaf is no matrix (norms, biases).

    Args:
        config: architecture.

    Returns:
        A tree of the structure of the parameters.
    """
    heads_out, heads_in = MatrixSpec((2, 3), (1,), (0,)), MatrixSpec((3,), (1, 2), (0,))
    attention: dict[str, Any] = {name: {"kernel": heads_out} for name in ("q", "k", "v")}
    attention["o"] = {"kernel": heads_in}
    if config.attention_bias:
        for name in ("q", "k", "v", "o"):
            attention[name]["bias"] = None
    attention |= {"q_norm": {"scale": None}, "k_norm": {"scale": None}}
    dense, expert = MatrixSpec((2,), (1,), (0,)), MatrixSpec((3,), (2,), (0, 1))
    mlp = {name: {"kernel": expert if config.is_moe else dense} for name in ("gate", "up", "down")}
    if config.is_moe:
        mlp["router"] = {"kernel": dense}
    tree: dict[str, Any] = {
        "embed": {"embedding": MatrixSpec((0,), (1,))},
        "layers": {"input_norm": {"scale": None}, "post_norm": {"scale": None}, "attention": attention, "mlp": mlp},
        "norm": {"scale": None},
    }
    if not config.tie_word_embeddings:
        tree["head"] = {"kernel": MatrixSpec((1,), (0,))}
    return tree


def spectral_specs(config: Qwen3Config) -> dict[str, Any]:
    """`parameter_specs` with None at all but q, k, v, o, gate, up and down: the matrices that have spectral statistics.

    Args:
        config: architecture.

    Returns:
        A tree of the structure of the parameters.
    """
    tree = parameter_specs(config)
    tree["embed"] = {"embedding": None}
    if "head" in tree:
        tree["head"] = {"kernel": None}
    if "router" in tree["layers"]["mlp"]:
        tree["layers"]["mlp"]["router"] = {"kernel": None}
    return tree


def hf_tensors(config: Qwen3Config) -> list[HFTensor]:
    """Every tensor of the model's Hugging Face directory, in the order in which `transformers` writes them.

    Args:
        config: architecture.

    Returns:
        Names, leaves and shapes; stacked layers and experts one by one.
    """
    dim, hd = config.hidden_size, config.head_dim
    query, kv = config.num_attention_heads * hd, config.num_key_value_heads * hd
    tensors = [HFTensor("model.embed_tokens.weight", ("embed", "embedding"), None, None, (config.vocab_size, dim))]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."

        def add(
            name: str, path: tuple[str, ...], shape: tuple[int, ...], expert: int | None = None,
            *, prefix: str = prefix, layer: int = layer,
        ) -> None:  # fmt: skip
            tensors.append(HFTensor(prefix + name, ("layers", *path), layer, expert, shape))

        for name, shape in (("q", (query, dim)), ("k", (kv, dim)), ("v", (kv, dim)), ("o", (dim, query))):
            add(f"self_attn.{name}_proj.weight", ("attention", name, "kernel"), shape)
            if config.attention_bias:
                add(f"self_attn.{name}_proj.bias", ("attention", name, "bias"), shape[:1])
        for name in ("q_norm", "k_norm"):
            add(f"self_attn.{name}.weight", ("attention", name, "scale"), (hd,))
        if config.is_moe:
            add("mlp.gate.weight", ("mlp", "router", "kernel"), (config.num_experts, dim))
        inner = config.moe_intermediate_size if config.is_moe else config.intermediate_size
        for expert in range(config.num_experts) if config.is_moe else (None,):
            where = "mlp." if expert is None else f"mlp.experts.{expert}."
            for name, shape in (("gate", (inner, dim)), ("up", (inner, dim)), ("down", (dim, inner))):
                add(f"{where}{name}_proj.weight", ("mlp", name, "kernel"), shape, expert)
        add("input_layernorm.weight", ("input_norm", "scale"), (dim,))
        add("post_attention_layernorm.weight", ("post_norm", "scale"), (dim,))
    tensors.append(HFTensor("model.norm.weight", ("norm", "scale"), None, None, (dim,)))
    if not config.tie_word_embeddings:
        tensors.append(HFTensor("lm_head.weight", ("head", "kernel"), None, None, (config.vocab_size, dim)))
    return tensors


def leaf_slice_shape(config: Qwen3Config, tensor: HFTensor) -> tuple[int, ...]:
    """Shape of the part of the leaf that `tensor` fills: the leaf's own without its layer and expert axes.

    Args:
        config: architecture.
        tensor: one of `hf_tensors`.

    Returns:
        Such as `(in, heads, head_dim)` for a query projection.
    """
    hd, kind = config.head_dim, tensor.path[-2]
    if len(tensor.shape) == 1:
        return (tensor.shape[0] // hd, hd) if tensor.path[-1] == "bias" and kind != "o" else tensor.shape
    out, in_ = tensor.shape
    if kind in ("q", "k", "v"):
        return (in_, out // hd, hd)
    if kind == "o":
        return (in_ // hd, hd, out)
    return tensor.shape if kind == "embed" else (in_, out)


def from_hf(config: Qwen3Config, tensor: HFTensor, array: np.ndarray) -> np.ndarray:
    """A Hugging Face tensor as the slice of our leaf: `[out, in]` becomes `[in, out]`, heads are split.

    Args:
        config: architecture.
        tensor: one of `hf_tensors`.
        array: of `tensor.shape`, any dtype.

    Returns:
        A view or copy of `leaf_slice_shape(config, tensor)`, same dtype.
    """
    if array.ndim == 2 and tensor.path[0] != "embed":
        array = array.T
    return array.reshape(leaf_slice_shape(config, tensor))


def to_hf(config: Qwen3Config, tensor: HFTensor, array: np.ndarray) -> np.ndarray:
    """The slice of our leaf as the Hugging Face tensor: the inverse of `from_hf`.

    Args:
        config: architecture.
        tensor: one of `hf_tensors`.
        array: of `leaf_slice_shape(config, tensor)`, any dtype.

    Returns:
        A view or copy of `tensor.shape`, same dtype.
    """
    if len(tensor.shape) == 1 or tensor.path[0] == "embed":
        return array.reshape(tensor.shape)
    out, in_ = tensor.shape
    return array.reshape(in_, out).T


def leaf_slice(leaf: Any, tensor: HFTensor) -> Any:
    """The part of the (stacked) leaf that `tensor` names.

    Args:
        leaf: array or `ShapeDtypeStruct`-like, `[layer, …]` or `[layer, expert, …]` where it is stacked.
        tensor: one of `hf_tensors`.

    Returns:
        The part, indexed on the leading axes.
    """
    if tensor.layer is None:
        return leaf
    return leaf[tensor.layer] if tensor.expert is None else leaf[tensor.layer, tensor.expert]
