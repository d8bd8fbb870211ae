"""Matched comparisons and statistics over seeds, against hand-made rows and scipy."""

import numpy as np
import pytest
from scipy import stats

from jaxgeom.study import (
    Measured,
    along,
    at_end,
    at_relative_norm,
    at_step,
    early,
    mean_interval,
    mean_rows,
    over_seeds,
)


def _row(name, values, **others):
    """One matrix along a run; a list per statistic."""
    labels = {"name": name, "layer": 0, "module": name, "group": "matrices", "parameters": 10, "shape": [2, 5]}
    return labels | values | others


def _run(steps, norm, rank, null=2.0, name="q"):
    """A run of one matrix whose null is a multiple of its stable rank."""
    nulls = [None if r is None else null * r for r in rank]
    return Measured([], steps, [_row(name, {"relative_norm": norm, "stable_rank": rank, "stable_rank_null": nulls})])


def _rows(block):
    return {row["method"]: row for row in block["rows"]}


def test_the_shared_norm_is_the_smallest_final_one_and_statistics_are_interpolated():
    runs = {
        "slow": [_run([10, 20], [0.1, 0.2], [5.0, 6.0])],
        "fast": [_run([10, 20, 40], [0.1, 0.3, 0.5], [1.0, 3.0, 9.0])],
    }
    result = at_relative_norm(runs)
    rows = _rows(result)
    assert result["relative_norm"] == 0.2 and result["of"] == {"matrices": 1, "parameters": 1}
    assert rows["slow"]["step"] == 20 and rows["slow"]["stable_rank"] == 6.0
    assert rows["fast"]["step"] == pytest.approx(15.0)
    assert rows["fast"]["stable_rank"] == pytest.approx(2.0) and rows["fast"]["stable_rank_null"] == pytest.approx(4.0)
    assert rows["fast"]["stable_rank_excess"] == rows["fast"]["stable_rank"] - rows["fast"]["stable_rank_null"]
    assert rows["fast"]["relative_norm"] == pytest.approx(0.2)


def test_a_method_that_is_past_the_shared_norm_at_its_first_checkpoint_has_no_value_there():
    runs = {"slow": [_run([10, 20], [0.01, 0.02], [5.0, 6.0])], "fast": [_run([10, 20], [0.1, 0.3], [1.0, 3.0])]}
    rows = _rows(at_relative_norm(runs))
    assert rows["slow"]["stable_rank"] == 6.0 and rows["slow"]["stable_rank_count"] == 1
    assert rows["fast"]["stable_rank"] is None and rows["fast"]["step"] is None


def test_undefined_values_stay_undefined():
    runs = {"one": [_run([1, 2], [0.1, 0.3], [None, 4.0])], "other": [_run([1, 2], [0.1, 0.2], [1.0, 2.0])]}
    rows = _rows(at_relative_norm(runs))
    assert rows["one"]["stable_rank"] is None and rows["other"]["stable_rank"] == 2.0


def test_matched_steps_take_the_last_shared_one():
    runs = {
        "one": [_run([10, 20, 30], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])],
        "other": [_run([10, 20], [0.1, 0.2], [7.0, 8.0])],
    }
    result = at_step(runs)
    assert result["step"] == 20 and [row["stable_rank"] for row in result["rows"]] == [2.0, 8.0]
    runs["other"] = [_run([7], [0.1], [1.0])]
    assert at_step(runs) == {"step": None, "rows": []}


def test_curves_of_methods_are_over_the_matrices_of_every_end_and_no_others_on_the_way():
    def run(*ranks):
        rows = [
            _row(f"m{place}", {"stable_rank": rank, "stable_rank_null": [None if r is None else 2 * r for r in rank]})
            for place, rank in enumerate(ranks)
        ]
        return Measured([], [10, 20], rows)

    runs = {
        "one": [run([1.0, 2.0], [3.0, 4.0], [50.0, None])],  # the last matrix drops out
        "other": [run([None, 6.0], [7.0, 8.0], [90.0, 99.0])],  # the first one joins late
        "none": [run([None, None], [None, None], [None, None])],
    }
    found = {method: entry["trajectory"]["summary"]["stable_rank"] for method, entry in along(runs).items()}
    assert found["one"] == {
        "mean": [2.0, 3.0], "null": [4.0, 6.0], "excess": [-2.0, -3.0], "count": [2, 2], "of": 3, "z": [None, None],
    }  # fmt: skip
    assert found["other"]["mean"] == [None, 7.0] and found["other"]["count"] == [0, 2]
    assert found["none"]["mean"] == [None, None]


def test_curves_of_seeds_are_over_the_matrices_of_all_of_them():
    runs = {"one": [_run([1, 2], [0.1, 0.3], [2.0, 4.0]), _run([1, 2], [0.1, 0.3], [4.0, 8.0])]}
    entry = along(runs)["one"]
    assert entry["trajectory"]["summary"]["stable_rank"]["mean"] == [3.0, 6.0]
    assert [one["trajectory"]["summary"]["stable_rank"]["mean"] for one in entry["per_seed"]] == [[2, 4], [4, 8]]
    runs["other"] = [_run([1, 2], [0.1, 0.3], [2.0, 4.0]), _run([1, 3], [0.1, 0.3], [2.0, 4.0])]
    assert along(runs).keys() == {"one"}


