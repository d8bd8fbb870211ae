"""The allocator's settings, seen from outside: the pages that the kernel hands out while a program runs again."""

import os
import statistics
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from jaxgeom.cpu_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def products(x):  # an intermediate of 128 MiB
    return (x @ x.T) @ x

x = jnp.full((5792, 128), 1e-3)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    before = faults()
    products(x).block_until_ready()
    print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_scratch_memory_is_not_asked_for_again():
    def faults(mode: str) -> list[int]:
        one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, env=one_device
        )
        return [int(line) for line in done.stdout.split()]

    pages = 2**27 // 4096
    # The heap grows in the first calls, up to seven of them; without the settings every call gets its pages anew.
    assert statistics.median(faults("kept")[10:]) < pages / 20 and min(faults("default")) > pages / 2
