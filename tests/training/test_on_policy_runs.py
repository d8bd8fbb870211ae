"""RLVR and OPD from the command line: rewards of the user's own, several held-out files, and going on exactly."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from tests.tiny import write_tiny_model
from tests.training import runs

VERIFIER = """
def score(texts, rows):
    assert all(row["prompt"][0]["role"] == "user" for row in rows)
    with open("seen.txt", "a") as file:
        file.write("".join(f"{row['row']}\\n" for row in rows if row["file"] == "prompts"))
    return [float(place % 4 + len(text) % 3) for place, text in enumerate(texts)]  # no group is all alike


def fails(texts, rows):
    return [1.0 / (row["row"] % 2) for row in rows]
"""
OPTIONS = [
    *("--updates-per-rollout", 2, "--rollout-lag", 1, "--kl-coefficient", 0.1, "--samples-per-prompt", 4),
    *("--reward", "math", "--reward", "own_score:score=0.5", "--refills", 0, "--eval-samples", 2, "--eval-limit", 8),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Model, prompts, held-out files, a verifier."""
    directory = runs.write_inputs(tmp_path_factory.mktemp("given"))
    write_tiny_model(directory / "model", num_hidden_layers=1)
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    for name in ("prompts", "easy", "hard"):
        lines = [json.dumps(row | {"row": number, "file": name}) + "\n" for number, row in enumerate(rows)]
        (directory / f"{name}.jsonl").write_text("".join(lines))
    (directory / "own_score.py").write_text(VERIFIER)
    return directory


@pytest.fixture
def train(jaxgeom, given, monkeypatch):
    """Runs `train rlvr` in the directory of its inputs."""
    monkeypatch.chdir(given)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(out, *more, eval_data=(), **changes):
        options = {"model": "model", "data": "prompts.jsonl", "steps": 5, "batch_size": 8, "lr": 1e-3, "save_every": 3}
        words = [(f"--{name.replace('_', '-')}", value) for name, value in (options | changes).items()]
        words += [("--eval-data", value) for value in eval_data]
        arguments = [word for pair in words for word in pair]
        return jaxgeom(
            "train", "rlvr", *arguments, "--out", out, "--max-new-tokens", 3, "--mesh-data", 8, "--mesh-fsdp", 1, *more
        )

    return run


@pytest.mark.slow
def test_a_run_goes_on_in_the_middle_of_a_rollout_as_it_would_have(train, given, tmp_path, monkeypatch):
    held_out = ("easy=easy.jsonl", "hard=hard.jsonl")
    whole = tmp_path / "whole"
    said = train(whole, *OPTIONS, eval_data=held_out)
    assert said.status == 0, said.err
    # Four rollouts of four prompts with four answers each: no row is skipped, none comes twice in an epoch.
    seen = (given / "seen.txt").read_text().split()
    assert len(seen) == 64 and len(set(seen)) == 16 and all(seen.count(row) == 4 for row in seen)
    rows = runs.logged(whole)
    steps = {row["step"]: row for row in rows if "loss" in row}
    assert sorted(steps) == [1, 2, 3, 4, 5]
    drawn = [step for step, row in steps.items() if "reward" in row]
    assert drawn == [1, 3, 5]  # two updates a rollout, the first step draws the next one's too
    for row in (steps[step] for step in drawn):
        assert row["reward"] == pytest.approx(row["reward/math"] + 0.5 * row["reward/own_score:score"])
    assert steps[1]["reference_kl"] == pytest.approx(0.0, abs=1e-6) and steps[5]["reference_kl"] > 0.0
    assert steps[1]["ratio_mean"] == pytest.approx(1.0, abs=1e-4) and abs(steps[2]["ratio_mean"] - 1.0) > 1e-5
    evaluated = [row for row in rows if "accuracy/hard" in row]
    assert [row["step"] for row in evaluated] == [0, 5]
    for row in evaluated:
        assert row["accuracy/easy"] == row["accuracy/hard"] and row["accuracy_count/easy"] == 8.0
        assert {"avg@2/easy", "pass@2_low/hard", "held_out_reward/own_score:score/hard"} <= set(row)
    copy = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "5")
    (copy / "done").unlink()
    (given / "own_score.py").write_text(VERIFIER + "# mended\n")
    (given / "seen.txt").unlink()
    monkeypatch.delitem(sys.modules, "own_score")
    said = train(copy, *OPTIONS, eval_data=held_out)
    assert said.status == 0 and "goes on from step 3" in said.out, said.err
    assert "reward own_score:score: its module is not what it was when the run began" in said.out + said.err
    assert (given / "seen.txt").read_text().split() == seen[48:]
    assert runs.logged(copy) == rows
    assert (copy / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    for a, b in zip(runs.weights(copy, 5), runs.weights(whole, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_verifier_that_fails_stops_the_run_with_the_row(train, tmp_path):
    said = train(tmp_path / "run", "--reward", "own_score:fails", "--samples-per-prompt", 4)
    assert said.status == 2 and said.err.count("\n") == 1
    found = re.search(r"prompts.jsonl: row (\d+) \(line \d+\): reward own_score:fails raised ZeroDivision", said.err)
    assert found is not None and int(found[1]) % 2 == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--reward", "own_gone:score"), "reward=own_gone:score: own_gone cannot be imported"),
        (("--reward", "own_score:gone"), "reward=own_score:gone: own_score has no gone"),
        (("--reward", "code"), "prompts.jsonl: row 0: judged by math, and reward=code does not"),
        (("--reward", "math=a"), "reward=math=a: the weight 'a' is no finite number"),
        (("--eval-samples", "4"), "eval_samples=4: nothing reads it with eval_data=None"),
        (("--eval-data", "easy.jsonl", "--eval-data", "hard.jsonl"), "two files without a name"),
        (("--eval-data", "a=easy.jsonl", "--eval-data", "b=gone.jsonl"), "gone.jsonl: no such file"),
        (("--eval-every", "2"), "eval_every=2: nothing reads it with eval_data=None"),
        (("--overlong", "penalty"), "overlong_buffer=None"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_written(train, tmp_path, more, says):
    said = train(tmp_path / "run", *more)
    assert said.status == 2 and said.err.count("\n") == 1 and says in said.err, said.err
    assert not (tmp_path / "run").exists()
