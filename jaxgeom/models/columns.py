"""One decoding step with the requests in columns, `[dim, batch]`: the order in which a CPU multiplies a few of them.

Such a product costs what reading its kernel costs, as long as nothing lays the kernel out anew first. XLA on CPU does
that to the right operand of every product; with `[out, in]` kernels on the left it is the small activations that are
laid out. At 8 and 16 requests that takes half the time, from 64 on it makes no difference.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from jaxgeom.models.attention import attend_cache
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.layers import rms_norm
from jaxgeom.models.moe import mixture_of_experts
from jaxgeom.models.rope import rotate_pairs


def turn_layer(config: Qwen3Config, layer: Mapping[str, Any]) -> dict[str, Any]:
    """One layer's parameters with kernels `[out…, in…]`.

    Query, key and value kernels become `[heads, head_dim, dim]`, the output's `[dim, heads·head_dim]`; experts stay as
    they are.
    """
    turned: dict[str, Any] = {name: dict(weights) for name, weights in layer.items()}
    for name, weights in turned["attention"].items():
        if "kernel" in weights:
            kernel = weights["kernel"]
            kernel = kernel.reshape(-1, kernel.shape[-1]).T if name == "o" else kernel.transpose(1, 2, 0)
            turned["attention"][name] = {**weights, "kernel": kernel}
    if not config.is_moe:
        turned["mlp"] = {name: {"kernel": turned["mlp"][name]["kernel"].T} for name in ("gate", "up", "down")}
    return turned


def multiply_columns(kernel: Float[Array, "*out dim"], x: Float[Array, "dim batch"]) -> Float[Array, "*out batch"]:
    """`kernel·x` in the dtype of `x`."""
    rows = kernel.astype(x.dtype).reshape(-1, x.shape[0])
    return (rows @ x).reshape(*kernel.shape[: kernel.ndim - 1], x.shape[1])


def _project(x: Array, weights: Mapping[str, Any]) -> Array:
    y = multiply_columns(weights["kernel"], x)
    return y + weights["bias"].astype(y.dtype)[..., None] if "bias" in weights else y


def column_block(
    config: Qwen3Config,
    layer: Mapping[str, Any],
    x: Float[Array, "dim batch"],
    cos: Float[Array, "half batch"],
    sin: Float[Array, "half batch"],
    keys: Float[Array, "batch kv hd slots"],
    values: Float[Array, "batch kv slots hd"],
    index: Int[Array, ""],
    visible: Bool[Array, "batch slots"],
) -> tuple[Array, Array, Array]:
    """The block of `layers.block` for one token per request, whose keys and values go to slot `index` of the cache.

    Args:
        config: architecture.
        layer: as `turn_layer` returns it.
        x: the residual stream.
        cos, sin: rotary tables of the tokens.
        keys, values: the layer's cache.
        index: the slot to write.
        visible: which slots a request may attend to, the new one included.
    Returns:
        The residual stream and the cache with the slot written.
    """
    attention, eps = layer["attention"], config.rms_norm_eps
    normed = rms_norm(x, layer["input_norm"]["scale"], eps, axis=-2)
    q, k, v = (_project(normed, attention[name]) for name in ("q", "k", "v"))
    q = rotate_pairs(rms_norm(q, attention["q_norm"]["scale"], eps, axis=-2), cos, sin, axis=-2)
    k = rotate_pairs(rms_norm(k, attention["k_norm"]["scale"], eps, axis=-2), cos, sin, axis=-2)
    keys = jax.lax.dynamic_update_slice(keys, k.transpose(2, 0, 1)[..., None], (0, 0, 0, index))
    values = jax.lax.dynamic_update_slice(values, v.transpose(2, 0, 1)[:, :, None], (0, 0, index, 0))
    mixed = attend_cache(q.transpose(2, 0, 1)[:, None], keys, values, visible)
    mixed = jax.lax.optimization_barrier(mixed.reshape(x.shape[1], -1).T)  # not turned inside the product
    x = x + _project(mixed, attention["o"])
    normed = rms_norm(x, layer["post_norm"]["scale"], eps, axis=-2)
    if config.is_moe:
        update = mixture_of_experts(
            normed.T, layer["mlp"], experts_per_token=config.num_experts_per_tok, normalize=config.norm_topk_prob
        ).T
    else:
        gate, up = (multiply_columns(layer["mlp"][name]["kernel"], normed) for name in ("gate", "up"))
        update = multiply_columns(layer["mlp"]["down"]["kernel"], jax.nn.silu(gate) * up)
    return x + update, keys, values
