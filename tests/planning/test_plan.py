"""`jaxgeom plan` on the devices that are here, what it refuses, and what it is made of."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.load import abstract_parameters
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.planning import planning
from jaxgeom.planning.chips import CHIPS, roofline
from jaxgeom.planning.planning import _advice, _in_parts, _parts, _within_context
from jaxgeom.planning.programs import Planned, PlannedRun, Refused, compile_program
from jaxgeom.planning.search import Largest, largest_batch
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.planning.shapes import PUBLISHED, products
from jaxgeom.planning.topologies import Topology
from jaxgeom.rollout import cpu_parts
from jaxgeom.sharding import make_mesh
from jaxgeom.training.mesh_fit import require_batch_divides
from jaxgeom.training.programs import Program
from jaxgeom.training.settings import SFTSettings
from tests.tiny import tiny_config

# Parameters of the published models, as the hub counts them (a tied head once).
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_their_parameters(name):
    config = Qwen3Config.from_hf(PUBLISHED[name])
    shapes = jax.tree.leaves(abstract_parameters(Qwen3(config)))
    assert sum(leaf.size for leaf in shapes) == PARAMETERS[name]


def test_what_a_token_meets():
    """All matrices of a dense model; of a mixture the chosen experts: 3.3 billion less the embedding."""
    dense = Qwen3Config.from_hf(PUBLISHED["qwen3-8b"])
    norms = 36 * (2 * 4096 + 2 * 128) + 4096
    assert sum(products(dense)) == PARAMETERS["qwen3-8b"] - 151_936 * 4096 - norms
    layers, head = products(Qwen3Config.from_hf(PUBLISHED["qwen3-30b-a3b"]))
    assert layers + 2 * head == pytest.approx(3.35e9, rel=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a `config.json` alone: no weights, no tokenizer."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=1).to_hf()))
    return directory


def test_a_step_is_planned_to_the_last_operation(jaxgeom, model, tmp_path):
    options = "--topology local --objective sft --max-length 16 --batch-size 16 --mesh-data 2 --search 0".split()
    said = jaxgeom("plan", "--model", model, *options, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    assert max(map(len, said.out.splitlines())) <= 100
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "expert": 1} and found["fits"] is True
    train, tokens = found["programs"]["train"], 16 * 16 / 8
    n = 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48 + 32 * 112  # q, k, v, o; feed-forward; the head, which is the embedding
    assert train["expected_flops"] == 6 * n * tokens
    attention = 16 / 8 * 4 * 2 * 8 * 16**2 * 2 * 3  # rows, heads, 2·T²·d, two products forward and four backward
    assert train["flops"] == 6 * n * tokens + attention
    state = (
        3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(Qwen3(tiny_config(num_hidden_layers=1)))))
    )
    assert state / 4 <= found["resident_bytes"] <= state / 4 + 4096  # split over fsdp; the few scales are whole
    assert train["needed_bytes"] >= train["argument_bytes"] + train["temp_bytes"]
    moved = {(one["kind"], tuple(one["axes"])) for one in train["collectives"]}
    assert any("fsdp" in axes for _, axes in moved) and all(set(axes) <= {"data", "fsdp"} for _, axes in moved)


def test_packed_rows_are_planned_as_long_as_they_are(jaxgeom, model, tmp_path, monkeypatch):
    """Rows of demonstrations are padded to 24 columns where the longest has 20 tokens, packed ones have 20."""
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [first])
    options = "--topology local --objective sft --max-length 20 --batch-size 2 --search 0 --packing".split()
    said = jaxgeom("plan", "--model", model, *options, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    train = json.loads((tmp_path / "plan.json").read_text())["programs"]["train"]
    n = 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48 + 32 * 112
    attention = 2 * 4 * 2 * 8 * 20**2 * 2 * 3  # of whole rows: what a segment does not see is masked
    assert train["flops"] == 6 * n * 2 * 20 + attention


def test_answers_of_an_older_policy_are_scored_by_a_program(jaxgeom, model, tmp_path, monkeypatch):
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [first])
    options = "--topology local --objective rlvr --max-prompt-length 12 --max-new-tokens 4 --search 0".split()
    said = jaxgeom("plan", "--model", model, *options, "--rollout-lag", 1, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    assert list(json.loads((tmp_path / "plan.json").read_text())["programs"]) == ["train", "rollout", "score"]


def test_distillation_holds_its_teacher_and_its_optimizer(jaxgeom, model, tmp_path, monkeypatch):
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [first])  # six programs: for one device they compile in seconds
    options = "--topology local --objective opd --max-prompt-length 12 --max-new-tokens 4".split()
    options += "--kl-coefficient 0 --search 0".split()
    said = jaxgeom("plan", "--model", model, "--teacher", model, *options, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert list(found["programs"]) == ["train", "rollout", "score"]
    assert (found["batch_size"], found["devices"]) == (8, 1)
    parts = found["programs"]["rollout"]["parts"]
    student, weights = parts["rollout.prefill"], parts["rollout.decoding_weights"]["output_bytes"]
    # Two moments, the teacher and the start, each as large as the parameters that are read; the weights for decoding.
    assert 3.9 * student["argument_bytes"] < student["held_bytes"] - weights < 4.1 * student["argument_bytes"]
    assert found["programs"]["train"]["held_bytes"] > 0  # the teacher
    # The student's own scores are those of its step.
    assert set(found["programs"]["score"]["parts"]) == {"score.reference", "score.teacher0"}
    assert found["programs"]["rollout"]["flops"] == sum(
        part["flops"] for part in found["programs"]["rollout"]["parts"].values()
    )


def test_a_teacher_on_its_own_devices_is_planned_there(jaxgeom, model, tmp_path, monkeypatch):
    """Held by them alone: the student's devices hold it no more, and its scores are sums over its own."""
    devices = jax.devices()[:3]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    options = "--topology local --objective opd --max-prompt-length 12 --max-new-tokens 4 --search 0".split()
    options += "--mesh-data -1 --mesh-fsdp 1 --samples-per-prompt 2 --teacher-devices 1".split()
    said = jaxgeom("plan", "--model", model, "--teacher", model, *options, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["devices"], found["batch_size"], found["mesh"]["data"]) == (3, 2, 2)
    (teacher,) = found["programs"]["score"]["parts"].values()
    parts = found["programs"]["rollout"]["parts"]
    student, weights = parts["rollout.prefill"], parts["rollout.decoding_weights"]["output_bytes"]
    parameters = 4 * sum(
        leaf.size for leaf in jax.tree.leaves(abstract_parameters(Qwen3(tiny_config(num_hidden_layers=1))))
    )
    assert found["programs"]["train"]["held_bytes"] == teacher["held_bytes"] == 0
    # The optimizer's moments and the weights for decoding, and no teacher.
    assert 2 * parameters <= student["held_bytes"] - weights < 2 * parameters + 64
    assert 3 * parameters <= found["resident_bytes"] < 3 * parameters + 64
    assert parameters < teacher["argument_bytes"] < 1.1 * parameters
    # Both rows, where a device of the student's has one, and no backward pass, which is two thirds of a step.
    assert teacher["flops"] == 2 * found["programs"]["train"]["flops"] / 3 and not teacher["collectives"]


