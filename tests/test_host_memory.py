"""The allocator's settings, seen from outside: the pages that the kernel hands out while a program runs again."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from jaxgeom.host_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def products(x):  # an intermediate of 128 MiB
    return (x @ x.T) @ x

x = jnp.full((5792, 128), 1e-3)
for _ in range(3):
    products(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    products(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_scratch_memory_is_not_asked_for_again():
    def faults(mode: str) -> int:
        one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, env=one_device
        )
        return int(done.stdout)

    pages = 4 * 2**27 // 4096
    # The heap may grow once more, by one call's scratch in four; without the settings every call gets its pages anew.
    assert faults("kept") < pages / 2 < faults("default")
