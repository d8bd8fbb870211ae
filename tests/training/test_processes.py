"""One run over several real processes: what it learns is what one process learns; a mistake or a loss is said."""

import json
import shutil
import signal
import time
import types
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from jaxgeom import processes
from jaxgeom.checkpoints.checksums import one_line
from jaxgeom.data.chat import load_tokenizer
from jaxgeom.data.prepared import Limits
from jaxgeom.data.preparing import prepare_demonstrations
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.surroundings import surroundings
from jaxgeom.training import RunInputs, SFTSettings, train
from jaxgeom.training.checkpointing import _as_os_error, find_resume
from tests import launching
from tests.tiny import write_tiny_model
from tests.training import runs

KINDS = ("confined", "rlvr", "opd", "taught")
"""What is trained over processes: SFT is what `confined` does too; `taught` is OPD by two teachers."""


def words(kind, inputs, out, **changes):
    """A run of the smallest size; a batch of four, for four devices."""
    given = {"batch_size": 4, "save_every": 1, "steps": 4, "lr": 1e-2, "eval_data": None, "max_new_tokens": None}
    if kind == "confined":  # and measured as it goes, also against an early step
        given |= {"confine": "updates", "basis": "random", "basis_rank": 4, "geometry_every": 1, "geometry_step": 2}
    elif kind != "sft":
        given |= {"data": inputs / "prompts.jsonl", "samples_per_prompt": 2, "max_new_tokens": 3}
    if kind == "rlvr":  # two updates a rollout: a checkpoint between them holds what is left of it
        given |= {"reward": "tests.training.runs:by_letters", "eval_data": inputs / "prompts.jsonl", "eval_limit": 4}
        given |= {"updates_per_rollout": 2}
    if kind in ("opd", "taught"):
        given["teacher"] = inputs / "teacher"
    if kind == "taught":
        given |= {"data": inputs / "of_two.jsonl", "keep_tokens": 0.5, "keep_by": "random"}
    found = runs.arguments(inputs, out, **given | changes)
    more = ["--teacher", str(inputs / "model")] if kind == "taught" else []
    objective = {"confined": "sft", "taught": "opd"}.get(kind, kind)
    return [found[0], objective, *found[2:], *more]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = runs.write_inputs(tmp_path_factory.mktemp("inputs"))
    write_tiny_model(folder / "teacher", seed=5)
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    named = [row | {"teacher": ("teacher", "model")[place % 2]} for place, row in enumerate(rows)]
    (folder / "of_two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    return folder


def test_one_process_meets_nobody():
    assert processes.exchanged({"a": 1}) == [{"a": 1}] and processes.of_all(lambda: 3) == [3]
    assert processes.from_first(lambda: 4) == 4 and processes.together(lambda: 5) == 5
    processes.require_same({"a": 1})
    with pytest.raises(UserError, match="mine"):
        processes.from_first(lambda: (_ for _ in ()).throw(UserError("mine")))
    assert processes.share_of(7) == slice(0, 7) and processes.Signals().turn(15) == 15


def test_rows_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(processes.share_of(8))
    assert [list(range(8))[part] for part in shares] == [[0, 1, 2], [3, 4], [5, 6, 7]]


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WITHOUT_ANSWER = (
    json.dumps({"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": ""}]}) + "\n"
)
REFUSED = {
    "different arguments": ({}, {"lr": 0.02}, "optimizer.learning_rate: 0.01 in process 0, 0.02 in process 1"),
    "a mesh of one alone": ({}, {"mesh_tensor": 3}, "settings.mesh.tensor: 1 in process 0, 3 in process 1"),
    "another place": ({"out": "there"}, {"out": "elsewhere"}, 'out: "there" in process 0, "elsewhere" in process 1'),
    "other content": ({"data": "demos.jsonl"}, {"data": "demos.jsonl"}, "the processes disagree: contents.data"),
    "a template of another content": (
        {"chat_template": "mine.jinja"},
        {"chat_template": "mine.jinja"},
        "the processes disagree: contents.chat_template",
    ),
    "a bad row of the second's share": (
        {"data": "bad.jsonl"},
        {"data": "bad.jsonl"},
        "jaxgeom: bad.jsonl: row 12 (line 13): 'messages': the assistant's message 1 is empty; so are 1 more of 16",
    ),
    "a mesh": ({"mesh_tensor": 3}, {"mesh_tensor": 3}, "do not multiply to the 2 devices"),
    "a batch": ({"batch_size": 3}, {"batch_size": 3}, "batch_size=3 is not divisible by the 2 batch shards"),
    "a teacher's own devices": ({"teacher_devices": 1}, {"teacher_devices": 1}, "a multiple of 2 is needed"),
    "all of them": ({"teacher_devices": 2}, {"teacher_devices": 2}, "there are 2 devices in 2 processes, and"),
    "a bucket of one alone": ({"out": "there"}, {"out": "gs://bucket/there"}, '"gs://bucket/there" in process 1'),
    "another verifier": (
        {"reward": "judging:by_length"},
        {"reward": "judging:by_length"},
        "verifiers.judging:by_length",
    ),
    "not shared": ({"out": "run"}, {"out": "run"}, "run: process 1 does not see what process 0 writes there"),
}
"""What the first process is told, what the second is, and what both say."""


