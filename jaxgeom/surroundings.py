"""What a process has around it that decides what it computes: packages, settings of JAX, flags of XLA."""

import os
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from jaxgeom.errors import UserError

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "grain", "transformers", "tokenizers", "jinja2", "math-verify")
_PROGRAM_SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_random_seed_offset", "jax_high_dynamic_range_gumbel", "jax_numpy_dtype_promotion", "jax_disable_jit",
    "jax_debug_nans", "jax_debug_infs", "jax_use_shardy_partitioner", "jax_softmax_custom_jvp",
    "jax_allow_f16_reductions", "jax_disable_most_optimizations", "jax_optimization_level",
)  # fmt: skip


def surroundings() -> dict[str, Any]:
    """What decides, besides arguments and files, which programs this process compiles and what it draws and tokenizes:
    versions of packages, settings of JAX, flags of XLA but for those that name a file or folder."""
    flags = [flag for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") for flag in os.environ.get(name, "").split()]
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "jax": {name: str(getattr(jax.config, name, None)) for name in _PROGRAM_SETTINGS},
        "flags": sorted(flag for flag in flags if "/" not in flag),
    }


def refuse_64_bits() -> None:
    """Refuses JAX's 64 bits, by which draws, and with them samples, would be others.

    Raises:
        UserError: `JAX_ENABLE_X64` is set.
    """
    if jnp.result_type(float) == jnp.float64:
        raise UserError("JAX_ENABLE_X64: a run is in float32 or bfloat16 (--compute-dtype); unset it")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
