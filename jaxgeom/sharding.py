"""The mesh, its platform, and which axis of it splits which axis of every parameter; nothing is allocated."""

import math
import re
from typing import Any

import jax
import jax.core
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "expert")
"""Mesh axes: copies of the model, shards of the parameters, shards of heads and feed-forward, shards of the experts."""

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that split the batch."""

# The first rule whose pattern matches the leaf's path gives the mesh axis of each of its axes; axis 0 counts layers.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)bases/", ()),  # of a confined optimizer: K columns each
    (r"embed/embedding$", ("tensor", "fsdp")),
    (r"head/kernel$", ("fsdp", "tensor")),
    (r"attention/[qkv]/kernel$", (None, "fsdp", "tensor", None)),
    (r"attention/[qkv]/bias$", (None, "tensor", None)),
    (r"attention/o/kernel$", (None, "tensor", None, "fsdp")),
    (r"mlp/router/kernel$", (None, "fsdp", None)),
    (r"moe/(gate|up)/kernel$", (None, "expert", "fsdp", "tensor")),
    (r"moe/down/kernel$", (None, "expert", "tensor", "fsdp")),
    (r"mlp/(gate|up)/kernel$", (None, "fsdp", "tensor")),
    (r"mlp/down/kernel$", (None, "tensor", "fsdp")),
    (r"(scale|bias)$", ()),
)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    expert: int = 1,
    *,
    devices: Any = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """A mesh with the axes data, fsdp, tensor and expert over all devices.

    Args:
        data, fsdp, tensor, expert: sizes; one of them may be −1, which takes the devices that are left.
        devices: the devices; all of them where None.
        axis_type: `Auto` (the compiler propagates shardings) or `Explicit`.
    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor, expert]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(
            f"mesh sizes (data, fsdp, tensor, expert)={tuple(sizes)} must be positive, with at most one -1"
        )
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh sizes (data, fsdp, tensor, expert)={tuple(sizes)} do not multiply to the {len(devices)} devices"
        )
    types = (axis_type,) * len(AXES)
    if not _is_box(devices):
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=types)
    try:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # JAX's own, where an axis takes a part of one of the slice's
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=types)


def _is_box(devices: list[Any]) -> bool:
    """Whether chips of a TPU fill a box of their slice, by which JAX lays a mesh; true of what has no place in one."""
    if any(getattr(device, "coords", None) is None for device in devices):
        return True
    places = np.array([(*device.coords, device.core_on_chip) for device in devices])
    return int(np.prod(np.ptp(places, axis=0) + 1)) == len(devices)


def partition_specs(abstract: Any, mesh: Mesh, rules: tuple[tuple[str, tuple[str | None, ...]], ...] = RULES) -> Any:
    """The tree of `PartitionSpec`s for a tree of arrays or `ShapeDtypeStruct`s.

    A mesh axis that does not divide the array's axis, or that the mesh has not, is left out: odd sizes are replicated
    rather than refused.
    Leaves that are no parameter but carry one's path (Adam's moments) follow the same rules.

    Raises:
        ValueError: no rule matches a leaf with two axes or more.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        if len(leaf.shape) == 4 and "/mlp/" in f"/{name}":
            name = name.replace("mlp/", "moe/")
        for pattern, axes in rules:
            if re.search(pattern, name):
                return _fit(axes, leaf.shape, mesh)
        if len(leaf.shape) < 2:
            return PartitionSpec()
        raise ValueError(f"no partition rule matches {name!r} of shape {leaf.shape}")

    return jax.tree_util.tree_map_with_path(spec, abstract)


def parameter_shardings(abstract: Any, mesh: Mesh) -> Any:
    """`partition_specs` as `NamedSharding`s of `mesh`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        partition_specs(abstract, mesh),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a `[batch, ...]` array lies on the mesh: split over data and fsdp, whole on the others."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def spread_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """What was looked up in a table whose columns lie over fsdp, `[batch, time, dim]`, as the batch lies.

    In two steps, forward and (reversed) backward: each device looks up its columns for the rows of its share of data,
    then the devices of that share exchange columns for rows. Told only of both ends, the compiler gathers all rows, and
    their gradients, on every device of a mesh with data and fsdp.

    Args:
        x: what was looked up.
        mesh: what it lies on; None for one device. Nothing is done where it does not split both.
    """
    sizes = {} if mesh is None else dict(mesh.shape)
    data, fsdp = sizes.get("data", 1), sizes.get("fsdp", 1)
    if mesh is None or data == 1 or fsdp == 1 or x.shape[0] % (data * fsdp) or x.shape[-1] % fsdp:
        return x
    columns = PartitionSpec("data", *[None] * (x.ndim - 2), "fsdp")
    x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, columns))
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def spread_columns(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Few rows `[batch, ..., dim]`, each device with its part of their columns, as kernels lie over fsdp.

    So the kernels stay where they are, each device multiplies all rows with its own shard, and what is summed over the
    devices are products of few rows. As the batch lies, every kernel is gathered for every token that is decoded.

    Args:
        x: what a kernel is multiplied with.
        mesh: what it lies on; None for one device. Nothing is done where it does not split the columns, or where the
            rows are so many that their products are more than the kernel.
    """
    sizes = {} if mesh is None else dict(mesh.shape)
    data, fsdp = sizes.get("data", 1), sizes.get("fsdp", 1)
    rows = math.prod(x.shape[:-1]) // data
    if mesh is None or fsdp == 1 or x.shape[0] % data or x.shape[-1] % fsdp or 2 * rows > x.shape[-1]:
        return x
    columns = PartitionSpec("data", *[None] * (x.ndim - 2), "fsdp")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, columns))


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that a tree's arrays lie on, None where that is none with the axes that split a batch."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    return sharding.mesh if set(BATCH_AXES) <= set(sharding.mesh.axis_names) else None


def platform_of(place: Any) -> str:
    """The platform of the devices that something lies on: "cpu", "gpu", "tpu", or another name that a plugin gives.

    What is made for one platform alone is chosen by this value, which is passed on by name: never by the default
    backend, which may be another than that of the devices that a program is for. Not for use inside `jit`.

    Args:
        place: a mesh; a tree of arrays, or of `ShapeDtypeStruct`s with shardings, whose first leaf counts; None, or a
            tree of arrays of the host, for where JAX puts an array that is not told where to go.
    Raises:
        ValueError: a tree of tracers, which lie nowhere.
    """
    if isinstance(place, Mesh):
        return place.devices.flat[0].platform
    leaf = next(iter(jax.tree.leaves(place)), None)
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError("platform_of: arrays inside jit lie nowhere; ask outside, and pass the answer in")
    sharding = getattr(leaf, "sharding", None)
    if sharding is not None:
        return min(sharding.device_set, key=lambda device: device.id).platform
    default: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return default if isinstance(default, str) else (default or jax.devices()[0]).platform


def batch_divisor(mesh: Mesh | None) -> int:
    """What a global batch must be a multiple of."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def _fit(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    fitted = [
        axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=False)
    ]
    return PartitionSpec(*fitted)
