"""`jaxgeom plan` on the devices that are here, what it refuses, and what it is made of."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.load import abstract_parameters
from jaxgeom.planning import planning
from jaxgeom.planning.chips import CHIPS, roofline
from jaxgeom.planning.planning import _within_context
from jaxgeom.planning.programs import PlannedRun, compile_program
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.planning.shapes import PUBLISHED, products
from jaxgeom.planning.topologies import Topology
from jaxgeom.rollout import cpu_parts
from jaxgeom.sharding import make_mesh
from jaxgeom.training.programs import Program
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


@pytest.fixture
def planned(jaxgeom, model, tmp_path, monkeypatch):
    """The numbers of a plan for the first so many devices, by its options; for one the programs compile in seconds."""

    def numbers(count, *options):
        devices = jax.devices()[:count]
        monkeypatch.setattr(jax, "devices", lambda: devices)
        options = ("--topology", "local", *options, "--search", 0, "--json", tmp_path / "plan.json")
        said = jaxgeom("plan", "--model", model, *options)
        assert said.status == 0, said
        return json.loads((tmp_path / "plan.json").read_text())

    return numbers


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


def test_packed_rows_are_planned_as_long_as_they_are(planned):
    """Rows of demonstrations are padded to 24 columns where the longest has 20 tokens, packed ones have 20."""
    options = "--objective sft --max-length 20 --batch-size 2 --packing".split()
    train = planned(1, *options)["programs"]["train"]
    n = 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48 + 32 * 112
    attention = 2 * 4 * 2 * 8 * 20**2 * 2 * 3  # of whole rows: what a segment does not see is masked
    assert train["flops"] == 6 * n * 2 * 20 + attention


def test_answers_of_an_older_policy_are_scored_by_a_program(planned):
    options = "--objective rlvr --max-prompt-length 12 --max-new-tokens 4 --rollout-lag 1".split()
    assert list(planned(1, *options)["programs"]) == ["train", "rollout", "score"]


def test_distillation_holds_its_teacher_and_its_optimizer(planned, model):
    options = "--objective opd --max-prompt-length 12 --max-new-tokens 4 --kl-coefficient 0".split()
    found = planned(1, "--teacher", model, *options)
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


def test_a_teacher_on_its_own_devices_is_planned_there(planned, model):
    """Held by them alone: the student's devices hold it no more, and its scores are sums over its own."""
    options = "--objective opd --max-prompt-length 12 --max-new-tokens 4".split()
    options += "--mesh-data -1 --mesh-fsdp 1 --samples-per-prompt 2 --teacher-devices 1".split()
    found = planned(3, "--teacher", model, *options)
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


def test_answers_of_a_teacher_are_work_of_the_teacher(planned, tmp_path):
    """The rule of its answers is of its parameters, four layers where the student has one."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=4).to_hf()))
    options = "--objective opd --max-prompt-length 12 --max-new-tokens 4 --rollouts teacher --batch-size 8".split()
    parts = planned(1, "--teacher", tmp_path / "teacher", *options)["programs"]["rollout"]["parts"]
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


def test_answers_that_are_sampled_in_parts_count_as_all_of_them(planned, monkeypatch):
    """On one CPU device with two cores 64 answers are two runs side by side."""
    monkeypatch.setattr(cpu_parts, "usable_cores", lambda: 2)
    options = "--objective rlvr --max-prompt-length 16 --max-new-tokens 4 --batch-size 64".split()
    parts = planned(1, *options)["programs"]["rollout"]["parts"]
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


def test_all_that_lies_on_a_device_while_answers_are_sampled_is_counted(planned, model):
    """Where the layers are decoded apart their weights are a second copy, of which decoding alone reads."""
    options = "--objective rlvr --max-prompt-length 16 --max-new-tokens 4 --batch-size 8".split()
    parts = planned(1, *options)["programs"]["rollout"]["parts"]
    shapes = jax.tree.leaves(
        abstract_parameters(Qwen3(Qwen3Config.from_hf(json.loads((model / "config.json").read_text()))))
    )
    state = 3 * 4 * sum(leaf.size for leaf in shapes)  # parameters and two moments
    weights = parts["rollout.decoding_weights"]["output_bytes"]
    rows = 8 * 2 * 2 * 8 * 20 * 4 + 8 * 4 * 256  # the cache, logits; tokens and the like are less than a kilobyte
    for name in ("rollout.prefill", "rollout.decode"):
        there = parts[name]["argument_bytes"] + parts[name]["held_bytes"]
        assert state + weights <= there < state + weights + rows + 1024, name


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


def test_a_plan_that_is_stopped_keeps_nothing(jaxgeom, model, monkeypatch):
    def stopped(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(planning, "plan_run", stopped)
    said = jaxgeom("plan", "--model", model, "--topology", "local", "--objective", "sft")
    assert said.status == 143 and said.err == "jaxgeom: stopped; the same command begins anew\n", said
