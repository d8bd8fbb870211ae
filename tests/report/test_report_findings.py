"""The text and the terminal table: numbers with their nulls, orderings told as they are, no claim without data."""

import io

import pytest
import report_examples as examples
from rich.console import Console

from jaxgeom.diagnostics.statistics import STATISTICS
from jaxgeom.report import findings, print_table, study_findings, trajectory_findings
from jaxgeom.report.formatting import format_number, format_value
from jaxgeom.report.published import references
from jaxgeom.report.reading import by_layer, cell, interval, method_cell


@pytest.mark.parametrize(
    ("key", "value", "signed", "text"),
    [
        ("sparsity_bf16", 0.46283, False, "46.3 %"),
        ("sparsity_bf16", 0.000123, False, "0.012 %"),
        ("overlap_low", -0.0038, True, "−0.4 pp"),
        ("overlap_low", 0.00001, True, "+0.0010 pp"),
        ("overlap_low", -0.000476, True, "−0.048 pp"),
        ("overlap_low", -2.2e-16, True, "0.0 pp"),
        ("overlap_low", 0.021, True, "+2.1 pp"),
        ("nss", 7.7e-5, False, "7.70×10⁻⁵"),
        ("nss", -7.7e-5, True, "−7.7×10⁻⁵"),
        ("angle_left_mean_deg", 0.9996, False, "1.00°"),
        ("stable_rank", 31.04, True, "+31"),
        ("stable_rank", None, False, "–"),
        ("stable_rank", float("nan"), False, "–"),
    ],
)
def test_numbers_are_written_for_readers(key, value, signed, text):
    assert format_value(key, value, signed=signed) == text


def test_three_significant_digits_survive_the_carry():
    assert [format_number(v) for v in (0.0009996, 9.996, 99960.0, 0.0)] == ["0.00100", "10.0", "1.00×10⁵", "0"]


def test_cells_are_read_from_dicts_and_from_flat_keys():
    assert cell({"nss": {"mean": 2.0, "null": 0.5}}, "nss")[:3] == (2.0, 0.5, 1.5)
    assert cell({"nss": 2.0, "nss_null": 0.5, "nss_excess": 1.4}, "nss")[:3] == (2.0, 0.5, 1.4)
    assert cell({"nss": None}, "nss")[:3] == cell(None, "nss")[:3] == (None, None, None)


def test_interval_is_students_t():
    low, high = interval([1.0, 2.0, 3.0]) or (0, 0)
    assert low == pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-4) and high == pytest.approx(4 - low, abs=1e-9)
    assert interval([1.0]) is None


def test_published_figures_are_those_of_the_table():
    controlled = {r.family: r.value for r in references("visible_sparsity") if r.controlled}
    assert controlled == pytest.approx({"sft": 0.081, "opd": 0.516, "rlvr": 0.772})
    assert {r.family for r in references("absolute_sparsity_1e-5")} == {"opd", "rlvr"}


def test_comparison_findings_carry_value_null_and_excess():
    report = examples.compare_report()
    text = " ".join(findings(report))
    for key in ("overlap_low", "nss", "angle_left_mean_deg", "stable_rank"):
        own = report["summary"][key]
        assert format_value(key, own["mean"]) in text and format_value(key, own["null"]) in text
        assert format_value(key, own["excess"], signed=True) in text
    assert "1 of 28 matrices" in text and STATISTICS["overlap_low"].undefined in text
    assert "bitwise" in text


def test_an_excess_is_told_from_what_rounding_gives():
    report = examples.compare_report()
    report["summary"]["overlap_low"] |= {"mean": 0.70, "null": 0.54, "excess": 0.16}
    told = next(s for s in findings(report) if "low-magnitude" in s)
    assert "more changes fall there" in told
    report["summary"]["overlap_low"] |= {"mean": 0.545, "excess": 0.005}
    told = next(s for s in findings(report) if "low-magnitude" in s)
    assert "about what rounding alone gives" in told
    report["summary"]["overlap_low"] |= {"z": 9.0}
    told = next(s for s in findings(report) if "low-magnitude" in s)
    assert "more changes fall there than size and rounding explain, if only by a little" in told and "z 9.0" in told


