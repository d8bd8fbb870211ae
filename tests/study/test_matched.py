"""Matched comparisons and statistics over seeds, against hand-made curves and scipy."""

import numpy as np
import pytest
from scipy import stats

from jaxgeom.study import at_relative_norm, at_step, mean_interval, over_seeds


def _trajectory(steps, norm, rank):
    return {
        "steps": steps,
        "summary": {
            "relative_norm": {"mean": norm, "null": None},
            "stable_rank": {"mean": rank, "null": [2 * r if r is not None else None for r in rank]},
        },
    }


def test_the_shared_norm_is_the_smallest_final_one_and_statistics_are_interpolated():
    slow = _trajectory([10, 20], [0.1, 0.2], [5.0, 6.0])
    fast = _trajectory([10, 20, 40], [0.1, 0.3, 0.5], [1.0, 3.0, 9.0])
    result = at_relative_norm({"slow": slow, "fast": fast})
    assert result["relative_norm"] == 0.2
    rows = {row["method"]: row for row in result["rows"]}
    assert rows["slow"]["step"] == 20 and rows["slow"]["stable_rank"] == 6.0
    assert rows["fast"]["step"] == pytest.approx(15.0)
    assert rows["fast"]["stable_rank"] == pytest.approx(2.0)
    assert rows["fast"]["stable_rank_null"] == pytest.approx(4.0)


def test_a_method_that_is_past_the_shared_norm_at_its_first_checkpoint_has_no_value_there():
    slow = _trajectory([10, 20], [0.01, 0.02], [5.0, 6.0])
    fast = _trajectory([10, 20], [0.1, 0.3], [1.0, 3.0])
    rows = {row["method"]: row for row in at_relative_norm({"slow": slow, "fast": fast})["rows"]}
    assert rows["slow"]["stable_rank"] == 6.0
    assert set(rows["fast"].values()) == {"fast", None}


def test_undefined_values_stay_undefined():
    one = _trajectory([1, 2], [0.1, 0.3], [None, 4.0])
    other = _trajectory([1, 2], [0.1, 0.2], [1.0, 2.0])
    rows = {row["method"]: row for row in at_relative_norm({"one": one, "other": other})["rows"]}
    assert rows["one"]["stable_rank"] is None and rows["other"]["stable_rank"] == 2.0


def test_matched_steps_take_the_last_shared_one():
    one = _trajectory([10, 20, 30], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    other = _trajectory([10, 20], [0.1, 0.2], [7.0, 8.0])
    result = at_step({"one": one, "other": other})
    assert result["step"] == 20 and [row["stable_rank"] for row in result["rows"]] == [2.0, 8.0]
    assert at_step({"one": one, "other": _trajectory([7], [0.1], [1.0])}) == {"step": None, "rows": []}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_students(count):
    values = np.random.default_rng(count).normal(size=count)
    mean, low, high = mean_interval(values.tolist())
    wanted = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([mean, low, high], [values.mean(), *wanted], rtol=1e-12)


def test_results_are_averaged_number_by_number():
    one = {"a": 1.0, "list": [1.0, None], "text": "x", "steps": 5, "gone": None}
    other = {"a": 3.0, "list": [2.0, 4.0], "text": "x", "steps": 5, "gone": 1.0, "extra": 1}
    assert over_seeds([one, other]) == {"a": 2.0, "list": [1.5, None], "text": "x", "steps": 5, "gone": None}