@pytest.mark.slow
def test_what_processes_cannot_do_together_is_refused_by_all(inputs, tmp_path):
    """In one line each, without waiting for a lost process; nothing is written, not even an empty directory."""
    folders = {index: tmp_path / str(index) for index in range(2)}
    lines = (inputs / "demos.jsonl").read_text().splitlines(keepends=True)
    for index, folder in folders.items():
        folder.mkdir()
        (folder / "demos.jsonl").write_text("".join(lines[index:]))
        bad = [line if number not in (12, 14) else _WITHOUT_ANSWER for number, line in enumerate(lines)]
        (folder / "bad.jsonl").write_text("".join(bad))
        (folder / "mine.jinja").write_text(f"{'{#'}{index}{'#}'}{TEMPLATE}")
        (folder / "judging.py").write_text(
            f"def by_length(texts, rows): return [len(text) + {index} for text in texts]"
        )

    def line(changes):
        given = {"out": tmp_path / "run"} | changes
        kind = "opd" if "teacher_devices" in given else "rlvr" if "reward" in given else "sft"
        return words(kind, inputs, given.pop("out"), **given)

    commands = [[line(told[index]) for told in REFUSED.values()] for index in range(2)]
    before = time.monotonic()
    ended = launching.each(
        launching.end(
            launching.start(commands, devices=1, directories=folders, environment={"PYTHONDONTWRITEBYTECODE": "1"})
        )
    )
    assert time.monotonic() - before < 250
    for process in ended:
        for name, one in zip(REFUSED, process, strict=True):
            assert one.status == 2 and one.err.count("\n") == 1 and REFUSED[name][2] in one.err, (name, one)
    assert not (tmp_path / "run").exists()
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders.values()] == [
        ["bad.jsonl", "demos.jsonl", "judging.py", "mine.jinja"]
    ] * 2