def test_study_says_that_an_order_appears_and_that_its_null_has_it_too():
    told = study_findings(examples.study_report())
    line = next(s for s in told if "the published order SFT < OPD < RLVR appears" in s and s.startswith("Overlap, low"))
    assert "the nulls alone have that order" in line
    assert any(s.startswith("One seed was run, so there is no interval") for s in told)


def test_study_says_that_an_order_does_not_appear():
    report = examples.study_report()
    methods = report["methods"]
    methods["opd"]["summary"], methods["rlvr"]["summary"] = methods["rlvr"]["summary"], methods["opd"]["summary"]
    told = study_findings(report)
    assert any("visible sparsity" in s.lower() and "does not appear" in s for s in told)
    assert not any("order SFT < OPD < RLVR appears" in s for s in told)


def test_several_seeds_bring_intervals_and_votes():
    report = examples.study_report(seeds=3)
    told = " ".join(study_findings(report))
    assert "3 seeds" in told and "of 3 seeds; paired 95 % intervals" in told
    own = method_cell(report["methods"]["opd"], "sparsity_bf16")
    assert own.low is not None and own.low < (own.value or 0) < (own.high or 0)


def test_a_run_that_did_not_learn_is_named():
    report = examples.study_report()
    report["methods"]["rlvr"]["accuracy"] = {"initial": 0.5, "final": 0.5}
    assert any("RLVR did not gain accuracy" in s for s in study_findings(report))


def test_methods_that_lie_together_are_not_ranked_without_a_warning():
    report = examples.study_report()
    methods = report["methods"]
    methods["rlvr"] = methods["opd"] | {"label": "RLVR"}
    told = " ".join(study_findings(report))
    assert "within 5 % of each other in 6 of the 6" in told and "RLVR and SFT continued within three points" in told


def test_nothing_is_claimed_of_what_is_not_there():
    assert findings({}) == [] and trajectory_findings({}) == [] and study_findings({}) == []
    told = study_findings({"methods": {"opd": {"label": "OPD"}}})
    assert "cannot be tested: sft_anchor, rlvr" in " ".join(told)


def test_trajectory_findings_name_the_walk_and_the_null_of_stretches():
    told = " ".join(trajectory_findings(examples.trajectory("rlvr")))
    assert (
        "contracts" in told and "random walk" in told and "independent stretches give" in told and "bf16 view" in told
    )


@pytest.mark.parametrize("width", [80, 120, 160])
def test_terminal_table_holds_every_method_with_nulls(width):
    stream = io.StringIO()
    print_table(examples.study_report(), Console(file=stream, width=width))
    text = stream.getvalue()
    assert all(label in text for label in ("SFT", "OPD", "RLVR", "null", "%"))
    assert "…" not in text and max(len(line) for line in text.splitlines()) <= width


def test_terminal_table_of_a_comparison():
    stream = io.StringIO()
    print_table(examples.compare_report(), Console(file=stream, width=80))
    assert "overlap, low-magnitude mask" in stream.getvalue()


def _cells(**fields):
    return {"mean": 1.0, "median": 1.0, "null": None, "excess": None, "count": 3, "of": 3} | fields


def test_every_number_of_a_sentence_says_over_how_many_it_is():
    summary = {
        "relative_norm": _cells(mean=0.01, count=4), "nss": _cells(null=0.5, excess=0.5, count=5),
        "nss_without_decay": _cells(count=6), "stable_rank": _cells(null=2.0, excess=-1.0, count=7),
        "stable_rank_bf16": _cells(null=2.0, excess=-1.0, count=8), "hill": _cells(null=2.0, excess=-1.0, count=9),
        "decay": _cells(mean=-0.1, count=10),
    }  # fmt: skip
    told = " ".join(findings({"summary": summary}))
    for count in range(4, 11):
        assert told.count(f"n = {count} of 3 matrices") == 1, (count, told)


