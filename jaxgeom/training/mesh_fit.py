"""Whether a mesh divides a model: what it cannot split is whole on every device, which is said before a run begins."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config
from jaxgeom.sharding import batch_divisor, make_mesh
from jaxgeom.training.settings import MeshSettings, RunSettings


def run_mesh(settings: MeshSettings, devices: Any = None) -> Mesh:
    """The mesh that a run asks for.

    Args:
        settings: sizes of its axes.
        devices: what it is laid over; all of this process's where None.

    Raises:
        UserError: sizes that do not multiply to the number of devices.
    """
    try:
        return make_mesh(*dataclasses.astuple(settings), devices=devices)
    except ValueError as error:
        raise UserError(str(error)) from error


def split_devices(settings: MeshSettings, own: int | None, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
    """The mesh of the student, and that of the teachers: the same unless they have devices of their own.

    Args:
        settings: sizes of the axes of the student's.
        own: devices of the teachers alone, the last ones; None for all, together with the student.
        devices: what there is; all of JAX's where None.

    Raises:
        UserError: sizes that do not multiply to the student's devices, no device left for the student, devices of
            several processes.
    """
    if own is None:
        mesh = run_mesh(settings, devices)
        return mesh, mesh
    devices = jax.devices() if devices is None else devices
    if len({device.process_index for device in devices}) > 1:
        raise UserError(
            f"--teacher-devices {own}: answers would go from the student's devices to others, which JAX does within one"
            " process alone; leave it out (teachers then lie on all devices, sharded)"
        )
    if own >= len(devices):
        raise UserError(f"--teacher-devices {own}: there are {len(devices)} devices, and the student needs one or more")
    return run_mesh(settings, devices[:-own]), run_mesh(MeshSettings(), devices[-own:])


def require_batch_divides(settings: RunSettings, mesh: Mesh) -> None:
    """Refuses a batch of which the mesh's devices would not have equal parts.

    Args:
        settings: of the run.
        mesh: its devices.

    Raises:
        UserError: naming the batch and what it must be a multiple of.
    """
    own = getattr(settings, "teacher_devices", None)
    if own is not None and settings.batch_size % own:
        raise UserError(f"batch_size={settings.batch_size} is not divisible by the {own} devices of --teacher-devices")
    if settings.batch_size % (batch_divisor(mesh) * settings.micro_batches):
        raise UserError(
            f"batch_size={settings.batch_size} is not divisible by the {batch_divisor(mesh)} batch shards of the mesh"
            f" times micro_batches={settings.micro_batches}"
        )


def mesh_notes(config: Qwen3Config, mesh: Mesh) -> list[str]:
    """`undivided` of the model that is trained, and what an expert axis does not do.

    Args:
        config: its own.
        mesh: with the axes of `jaxgeom.sharding`.

    Raises:
        UserError: an expert axis for a model that has no experts: its devices would all do the same work.
    """
    expert = mesh.shape["expert"]
    if expert > 1 and not config.is_moe:
        raise UserError(
            f"--mesh-expert {expert}: the model is dense, without experts to split; give the devices to --mesh-fsdp,"
            " --mesh-data or --mesh-tensor"
        )
    found = undivided(config, mesh)
    if expert > 1:
        found.append(
            f"--mesh-expert {expert}: those devices divide the experts, each works for its own, and do all else alike;"
            " --mesh-fsdp divides all"
        )
    return found


def undivided(config: Qwen3Config, mesh: Mesh) -> list[str]:
    """A sentence for each part of a model that an axis of the mesh does not divide.

    Args:
        config: the model's; of one without experts the expert axis splits nothing, which is not said.
        mesh: with the axes of `jaxgeom.sharding`.
    """
    fsdp, tensor, expert = (mesh.shape[axis] for axis in ("fsdp", "tensor", "expert"))
    inner = config.moe_intermediate_size if config.is_moe else config.intermediate_size
    parts = [
        ("fsdp", fsdp, "columns of the model's width", config.hidden_size),
        ("tensor", tensor, "attention heads", config.num_attention_heads),
        ("tensor", tensor, "key-value heads", config.num_key_value_heads),
        ("tensor", tensor, "feed-forward units", inner),
        ("tensor", tensor, "rows of the vocabulary", config.vocab_size),
        ("expert", expert, "experts", config.num_experts),
    ]
    return [
        f"--mesh-{axis} {size} does not divide the {count} {what}: they are whole on each of those devices"
        for axis, size, what, count in parts
        if count % size
    ]