def test_answers_of_a_teacher_are_work_of_the_teacher(jaxgeom, model, tmp_path, monkeypatch):
    """The rule of its answers is of its parameters, four layers where the student has one."""
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [first])
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=4).to_hf()))
    options = "--topology local --objective opd --max-prompt-length 12 --max-new-tokens 4 --search 0".split()
    options += ["--rollouts", "teacher", "--batch-size", 8, "--json", tmp_path / "plan.json"]
    said = jaxgeom("plan", "--model", model, "--teacher", tmp_path / "teacher", *options)
    assert said.status == 0, said
    parts = json.loads((tmp_path / "plan.json").read_text())["programs"]["rollout"]["parts"]
    layers = 4 * (32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48)
    assert parts["rollout.prefill"]["expected_flops"] == 2 * layers * 8 * 12
    assert parts["rollout.decode"]["expected_flops"] == 2 * (layers + 32 * 112) * 8 * 3


def test_what_does_not_fit_ends_with_1_and_says_what_would(jaxgeom, model, tmp_path):
    """A batch of a million rows: compiled from shapes, nothing of it is allocated."""
    options = "--topology local --objective sft --max-length 128 --search 0 --remat --batch-size".split()
    said = jaxgeom("plan", "--model", model, *options, 1 << 20, "--json", tmp_path / "plan.json")
    assert said.status == 1
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] is False and 0 < found["largest_batch"] < 1 << 20 and found["largest_batch"] % 8 == 0
    assert f"--batch-size {found['largest_batch']}" in said.out and "does not fit" in said.out


