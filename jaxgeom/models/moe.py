"""A mixture of experts in which every token reaches all of its chosen experts: none is dropped, whatever the load."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxgeom.models.recomputation import product
from jaxgeom.sharding import BATCH_AXES, batch_divisor, partition_specs

Grouped = Callable[[Array, Array, Array], Array]
"""`(rows [m, k], kernels [groups, k, n], sizes [groups]) -> [m, n]`: the rows of each group times its kernel."""


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
    x: Float[Array, "tokens dim"],
    mlp: Mapping[str, Any],
    *,
    experts_per_token: int,
    normalize: bool,
    grouped: Grouped = jax.lax.ragged_dot,
    first: Int[Array, ""] | None = None,
) -> Float[Array, "tokens dim"]:
    """`Σ_{e in top-k} p_e · SwiGLU_e(x)`: tokens sorted by expert, one ragged matmul per projection, sorted back.

    Args:
        x: tokens, in the compute dtype.
        mlp: `router [dim, experts]`, `gate` and `up` `[experts, dim, f]`, `down [experts, f, dim]` kernels.
        experts_per_token: k.
        normalize: whether the k probabilities are divided by their sum.
        grouped: the ragged matmul.
        first: where `gate`, `up` and `down` are of some experts alone, the first of these: the sum is over them.
    Returns:
        The mixture, in the dtype of `x`.
    Reference:
        Qwen3 Technical Report (arXiv 2505.09388).
    """
    gate, up, down = (mlp[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
    weights, chosen = route(x, mlp["router"]["kernel"], experts_per_token=experts_per_token, normalize=normalize)
    tokens, dim = x.shape
    places, held = chosen.reshape(-1), gate.shape[0]
    if first is not None:
        places = jnp.where((places >= first) & (places < first + held), places - first, held)
    order = jnp.argsort(places, stable=True)
    group_sizes = jnp.bincount(places, length=held).astype(jnp.int32)  # of what lies beyond nothing is counted

    def multiply(rows: Array, kernels: Array) -> Array:
        if first is None:
            return product(grouped(rows, kernels, group_sizes))
        # What a ragged matmul gives for rows of no group, forward and backward, is not ours to rely on.
        is_held = (jnp.arange(len(rows)) < jnp.sum(group_sizes))[:, None]
        found = product(grouped(jnp.where(is_held, rows, 0), kernels, group_sizes))
        return jnp.where(is_held, found, 0)

    inputs = jnp.take(x, order // experts_per_token, axis=0)
    outputs = multiply(jax.nn.silu(multiply(inputs, gate)) * multiply(inputs, up), down)
    restored = jnp.take(outputs, jnp.argsort(order), axis=0).reshape(tokens, experts_per_token, dim)
    return jnp.sum(restored * weights.astype(x.dtype)[..., None], axis=1)


def mixture_by_rows(
    x: Float[Array, "tokens dim"],
    mlp: Mapping[str, Any],
    *,
    experts_per_token: int,
    normalize: bool,
    mesh: Mesh | None,
    grouped: Grouped = jax.lax.ragged_dot,
) -> Float[Array, "tokens dim"]:
    """`mixture_of_experts` with each device sorting the tokens of its own rows.

    Left to the compiler, the tokens of all devices are sorted together and moved between them, which for a batch of
    training is far more than the kernels that are gathered here, one layer's at a time. Over `expert` each device
    multiplies the tokens of its own experts, over `tensor` with its own part of their inner axis; both are summed.

    Args:
        x: tokens, in the compute dtype, lying over devices as the batch does.
        mlp: as of `mixture_of_experts`.
        experts_per_token: k.
        normalize: whether the k probabilities are divided by their sum.
        mesh: what tokens and kernels are spread over; None for one device.
        grouped: the ragged matmul of one device.
    """
    options: dict[str, Any] = {"experts_per_token": experts_per_token, "normalize": normalize}
    if mesh is None or mesh.size == 1:
        return mixture_of_experts(x, mlp, **options, grouped=grouped)
    if x.shape[0] % batch_divisor(mesh):
        return mixture_of_experts(x, mlp, **options)
    kernels = {name: mlp[name]["kernel"].astype(x.dtype) for name in ("router", "gate", "up", "down")}
    lies = _as_they_lie(kernels, mesh)
    over_experts = "expert" in lies["gate"]
    summed = tuple(axis for axis in ("tensor", "expert") if axis in lies["gate"])

    def local(x: Array, kernels: Mapping[str, Array]) -> Array:
        whole = {}
        for name, kernel in kernels.items():  # by name, so that their gradients are scattered
            axis = lies[name].index("fsdp") if "fsdp" in lies[name] else None
            whole[name] = {
                "kernel": kernel if axis is None else jax.lax.all_gather(kernel, "fsdp", axis=axis, tiled=True)
            }
        first = jax.lax.axis_index("expert") * whole["gate"]["kernel"].shape[0] if over_experts else None
        mixed = mixture_of_experts(x, whole, **options, grouped=grouped, first=first)
        return jax.lax.psum(mixed, summed) if summed else mixed

    rows = PartitionSpec(BATCH_AXES)
    placed = {name: PartitionSpec(*axes) for name, axes in lies.items()}
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, placed), out_specs=rows, check_vma=False)(x, kernels)


def _as_they_lie(kernels: Mapping[str, Array], mesh: Mesh) -> dict[str, tuple[str | None, ...]]:
    """The mesh axis, if there is one of several devices, over which each axis of a layer's kernels lies."""
    stacked = {name: {"kernel": jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)} for name, leaf in kernels.items()}
    specs = partition_specs({"mlp": stacked}, mesh)["mlp"]

    def of(name: str) -> tuple[str | None, ...]:
        axes = (*specs[name]["kernel"], *[None] * kernels[name].ndim)[1 : kernels[name].ndim + 1]
        return tuple(axis if axis is not None and mesh.shape[axis] > 1 else None for axis in axes)

    return {name: of(name) for name in kernels}