def test_rounding_is_named_only_where_both_sparsities_are_over_the_same_tensors():
    table = {"sparsity_bf16": _cells(mean=0.9), "sparsity_stored": _cells(mean=0.2)}
    assert "the work of rounding" in findings({"summary": table})[0]
    table["sparsity_stored"]["count"] = 5
    table["sparsity_stored"]["of"] = 5
    said = findings({"summary": table})[0]
    assert "the work of rounding" not in said and "n = 3 of 3 tensors" in said and "n = 5 of 5 tensors" in said


def test_a_rank_path_is_of_the_same_matrices_from_its_first_step_to_its_last():
    """One matrix of rank 30 at the first step, another two of rank 5 from then on: the path is level, not a fall."""
    entry = {
        "mean": [30.0, 5.0, 5.1], "null": [40.0, 8.0, 8.2], "excess": [-10.0, -3.0, -3.1], "count": [1, 2, 2],
        "of": 3, "as_last": [False, True, True],
    }  # fmt: skip
    rounded = entry | {"null": [None, None, 8.2], "excess": [None, None, -3.1], "count": [2, 2, 2]}
    run = {"steps": [1, 2, 3], "summary": {"stable_rank": entry, "stable_rank_bf16": rounded}}
    said = trajectory_findings(run)[0]
    assert "from 5.00 to 5.10" in said and "stays in a band" in said and "n = 2 of 3 matrices" in said
    assert "30.0" not in said and "bf16" not in said  # one step alone has the bf16 view's value and null


def test_the_early_sentence_of_a_study_is_the_early_column_of_its_table():
    report = examples.study_report()
    rows = [
        {"method": name, "sim_to_final": 0.111, "sim_to_final_null": 0.05, "sim_to_final_count": 2}
        for name in report["methods"]
    ]
    report["matched"] = (report.get("matched") or {}) | {"early": {"share": 0.2, "rows": rows, "of": {"matrices": 28}}}
    said = [text for text in study_findings(report) if "leading right subspace of" in text]
    assert len(said) == len(rows) and all("11.1 %" in text and "n = 2 of 28 matrices" in text for text in said)


def test_methods_side_by_side_are_told_by_the_curves_they_share():
    report = examples.study_report()
    curve = {"mean": [4.0, 8.0], "null": [9.0, 9.0], "excess": [-5.0, -1.0], "count": [3, 3], "of": 7}
    report["matched"]["along"] = {
        name: {"trajectory": {"steps": [1, 2], "summary": {"stable_rank": curve}}} for name in report["methods"]
    }
    told = " ".join(study_findings(report))
    assert told.count("from 4.00 to 8.00") == len(report["methods"])
    assert "OPD widens (published: stays in a band; n = 3 of 7 matrices)" in told


def test_numbers_that_no_float_holds_and_layers_that_are_none_are_passed_over():
    layers = {"0": {"norm": 1.0}, "²": {"norm": 2.0}, "--3": {}, "9" * 5000: {}, "-1": {"norm": 10**400}}
    order, cells = by_layer({"layer": layers}, "norm")
    assert order == [-1, 0] and [one.value for one in cells] == [None, 1.0]


def test_an_order_at_the_same_step_says_over_how_many_tensors_and_matrices_it_is():
    report = examples.study_report()
    for block in (report["matched"]["step"], report["matched"]["relative_norm"]):
        block["of"] = {"parameters": 9, "matrices": 7}
        for row in block["rows"]:
            row |= {f"{key}_count": 7 for key in ("overlap_low", "nss")} | {"sparsity_bf16_count": 9}
    (told,) = (s for s in study_findings(report) if s.startswith("At the same step"))
    assert told.count("n = 9 of 9 tensors, n = 7 of 7 matrices") == 2
