"""A mixture of experts in which every token reaches all of its chosen experts: none is dropped, whatever the load."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgeom.models.recomputation import product


def route(
    x: Float[Array, "tokens dim"], router: Float[Array, "dim experts"], *, experts_per_token: int, normalize: bool
) -> tuple[Float[Array, "tokens chosen"], Int[Array, "tokens chosen"]]:
    """The top-k of `softmax(x·router)` in float32, their sum made 1 where `normalize`, and their expert indices."""
    logits = product(x @ router.astype(x.dtype))
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, experts_per_token)
    if normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen


def mixture_of_experts(
    x: Float[Array, "tokens dim"], mlp: Mapping[str, Any], *, experts_per_token: int, normalize: bool
) -> Float[Array, "tokens dim"]:
    """`Σ_{e in top-k} p_e · SwiGLU_e(x)`: tokens sorted by expert, one ragged matmul per projection, sorted back.

    Args:
        x: tokens, in the compute dtype.
        mlp: `router [dim, experts]`, `gate` and `up` `[experts, dim, f]`, `down [experts, f, dim]` kernels.
        experts_per_token: k.
        normalize: whether the k probabilities are divided by their sum.
    Returns:
        The mixture, in the dtype of `x`.
    Reference:
        Qwen3 Technical Report (arXiv 2505.09388).
    """
    gate, up, down = (mlp[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
    weights, chosen = route(x, mlp["router"]["kernel"], experts_per_token=experts_per_token, normalize=normalize)
    tokens, dim = x.shape
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    group_sizes = jnp.bincount(chosen.reshape(-1), length=gate.shape[0]).astype(jnp.int32)
    inputs = jnp.take(x, order // experts_per_token, axis=0)
    gated, raised = (product(jax.lax.ragged_dot(inputs, kernel, group_sizes)) for kernel in (gate, up))
    inner = jax.nn.silu(gated) * raised
    outputs = product(jax.lax.ragged_dot(inner, down, group_sizes))
    restored = jnp.take(outputs, jnp.argsort(order), axis=0).reshape(tokens, experts_per_token, dim)
    return jnp.sum(restored * weights.astype(x.dtype)[..., None], axis=1)
