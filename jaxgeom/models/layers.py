"""The mathematics of a Qwen3 block: plain functions of arrays, shared by scoring, training and sampling."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.moe import mixture_of_experts
from jaxgeom.models.recomputation import keep_everything, product
from jaxgeom.models.rope import apply_rope

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(q [B,T,H,hd], k [B,T,KV,hd], v [B,T,KV,hd]) -> (out [B,T,H,hd], what the caller keeps, such as the cache)."""

Spread = Callable[[Array], Array]
"""Lays out what a kernel is multiplied with over devices; its numbers stay."""


def split_layers(stacked: PyTree) -> list[PyTree]:
    """The parameters of each layer, a tree like `stacked` without its leading axis `[layer, ...]`.

    Their gradients become one concatenation per leaf, where indexing would add a padded array per layer.
    """
    leaves, structure = jax.tree.flatten(stacked)
    count = leaves[0].shape[0]
    cut = [[part.reshape(part.shape[1:]) for part in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [structure.unflatten(parts) for parts in zip(*cut, strict=True)]


def rms_norm(x: Float[Array, "*shape"], scale: Float[Array, " dim"], eps: float, *, axis: int = -1) -> Array:
    """`x / sqrt(mean(x²) + eps) · scale` along `axis`, in float32, returned in the shape and dtype of `x`.

    Args:
        x: any shape with `dim` along `axis`.
        scale: one factor per entry along it.
        eps: added to the mean square.
        axis: counted from the last, −1.
    """
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axis, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype).reshape(-1, *(1,) * (-1 - axis))


def feed_forward(x: Float[Array, "tokens dim"], mlp: Mapping[str, Any]) -> Float[Array, "tokens dim"]:
    """SwiGLU: `(silu(x·gate) ⊙ (x·up))·down`, on tokens flattened to one axis."""
    gate, up, down = (mlp[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
    return (jax.nn.silu(product(x @ gate)) * product(x @ up)) @ down


def project_heads(x: Float[Array, "batch time dim"], weights: Mapping[str, Any]) -> Float[Array, "batch time heads hd"]:
    """`x·kernel (+ bias)` for a kernel `[dim, heads, head_dim]`."""
    kernel = weights["kernel"].astype(x.dtype)
    batch, time, dim = x.shape
    y = product(x.reshape(batch * time, dim) @ kernel.reshape(dim, -1))
    y = y.reshape(batch, time, *kernel.shape[1:])
    return y + weights["bias"].astype(x.dtype) if "bias" in weights else y


def as_it_lies(x: Array) -> Array:
    """`x`, whose layout over devices is left to the compiler."""
    return x


def block(
    config: Qwen3Config,
    layer: Mapping[str, Any],
    x: Float[Array, "batch time dim"],
    cos: Float[Array, "#batch time half"],
    sin: Float[Array, "#batch time half"],
    attend: Attend,
    *,
    queries: int | None = None,
    spread: Spread = as_it_lies,
    mixture: Callable[..., Array] = mixture_of_experts,
    lighten: Callable[[Callable[..., Any]], Callable[..., Any]] = keep_everything,
) -> tuple[Float[Array, "batch queries dim"], Any]:
    """One pre-norm transformer block; `attend` decides which keys a query sees.

    Args:
        config: architecture.
        layer: the block's parameters.
        x: the residual stream.
        cos, sin: rotary tables of the columns.
        attend: mixes values.
        queries: how many of the last columns go on; None for all. Keys and values are of all columns in any case.
        spread: lays out over devices what the kernels of attention and a dense feed-forward are multiplied with.
        mixture: of experts, as `mixture_of_experts`.
        lighten: put around what stands before attention and behind it, such as `keep_products`.
    Returns:
        The block's output, `[batch, queries, dim]`, and the second result of `attend`.
    """
    first = 0 if queries is None else x.shape[1] - queries
    q, k, v = lighten(partial(_project, config, first=first, spread=spread))(layer, x, cos, sin)
    mixed, kept = attend(q, k, v)
    return lighten(partial(_go_on, config, spread=spread, mixture=mixture))(layer, x[:, first:], mixed), kept


def _project(
    config: Qwen3Config, layer: Mapping[str, Any], x: Array, cos: Array, sin: Array, *, first: int,
    spread: Spread,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Rotated queries of the columns from `first` on, rotated keys and values of all."""
    attention, eps = layer["attention"], config.rms_norm_eps
    normed = spread(rms_norm(x, layer["input_norm"]["scale"], eps))
    k, v = (project_heads(normed, attention[name]) for name in ("k", "v"))
    q = project_heads(normed[:, first:], attention["q"])
    cos, sin = cos[:, :, None], sin[:, :, None]  # the same for all heads
    q = apply_rope(rms_norm(q, attention["q_norm"]["scale"], eps), cos[:, first:], sin[:, first:])
    return q, apply_rope(rms_norm(k, attention["k_norm"]["scale"], eps), cos, sin), v


def _go_on(
    config: Qwen3Config, layer: Mapping[str, Any], x: Array, mixed: Array, *, spread: Spread,
    mixture: Callable[..., Array],
) -> Array:  # fmt: skip
    """The residual stream behind attention and feed-forward."""
    attention, eps = layer["attention"], config.rms_norm_eps
    batch, time, dim = x.shape
    out = attention["o"]["kernel"].astype(x.dtype).reshape(-1, dim)
    update = product(mixed.reshape(batch * time, -1) @ out)
    flat = x.reshape(batch * time, dim) + _add_bias(update, attention["o"])
    normed = rms_norm(flat, layer["post_norm"]["scale"], eps)
    if config.is_moe:
        chosen: dict[str, Any] = {"experts_per_token": config.num_experts_per_tok, "normalize": config.norm_topk_prob}
        update = mixture(normed, layer["mlp"], **chosen)
    else:
        update = feed_forward(spread(normed), layer["mlp"])
    return (flat + update).reshape(batch, time, dim)


def _add_bias(y: Array, weights: Mapping[str, Any]) -> Array:
    return y + weights["bias"].astype(y.dtype) if "bias" in weights else y
