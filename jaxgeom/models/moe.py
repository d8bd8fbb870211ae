"""A mixture of experts in which every token reaches all of its chosen experts: none is dropped, whatever the load."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxgeom.models.recomputation import product
from jaxgeom.sharding import BATCH_AXES, batch_divisor

# Which axis of a layer's kernel lies over fsdp, as `sharding.RULES` have it.
_OVER_FSDP = {"router": 0, "gate": 1, "up": 1, "down": 2}


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


def mixture_by_rows(
    x: Float[Array, "tokens dim"],
    mlp: Mapping[str, Any],
    *,
    experts_per_token: int,
    normalize: bool,
    mesh: Mesh | None,
) -> Float[Array, "tokens dim"]:
    """`mixture_of_experts` with each device sorting the tokens of its own rows.

    Left to the compiler, the tokens of all devices are sorted together and moved between them, which for a batch of
    training is far more than the kernels that are gathered here, one layer's at a time. Experts and their inner axis
    stay spread as they are; where neither is, kernels are gathered by name, so that their gradients are scattered.
    (What is gathered by name along one axis the compiler gathers along the others as well.)

    Args:
        x: tokens, in the compute dtype, lying over devices as the batch does.
        mlp: as of `mixture_of_experts`.
        experts_per_token: k.
        normalize: whether the k probabilities are divided by their sum.
        mesh: what tokens and kernels are spread over; None for one device.
    """
    options: dict[str, Any] = {"experts_per_token": experts_per_token, "normalize": normalize}
    shards = batch_divisor(mesh)
    if mesh is None or shards == 1 or x.shape[0] % shards:
        return mixture_of_experts(x, mlp, **options)
    kernels = {name: mlp[name]["kernel"].astype(x.dtype) for name in _OVER_FSDP}
    fsdp = mesh.shape["fsdp"] if mesh.shape.get("tensor", 1) == mesh.shape.get("expert", 1) == 1 else 1
    split = {name: fsdp > 1 and kernels[name].shape[axis] % fsdp == 0 for name, axis in _OVER_FSDP.items()}

    def local(x: Array, kernels: Mapping[str, Array]) -> Array:
        whole = {
            name: {"kernel": jax.lax.all_gather(kernel, "fsdp", axis=_OVER_FSDP[name], tiled=True)}
            if split[name]
            else {"kernel": kernel}
            for name, kernel in kernels.items()
        }
        return mixture_of_experts(x, whole, **options)

    rows = PartitionSpec(BATCH_AXES)
    lies = {
        name: PartitionSpec(*[None] * axis, "fsdp") if split[name] else PartitionSpec()
        for name, axis in _OVER_FSDP.items()
    }
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, lies), out_specs=rows, axis_names=set(BATCH_AXES), check_vma=False
    )
    return run(x, kernels)
