"""Runs that learned nothing: told in the run and in the study, and kept out of every mean, order and pair."""

import io

import pytest
from rich.console import Console

from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.report.findings_study import study_findings
from jaxgeom.report.learned import nothing_learned, undefined_numbers
from jaxgeom.study import Measured
from jaxgeom.study.measuring import pairs_of_runs
from jaxgeom.study.results import Result, matched_results, method_results
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings
from jaxgeom.training.loop import _say_if_nothing_was_learned
from jaxgeom.training.remarks import learned_nothing

WHY = "in all 2 steps nothing"
COMMON = {"steps": 2, "batch_size": 8, "optimizer": AdamWSettings(learning_rate=1e-3)}


def _row(name, norm, rank):
    """One matrix along two steps; of an update of zero nothing but its norm is defined."""
    labels = {"name": name, "layer": 0, "module": "q", "group": "matrices", "parameters": 10, "shape": [2, 5]}
    ranks = [None if value is None else value for value in rank]
    nulls = [None if value is None else 10.0 for value in rank]
    return labels | {"relative_norm": norm, "stable_rank": ranks, "stable_rank_null": nulls}


def _result(seed, norm, rank):
    """A run; of no norm, one that learned nothing."""
    along = [_row("a", norm, rank), _row("b", norm, rank)]
    end = [{k: v[-1] if isinstance(v, list) and k != "shape" else v for k, v in row.items()} for row in along]
    said = {
        "seed": seed, "steps": 2, "learning_rate": 0.1, "training": {},
        "accuracy": {"initial": 0.5, "final": 0.5 + norm[-1], "curve": [[0, 0.5], [2, 0.5 + norm[-1]]], "ci": [0, 1]},
        "summary": {"stable_rank": {"mean": rank[-1]}, "relative_norm": {"mean": norm[-1]}},
        "groups": {}, "coverage": {}, "used": {},
        "trajectory": {"steps": [1, 2], "summary": {}},
    }  # fmt: skip
    return Result(said if any(norm) else said | {"learned_nothing": WHY}, Measured(end, [1, 2], along), 20)


def _study(**methods):
    """What a study's report says of the runs of its methods."""
    told = {name: method_results(runs) | {"per_seed": [run.said for run in runs]} for name, runs in methods.items()}
    labels = {"opd": "OPD", "rlvr": "RLVR", "sft_anchor": "SFT"}
    for name, method in told.items():
        method |= {"label": labels[name], "origin": "anchor"}
    return {"methods": told, "matched": matched_results(methods, [list(methods)]), "seeds": [0, 1]}


@pytest.fixture
def half():
    opd = [_result(0, [0.1, 0.2], [3.0, 4.0]), _result(1, [0.1, 0.4], [5.0, 6.0])]
    return _study(opd=opd, rlvr=[_result(0, [0.1, 0.3], [7.0, 8.0]), _result(1, [0.0, 0.0], [None, None])])


@pytest.fixture
def none():
    idle = [_result(seed, [0.0, 0.0], [None, None]) for seed in (0, 1)]
    return _study(opd=[_result(0, [0.1, 0.2], [3.0, 4.0]), _result(1, [0.1, 0.4], [5.0, 6.0])], rlvr=idle)


def test_a_seed_that_learned_nothing_is_in_no_mean_and_no_comparison(half):
    rlvr = half["methods"]["rlvr"]
    assert rlvr["summary"]["stable_rank"]["mean"] == 8.0
    assert rlvr["summary"]["relative_norm"]["mean"] == 0.3 and rlvr["accuracy"]["final"] == 0.8
    assert len(rlvr["per_seed"]) == 2 and "learned_nothing" not in rlvr
    # Its norm of zero would have been the size at which all methods are compared, where nothing is defined.
    block = half["matched"]["relative_norm"]
    assert block["relative_norm"] == 0.2
    assert all(row["stable_rank"] is not None and row["stable_rank_count"] == 2 for row in block["rows"])
    ends = {row["method"]: row for row in half["matched"]["end"]["rows"]}
    assert ends["rlvr"]["stable_rank"] == 8.0 and "stable_rank_seeds" not in ends["rlvr"]
    assert ends["opd"]["stable_rank_seeds"] == [4.0, 6.0]
    assert half["matched"]["along"]["rlvr"]["trajectory"]["summary"]["stable_rank"]["mean"] == [7.0, 8.0]


def test_it_is_named_and_what_is_said_of_it_is_not_said_of_the_other(half):
    (said,) = nothing_learned(half)
    assert said.startswith(f"RLVR, seed 1 LEARNED NOTHING: {WHY}") and "told by seed 0 alone" in said
    told = study_findings(half)
    assert told[0] == said and undefined_numbers(half) == ""
    assert not any("exactly zero" in sentence or "Undefined" in sentence for sentence in told)


