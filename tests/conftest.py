"""What every test lives under: 8 simulated devices, strict dtype promotion, warnings as errors, checked annotations."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if version("jaxlib").startswith("0.10.") and "--xla_cpu_use_fusion_emitters" not in os.environ["XLA_FLAGS"]:
    # The emitters that fusions had before compile in half the time. Later versions have no such flag: they, on the
    # newest Python in CI, run the same tests with the emitters that users have.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Each worker keeps the programs that it compiled, for its other tests and for the commands that it starts: not for the
# other worker, which could read what is half written, and not in the cache of the user.
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxgeom-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxgeom", "beartype.beartype")
jax.config.update("jax_numpy_dtype_promotion", "strict")
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    # A test compiles longer than it runs, and LLVM's optimisation is most of that. XLA's own passes (fusion, sharding,
    # layout, buffers: the compiled text) are the same without it, and what runs in a process of its own has it.
    jax.config.update("jax_disable_most_optimizations", True)
# A worker holds millions of traced objects, which the collector would walk through again and again.
gc.set_threshold(50_000, 20, 50)
# Compilation makes the first example of any test slow, and a run must not depend on the machine's load or on luck.
hypothesis.settings.register_profile("jaxgeom", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxgeom")

# Minutes each: they start first, so that the workers end together. The others follow in the order of their names.
LONGEST = (
    "test_kills.py",
    "test_calibration.py",
    "comparison/test_agreement.py",
    "training/test_processes.py",
    "training/test_factorisations.py",
    "study/test_study.py",
    "training/test_stopping.py",
    "comparison/test_compare.py",
    "test_fuzzing.py",
    "diagnostics/test_transforms.py",
    "diagnostics/test_measure.py",
    "comparison/algebra/test_devices.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the compiled programs."""
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def jaxgeom(capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command in this process: `jaxgeom("compare", …)` gives its exit status and what it wrote."""
    from jaxgeom.cli import main
    from tests.command_line import Said

    def run(*arguments: Any) -> Said:
        capfd.readouterr()
        status = main(list(map(str, arguments)))
        return Said(status, *capfd.readouterr())

    return run
