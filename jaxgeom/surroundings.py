"""What a process has around it that decides what it computes: packages, settings of JAX, flags of XLA."""

import os
from importlib import metadata
from typing import Any

import jax

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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