def _end(*ranks, null=None, missing=()):
    """The end of a run: one matrix a rank, without a value or without a null where it is told so."""
    rows = []
    for place, rank in enumerate(ranks):
        own = {"stable_rank": rank, "stable_rank_null": 10.0 if null is None else null[place]}
        if place in missing:
            own["stable_rank_null"] = None
        rows.append(_row(f"m{place}", own, layer=place % 2))
    return Measured(rows, [], [])


def test_methods_are_compared_over_the_matrices_that_all_have_with_value_and_null():
    runs = {
        "one": [_end(1.0, 2.0, 30.0, 4.0)],
        "other": [_end(5.0, None, 7.0, 8.0, missing=(3,))],  # no value of the second, no null of the last
    }
    block = at_end(runs)
    rows = _rows(block)
    assert block["of"]["matrices"] == 4
    assert [rows[name]["stable_rank_count"] for name in rows] == [2, 2]
    assert rows["one"]["stable_rank"] == (1.0 + 30.0) / 2 and rows["other"]["stable_rank"] == (5.0 + 7.0) / 2
    assert rows["one"]["stable_rank_excess"] == 15.5 - 10.0
    layers = block["layers"]["one"]
    assert layers["0"]["stable_rank"]["mean"] == 15.5 and layers["0"]["stable_rank"]["count"] == 2
    assert layers["1"]["stable_rank"]["count"] == 0


def test_a_method_that_has_a_statistic_nowhere_leaves_the_matrices_to_the_others():
    rows = _rows(at_end({"one": [_end(1.0, 2.0)], "none": [_end(None, None)], "other": [_end(3.0, None)]}))
    assert rows["none"]["stable_rank"] is None and rows["none"]["stable_rank_count"] == 0
    assert rows["one"]["stable_rank"] == 1.0 and rows["other"]["stable_rank"] == 3.0


def test_every_seed_has_the_matrices_that_a_comparison_is_over():
    runs = {"one": [_end(1.0, 2.0, 3.0), _end(3.0, None, 5.0)], "other": [_end(4.0, 5.0, 6.0)]}
    row = _rows(at_end(runs))["one"]
    assert row["stable_rank_seeds"] == [2.0, 4.0] and row["stable_rank"] == 3.0 and row["stable_rank_count"] == 2
    # From −9.7 on by Student's t, but there is no rank below 1.
    assert row["stable_rank_ci"] == pytest.approx([1.0, stats.t.interval(0.95, 1, loc=3.0, scale=1.0)[1]])
    assert _rows(at_end(runs))["other"]["stable_rank"] == 5.0


def test_what_is_counted_is_compared_over_every_tensor_by_its_size():
    rows = [
        _row("q", {"sparsity_bf16": 0.5, "sparsity_bf16_null": 0.4}),
        _row("embed", {"sparsity_bf16": 0.9, "sparsity_bf16_null": 0.8}, group="embedding", parameters=30),
    ]
    block = at_end({"one": [Measured(rows, [], [])], "other": [Measured(rows, [], [])]})
    row = _rows(block)["one"]
    assert row["sparsity_bf16"] == pytest.approx((0.5 * 10 + 0.9 * 30) / 40) and row["sparsity_bf16_count"] == 2
    assert block["of"] == {"matrices": 1, "parameters": 2}


def test_early_takes_every_run_at_its_own_fifth():
    def run(steps, values):
        return Measured([], steps, [_row("q", {"sim_to_final": values, "sim_to_final_null": [0.1] * len(steps)})])

    block = early(
        {
            "one": [run([10, 20, 100], [0.3, 0.5, 1.0])],
            "other": [run([1, 2, 9], [0.2, 0.4, 1.0])],
            "short": [run([1, 2], [0.5, 1.0])],
        }
    )
    rows = _rows(block)
    assert rows.keys() == {"one", "other"}
    assert [(row["step"], row["sim_to_final"]) for row in rows.values()] == [(20, 0.5), (2, 0.4)]


def test_rows_over_seeds_have_what_every_seed_has():
    first = [_row("q", {"nss": 1.0, "nss_null": 0.5, "nss_excess": 0.5, "hill": None, "note": "a"})]
    second = [_row("q", {"nss": 3.0, "nss_null": 1.0, "nss_excess": 2.0, "hill": 2.0, "note": "b"})]
    row = mean_rows([first, second])[0]
    assert (row["nss"], row["nss_null"], row["nss_excess"], row["hill"]) == (2.0, 0.75, 1.25, None)
    assert (row["name"], row["parameters"], row["shape"]) == ("q", 10, [2, 5])


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