MEETING = """
import io, json, os, pathlib, sys
import numpy as np
from rich.console import Console
from jaxgeom import gathering, processes
from jaxgeom.data import preparing
from jaxgeom.data.chat import load_tokenizer
from jaxgeom.data.prepared import Limits
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.errors import UserError
from jaxgeom.progress import Reporter
processes.join()
is_first = processes.is_first()
said = [processes.as_first_has(np.array([is_first, not is_first, True])).tolist()]
gathering.AT_ONCE = 2048
folder = pathlib.Path(json.loads(sys.argv[1])[0][0])
tokenizer = load_tokenizer(folder / "model")
given = {"settings": RowSettings(on_bad_row="skip"), "limits": Limits(vocabulary=112, context=24), "stops": (2,)}
reads, real = [], preparing.read_row_file
preparing.read_row_file = lambda path: reads.append(path) or real(path)
for where in (None, "kept" if is_first else "none", "kept"):
    spoken = io.StringIO()
    rows = preparing.prepare_demonstrations(
        folder / "rows.jsonl", tokenizer, **given, by_shares=True, kept=None if where is None else folder / where,
        reporter=Reporter(Console(file=spoken, width=1000)),
    )
    said.append([rows.digest, rows.notes, spoken.getvalue(), len(reads)])
    if is_first:
        rows.keep(folder / "kept")
try:
    (processes.from_first if is_first else processes.together)(lambda: 1)
except UserError as error:
    said.append([str(error), error.status])
print("SAID", json.dumps(said), flush=True)
os._exit(0)
"""


def test_processes_share_their_work_and_those_that_do_different_things_say_so(inputs, tmp_path):
    """What each computes is made one; rows are made by shares; and where one of them would have gone on alone, and the
    other ended with status 0, both end."""
    shutil.copytree(inputs / "model", tmp_path / "model")
    lines = (inputs / "demos.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join([*lines[:9], _WITHOUT_ANSWER, *lines[9:]] * 5))
    ended = launching.end(launching.start([[[str(tmp_path)]]] * 2, devices=1, script=MEETING), seconds=120)
    limits = Limits(vocabulary=112, context=24)
    whole = prepare_demonstrations(
        tmp_path / "rows.jsonl", load_tokenizer(tmp_path / "model"), settings=RowSettings(on_bad_row="skip"),
        limits=limits, stops=(2,),
    )  # fmt: skip
    assert "5 of 85 rows are left out" in whole.notes[0]
    for one in ended:
        (line,) = [line for line in one.out.splitlines() if line.startswith("SAID")]
        bits, *prepared, (text, status) = json.loads(line.removeprefix("SAID"))
        assert bits == [True, False, True] and status == 2 and "process 1 does something else than process 0" in text
        said = [spoken for *_, spoken, _ in prepared]
        assert [(digest, notes, reads) for digest, notes, _, reads in prepared] == [
            (whole.digest, whole.notes, reads) for reads in (1, 2, 2)
        ]
        assert said[1] == f"{tmp_path}/rows.jsonl: process 1 does not have kept rows of it: made anew\n" + said[0]
        assert said[0] == said[2] and whole.notes[0] in said[0]


def _timed_out():
    """As Orbax says that the others did not come."""
    try:
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out.")
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError("Timed out while waiting for async_write_complete barrier.") from error


@pytest.mark.parametrize(
    ("raised", "is_loss"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), True),
        (_timed_out, True),
        (ValueError("NOT_FOUND: Error opening zarr driver"), False),
        (OSError(28, "No space left on device"), False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
    ],
    ids=["gloo", "gloo as a value", "barrier", "file", "disk", "memory"],
)
def test_a_process_that_is_lost_is_no_fault_of_the_file_that_is_written(monkeypatch, raised, is_loss):
    """Exit status 2, a mistake of the user's, would end the job for good; one process knows of no other."""
    for several in (True, False):
        monkeypatch.setattr(processes, "count", lambda several=several: 1 + several)
        for room in (lambda: _as_os_error("step"), lambda: one_line("step"), lambda: processes.told("run")):
            with pytest.raises(Exception) as found, room():
                if callable(raised):
                    raised()
                raise raised
            lost = several and is_loss
            assert isinstance(found.value, processes.ProcessLost) == lost
            assert not lost or (found.value.status == 1 and "another process is lost" in str(found.value))


