"""The allocator's settings: on CPU runs alone, and what they do to memory that is given back."""

import ctypes
import subprocess
import sys
import types

import pytest

from jaxgeom import cpu_memory
from jaxgeom.cpu_memory import keep_freed_memory

PROGRAM = """
import ctypes
from jaxgeom.cpu_memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def still_held(size=64 << 20):
    before, block = resident(), libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return (resident() - before) >> 20

print(still_held())
assert keep_freed_memory("cpu")
print(still_held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_a_freed_block_stays_with_the_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back < 8 and kept > 56  # MiB, of a block of 64


class Allocator:
    """Stands for the C library: takes every setting and notes it."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        self.settings[parameter] = value
        return 1


@pytest.fixture
def allocator(monkeypatch):
    found = Allocator()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(cpu_memory, "jax", types.SimpleNamespace(config=types.SimpleNamespace(update=lambda *_: None)))
    return found


@pytest.mark.parametrize(
    ("device", "platform", "kept"),
    [
        ("auto", "cpu", True),
        ("auto", "gpu", False),
        ("auto", "tpu", False),
        ("cpu", "gpu", True),
        ("gpu", "cpu", False),
    ],
)
def test_memory_is_kept_on_cpu_runs_alone(allocator, monkeypatch, device, platform, kept):
    monkeypatch.setattr(cpu_memory, "platform_of", lambda place: platform)
    assert keep_freed_memory(device) is kept
    assert bool(allocator.settings) is kept
    if kept:  # no mapping of its own for a large block, nothing trimmed
        assert allocator.settings[-4] == 0 and allocator.settings[-1] == -1


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory("cpu")
