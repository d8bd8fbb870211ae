"""The search for the largest batch, and what is advised where a run does not fit."""

import contextlib
import itertools

import jax
import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.planning.planning import _advice, _in_parts, _parts
from jaxgeom.planning.programs import Planned, Refused
from jaxgeom.planning.search import Largest, largest_batch
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.planning.topologies import Topology
from jaxgeom.training.mesh_fit import require_batch_divides
from jaxgeom.training.settings import SFTSettings


def needing(name, batch, *, fixed, each):
    return Planned(name, fixed, batch * each, 0, 0, 0, None, None, 0.0)


def test_the_largest_batch_is_found_with_few_compilations():
    """What a program needs is a constant and so much a sequence; the search sees the sum alone."""
    compiled = []

    def at(name, batch):
        compiled.append(batch)
        return needing(name, batch, fixed=100, each=7)._replace(temporary=400 + 7 * batch)

    start = [at("train", 8)]
    compiled.clear()
    assert largest_batch(start, 8, 8, 1000, at, 3) == Largest(64, True, 72)  # 100 + 400 + 7·64 = 948; 72 would be 1004
    assert len(compiled) <= 3
    compiled.clear()
    assert largest_batch([at("train", 80)], 80, 8, 1000, at, 3) == Largest(64, True, 72)
    compiled.clear()
    assert largest_batch(start, 8, 8, 300, at, 3) == Largest(0, False, 8)
    assert largest_batch([needing("train", 8, fixed=100, each=9)], 8, 8, 1000, at, 0) == Largest(96, False)


