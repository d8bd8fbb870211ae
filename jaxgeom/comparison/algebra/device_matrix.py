"""What matrices on a JAX device have in common, whichever arithmetic runs there."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.comparison.algebra.matrix import Matrix

# The option exists on every platform and changes nothing but GPU kernels.
program = functools.partial(jax.jit, compiler_options={"xla_gpu_deterministic_ops": True})
"""`jax.jit` with deterministic kernels only, so that a second run gives the same bits."""


@program
def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """Product of `[m, p]` and `[p, n]` in the full precision of their dtype: `[m, n]`."""
    return jnp.matmul(left, right, precision="highest")


@dataclasses.dataclass(frozen=True)
class DeviceMatrix(Matrix):
    """A matrix whose products run on one JAX device; results come back as NumPy arrays.

    Attributes:
        device: the device, one of this process's.
    """

    device: Any = dataclasses.field(kw_only=True)

    def put(self, array: Any) -> jax.Array:
        """An array of the host, of any shape, on the device."""
        return jax.device_put(array, self.device)

    def operator(self, upper: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """As `Matrix.operator`; the array stays on the device.

        Only directions are sought with it, whose values are then taken from products of the matrix itself.

        Args:
            upper: float32 `[short, short]`, of which the upper triangle is read.
        """
        held = self.put(np.triu(upper) + np.triu(upper, 1).T)
        return lambda vectors: np.array(multiply(held, self.put(vectors)))
