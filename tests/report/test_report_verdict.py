"""One rule of above, below and about the null, for captions and findings; at which k and where it was taken."""

import pytest
import report_examples as examples

from jaxgeom.report import findings, study_findings
from jaxgeom.report.drawing import against_null
from jaxgeom.report.figures_study import study_drawings
from jaxgeom.report.findings_compare import early_sentence
from jaxgeom.report.reading import Cell, cell, compared_cell, spread
from jaxgeom.report.steady import steady_trajectory
from jaxgeom.report.style import house_style
from jaxgeom.report.tables import study_headline, summary_rows
from jaxgeom.report.used import capped_angles, used_words
from jaxgeom.report.verdict import Verdict, ratio_words, verdict


@pytest.mark.parametrize(
    ("key", "own", "said"),
    [
        ("nss", Cell(0.90, 1.0, -0.10, z=-0.3), Verdict.ALIKE),
        ("nss", Cell(0.999, 1.0, -0.001, z=-8.0), Verdict.LESS),
        ("overlap_low", Cell(0.301, 0.30, 0.001, z=5.0), Verdict.MORE),
        ("overlap_low", Cell(0.35, 0.30, 0.05, z=1.9), Verdict.ALIKE),
        ("nss", Cell(2.0, 1.0, 1.0, low=0.5, high=3.5, z=9.0, seeds=3), Verdict.ALIKE),  # seeds go either way
        ("nss", Cell(2.0, 1.0, 1.0, low=1.5, high=2.5, z=9.0, seeds=3), Verdict.MORE),
        ("nss", Cell(2.0, 1.0, 1.0, low=0.5, high=3.5, z=9.0, seeds=2), Verdict.MORE),  # two seeds are no interval
        ("nss", Cell(1.05, 1.0, 0.05), Verdict.ALIKE),
        ("nss", Cell(0.85, 1.0, -0.15), Verdict.LESS),
        ("overlap_low", Cell(0.31, 0.30, 0.01), Verdict.ALIKE),
        ("sim_to_final", Cell(1.0, 1.0 + 2e-16, -2e-16, z=-3.0), Verdict.ALIKE),
        ("nss", Cell(1.0), None),
        # A z over fewer than half of the tensors decides nothing.
        ("sparsity_bf16", Cell(0.459, 0.390, 0.069, count=24, z=0.0, z_count=9), Verdict.MORE),
        ("sparsity_bf16", Cell(0.459, 0.390, 0.069, count=24, z=0.0, z_count=12), Verdict.ALIKE),
    ],
)
def test_the_rule(key, own, said):
    assert verdict(key, own) is said


@pytest.mark.parametrize("excess", [-3e-3, -4e-6, 2e-5, 0.06])
@pytest.mark.parametrize("z", [-9.0, -0.3, 0.4, 2.5, None])
def test_captions_and_findings_never_contradict_each_other(excess, z):
    """The same triple in a caption and in a sentence, whichever side and however near; never `0.0 pp` beside a word."""
    own = {"mean": 0.5 + excess, "null": 0.5, "excess": excess, "z": z, "count": 4, "of": 4}
    report = {"summary": {key: own for key in ("overlap_low", "nss", "projection_joint")}}
    words = {Verdict.LESS: "fewer changes", Verdict.ALIKE: "about what rounding alone", Verdict.MORE: "more changes"}
    for key in report["summary"]:
        said = verdict(key, cell(report["summary"], key))
        caption = against_null(key, [("", cell(report["summary"], key))])
        assert said is not None and f", {said.value}: " in caption and "excess 0.0" not in caption
        sentence = next(
            s for s in findings(report)
            if s.startswith("The spectrum") is (key == "nss") and ("energy" in s) is (key == "projection_joint")
        )  # fmt: skip
        if key == "overlap_low":
            assert words[said] in sentence and [w for w in words.values() if w in sentence] == [words[said]]
        else:
            assert ("about its null" in sentence) is (said is Verdict.ALIKE), sentence
        assert " 1.0 times" not in sentence and " 1 times" not in sentence


def test_a_ratio_near_one_has_the_digits_that_tell_it_from_one():
    assert ratio_words("nss", Cell(0.997, 1.0, -0.003, z=-9.0)) == "0.9970 times its null"
    assert ratio_words("nss", Cell(1.6, 1.0, 0.6, z=9.0)) == "1.6 times its null"


