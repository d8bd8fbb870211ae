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

# Slices in a plane: for parts of one over several hosts libtpu (0.0.42.1) compiles now and then, or ends the process.
_FLAT = ("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")


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

    Every process has devices of both, so that all run every program, and each host has what goes from one to the other.

    Args:
        settings: sizes of the axes of the student's.
        own: devices of the teachers alone, of every process as many, its last ones; None for all, together with the
            student.
        devices: what there is; all of JAX's where None.

    Raises:
        UserError: sizes that do not multiply to the student's devices, teachers' that the processes cannot give as many
            of each, no device left for the student, a part of a slice that libtpu does not compile for,
            of processes on CPU a part with one device of each.
    """
    if own is None:
        mesh = run_mesh(settings, devices)
        return mesh, mesh
    student, teachers = _parted(own, jax.devices() if devices is None else devices)
    return run_mesh(settings, student), run_mesh(MeshSettings(), teachers)


def _parted(own: int, devices: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The student's devices and the teachers', each in the order in which they are listed."""
    of_process: dict[int, list[Any]] = {}
    for device in devices:
        of_process.setdefault(device.process_index, []).append(device)
    count = len(of_process)
    if own % count:
        raise UserError(
            f"--teacher-devices {own}: each of {count} processes gives as many; a multiple of {count} is needed"
        )
    if own >= len(devices):
        several = f" in {count} processes, and the student needs one or more of each"
        said = ", and the student needs one or more" if count == 1 else several
        raise UserError(f"--teacher-devices {own}: there are {len(devices)} devices{said}")
    if count > 1 and devices[0].device_kind in _FLAT:
        raise UserError(
            f"--teacher-devices {own}: for a part of a {devices[0].device_kind} slice of several hosts libtpu does not"
            " compile; leave it out (teachers then lie on all devices, sharded)"
        )
    each, there = own // count, len(devices) // count
    if count > 1 and devices[0].platform == "cpu" and 1 in (each, there - each):
        # Programs of one device a process are not kept in order there: what they exchange is mixed up, or ends them.
        raise UserError(
            f"--teacher-devices {own}: on CPU student and teachers need two or more devices of each of {count}"
            f" processes; there are {there} of each"
        )
    taken = {device for mine in of_process.values() for device in mine[-each:]}
    return [one for one in devices if one not in taken], [one for one in devices if one in taken]


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
