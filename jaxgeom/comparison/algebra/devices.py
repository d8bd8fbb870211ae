"""Where the dense algebra of a comparison runs: LAPACK on the host, or all local accelerators of this process.

- host: float64 LAPACK and BLAS (`matrix.Matrix`).
- GPU: everything in float64 on the device (`float64_matrix.Float64Matrix`).
- TPU: exact integer products on the device, eigenproblems on the host (`integer_matrix.IntegerMatrix`).

All three are float64-grade and choose the same route (Gram matrix or bidiagonal form) by the same rule, so a report
agrees between them within `STATED_BOUND`. What counts entries (sparsity, masks, the rounding null) is exact and stays
on the host on purpose: it is the same everywhere. A matrix is measured on one device, so the number of devices changes
nothing.
"""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any, Literal

import jax

from jaxgeom.comparison.algebra.float64_matrix import Float64Matrix
from jaxgeom.comparison.algebra.integer_matrix import IntegerMatrix
from jaxgeom.comparison.algebra.matrix import Matrix, MatrixMaker
from jaxgeom.errors import UserError

STATED_BOUND = (
    "1e-5 relative, singular values 1e-11 of the largest, mean angles 1e-4 degrees, masks equal entry for entry, "
    "against float64 LAPACK (suite fast: leading values and directions 1e-4, and so its principal mask)"
)
"""The error bound that every path is tested to."""

Arithmetic = Literal["lapack", "float64", "integer"]

_ARITHMETIC: dict[str, Arithmetic] = {"gpu": "float64", "tpu": "integer"}
_WORDS = {
    "lapack": "float64 LAPACK on the host",
    "float64": "float64 matrix products and eigenvectors on the device",
    "integer": "exact integer matrix products on the device, float64 LAPACK on the host",
}


@dataclasses.dataclass(frozen=True)
class Algebra:
    """Which arithmetic runs where.

    Attributes:
        arithmetic: `lapack` on the host, `float64` or `integer` on devices.
        devices: local JAX devices, of one kind; none for `lapack`.
    """

    arithmetic: Arithmetic = "lapack"
    devices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if (self.arithmetic == "lapack") == bool(self.devices):
            raise ValueError(f"arithmetic {self.arithmetic!r} does not go with {len(self.devices)} devices")

    @property
    def description(self) -> str:
        """What ran, and the bound that it was tested to: `device_used` in a report."""
        if not self.devices:
            return f"cpu: {_WORDS[self.arithmetic]}"
        device = self.devices[0]
        bound = f"tested to {STATED_BOUND}, on XLA's CPU devices"
        return f"{device.platform} ({device.device_kind}): {_WORDS[self.arithmetic]}; {bound}"

    @property
    def key(self) -> str:
        """Part of the key of cached spectra: the last bits depend on where they were computed. Empty for the host."""
        if self.arithmetic == "float64":
            return f"float64 {self.devices[0].device_kind}"
        return "" if self.arithmetic == "lapack" else self.arithmetic

    def on(self, device: Any) -> MatrixMaker:
        """Makes matrices on one of the devices."""
        return functools.partial(Float64Matrix if self.arithmetic == "float64" else IntegerMatrix, device=device)


HOST = Algebra()


def choose_algebra(device: str) -> Algebra:
    """The algebra for a `device` setting: `cpu`, `gpu`, `tpu`, or `auto` for the accelerator that JAX uses by default.

    Raises:
        UserError: JAX sees no such device.
    """
    if device == "cpu":
        return HOST
    if device == "auto":
        device = jax.default_backend()
        if device not in _ARITHMETIC:
            return HOST
    try:
        devices = jax.local_devices(backend=device)
    except RuntimeError:
        devices = []
    if not devices:
        raise UserError(f"device = {device!r}: JAX sees no {device} here (it sees {jax.default_backend()})")
    return Algebra(_ARITHMETIC[device], tuple(devices))


class DevicePool:
    """Hands out the devices of an algebra to worker threads, the one with the fewest matrices on it first."""

    def __init__(self, algebra: Algebra) -> None:
        self.algebra = algebra
        self._busy = dict.fromkeys(algebra.devices, 0)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[MatrixMaker]:
        """What makes matrices on a device, for as long as one matrix is measured; on the host `Matrix` itself."""
        if not self._busy:
            yield Matrix
            return
        with self._lock:
            device = min(self._busy, key=lambda candidate: self._busy[candidate])
            self._busy[device] += 1
        try:
            yield self.algebra.on(device)
        finally:
            with self._lock:
                self._busy[device] -= 1
