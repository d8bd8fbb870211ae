"""A teacher on devices of its own: scored there, with the numbers that it has beside the student."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import OPDSettings
from jaxgeom.training.mesh_fit import _parted, require_batch_divides, split_devices
from tests import launching
from tests.tiny import write_tiny_model
from tests.training import aside, runs

COMMON = dict(steps=2, batch_size=8, max_new_tokens=3, optimizer=AdamWSettings(learning_rate=1e-3))


def same_batch(one, other):
    """To rounding; at index 0 and at padding log-probabilities mean nothing."""
    assert one.keys() == other.keys()
    for name, found in one.items():
        np.testing.assert_allclose(np.asarray(found)[:, 1:], other[name][:, 1:], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_teacher_is_scored_on_its_own_devices():
    # By the gap: both are scored before the step.
    together, alone = (aside.taught(own, keep_tokens=0.5) for own in (None, 4))
    lies = [{leaf.sharding for leaf in jax.tree.leaves(tree)} for tree in (alone.student, alone.teachers)]
    student, teacher = ({device for one in found for device in one.device_set} for found in lies)
    assert student == set(jax.devices()[:4]) and teacher == set(jax.devices()[4:])
    kernel = alone.teachers[0]["layers"]["attention"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    assert np.any(alone.batch["advantages"])
    same_batch(together.batch, alone.batch)


def test_several_teachers_may_have_fewer_devices_than_the_student():
    """Rows of one teacher are as many as its devices divide, which the student's need not: they went there uneven."""
    together, alone = (aside.taught(own, teachers=2, rows=24) for own in (None, 2))
    assert np.any(alone.batch["teacher_log_probs"])
    same_batch(together.batch, alone.batch)


TWO = """
import json, os
from orbax.checkpoint import multihost
from jaxgeom import processes
from tests.training import aside
processes.join()
found = [aside.taught(4, teachers=teachers, keep_tokens=0.5).batch for teachers in (1, 2)]
print("SAID", json.dumps([{name: array.tolist() for name, array in one.items()} for one in found]), flush=True)
multihost.get_barrier_sync_fn()(key="said", timeout_ms=100_000)  # who ends takes its connections with it
os._exit(0)
"""


def test_over_processes_each_has_devices_of_both():
    """Two with four devices each, of which two are the teachers', as one with eight; the hosts carry the scores."""
    ended = launching.end(launching.start([[[]], [[]]], devices=4, script=TWO), seconds=300)
    here = [aside.taught(4, teachers=teachers, keep_tokens=0.5).batch for teachers in (1, 2)]
    for one in ended:
        said = [line for line in one.out.splitlines() if line.startswith("SAID")]
        assert len(said) == 1, one
        for mine, theirs in zip(here, json.loads(said[0].removeprefix("SAID")), strict=True):
            same_batch(mine, {name: np.array(array) for name, array in theirs.items()})


class Device(NamedTuple):
    """What is read of one."""

    process_index: int
    place: int
    platform: str = "tpu"
    device_kind: str = "TPU v5"


def devices(*of_processes):
    """So many of each process."""
    return [Device(index, place) for index, count in enumerate(of_processes) for place in range(count)]


@pytest.mark.parametrize(
    ("own", "there", "teachers"),
    [
        (3, devices(8), [Device(0, 5), Device(0, 6), Device(0, 7)]),
        (4, devices(4, 4), [Device(0, 2), Device(0, 3), Device(1, 2), Device(1, 3)]),
        (2, devices(4, 4)[::2] + devices(4, 4)[1::2], [Device(0, 3), Device(1, 3)]),  # listed in turn
    ],
)
def test_the_last_devices_of_every_process_are_the_teachers(own, there, teachers):
    student, taught = _parted(own, there)
    assert taught == teachers and student == [device for device in there if device not in teachers]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"teacher_devices": 0}, "teacher_devices=0: must be positive"),
        ({"teacher_devices": 8}, "--teacher-devices 8: there are 8 devices, and"),
        ({"teacher_devices": 3}, "batch_size=8 is not divisible by the 3 devices"),
        ({"teacher_devices": 4, "support": "full"}, "support=full the student's step reads the teacher"),
    ],
)
def test_what_cannot_be_split_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        settings = OPDSettings(**COMMON, **given)
        require_batch_divides(settings, split_devices(settings.mesh, settings.teacher_devices)[0])


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            4,
            "--teacher-devices 4: on CPU student and teachers need two or more devices of each of 4 processes",
        ),
        (12, "--teacher-devices 12: on CPU student and teachers need two or more devices"),
        (6, "--teacher-devices 6: each of 4 processes gives as many; a multiple of 4 is needed"),
        (16, "--teacher-devices 16: there are 16 devices in 4 processes, and the student needs one or more of each"),
    ],
)
def test_what_processes_cannot_give_is_refused(own, words):
    with pytest.raises(UserError, match=words):
        split_devices(OPDSettings(**COMMON).mesh, own, [one._replace(platform="cpu") for one in devices(4, 4, 4, 4)])


def test_parts_of_a_slice_that_libtpu_dies_at_are_refused():
    """At some of them it aborts the process ("device_id < kMaxDeviceCount"); one host's own are compiled."""
    there = [chip._replace(device_kind="TPU v5 lite") for chip in devices(4, 4)]
    with pytest.raises(UserError, match="--teacher-devices 4: for a part of a TPU v5 lite slice of several hosts"):
        split_devices(OPDSettings(**COMMON).mesh, 4, there)
    assert _parted(2, there[:4]) == (there[:2], there[2:4])


@pytest.mark.slow
def test_a_run_with_a_teacher_aside_learns_what_one_beside_teaches(tmp_path):
    """And one is gone on with by the other."""
    inputs = runs.write_inputs(tmp_path)
    teacher = write_tiny_model(tmp_path / "teacher", seed=5, hidden_size=48)
    logs = []
    for name, own in (("beside", None), ("aside", 4)):
        line = runs.arguments(
            inputs, tmp_path / name, data=inputs / "prompts.jsonl", eval_data=None, samples_per_prompt=2, steps=2,
            save_every=1, teacher=teacher, teacher_devices=own,
        )  # fmt: skip
        assert runs.main([line[0], "opd", *line[2:]]) == 0
        logs.append(runs.logged(tmp_path / name))
    assert (tmp_path / "beside" / "samples.jsonl").read_bytes() == (tmp_path / "aside" / "samples.jsonl").read_bytes()
    for mine, theirs in zip(*logs, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    line = runs.arguments(
        inputs, tmp_path / "aside", data=inputs / "prompts.jsonl", eval_data=None, samples_per_prompt=2, steps=3,
        save_every=1, teacher=teacher,
    )  # fmt: skip
    assert runs.main([line[0], "opd", *line[2:]]) == 0 and runs.steps(tmp_path / "aside") == [0, 1, 2, 3]
