"""A study over real processes: all train and measure, one writes; its numbers are those of one process."""

import csv

import numpy as np
import pytest

from tests import launching
from tests.study.conftest import read_report
from tests.tiny import write_tiny_model

EXPERIMENT = """
from pathlib import Path
from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, Experiment, SyntheticData
from jaxgeom.training import SFTSettings

common = dict(steps=2, batch_size=4, optimizer=AdamWSettings(learning_rate=1e-2), save_every=1, max_new_tokens=2,
              max_length=48)
first = Arm("first", Path("MODEL"), SFTSettings(**common), shared=True)
experiment = Experiment(
    name="pair", base=Path("MODEL"),
    data=SyntheticData(task=ArithmeticTask(terms=2, digits=2), demonstrations=16, prompts=4, heldout=4),
    arms=(
        first, Arm("second", first, SFTSettings(**common)), Arm("third", first, SFTSettings(**common | {"steps": 1}))
    ),
    measure=CompareSettings(suite="fast", subspace_k=4),
)
"""


def rows_of(out):
    """The numbers of matrices.csv by run and matrix."""
    with (out / "matrices.csv").open() as file:
        return {(row["method"], row["seed"], row["name"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_two_processes_write_the_study_of_one(tmp_path):
    model = write_tiny_model(tmp_path / "model", num_hidden_layers=1)
    file = tmp_path / "pair.py"
    file.write_text(EXPERIMENT.replace("MODEL", str(model)))
    for count in (2, 1):
        command = ["study", str(file), "--out", str(tmp_path / str(count))]
        # First with other seeds in each: refused by both, and nothing is written.
        commands = [[[*command, "--seeds", str(2 + index)], command][2 - count :] for index in range(count)]
        ended = launching.each(launching.end(launching.start(commands, devices=4 // count)))
        assert [one[-1].status for one in ended] == [0] * count, ended
        assert "page:" in ended[0][-1].out and not any(one[-1].out for one in ended[1:])
        for refused, _ in ended if count == 2 else ():
            assert refused.status == 2 and refused.err.count("\n") == 1, refused
            assert "the processes disagree: experiment.seeds: [0, 1] in process 0" in refused.err and not refused.out
    one, two = (tmp_path / str(count) for count in (1, 2))
    files = [sorted(str(path.relative_to(out)) for path in out.rglob("*.json*")) for out in (one, two)]
    assert files[0] == files[1]
    assert not list(two.rglob("shared")) and not (two / "measures" / "between").exists()
    reports = [read_report(out) for out in (one, two)]
    assert reports[0]["methods"].keys() == reports[1]["methods"].keys()
    assert len(reports[1]["between"]) == len(reports[0]["between"]) == 1
    mine, theirs = rows_of(one), rows_of(two)
    assert mine.keys() == theirs.keys() and len(mine) > 0
    for key, row in mine.items():
        for name in ("fro_norm", "stable_rank"):
            np.testing.assert_allclose(float(theirs[key][name]), float(row[name]), rtol=1e-2, err_msg=str((key, name)))