READING = """
import json, pathlib, sys, time
import jax, numpy as np
from jaxgeom import processes
from jaxgeom.training import load_start
processes.join()
folder, until = pathlib.Path(json.loads(sys.argv[1])[0][0]), time.monotonic() + 100
if processes.is_first():
    params = load_start(f"{folder}/run@1", mesh=None, compute_dtype="float32")[1]
    print("SAID", float(sum(np.abs(leaf).sum(dtype=np.float64) for leaf in jax.tree.leaves(params))))
    (folder / "read").touch()
while not (folder / "read").exists() and time.monotonic() < until:
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_one_of_several_processes_reads_a_run_without_the_others(inputs, tmp_path):
    """As `compare --prompts --distributed` does, whose first process alone asks the models: Orbax waited for all."""
    assert runs.train(inputs, tmp_path / "run", steps=1, eval_data=None, max_new_tokens=None) == 0
    alone = float(sum(np.abs(leaf).sum(dtype=np.float64) for leaf in runs.weights(tmp_path / "run", 1)))
    first, second = launching.end(launching.start([[[str(tmp_path)]]] * 2, devices=1, script=READING), seconds=200)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert f"SAID {alone}" in first.out


@pytest.mark.slow
def test_a_process_that_dies_while_a_checkpoint_is_begun_is_said_to_be_lost(inputs, tmp_path):
    given = words("sft", inputs, tmp_path / "run")
    fallen = {1: tmp_path / "run/checkpoints/.2.partial.orbax-checkpoint-tmp"}
    first, second = launching.end(launching.start([[given]] * 2, devices=1, falls=fallen), seconds=300)
    ((one,),) = launching.each([first])
    assert (one.status, second.status) == (1, -signal.SIGKILL), one
    assert "another process is lost" in one.err and one.err.count("\n") == 1


def test_processes_that_would_draw_or_compile_otherwise_are_refused(monkeypatch):
    """Of the same arguments and files other answers would come: each process takes its share of the same draws."""

    def met(described, at):
        with jax.threefry_partitionable(False):
            return [described, described | {"surroundings": surroundings()}]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "exchanged", met)
    with pytest.raises(UserError, match=r"surroundings\.jax\.jax_threefry_partitionable: \"True\" in process 0"):
        processes.require_same({"a": 1})
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=/tmp/1")
    flags = surroundings()["flags"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/2 --xla_a=1")
    assert flags == surroundings()["flags"] == ["--xla_a=1", *flags[1:]]


def test_a_process_that_is_lost_at_the_first_meeting_is_said(monkeypatch, tmp_path):
    def met(described, at):
        raise jax.errors.JaxRuntimeError("Connection reset by peer")

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "exchanged", met)
    settings = SFTSettings(steps=1, batch_size=1, save_every=1, optimizer=AdamWSettings(learning_rate=1.0))
    with pytest.raises(processes.ProcessLost, match="another process is lost"):
        train(settings, RunInputs(model=tmp_path, data=tmp_path), tmp_path / "run")


@pytest.mark.parametrize(("counts", "refused"), [((2, 2), False), ((2, 1), True)])
def test_every_process_has_as_many_devices(monkeypatch, counts, refused):
    devices = [types.SimpleNamespace(process_index=index) for index, many in enumerate(counts) for _ in range(many)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    for name, value in {"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(UserError, match="process 0 has 2 devices, process 1 has 1") if refused else nullcontext():
        processes.join(patience=1)


# Of a job whose other task has not come: JAX takes the coordinator from its list of nodes.
SLURM = {
    "JAX_PROCESS_ID": "", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "status"),
    [({"JAX_NUM_PROCESSES": "2"}, 2), ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, 2), (SLURM, 1)],
    ids=["never comes", "unreachable", "cluster"],
)
def test_a_process_that_never_comes_or_cannot_be_reached_is_reported(given, status, tmp_path):
    """An address that was given may be a mistake; on a cluster a host is missing, and another start may find it."""
    command = ["train", "sft", "--model", "m", "--data", "d", "--steps", "1", "--batch-size", "1", "--lr", "1"]
    command += ["--out", str(tmp_path / "run"), "--distributed"]
    started = launching.start(
        [[command]], script=launching.ALONE, patience=(3, 10, 1.0), alone=given is not SLURM, environment=given
    )
    (ended,) = launching.end(started, seconds=120)
    assert ended.status == status and ended.err.count("\n") == 1 and not list(tmp_path.iterdir()), ended
    assert "not all processes came within 3 s" in ended.err
    assert ("or the coordinator localhost:" in ended.err) == (status == 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "here"}, "JAX_COORDINATOR_ADDRESS=here: HOST:PORT is needed"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS=: HOST:PORT is needed"),
        ({"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID=x: a number is needed"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2: one of 0 to 1 is needed, each once: JAX_NUM_PROCESSES is 2"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1: one of 0 to 1"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0: must be positive"),
    ],
)
def test_variables_that_say_nothing_are_refused(monkeypatch, given, said):
    default = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    for name, value in (default | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        processes.join(patience=1)


TOLD = """
import os, signal, time
from jaxgeom import processes
from jaxgeom.interruption import Interrupted, stoppable
try:
    with stoppable():
        processes.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except Interrupted as stop:
    os._exit(stop.status)
