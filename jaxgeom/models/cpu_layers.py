"""For CPUs alone: the layers of a small model one after the other, and decoding with the requests in columns.

A scan over stacked layers copies each layer's parameters out of the stack, and their gradients back into it; on a CPU
that costs a small model a quarter of its step. Written out one after the other, the layers need no copies.

In decoding, a product of a kernel with a few requests costs what reading the kernel costs, as long as nothing lays the
kernel out anew first. XLA on CPU does that to the right operand of every product. So the requests stand in columns,
`[dim, batch]`, and the kernels, `[out, in]`, on the left: it is the small activations that are laid out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgeom.models.attention import attend_cache
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.layers import Attend, block, rms_norm, split_layers
from jaxgeom.models.moe import mixture_of_experts
from jaxgeom.models.rope import apply_rope

# Compile time grows with every layer that is written out.
_LAYERS_LIMIT = 12


def is_unrolled(config: Qwen3Config, platform: str | None, *, remat: bool) -> bool:
    """Whether a model runs by this file's functions: on a CPU, with few layers, all of whose activations are kept."""
    return platform == "cpu" and not remat and config.num_hidden_layers <= _LAYERS_LIMIT


def run_layers(
    config: Qwen3Config,
    layers: Mapping[str, Any],
    x: Float[Array, "batch time dim"],
    tables: tuple[Float[Array, "#batch time half"], Float[Array, "#batch time half"]],
    attend: Attend,
    *,
    attend_last: Attend | None = None,
) -> tuple[Float[Array, "batch _ dim"], list[Any]]:
    """`layers.block` of every layer in turn.

    Args:
        config: architecture.
        layers: the stacked parameters, `[layer, ...]`.
        x: the embedded tokens.
        tables: cosines and sines of the columns.
        attend: mixes values, for every column.
        attend_last: for who needs the last column alone, in the last layer: mixes values for its one query.
    Returns:
        The residual stream after the last layer, `[batch, time, dim]`, or `[batch, 1, dim]` with `attend_last`; and the
        second result of each layer's `attend`.
    """
    kept = []
    *earlier, last = split_layers(layers)
    for layer in earlier:
        x, of_layer = block(config, layer, x, *tables, attend)
        kept.append(of_layer)
    if attend_last is None:
        x, of_layer = block(config, last, x, *tables, attend)
    else:
        x, of_layer = block(config, last, x, *tables, attend_last, queries=1)
    return x, [*kept, of_layer]


def turn_weights(
    config: Qwen3Config, layers: Mapping[str, Any], norm: Mapping[str, Any], unembedding: Float[Array, "dim vocab"]
) -> dict[str, Any]:
    """What `decode_columns` reads, made once for all steps: turned layers, the last norm, the head `[vocab, dim]`."""
    turned = [turn_layer(config, layer) for layer in split_layers(layers)]
    return {"layers": turned, "norm": norm, "head": unembedding.T}


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


def cache_layer(
    k: Float[Array, "batch slots kv hd"], v: Float[Array, "batch slots kv hd"]
) -> dict[str, Float[Array, "batch kv _ _"]]:
    """One layer's cache, as its products read it: keys `[batch, kv, hd, slots]`, values `[batch, kv, slots, hd]`."""
    return {"k": k.transpose(0, 2, 3, 1), "v": v.swapaxes(1, 2)}


def multiply_columns(weights: Mapping[str, Any], x: Float[Array, "dim batch"]) -> Float[Array, "out batch"]:
    """`kernel·x (+ bias)` for a kernel `[out, dim]`, in the dtype of `x`."""
    y = weights["kernel"].astype(x.dtype) @ x
    return y + weights["bias"].astype(y.dtype)[:, None] if "bias" in weights else y


def decode_columns(
    config: Qwen3Config,
    weights: Mapping[str, Any],
    x: Float[Array, "batch dim"],
    tables: tuple[Float[Array, "batch half"], Float[Array, "batch half"]],
    cache: Mapping[str, Sequence[Array]],
    index: Int[Array, ""],
    visible: Bool[Array, "batch slots"],
) -> tuple[Float[Array, "batch vocab"], dict[str, list[Array]]]:
    """One token per request through all layers, whose keys and values go to slot `index` of the cache.

    Args:
        config: architecture.
        weights: as `turn_weights` returns them.
        x: the embedded tokens, in the compute dtype.
        tables: cosines and sines of the tokens' positions.
        cache: `k` and `v`, lists over the layers of what `cache_layer` makes.
        index: the slot to write.
        visible: which slots a request may attend to, the new one included.
    Returns:
        Logits of the next token, float32, and the cache with the slot written.
    """
    x, (cos, sin) = x.T, (table.T for table in tables)
    written: dict[str, list[Array]] = {"k": [], "v": []}
    for layer, keys, values in zip(weights["layers"], cache["k"], cache["v"], strict=True):
        x, keys, values = _column_block(config, layer, x, cos, sin, keys, values, index, visible)
        written["k"].append(keys)
        written["v"].append(values)
    hidden = rms_norm(x, weights["norm"]["scale"], config.rms_norm_eps, axis=-2)
    logits = jnp.matmul(weights["head"].astype(x.dtype), hidden, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(logits).T, written  # turned inside the product it would cost double


def _column_block(
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
    """`layers.block` for columns: the residual stream, and the layer's keys and values with the slot written."""
    attention, eps = layer["attention"], config.rms_norm_eps
    normed = rms_norm(x, layer["input_norm"]["scale"], eps, axis=-2)
    heads, kv, hd = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    qkv = multiply_columns(attention["qkv"], normed).reshape(-1, hd, x.shape[1])
    q, k, v = jnp.split(qkv, [heads, heads + kv])
    q = apply_rope(rms_norm(q, attention["q_norm"]["scale"], eps, axis=-2), cos, sin, axis=-2)
    k = apply_rope(rms_norm(k, attention["k_norm"]["scale"], eps, axis=-2), cos, sin, axis=-2)
    keys = jax.lax.dynamic_update_slice(keys, k.transpose(2, 0, 1)[..., None], (0, 0, 0, index))
    values = jax.lax.dynamic_update_slice(values, v.transpose(2, 0, 1)[:, :, None], (0, 0, index, 0))
    mixed = attend_cache(q.transpose(2, 0, 1)[:, None], keys.mT, values, visible)
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
