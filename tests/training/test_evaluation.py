"""Held-out numbers: pass@k by enumeration, intervals by their own formulas, and several files by name."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.training import RunInputs
from jaxgeom.training.evaluation import held_out_row, is_evaluation, mean_over_prompts, pass_at_k, wilson_interval
from jaxgeom.training.remarks import last_numbers
from jaxgeom.training.rollouts import Answers


@pytest.mark.parametrize(("samples", "k"), [(4, 1), (4, 2), (5, 3), (4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples, k):
    for right in range(samples + 1):
        marks = [1] * right + [0] * (samples - right)
        subsets = list(itertools.combinations(marks, k))
        wanted = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(np.array([right]), samples, k)[0] == pytest.approx(wanted, abs=1e-12)


def test_intervals_over_prompts():
    values = np.array([0.25, 0.5, 1.0, 0.0, 0.75])
    half = 1.96 * values.std(ddof=1) / math.sqrt(5)
    assert mean_over_prompts(values) == pytest.approx((0.5 - half, 0.5 + half))
    assert mean_over_prompts(np.array([1.0, 0.0, 1.0, 1.0])) == wilson_interval(3, 4)
    low, high = mean_over_prompts(np.zeros(20))
    assert low == 0.0 and 0.1 < high < 0.2  # nothing right in 20 is no certainty


def answers(right, rewards=None, parts=None):
    count = len(right)
    tokens = np.tile(np.array([[5, 6, 2]], np.int32), (count, 1))
    tokens[0, 2] = 6  # the first was cut
    response = np.tile([False, True, True], (count, 1))
    return Answers(
        tokens=tokens,
        valid=response,
        response=response,
        log_probs=np.zeros((count, 3), np.float32),
        rewards=np.array(right if rewards is None else rewards, np.float32),
        texts=[""] * count,
        prompts=[],
        parts=parts or {},
        right=np.array(right, np.float32),
    )


def test_the_numbers_of_a_file_are_over_its_prompts_with_a_truth():
    drawn = [answers([1, 0, 0, 0, 1, 1]), answers([np.nan] * 3 + [1, 1, 1])]
    row = held_out_row([answers([1, 0, np.nan, 1])], drawn, samples=3, stops=(2,), name="hard")
    low, high = wilson_interval(2, 3)
    assert row["accuracy/hard"] == pytest.approx(2 / 3) and row["accuracy_count/hard"] == 3.0
    assert (row["accuracy_low/hard"], row["accuracy_high/hard"]) == (low, high)
    assert row["accuracy_truncated/hard"] == 0.25
    assert row["avg@3/hard"] == pytest.approx((1 / 3 + 2 / 3 + 1) / 3)
    assert row["pass@1/hard"] == pytest.approx(row["avg@3/hard"])
    assert row["pass@2/hard"] == pytest.approx((2 / 3 + 1 + 1) / 3) and row["pass@3/hard"] == 1.0
    assert (row["pass@3_low/hard"], row["pass@3_high/hard"]) == wilson_interval(3, 3)
    assert {key.rpartition("/")[2] for key in row} == {"hard"} and is_evaluation(row)
    (said,) = last_numbers([{"step": 0, **row}, {"step": 2, "loss": 1.0}])
    assert said == "step 2: loss 1; held-out accuracy (hard) 0.6667 over 3 prompts at step 0"


def test_rows_without_a_truth_have_the_reward_of_a_users_own_verifier():
    judged = answers([np.nan] * 2, rewards=[0.5, 1.5], parts={"own:f": np.array([1.0, 3.0], np.float32)})
    row = held_out_row([judged], [], samples=0, stops=(2,))
    assert row == {"accuracy_truncated": 0.5, "held_out_reward": 1.0, "held_out_reward/own:f": 2.0}
    assert is_evaluation(row) and not is_evaluation({"reward": 1.0})


def test_files_of_held_out_prompts_by_name(tmp_path):
    plain = tmp_path / "a=b.jsonl"
    plain.write_text("")
    given = {"model": Path("m"), "data": Path("d")}
    assert RunInputs(**given).evaluations == {}
    assert RunInputs(**given, eval_data=plain).evaluations == {"": plain}  # a file whose name has the sign
    both = RunInputs(**given, eval_data=(Path("easy=x.jsonl"), Path(f"hard={plain}")))
    assert both.evaluations == {"easy": Path("x.jsonl"), "hard": plain}
    assert plain in both.paths and Path("easy=x.jsonl") not in both.paths
    for several in (("x.jsonl", "y.jsonl"), ("a=x.jsonl", "y.jsonl"), ("a=x.jsonl", "a=y.jsonl")):
        with pytest.raises(UserError, match="eval_data=.*NAME=FILE"):
            RunInputs(**given, eval_data=tuple(map(Path, several)))


def test_none_and_all_right_are_at_the_ends_exactly():
    for count in range(1, 200):
        assert wilson_interval(0, count)[0] == 0.0 and wilson_interval(count, count)[1] == 1.0