def test_the_early_column_names_the_share_that_it_is_at():
    """Three checkpoints of 60 steps: the one nearest to 20 % of them is at 33 %."""
    report = examples.study_report()
    for method in report["methods"].values():
        method["trajectory"] = examples.trajectory(points=3, steps=60)
    rows = [{"method": n, "step": 20, "sim_to_final": 0.6, "sim_to_final_null": 0.4} for n in report["methods"]]
    report["matched"]["early"] = {"share": 0.2, "rows": rows, "of": {"matrices": 28}}
    assert study_headline(report)[0][-1].label == "similarity to final at 33 % of steps"
    assert any("at 33 % of the steps" in text for text in study_findings(report)) and not any(
        "20 % of" in text for text in study_findings(report)
    )
    with house_style():
        found = next(d.found for d in study_drawings(report) if d.name == "subspace")
    assert found[0].startswith("At 33 % of the steps, the checkpoints nearest to 20 %")
    report["methods"]["opd"]["trajectory"] = examples.trajectory(points=10, steps=100)
    columns, rows = study_headline(report)
    assert columns[-1].label == "similarity to final at 20 % to 33 % of steps"
    assert {row.name: row.cells[-1].population[:7] for row in rows}["opd"] == "at 20 %"


def test_two_seeds_have_no_interval_and_no_interval_leaves_what_is_possible():
    assert spread([0.95, 0.05], (0.0, 1.0)) == (0.05, 0.95)
    assert spread([0.95, 0.05, 0.4], (0.0, 1.0)) == (0.0, 1.0)
    for count in (2, 3):
        report = examples.study_report(seeds=count)
        for method in report["methods"].values():
            for place, seed in enumerate(method["per_seed"]):
                seed["summary"]["sparsity_bf16"] |= {"mean": (0.95, 0.05, 0.4)[place]}
        own = compared_cell(report, "opd", "sparsity_bf16")
        assert own.low is not None and own.high is not None and 0.0 <= own.low < own.high <= 1.0
        told = " ".join(study_findings(report))
        assert ("[seeds 5.0 % and 95.0 %]" in told) is (count == 2) and ("[0.0 %, 100.0 %]" in told) is (count == 3)
        assert "No interval is given" in told if count == 2 else "95 % intervals" in told


def test_what_was_capped_or_raised_is_said():
    report = examples.compare_report()
    for row in report["matrices"]:
        row |= {"angle_k": 31, "projection_joint_1pct": 0.1, "projection_joint_1pct_null": 0.05, "group": "matrices"}
        row["shape"] = [32, 40]
    report["summary"]["projection_joint_1pct"] = report["summary"]["projection_joint"]
    assert used_words(report, "angle_left_mean_deg") == "k = 31, capped at min(m, n) − 1 (512 asked for)"
    assert "hardly turn" in capped_angles(report)[0] and any("hardly turn" in text for text in findings(report))
    labels = {row["label"]: row["used"] for row in summary_rows(report["summary"], {}, None, report)}
    assert labels["mean principal angle, left"].startswith("k = 31, capped")
    assert labels["energy in U_k and V_k of W0, k = 1 %"] == "k = 1"  # 1 % of 32 is no direction
    report["settings"]["angle_k"] = 31
    assert capped_angles(report) == ("Angles are those of the k = 31 leading directions.",)
    assert used_words({}, "angle_left_mean_deg") == used_words(report, "fro_norm") == ""


def test_a_curve_of_a_trajectory_is_of_the_same_matrices_at_every_step():
    def row(name, angles):
        nulls = [None if angle is None else 2 * angle for angle in angles]
        labels = {"name": name, "layer": 0, "module": "q", "group": "matrices", "parameters": 6, "shape": [2, 3]}
        return labels | {"angle_left_mean_deg": angles, "angle_left_mean_deg_null": nulls}

    rows = [row("a", [1.0, 2.0, 3.0]), row("b", [3.0, 4.0, 5.0]), row("late", [None, 80.0, 90.0])]
    own = {"mean": [2.0, 28.7, 32.7], "null": [4.0, 57.3, 65.3], "excess": [-2.0, -28.7, -32.7], "count": [2, 3, 3]}
    run = {"steps": [1, 2, 3], "matrices": rows, "summary": {"angle_left_mean_deg": own}}
    entry = steady_trajectory(run)["summary"]["angle_left_mean_deg"]
    assert entry["mean"] == [2.0, 3.0, 4.0] and entry["null"] == [4.0, 6.0, 8.0] and entry["count"] == [2, 2, 2]
    assert entry["of"] == 3 and run["summary"]["angle_left_mean_deg"] is own
    # Where next to nothing is defined at first, the curve is of the last step's matrices and begins later.
    rows = [row("a", [1.0, 2.0, 3.0]), *(row(name, [None, 4.0, 5.0]) for name in "bcd")]
    entry = steady_trajectory(run | {"matrices": rows})["summary"]["angle_left_mean_deg"]
    assert entry["mean"] == [None, 3.5, 4.5] and entry["count"] == [0, 4, 4]
    assert steady_trajectory({"steps": [1], "summary": {}}) == {"steps": [1], "summary": {}}
    assert early_sentence({"steps": [1, 2], "summary": {}}) == ""
