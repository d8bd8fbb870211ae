"""The devices that a plan is for: those that are here, or a TPU slice that is not, as its compiler describes it."""

import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgeom.errors import UserError
from jaxgeom.planning.chips import CHIPS, Chip

LOCAL = "local"
_FORM = re.compile(r"(v4|v5e|v5p|v6e):(\d+)x(\d+)(?:x(\d+))?")
# Chips of one host; smaller slices are parts of one.
_HOST = (2, 2, 1)
# The largest slices that there are; libtpu aborts at a v5e beyond its own.
_LARGEST = {"v4": (16, 16, 16), "v5e": (16, 16), "v5p": (16, 20, 28), "v6e": (16, 16)}
# The slices that Cloud TPU has; of three sizes also all multiples of 4x4x4.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# What libtpu asks for where it finds no TPU, and that several processes may compile with it at a time.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Topology(NamedTuple):
    """Devices, and what is known of each.

    Attributes:
        name: as it was asked for.
        devices: in the order in which JAX lists them.
        memory: bytes of main memory that a program may use on each; None where that is unknown.
        chip: published rates; None where the kind of device is not in the table.
    """

    name: str
    devices: list[Any]
    memory: int | None
    chip: Chip | None

    @property
    def kind(self) -> str:
        """What the devices call themselves."""
        return self.devices[0].device_kind


def open_topology(name: str) -> Topology:
    """The devices of that name.

    Args:
        name: `local`, or a kind of TPU and the shape of a slice: `v5e:8x8`, `v5p:2x2x4`.

    Raises:
        UserError: no such topology, libtpu is not installed, or JAX finds no device here.
    """
    if name == LOCAL:
        devices = jax.devices()
        return Topology(name, devices, _local_memory(devices), CHIPS.get(devices[0].device_kind))
    devices = _described(name, *slice_of(name))
    return Topology(name, devices, available_memory(devices[0]), CHIPS.get(devices[0].device_kind))


def slice_of(name: str) -> tuple[str, tuple[int, ...]]:
    """The kind of TPU and the sizes of a slice.

    Args:
        name: as of `open_topology`.

    Raises:
        UserError: there is no such slice.
    """
    form = _FORM.fullmatch(name)
    sizes = () if form is None else tuple(int(size) for size in form.groups()[1:] if size is not None)
    flat = form is not None and form[1] in ("v5e", "v6e")
    if form is None or min(sizes) < 1 or (len(sizes) == 3) == flat:
        raise UserError(
            f"--topology {name}: a kind of TPU and the shape of a slice is needed (v5e:8x8, v6e:4x4, v5p:2x2x4,"
            " v4:2x2x2), or local for the devices that are here"
        )
    most = _LARGEST[form[1]]
    if any(size > limit for size, limit in zip(sorted(sizes), most, strict=True)):
        raise UserError(f"--topology {name}: the largest slice of {form[1]} is {'x'.join(map(str, most))}")
    if any(size > 1 and size % 2 for size in sizes[:2]):
        raise UserError(f"--topology {name}: a host holds 2x2 chips, so that the first two sizes are even, or 1")
    if "x".join(map(str, sizes)) not in (_FLAT if flat else _SMALL) and (flat or any(size % 4 for size in sizes)):
        there = ", ".join(_FLAT) if flat else f"{', '.join(_SMALL)} and those whose sizes are multiples of 4"
        raise UserError(f"--topology {name}: there is no such slice; of {form[1]} there are {there}")
    return form[1], sizes


def _described(name: str, kind: str, sizes: tuple[int, ...]) -> list[Any]:
    from jax.experimental import topologies

    for variable, value in _WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}  # one device a chip, as on VMs
    three = (*sizes, 1)[:3]
    if any(size < of_host for size, of_host in zip(three, _HOST, strict=True)):
        options["chips_per_host_bounds"] = list(three)
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except (RuntimeError, ValueError) as refused:
        if "libtpu" in str(refused) or "not installed" in str(refused) or "tpu_library_path" in str(refused):
            raise UserError(
                f"--topology {name}: the compiler for TPUs is not installed; in a clone of jaxgeom:"
                " python -m pip install -e '.[tpu]'"
            ) from None
        raise UserError(f"--topology {name}: {str(refused).splitlines()[0]}") from None


def available_memory(device: Any) -> int | None:
    """Bytes of its memory that the compiler gives to programs: what it says when it is asked for too much.

    Args:
        device: of a described topology.
    """
    place = jax.sharding.SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((1 << 42,), jnp.int8, sharding=place)
    try:
        jax.jit(lambda x: x + jnp.int8(1)).lower(huge).compile()
    except jax.errors.JaxRuntimeError as refused:
        found = re.search(r"exceeds available HBM \(([\d.]+)([KMGT]?)\)", str(refused))
        return None if found is None else read_size(found[1], found[2])
    return None


def read_size(number: str, unit: str) -> int:
    """Bytes of what the compiler writes as `15.75G`."""
    return int(float(number) * _UNITS[unit])


def _local_memory(devices: list[Any]) -> int | None:
    """Of an accelerator what its allocator may take; of simulated CPU devices each one's part of the host's."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit")
