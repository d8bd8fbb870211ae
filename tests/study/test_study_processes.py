"""A study over real processes: all train and measure, one writes; its numbers are those of one process.

In a bucket, where each process has a disk of its own, they are those of the study in a folder that all share.
"""

import csv
import signal

import numpy as np
import pytest

from jaxgeom.buckets import hold
from tests import launching, object_store
from tests.study.conftest import read_report
from tests.tiny import write_tiny_model

EXPERIMENT = """
from pathlib import Path
from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, Experiment, SyntheticData
from jaxgeom.training import ConfineSettings, SFTSettings

common = dict(steps=2, batch_size=4, optimizer=AdamWSettings(learning_rate=1e-2), save_every=1, max_new_tokens=2,
              max_length=48)
inside = ConfineSettings(confine="coordinates", basis_rank=2)
first = Arm("first", Path("MODEL"), SFTSettings(**common), shared=True)
experiment = Experiment(
    name="pair", base=Path("MODEL"),
    data=SyntheticData(task=ArithmeticTask(terms=2, digits=2), demonstrations=16, prompts=4, heldout=4),
    arms=(
        first,
        Arm("second", first, SFTSettings(**common)),
        Arm("third", first, SFTSettings(**common | {"steps": 1}, confine=inside), basis_from=first.at(step=1)),
    ),
    measure=CompareSettings(suite="fast", subspace_k=4),
)
"""


def rows_of(out):
    """The numbers of matrices.csv by run and matrix."""
    with (out / "matrices.csv").open() as file:
        return {(row["method"], row["seed"], row["name"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The experiment's file, in a folder where its studies are too."""
    folder = tmp_path_factory.mktemp("pair")
    model = write_tiny_model(folder / "model", num_hidden_layers=1)
    file = folder / "pair.py"
    file.write_text(EXPERIMENT.replace("MODEL", str(model)))
    return file


@pytest.fixture(scope="module")
def ended(pair):
    """By the number of processes, two or one, what each said: the study is in the folder of that name."""
    found = {}
    for count in (2, 1):
        command = ["study", str(pair), "--out", str(pair.parent / str(count))]
        # First with other seeds in each: refused by both, and nothing is written.
        commands = [[[*command, "--seeds", str(2 + index)], command][2 - count :] for index in range(count)]
        found[count] = launching.each(launching.end(launching.start(commands, devices=4 // count)))
    return found


@pytest.mark.slow
def test_two_processes_write_the_study_of_one(pair, ended):
    for count, said in ended.items():
        assert [one[-1].status for one in said] == [0] * count, said
        assert "page:" in said[0][-1].out and not any(one[-1].out for one in said[1:])
    for refused, _ in ended[2]:
        assert refused.status == 2 and refused.err.count("\n") == 1, refused
        assert "the processes disagree: experiment.seeds: [0, 1] in process 0" in refused.err and not refused.out
    one, two = (pair.parent / str(count) for count in (1, 2))
    files = [sorted(str(path.relative_to(out)) for path in out.rglob("*.json*")) for out in (one, two)]
    assert files[0] == files[1]
    reports = [read_report(out) for out in (one, two)]
    assert reports[0]["methods"].keys() == reports[1]["methods"].keys()
    assert len(reports[1]["between"]) == len(reports[0]["between"]) == 1
    mine, theirs = rows_of(one), rows_of(two)
    assert mine.keys() == theirs.keys() and len(mine) > 0
    for key, row in mine.items():
        for name in ("fro_norm", "stable_rank"):
            np.testing.assert_allclose(float(theirs[key][name]), float(row[name]), rtol=1e-2, err_msg=str((key, name)))


def plain(report):
    """A report without what tells when and where it was made."""
    stages = [stage["name"] for stage in report["stages"]]
    return {name: held for name, held in report.items() if name not in ("command", "created")} | {"stages": stages}


@pytest.mark.slow
def test_in_a_bucket_killed_and_begun_again_elsewhere_it_is_the_study_of_a_shared_folder(pair, ended, tmp_path):
    """Process 0 is killed in the second training; every start is on machines that have nothing."""
    url = f"gs://{object_store.BUCKET}/study"
    with object_store.Served() as served:
        environment = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{served.port}"}
        for turn in range(2):
            caches = {index: tmp_path / f"machine{turn}{index}" for index in range(2)}
            started = launching.start(
                [[["study", str(pair), "--out", url]]] * 2, script=launching.ALONE, environment=environment,
                caches=caches,
            )  # fmt: skip
            served.objects.doomed = None
            if turn == 0:
                served.objects.kill(started[0].pid, 20, under="study/runs/second/seed0/checkpoints/1/")
            said = launching.end(started)
            if turn == 0:
                assert said[0].status == -signal.SIGKILL and said[1].status not in (0, 2), said
        assert [one.status for one in said] == [0, 0] and "that held it is gone" in said[0].out, said
        assert "goes on from step 0" in said[0].out
        written = dict(served.objects.journal).items()
        there = {name.removeprefix("study/"): held for name, held in written if held is not None}
    for process in range(2):  # each had its own, the second no measurement
        held = caches[process] / "jaxgeom" / "gs" / "work" / object_store.BUCKET / "study"
        assert (held / "data" / "done").exists() and (held / "runs" / "first" / "tokenizer").is_dir()
        assert (held / "measures").exists() == (process == 0)
    local = pair.parent / "2"
    (tmp_path / "report.json").write_bytes(there["report.json"])
    assert plain(read_report(tmp_path)) == plain(read_report(local))
    assert there["matrices.csv"] == (local / "matrices.csv").read_bytes()
    assert "done" in there
    assert not any(name.endswith(hold.NAME) or ".partial" in name for name in there)
