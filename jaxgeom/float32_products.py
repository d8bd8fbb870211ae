"""Products of float32 arrays in float32: accelerators round their operands to fewer bits unless told not to."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp


def float32_products(dtype: Any) -> AbstractContextManager[Any]:
    """While programs are traced under it, products of float32 operands are float32 ones, and so are their gradients'.

    By default a GPU rounds the operands to TF32 (10 bits behind the binary point) and a TPU to bfloat16 (7), so that
    what is asked for in float32 agrees with a CPU, and with PyTorch, to 1e-3 where 1e-6 is due. Lower precision is had
    by asking for it, as the compute dtype. What `jax_default_matmul_precision` is set to stands.

    Args:
        dtype: of the operands; on any other than float32 this has no effect.

    Returns:
        A context manager.
    """
    given = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if jnp.dtype(dtype) != jnp.float32 or given is not None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")