def test_what_is_planned_is_said_before_the_largest_batch_is_looked_for(jaxgeom, model, monkeypatch):
    """Which takes minutes, and may end the process."""

    def lost(*_):
        raise UserError("the compiler is gone")

    monkeypatch.setattr(planning, "largest_batch", lost)
    options = "--topology local --objective sft --max-length 16 --batch-size 16".split()
    said = jaxgeom("plan", "--model", model, *options)
    assert (said.status, said.err) == (2, "jaxgeom: the compiler is gone\n")
    assert "of rule" in said.out and "all-gather" in said.out and "largest batch" not in said.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--topology v9:2x2 --objective sft", "--topology v9:2x2: a kind of TPU"),
        ("--topology v5e:2x4x1 --objective sft", "--topology v5e:2x4x1: a kind of TPU"),
        ("--topology v5e:64x64 --objective sft", "the largest slice of v5e is 16x16"),
        ("--topology v5p:2x2x64 --objective sft", "the largest slice of v5p is 16x20x28"),
        ("--topology v5e:3x3 --objective sft", "the first two sizes are even"),
        ("--topology v5e:2x6 --objective sft", "no such slice; of v5e there are 1x1, 2x2, 2x4, 4x4"),
        ("--topology v5p:2x4x2 --objective sft", "no such slice; of v5p there are 2x2x1, 2x2x2, 2x2x4, 2x4x4 and"),
        ("--topology local --objective sft --max-length 2147483647 --batch-size 1048576", "a layer's activations of"),
        ("--topology local --objective sft --json /", "--json /: no file can be written there"),
        ("--topology local --objective sft --json no/such/plan.json", "no file can be written there"),
        ("--topology local --objective sft --mesh-tensor 3", "do not multiply to the 8 devices"),
        ("--topology local --objective sft --batch-size 12", "batch_size=12 is not divisible by the 8 batch shards"),
        ("--topology local --objective rlvr --batch-size 24 --samples-per-prompt 16", "not divisible by samples_per"),
        ("--topology local --objective opd", "opd needs --teacher"),
        ("--topology local --objective sft --teacher qwen3-8b", "sft has no teacher"),
        ("--topology local --objective rlvr --teacher-devices 2", "--teacher-devices 2: rlvr has no teacher"),
        ("--topology local --objective opd --teacher qwen3-8b --teacher-devices 8", "there are 8 devices"),
        ("--topology local --objective opd --teacher qwen3-8b --teacher-devices 0", "teacher_devices=0: must be"),
        ("--topology local --objective sft --mesh-expert 2", "the model is dense"),
        ("--topology local --objective sft --batch-size 0", "batch_size=0: must be positive"),
        ("--topology local --objective sft --max-length 0", "max_length=0: must be positive"),
        ("--topology local --objective rlvr --max-length 9", "max_length=9: nothing reads it with objective=rlvr"),
        ("--topology local --objective rlvr --packing", "packing=True: nothing reads it with objective=rlvr"),
        ("--topology local --objective sft --max-new-tokens 9000", "max_new_tokens=9000: nothing reads it with"),
    ],
)
def test_bad_input_is_one_line(jaxgeom, model, options, said):
    found = jaxgeom("plan", "--model", model, *options.split())
    assert found.status == 2 and said in found.err and len(found.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "llama"}, "model_type='llama' is not supported"),
        ({"hidden_size": 1 << 24, "intermediate_size": 1 << 24, "num_hidden_layers": 4096}, "no devices hold them"),
    ],
)
def test_a_config_without_sense_is_one_line(jaxgeom, tmp_path, changed, said):
    """The compiler itself would end the process where its counts of bytes overflow."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf() | changed))
    found = jaxgeom("plan", "--model", tmp_path, "--topology", "local", "--objective", "sft", "--max-length", 64)
    assert found.status == 2 and said in found.err and len(found.err.splitlines()) == 1


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_here_is_one_line(platform):
    """JAX ends with an error, or for a platform that it knows with an assertion."""
    command = [sys.executable, "-m", "jaxgeom", "plan", "--model", "qwen3-0.6b", "--topology", "local"]
    ended = subprocess.run(
        [*command, "--objective", "sft"], env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended
    assert f"JAX_PLATFORMS={platform}: no such device is here" in ended.stderr


def test_64_bits_are_refused_as_by_train(jaxgeom, model):
    with jax.enable_x64(True):
        said = jaxgeom("plan", "--model", model, "--topology", "local", "--objective", "sft", "--max-length", 64)
    assert said.status == 2 and said.err.startswith("jaxgeom: JAX_ENABLE_X64: a run is in float32"), said


def test_an_unknown_model_is_one_line(jaxgeom, tmp_path):
    found = jaxgeom("plan", "--model", tmp_path / "no", "--topology", "local", "--objective", "sft")
    assert found.status == 2 and "qwen3-30b-a3b" in found.err and len(found.err.splitlines()) == 1


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


def test_rows_are_planned_no_longer_than_the_model_takes():
    """`train` makes none that are."""
    config, given = tiny_config(), {"model": "m", "topology": "local"}
    assert config.max_position_embeddings == 256
    found, said = _within_context(PlanSettings(**given, objective="sft", max_length=300), config, None)
    assert found.max_length == 256 and said == [
        "--max-length 300: the model takes 256 tokens, as long rows are planned"
    ]
    fits = PlanSettings(**given, objective="sft", max_length=256)
    assert _within_context(fits, config, None) == (fits, [])
    fits = PlanSettings(**given, objective="opd", teacher="t", max_prompt_length=200, max_new_tokens=56)
    short = tiny_config(max_position_embeddings=128)
    assert _within_context(fits, config, short) == (fits, [])
    found, said = _within_context(dataclasses.replace(fits, rollouts="teacher"), config, short)
    assert (found.max_prompt_length, found.max_new_tokens) == (72, 56)
    said_of_it = "with the answers the model's context of 128 tokens leaves 72, prompts as long are planned"
    assert said == [f"--max-prompt-length 200: {said_of_it}"]
    endless = dataclasses.replace(fits, max_new_tokens=256)
    found, said = _within_context(endless, config, None)
    assert found == endless and said[0].startswith("--max-new-tokens 256: the model takes 256 tokens, and `train` no")


def test_answers_that_are_sampled_in_parts_count_as_all_of_them(jaxgeom, model, tmp_path, monkeypatch):
    """On one CPU device with two cores 64 answers are two runs side by side."""
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [first])
    monkeypatch.setattr(cpu_parts, "usable_cores", lambda: 2)
    options = "--topology local --objective rlvr --max-prompt-length 16 --max-new-tokens 4 --search 0".split()
    said = jaxgeom("plan", "--model", model, *options, "--batch-size", 64, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    parts = json.loads((tmp_path / "plan.json").read_text())["programs"]["rollout"]["parts"]
    products, head = 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48, 32 * 112
    attention = 4 * 2 * 8 * 2  # heads, 2·d, two products, a query and key
    # To within what drawing a token takes.
    decoded = 64 * 3 * (2 * (products + head) + attention * 20)
    assert parts["rollout.decode"]["flops"] == pytest.approx(decoded, rel=0.05)
    # Of the one layer all columns are needed for keys and values alone, the last one for what comes behind them.
    kept = 32 * 8 * (2 + 2)
    assert parts["rollout.prefill"]["flops"] == 64 * (2 * (kept * 16 + products - kept + head) + attention * 16)
    cache = 64 * 2 * 2 * 8 * 20 * 4  # keys and values of two heads, float32
    assert parts["rollout.decode"]["argument_bytes"] > cache


def test_all_that_lies_on_a_device_while_answers_are_sampled_is_counted(jaxgeom, model, tmp_path, monkeypatch):
    """Where the layers are decoded apart their weights are a second copy, of which decoding alone reads."""
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [first])
    options = "--topology local --objective rlvr --max-prompt-length 16 --max-new-tokens 4 --search 0".split()
    said = jaxgeom("plan", "--model", model, *options, "--batch-size", 8, "--json", tmp_path / "plan.json")
    assert said.status == 0, said
    parts = json.loads((tmp_path / "plan.json").read_text())["programs"]["rollout"]["parts"]
    shapes = jax.tree.leaves(
        abstract_parameters(Qwen3(Qwen3Config.from_hf(json.loads((model / "config.json").read_text()))))
    )
    state = 3 * 4 * sum(leaf.size for leaf in shapes)  # parameters and two moments
    weights = parts["rollout.decoding_weights"]["output_bytes"]
    rows = 8 * 2 * 2 * 8 * 20 * 4 + 8 * 4 * 256  # the cache, logits; tokens and the like are less than a kilobyte
    for name in ("rollout.prefill", "rollout.decode"):
        there = parts[name]["argument_bytes"] + parts[name]["held_bytes"]
        assert state + weights <= there < state + weights + rows + 1024, name


def test_the_program_that_binds_first_decides():
    programs = [needing("train", 8, fixed=100, each=1), needing("score", 8, fixed=0, each=10)]
    assert largest_batch(programs, 8, 8, 1000, lambda *_: None, 0).batch == 96


def test_a_roofline_names_what_binds():
    chip = CHIPS["TPU v5 lite"]
    found = roofline(chip, flops=197e12, memory=819e9 / 2, sent=3 * 200e9)
    assert tuple(found) == (1.0, 0.5, 3.0) and found.binds == "interconnect" and found.seconds == 3.0


@pytest.mark.parametrize(
    "refusal",
    [
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.50G of 15.75G hbm.",
        "Ran out of memory on HBM, the total memory required for HLO temporaries (25.50G) exceeds available HBM.",
    ],
)
def test_a_compiler_that_runs_out_of_memory_says_how_much_was_asked(refusal):
    class Refusing:
        def lower(self, *_):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {refusal}")

    (device, *_), gib = jax.devices(), 2**30
    mesh = make_mesh(1, devices=[device])
    place = NamedSharding(mesh, PartitionSpec())
    read, kept = (jax.ShapeDtypeStruct((size, gib // 4), jnp.float32, sharding=place) for size in (5, 2))
    run = PlannedRun({"score": Program(Refusing(), (mesh, read))}, [read, kept], mesh)
    found = compile_program(run, "score", Topology("v5e:2x2", [device], 16 * gib, None))
    assert (found.arguments, found.held, found.counts) == (5 * gib, 2 * gib, None)
    assert found.needed == 25.5 * gib + 2 * gib
    # The number is rounded: that it does not fit is what the refusal says.
    tight = run._replace(resident=[read])
    assert compile_program(tight, "score", Topology("v5e:2x2", [device], int(25.5 * gib), None)).needed > 25.5 * gib


def test_what_the_compiler_refuses_otherwise_is_one_line(jaxgeom, model, monkeypatch):
    """As a kernel that needs more of the scratchpad than there is; status 1 would say that the run does not fit."""

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of vmem.\nmore")

    monkeypatch.setattr(Program, "lower", refuse)
    said = jaxgeom("plan", "--model", model, "--topology", "local", "--objective", "sft", "--max-length", 64)
    assert said.status == 2 and said.err == (
        "jaxgeom: train: the compiler for local refuses it: RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:"
        " Ran out of vmem.\n"
    )


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


def test_a_plan_that_is_stopped_keeps_nothing(jaxgeom, model, monkeypatch):
    def stopped(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(planning, "plan_run", stopped)
    said = jaxgeom("plan", "--model", model, "--topology", "local", "--objective", "sft")
    assert said.status == 143 and said.err == "jaxgeom: stopped; the same command begins anew\n", said