"""


def test_a_joined_process_still_hears_the_signal():
    """JAX has a handler of its own for it, which would take the place of ours."""
    (ended,) = launching.end(launching.start([[]], count=1, script=TOLD, alone=True), seconds=300)
    assert ended.status == 128 + signal.SIGTERM, ended


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """Every kind of run by two processes with two devices each, and by one with four."""
    folder = tmp_path_factory.mktemp("trained")
    of_count = {}
    for count in (2, 1):
        commands = [words(kind, inputs, folder / f"{kind}{count}") for kind in KINDS]
        of_count[count] = launching.each(launching.end(launching.start([commands] * count, devices=4 // count)))
    return folder, of_count


def same_run(one, two, *, step=4, **tolerance):
    """Logs, samples and the last weights of two runs, to the last bit where no tolerance is given."""
    assert (one / "samples.jsonl").read_bytes() == (two / "samples.jsonl").read_bytes()
    first, second = runs.logged(one), runs.logged(two)
    assert [sorted(row) for row in first] == [sorted(row) for row in second]
    for mine, theirs in zip(first, second, strict=True):
        for name, value in mine.items():
            np.testing.assert_allclose(theirs[name], value, **{"rtol": 0, **tolerance}, err_msg=name)
    for mine, theirs in zip(runs.weights(one, step), runs.weights(two, step), strict=True):
        np.testing.assert_allclose(theirs, mine, **{"rtol": 0, **tolerance})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(trained, kind):
    folder, said = trained
    for process in (*said[1], *said[2]):
        assert [one.status for one in process] == [0] * len(KINDS), process
    assert said[2][0][0].out and not said[2][1][0].out  # one alone speaks
    one, two = folder / f"{kind}1", folder / f"{kind}2"
    same_run(one, two, rtol=1e-3, atol=1e-4)
    assert runs.steps(one) == runs.steps(two) == [0, 1, 2, 3, 4]
    settings = [json.loads((run / "config.json").read_text())["settings"] for run in (one, two)]
    assert settings[0] == settings[1] and (two / "done").exists() and not list(two.glob(".*"))


@pytest.mark.slow
def test_teachers_on_devices_of_every_process_teach_what_those_of_one_do(inputs, tmp_path):
    """Two teachers on two devices of each of two processes; one process is killed, both go on, as if undisturbed."""

    def go(name, count, **fate):
        given = {"batch_size": 8, "teacher_devices": 4, "steps": 2}
        commands = [[words("taught", inputs, tmp_path / name, **given)]] * count
        return launching.end(launching.start(commands, devices=8 // count, **fate), seconds=600)

    fallen, other = go("cut", 2, falls={0: tmp_path / "cut" / "checkpoints" / "1"})
    assert fallen.status == -signal.SIGKILL and other.status not in (0, 2, -signal.SIGKILL), other
    for name, count in (("cut", 2), ("two", 2), ("one", 1)):
        ended = launching.each(go(name, count))
        assert [process[0].status for process in ended] == [0] * count, ended
    same_run(tmp_path / "two", tmp_path / "cut", step=2)
    same_run(tmp_path / "one", tmp_path / "two", step=2, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_after_a_kill_of_one_process_or_of_all_the_same_commands_end_as_if_undisturbed(inputs, trained, tmp_path):
    """Whoever is lost, the others end by themselves; every launch goes on with the run that the last one cut.

    One run an objective, for brevity.
    """
    plan = {"confined": ([0], 3), "rlvr": ([0, 1], 1), "opd": ([1], 2)}
    cut = []
    for kind, (lost, step) in plan.items():
        commands = [*cut, words(kind, inputs, tmp_path / kind)]
        reached = tmp_path / kind / "checkpoints" / str(step)
        ended = launching.end(launching.start([commands] * 2, falls=dict.fromkeys(lost, reached)), seconds=600)
        for index, process in enumerate(ended):
            if index in lost:
                assert process.status == -signal.SIGKILL, process
            else:
                assert process.status not in (0, 2, -signal.SIGKILL), process
        assert all(one.status == 0 for process in launching.each(ended) for one in process[: len(cut)]), ended
        assert not (tmp_path / kind / "done").exists()
        cut = [commands[-1]]
    assert [one[0].status for one in launching.each(launching.end(launching.start([cut] * 2)))] == [0, 0]
    for kind in plan:
        same_run(trained[0] / f"{kind}2", tmp_path / kind)


@pytest.mark.slow
def test_a_checkpoint_of_four_processes_is_read_by_one_and_by_two(inputs, trained, tmp_path):
    unmeasured = {"geometry_every": None, "geometry_step": None}

    def same_weights(run, step):
        for mine, theirs in zip(runs.weights(run, step), runs.weights(trained[0] / "confined1", step), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    begun = tmp_path / "four"
    command = words("confined", inputs, begun, steps=2, **unmeasured)
    ended = launching.each(launching.end(launching.start([[command]] * 4, devices=1)))
    assert [one[0].status for one in ended] == [0] * 4, ended
    same_weights(begun, 2)
    for count in (1, 2):
        out = shutil.copytree(begun, tmp_path / str(count))
        started = launching.start([[words("confined", inputs, out, **unmeasured)]] * count, devices=4 // count)
        ended = launching.each(launching.end(started))
        assert [one[0].status for one in ended] == [0] * count, ended
        same_weights(out, 4)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_same_step_in_all(inputs, tmp_path):
    out = tmp_path / "run"
    command = words("sft", inputs, out, steps=100_000, save_every=100_000)
    started = launching.start([[command]] * 2, script=launching.ALONE)
    log = out / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    ended = launching.end(started, seconds=600)
    assert [one.status for one in ended] == [128 + signal.SIGTERM] * 2, ended
    found = find_resume(out)
    assert not found.faults and found.step == runs.logged(out)[-1]["step"] and runs.steps(out) == [0, found.step]


@pytest.mark.slow
def test_runs_with_answers_that_one_process_is_told_to_stop_end_as_if_undisturbed(inputs, trained, tmp_path):
    """Stopped in the middle, between two updates of one rollout too, and gone on with by the same processes."""
    kinds = ("rlvr", "opd")
    commands = [words(kind, inputs, tmp_path / kind) for kind in kinds for _ in range(2)]
    told = {1: [tmp_path / kind / "checkpoints" / "1" for kind in kinds]}
    ended = launching.each(launching.end(launching.start([commands] * 2, told=told)))
    stopped = 128 + signal.SIGTERM
    assert [[one.status for one in process] for process in ended] == [[stopped, 0, stopped, 0]] * 2, ended
    for kind in kinds:
        same_run(trained[0] / f"{kind}2", tmp_path / kind)
