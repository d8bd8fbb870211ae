"""A real step compiled for TPUs that are not here."""

import json
import os
import subprocess
import sys

import pytest

from jaxgeom.models import Qwen3Config
from jaxgeom.planning.topologies import open_topology
from jaxgeom.training.mesh_fit import split_devices
from jaxgeom.training.settings import MeshSettings


def test_the_compiler_says_how_much_memory_there_is():
    found = open_topology("v5e:2x2")
    assert (len(found.devices), found.kind, found.chip.name) == (4, "TPU v5 lite", "v5e")
    assert 15 * 2**30 < found.memory < 16 * 2**30  # of 16 GiB, less what the system keeps
    assert len(open_topology("v5e:1x1").devices) == 1
    assert len(open_topology("v4:2x2x2").devices) == 8  # one a chip, though a chip has two cores


def test_hosts_share_a_slice_with_the_teacher_in_boxes():
    student, teacher = split_devices(MeshSettings(), 8, open_topology("v5p:2x2x4").devices)
    for place, mesh in enumerate((student, teacher)):
        assert {chip.coords[1] for chip in mesh.devices.flat} == {place} and mesh.size == 8


def planned(folder, topology, *options):
    """The plan of a small model, by a process of its own, to which libtpu belongs."""
    config = Qwen3Config(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=128,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    command = [sys.executable, "-m", "jaxgeom.cli", "plan", "--model", folder, "--topology", topology, *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run(
        [*command, "--search", "0", "--json", folder / "plan.json"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "plan.json").read_text())["programs"]


@pytest.mark.slow
def test_a_teacher_is_planned_on_chips_of_every_host(tmp_path):
    options = "--objective opd --teacher-devices 2 --samples-per-prompt 2 --max-prompt-length 16 --max-new-tokens 8"
    found = planned(tmp_path, "v5p:2x2x2", "--teacher", tmp_path, *options.split())
    (teacher,) = found["score"]["parts"].values()
    assert teacher["collectives"] and found["train"]["held_bytes"] == teacher["held_bytes"] == 0


@pytest.mark.slow
def test_a_step_is_planned_for_a_slice(tmp_path):
    options = "--objective sft --max-length 256 --batch-size 8 --compute-dtype bfloat16 --remat".split()
    train = planned(tmp_path, "v5e:2x2", *options)["train"]
    tokens = 8 * 256 / 4
    layers, head = 2 * (4 * 256 * 256 + 3 * 256 * 512), 256 * 1024
    # Forward, again, backward; the second time the last product of a layer is not needed.
    linear = tokens * (8 * layers - 2 * 2 * 256 * 512 + 6 * head)
    attention = 2 * 8 / 4 * 2 * 128 * 256**2 * (2 + 2 + 3 + 4)  # layers, rows, heads, causal half of 2·T²·d, products
    assert train["flops"] == pytest.approx(linear + attention, rel=1e-3)
    assert train["seconds"]["binds"] in ("flops", "memory", "interconnect")