@pytest.mark.parametrize("power", [0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("start", [8, 8000])
def test_what_is_found_is_near_to_the_largest_however_memory_grows(power, start):
    """A few compilations close in on it, from a batch that is far too small or too large."""
    asked = []

    def at(name, batch):
        asked.append(batch)
        return needing(name, batch, fixed=10**6, each=0)._replace(temporary=int(1e5 + 3e3 * batch**power))

    found = largest_batch([at("train", start)], start, 8, 4 * 10**6, at, 8)
    true = int((2.9e6 / 3e3) ** (1 / power))
    assert found.is_compiled and found.batch <= true < found.too_large <= found.batch + max(8, found.batch // 8)
    assert len(asked) == len(set(asked)) <= 9 and all(batch % 8 == 0 for batch in asked)


@pytest.mark.parametrize(
    ("needs", "tries"),
    [
        # Of `decode` the line is known, and `train`, looked at next, fits at twice the batch.
        ({"decode": (0, 200, 30), "train": (100, 400, 4)}, 2),
        ({"decode": (0, 200, 30), "train": (100, 400, 4)}, 3),
        # Of both only what is needed at the batch is known, and `decode` would not fit at twice that.
        ({"train": (0, 850, 1), "decode": (0, 100, 100)}, 1),
        ({"train": (0, 850, 1), "decode": (0, 100, 100)}, 2),
        ({"train": (0, 850, 1), "decode": (0, 100, 100), "score": (50, 0, 1)}, 4),
    ],
)
def test_at_the_largest_batch_all_programs_fit(needs, tries):
    """Each was found at another batch: what one was compiled at is nothing that all take."""

    def at(name, batch):
        fixed, more, each = needs[name]
        return Planned(name, fixed, more + each * batch, 0, 0, 0, None, None, 0.0)

    found = largest_batch([at(name, 8) for name in needs], 8, 8, 1000, at, tries)
    assert found.batch >= 8 and found.is_compiled
    assert {name: at(name, found.batch).needed <= 1000 for name in needs} == dict.fromkeys(needs, True), found


def test_what_fits_is_known_of_all_programs_whatever_they_need():
    """Of one that is known only where it does not fit the line from zero on says too little of smaller batches."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        names = ["train", "rollout.prefill", "rollout.decode", "score"][: random.integers(1, 5)]
        needs = {name: (*map(int, random.integers(0, 400, 2)), random.uniform(0.05, 60)) for name in names}
        unit = int(random.choice([1, 3, 8]))
        batch, tries = unit * int(random.integers(1, 13)), int(random.integers(1, 10))

        def at(name, batch, needs=needs):
            fixed, more, each = needs[name]
            return Planned(name, fixed, int(more + each * batch), 0, 0, 0, None, None, 0.0)

        largest = largest_batch([at(name, batch) for name in names], batch, unit, 1000, at, tries)
        if largest.batch and largest.is_compiled:
            found.append(all(at(name, largest.batch).needed <= 1000 for name in names))
    assert len(found) > 600 and all(found)


def test_an_estimate_without_end_is_a_batch_that_the_mesh_divides():
    """What needs as much at any batch says nothing of the largest."""
    found = largest_batch([Planned("train", 8, 0, 0, 0, 0, None, None, 0.0)], 3, 3, 9, compiles_nothing, 0)
    assert found.batch % 3 == 0


def test_a_batch_that_the_compiler_refuses_is_too_large():
    """What was planned at the batch that was asked for is not lost with it."""
    asked = []

    def at(name, batch):
        asked.append(batch)
        if batch > 20:
            raise Refused("train: the compiler for v5e:1x1 refuses it: an index overflows")
        return needing(name, batch, fixed=0, each=1)

    assert largest_batch([at("train", 8)], 8, 1, 1000, at, 2) == Largest(8, True, 89) and asked == [8, 1000, 89]
    asked.clear()
    assert largest_batch([at("train", 8)], 8, 8, 24, at, 9) == Largest(16, True, 24) and asked == [8, 24, 16]


def compiles_nothing(*_, **__):
    raise AssertionError("nothing more is to be compiled")


def advised(short, memory, largest, compile_at=compiles_nothing, **settings):
    """What is said of a run whose programs need too much; eight rows on one shard."""
    given = {"model": "m", "topology": "v5e:1x1", "objective": "rlvr", "remat": True, "search": 0} | settings
    topology = Topology("v5e:1x1", [], memory, None)
    return _advice(PlanSettings(**given), short, 8, 1, [(1, 2 << 30)], largest, topology, compile_at)


def test_a_batch_of_which_no_part_may_be_left_out_is_advised_in_parts():
    """Eight answers to one prompt are the least, and in parts they fit: more devices are not needed."""
    train = needing("train", 8, fixed=2 << 30, each=1 << 30)
    said = advised([train], 5 << 30, Largest(0, False, 8))
    assert said[1:] == [
        "no batch fits on this mesh at once: more devices in --mesh-fsdp or --mesh-tensor are needed",
        "or the same batch in parts (not compiled): --micro-batches 4",  # 2 + 8/4 GiB of 5; by 3 eight is not divided
    ]

    def compile_at(name, batch, **changes):
        return needing(name, batch // changes["micro_batches"], fixed=2 << 30, each=1 << 30)

    said = advised([train], 5 << 30, Largest(0, False, 8), compile_at, search=2)
    assert said[-1] == "or the same batch in parts: --micro-batches 4, with which train needs 4.0 GiB"
    alone = advised([needing("score", 8, fixed=0, each=1 << 30)], 5 << 30, Largest(0, False, 8))
    assert alone[1:] == ["no batch fits on this mesh: more devices in --mesh-fsdp or --mesh-tensor are needed"]


@pytest.mark.parametrize(("memory", "beyond"), [(2 << 30, 1), (3 << 29, 1), (1 << 30, 2), (10 << 27, 1)])
def test_as_many_devices_are_advised_as_are_needed(memory, beyond):
    """2 GiB lie on one device: of 1.5 GiB two would hold them."""
    said = advised([needing("train", 8, fixed=2 << 30, each=1)], memory, Largest(0, False, 8))
    assert f"more than {beyond} devices are needed" in said[1]


def test_what_is_advised_and_refused_by_the_compiler_is_said():
    def refuses(*_, **__):
        raise Refused("train: the compiler for v5e:1x1 refuses it: E1001")

    train = needing("train", 8, fixed=2 << 30, each=1 << 30)
    said = advised([train], 5 << 30, Largest(0, False, 8), refuses, search=2, remat=False)
    assert said[1] == "with --remat: train: the compiler for v5e:1x1 refuses it: E1001"
    assert said[-1] == "in parts: --micro-batches 4: train: the compiler for v5e:1x1 refuses it: E1001"


def test_the_program_that_binds_first_decides():
    programs = [needing("train", 8, fixed=100, each=1), needing("score", 8, fixed=0, each=10)]
    assert largest_batch(programs, 8, 8, 1000, lambda *_: None, 0).batch == 96


@pytest.mark.parametrize("shards", [1, 4, 8])
def test_parts_of_a_batch_that_are_advised_are_taken_by_train(shards):
    mesh = jax.make_mesh((shards, 1), ("data", "fsdp"), devices=jax.devices()[:shards])
    for rows, least in itertools.product((1, 3, 4), (1, 2, 3)):
        batch, rate = rows * shards, AdamWSettings(learning_rate=1.0)
        taken = []
        for parts in range(least, batch + 1):
            with contextlib.suppress(UserError):
                settings = SFTSettings(steps=1, save_every=1, batch_size=batch, micro_batches=parts, optimizer=rate)
                require_batch_divides(settings, mesh)
                taken.append(parts)
        assert _parts(batch, shards, least) == (taken[0] if taken else None), (batch, least)


def test_parts_that_are_advised_were_compiled():
    """Where the first number of them is still too much, the next is tried, and each says what it needs."""
    asked = []

    def compile_at(name, batch, micro_batches):
        asked.append((name, batch, micro_batches))
        return needing(name, 1, fixed=(5 << 30) // micro_batches, each=0)

    said = _in_parts(24, 2, 2, 1 << 30, 9, compile_at)
    assert asked == [("train", 24, 2), ("train", 24, 3), ("train", 24, 4), ("train", 24, 6)]
    assert all("it is still too much: --micro-batches" in line for line in said[:3])
    assert said[3] == "or the same batch in parts: --micro-batches 6, with which train needs 0.8 GiB"
    assert len(_in_parts(24, 2, 2, 1 << 30, 2, compile_at)) == 2
    (guess,) = _in_parts(24, 2, 5, 1 << 30, 0, compile_at)
    assert "not compiled" in guess and guess.endswith("--micro-batches 6")
    assert _in_parts(2, 2, 2, 1 << 30, 3, compile_at) == []
