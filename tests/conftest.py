"""What every test lives under: 8 simulated devices, strict dtype promotion, warnings as errors, checked annotations."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
from jaxtyping import install_import_hook

install_import_hook("jaxgeom", "beartype.beartype")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Compilation makes the first example of any test slow, and a run must not depend on the machine's load or on luck.
hypothesis.settings.register_profile("jaxgeom", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxgeom")
