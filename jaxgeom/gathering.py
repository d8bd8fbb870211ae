"""Bytes of every process, brought to all of them a piece at a time, so that no copy of the whole is made on the way.

All processes call these functions together. What is exchanged at once goes through the devices, each of which holds a
piece of every process for that moment.
"""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AT_ONCE = 32 << 20
"""Bytes of all processes that are exchanged at once, and that a device holds meanwhile."""

_FIRST = 1024  # bytes that are exchanged before sizes are known; longer values take further exchanges
_SIZE = 8  # of them, for the size


def gathered(value: Any) -> list[Any]:
    """A value of every process, of any size, in their order.

    Args:
        value: what this one says; it is pickled.
    """
    said = np.frombuffer(pickle.dumps(value), np.uint8)
    room = _FIRST - _SIZE
    held = np.zeros(_FIRST, np.uint8)
    held[:_SIZE] = np.frombuffer(np.uint64(len(said)).tobytes(), np.uint8)
    held[_SIZE : _SIZE + min(len(said), room)] = said[:room]
    found = np.asarray(multihost_utils.process_allgather(held))
    sizes = np.ascontiguousarray(found[:, :_SIZE]).view(np.uint64)[:, 0].tolist()
    if max(sizes) <= room:
        return [pickle.loads(row[_SIZE : _SIZE + size].tobytes()) for row, size in zip(found, sizes, strict=True)]
    whole = [bytearray(size) for size in sizes]
    for index, place, piece in _pieces(said, sizes):
        whole[index][place : place + len(piece)] = piece.tobytes()
    made = []
    while whole:  # each is let go of as soon as it is read
        made.append(pickle.loads(whole.pop(0)))
    return made


def concatenated(mine: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The arrays of all processes, one after another in their order; no other copy of them is made.

    Args:
        mine: `[rows]`, of this process; the dtype is that of all.
        sizes: bytes of each process's, which all know.
    """
    whole = np.empty(sum(sizes) // mine.itemsize, mine.dtype)
    held, begins = whole.view(np.uint8), np.cumsum([0, *sizes]).tolist()
    for index, place, piece in _pieces(np.ascontiguousarray(mine).view(np.uint8), sizes):
        begin = begins[index] + place
        held[begin : begin + len(piece)] = piece
    return whole


def _pieces(mine: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """What every process has, a piece at a time: whose it is, its place there, and the piece.

    Args:
        mine: uint8 `[size]`, of this process.
        sizes: of all, which all know.
    """
    largest = max(sizes)
    if not largest:
        return
    # Few sizes of what is short, few compilations; one of what is long.
    room = min(max(1, AT_ONCE // jax.process_count()), 1 << (largest - 1).bit_length())
    for place in range(0, largest, room):
        held = np.zeros(room, np.uint8)
        own = mine[place : place + room]
        held[: len(own)] = own
        found = np.asarray(multihost_utils.process_allgather(held))
        for index, size in enumerate(sizes):
            if place < size:
                yield index, place, found[index, : size - place]