def test_a_method_without_a_seed_is_undefined_and_leaves_the_others_alone(none):
    rlvr = none["methods"]["rlvr"]
    assert rlvr["summary"] == rlvr["groups"] == {} and rlvr["learned_nothing"] == WHY
    rows = {row["method"]: row for row in none["matched"]["relative_norm"]["rows"]}
    assert none["matched"]["relative_norm"]["relative_norm"] == 0.2 and rows["opd"]["stable_rank"] is not None
    assert rows["rlvr"]["stable_rank"] is None and rows["rlvr"]["stable_rank_count"] == 0
    assert "rlvr" not in none["matched"]["along"]
    assert [text.split(" LEARNED")[0] for text in nothing_learned(none)] == ["RLVR, seed 0", "RLVR, seed 1"]
    told = " ".join(study_findings(none | {"methods": none["methods"] | {"sft_anchor": none["methods"]["opd"]}}))
    assert "RLVR has no seed that learned" in told and "RLVR learned nothing" in told and "was not run" not in told


def test_undefined_is_said_of_the_seed_in_which_it_is():
    """Seed 1 moved and yet has no rank anywhere; seed 0 has one."""
    runs = [_result(0, [0.1, 0.2], [3.0, 4.0]), _result(1, [0.1, 0.4], [None, None])]
    said = undefined_numbers(_study(opd=runs))
    assert "stable rank of OPD, seed 1 (" in said and "seed 0" not in said


def test_pairs_are_of_runs_that_learned():
    assert pairs_of_runs({"a": [0, 1], "b": [1, 2], "c": []}) == [
        (("a", 1), ("b", 1)), (("a", 0), ("a", 1)), (("b", 1), ("b", 2)),
    ]  # fmt: skip
    assert pairs_of_runs({"a": [0], "b": [1]}) == [(("a", 0), ("b", 1))]


STILL = {"loss": 0.0, "grad_norm": 0.0, "update_norm": 0.0}


def _steps(count=2, **row):
    return [{"step": 0, "accuracy": 0.1}] + [{"step": step + 1, **row} for step in range(count)]


@pytest.mark.parametrize(
    ("settings", "row", "words"),
    [
        (RLVRSettings(**COMMON), {"skipped": 1.0, "reward": 0.0}, ("answers to a prompt", "no answer was ever right")),
        (RLVRSettings(**COMMON), {"skipped": 1.0, "reward": 1.0}, ("began with", "harder prompts")),
        (RLVRSettings(**COMMON), {"skipped": 1.0, "reward": 0.5}, ("--samples-per-prompt",)),
        (
            RLVRSettings(**COMMON, dynamic_filter=False),
            {"loss": 0.0, "grad_norm": 0.0, "update_norm": 0.1, "reward": 0.0, "informative_groups": 0.0},
            ("weight decay alone moved the weights", "no answer was ever right"),
        ),
        (
            RLVRSettings(**COMMON, dynamic_filter=False, kl_coefficient=0.1),
            {"loss": 1e-9, "grad_norm": 1e-6, "update_norm": 0.1, "reward": 1.0, "informative_groups": 0.0},
            ("the KL to the start and weight decay alone moved the weights", "harder prompts"),
        ),
        (OPDSettings(**COMMON), STILL | {"gap": 0.0}, ("another --teacher",)),
        (SFTSettings(**COMMON), STILL | {"grad_norm": 2.0}, ("learning rate of 0",)),
        (SFTSettings(**COMMON), STILL, ("gradient was exactly zero",)),
    ],
)
def test_a_run_that_learned_nothing_says_what_happened_how_long_and_what_to_change(settings, row, words):
    why = learned_nothing(_steps(**row), settings)
    assert why is not None and why.startswith("in all 2 steps ") and "To change: " in why
    assert all(word in why for word in words), why
    stream = io.StringIO()
    _say_if_nothing_was_learned(settings, _steps(**row), Reporter(Console(file=stream, width=500)))
    assert f": NOTHING WAS LEARNED: {why}\n" in stream.getvalue()


@pytest.mark.parametrize(("groups", "penalty"), [([0.0, 0.25], -1.0), ([0.0, 0.0], -0.5)])
def test_beside_a_kl_other_rewards_in_one_group_and_another_penalty_teach(groups, penalty):
    settings = RLVRSettings(
        **COMMON, dynamic_filter=False, kl_coefficient=0.1, overlong="penalty", overlong_buffer=2, max_new_tokens=8
    )
    row = {"loss": 0.1, "grad_norm": 1e-6, "update_norm": 0.1, "reward": 0.0, "overlong_penalty": penalty}
    assert learned_nothing([row | {"informative_groups": share} for share in groups], settings) is None


def test_a_run_with_one_step_that_learned_did_learn():
    rows = [*_steps(1, skipped=1.0), {"step": 2, "loss": 0.1, "grad_norm": 1e-9, "update_norm": 1e-9}]
    assert learned_nothing(rows, RLVRSettings(**COMMON)) is None
    assert learned_nothing(_steps(1, skipped=1.0), RLVRSettings(**COMMON)) is None  # half of its log
