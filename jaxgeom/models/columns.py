"""One decoding step with the requests in columns, `[dim, batch]`: the order in which a CPU multiplies a few of them.

Such a product costs what reading its kernel costs, as long as nothing lays the kernel out anew first. XLA on CPU does
that to the right operand of every product; with `[out, in]` kernels on the left it is the small activations that are
laid out. At 8 and 16 requests that takes half the time, from 64 on it makes no difference.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgeom.models.attention import attend_cache
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.layers import rms_norm
from jaxgeom.models.moe import mixture_of_experts
from jaxgeom.models.rope import rotate_pairs


def turn_layer(config: Qwen3Config, layer: Mapping[str, Any]) -> dict[str, Any]:
    """One layer's parameters with kernels `[out, in]`, those that share an input joined to one.

    Query, key and value kernels become `qkv`, `[(heads + 2·kv)·head_dim, dim]`, gate and up `gate_up`,
    `[2·inner, dim]`; experts stay as they are.
    """
    attention, mlp = layer["attention"], layer["mlp"]
    parts = [attention[name] for name in ("q", "k", "v")]
    dim = config.hidden_size
    qkv = {"kernel": _join(part["kernel"].reshape(dim, -1) for part in parts)}
    if "bias" in parts[0]:
        qkv["bias"] = jnp.concatenate([part["bias"].reshape(-1) for part in parts])
    o = {**attention["o"], "kernel": attention["o"]["kernel"].reshape(-1, dim).T}
    norms = {name: attention[name] for name in ("q_norm", "k_norm")}
    if not config.is_moe:
        gate_up = _join(mlp[name]["kernel"] for name in ("gate", "up"))
        mlp = {"gate_up": {"kernel": gate_up}, "down": {"kernel": mlp["down"]["kernel"].T}}
    return {**layer, "attention": {"qkv": qkv, "o": o, **norms}, "mlp": mlp}


def _join(kernels: Iterable[Float[Array, "dim _"]]) -> Float[Array, "out dim"]:
    return jnp.concatenate([kernel.T for kernel in kernels])


def multiply_columns(weights: Mapping[str, Any], x: Float[Array, "dim batch"]) -> Float[Array, "out batch"]:
    """`kernel·x (+ bias)` in the dtype of `x`."""
    y = weights["kernel"].astype(x.dtype) @ x
    return y + weights["bias"].astype(y.dtype)[:, None] if "bias" in weights else y


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
    heads, kv, hd = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    qkv = multiply_columns(attention["qkv"], normed).reshape(-1, hd, x.shape[1])
    q, k, v = jnp.split(qkv, [heads, heads + kv])
    q = rotate_pairs(rms_norm(q, attention["q_norm"]["scale"], eps, axis=-2), cos, sin, axis=-2)
    k = rotate_pairs(rms_norm(k, attention["k_norm"]["scale"], eps, axis=-2), cos, sin, axis=-2)
    keys = jax.lax.dynamic_update_slice(keys, k.transpose(2, 0, 1)[..., None], (0, 0, 0, index))
    values = jax.lax.dynamic_update_slice(values, v.transpose(2, 0, 1)[:, :, None], (0, 0, index, 0))
    mixed = attend_cache(q.transpose(2, 0, 1)[:, None], keys, values, visible)
    mixed = jax.lax.optimization_barrier(mixed.reshape(x.shape[1], -1).T)  # not turned inside the product
    x = x + multiply_columns(attention["o"], mixed)
    normed = rms_norm(x, layer["post_norm"]["scale"], eps, axis=-2)
    if config.is_moe:
        update = mixture_of_experts(
            normed.T, layer["mlp"], experts_per_token=config.num_experts_per_tok, normalize=config.norm_topk_prob
        ).T
    else:
        gate, up = jnp.split(multiply_columns(layer["mlp"]["gate_up"], normed), 2)
        update = multiply_columns(layer["mlp"]["down"], jax.nn.silu(gate) * up)
    return x + update, keys, values
