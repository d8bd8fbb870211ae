"""RLVR and OPD from the command line: rewards of the user's own, several held-out files, and going on exactly."""

import json
import shutil
import sys

import numpy as np
import pytest

from tests.training import runs

VERIFIER = """
def score(texts, rows):
    assert all(row["prompt"][0]["role"] == "user" for row in rows)
    return [float(len(text) % 3) for text in texts]


def fails(texts, rows):
    return [1.0 / (row["row"] - 5) for row in rows]


def short(texts, rows):
    return [0.0]
"""
OPTIONS = [
    *("--updates-per-rollout", 2, "--rollout-lag", 1, "--kl-coefficient", 0.1, "--samples-per-prompt", 4),
    *("--reward", "math", "--reward", "own_score:score=0.5", "--refills", 0, "--eval-samples", 2, "--eval-every", 3),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Model, prompts, held-out files, a verifier."""
    directory = runs.write_inputs(tmp_path_factory.mktemp("given"))
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"row": number}) + "\n" for number, row in enumerate(rows))
    for name in ("prompts", "easy", "hard"):
        (directory / f"{name}.jsonl").write_text(text)
    (directory / "own_score.py").write_text(VERIFIER)
    return directory


@pytest.fixture
def train(jaxgeom, given, monkeypatch):
    """Runs `train rlvr` in the directory of its inputs."""
    monkeypatch.chdir(given)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(out, *more, eval_data=(), **changes):
        options = {"model": "model", "data": "prompts.jsonl", "steps": 5, "batch_size": 8, "lr": 1e-3, "save_every": 1}
        words = [(f"--{name.replace('_', '-')}", value) for name, value in (options | changes).items()]
        words += [("--eval-data", value) for value in eval_data]
        arguments = [word for pair in words for word in pair]
        return jaxgeom("train", "rlvr", *arguments, "--out", out, "--max-new-tokens", 3, *more)

    return run


def test_a_run_goes_on_from_every_step_as_it_would_have(train, tmp_path):
    held_out = ("easy=easy.jsonl", "hard=hard.jsonl")
    whole = tmp_path / "whole"
    said = train(whole, *OPTIONS, eval_data=held_out)
    assert said.status == 0, said.err
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
    assert [row["step"] for row in evaluated] == [0, 3, 5]
    for row in evaluated:
        assert row["accuracy/easy"] == row["accuracy/hard"] and row["accuracy_count/easy"] == 16.0
        assert {"avg@2/easy", "pass@2_low/hard", "held_out_reward/own_score:score/hard"} <= set(row)
    for step in (1, 2, 3):
        copy = shutil.copytree(whole, tmp_path / f"from{step}")
        for later in range(step + 1, 6):
            shutil.rmtree(copy / "checkpoints" / str(later))
        (copy / "done").unlink()
        said = train(copy, *OPTIONS, eval_data=held_out)
        assert said.status == 0 and f"goes on from step {step}" in said.out, said.err
        assert runs.logged(copy) == rows
        for name in ("samples.jsonl",):
            assert (copy / name).read_bytes() == (whole / name).read_bytes()
        for a, b in zip(runs.weights(copy, 5), runs.weights(whole, 5), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_verifier_that_fails_stops_the_run_with_the_row(train, tmp_path):
    said = train(tmp_path / "run", "--reward", "own_score:fails", "--samples-per-prompt", 4, steps=30)
    assert said.status == 2 and said.err.count("\n") == 1
    assert "prompts.jsonl: row 5 (line 6): reward own_score:fails raised ZeroDivisionError" in said.err
    said = train(tmp_path / "other", "--reward", "own_score:short", "--samples-per-prompt", 4)
    assert said.status == 2 and "own_score:short returned 1 numbers for 8 answers" in said.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--reward", "own_gone:score"), "reward=own_gone:score: own_gone cannot be imported"),
        (("--reward", "own_score:gone"), "reward=own_score:gone: own_score has no gone"),
        (("--reward", "code"), "prompts.jsonl: row 0: judged by math, and reward=code does not"),
        (("--reward", "math=a"), "reward=math=a: the weight 'a' is no finite number"),
        (("--eval-samples", "4"), "eval_samples=4: nothing is evaluated without eval_data"),
        (("--eval-data", "easy.jsonl", "--eval-data", "hard.jsonl"), "two files without a name"),
        (("--eval-data", "a=easy.jsonl", "--eval-data", "b=gone.jsonl"), "gone.jsonl: no such file"),
        (("--overlong", "penalty"), "overlong_buffer=None"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_written(train, tmp_path, more, says):
    said = train(tmp_path / "run", *more)
    assert said.status == 2 and said.err.count("\n") == 1 and says in said.err, said.err
    assert not (tmp_path / "run").exists()
