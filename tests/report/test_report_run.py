"""The page of one training run, and the live geometry of a study's runs, from logs written by hand."""

import json
from pathlib import Path

import pytest

from jaxgeom.owned_files import KINDS, contents_of
from jaxgeom.report.figures_run import live_geometry
from jaxgeom.report.run_log import geometry_curves
from tests.report import report_examples as examples

ROWS = [
    {"step": 0, "accuracy": 0.25, "accuracy_low": 0.125, "accuracy_high": 0.5, "accuracy_count": 8.0},
    {"step": 1, "loss": 2.0, "grad_norm": 3.0},
    {
        "step": 2, "loss": 1.0, "grad_norm": 2.0, "geometry/density_bf16": 0.5, "geometry/density_bf16_null": 0.25,
        "geometry/relative_norm": 0.01, "geometry/q_proj/density_bf16": 0.9, "step_geometry/density_bf16": 0.125,
    },
    {"step": 4, "loss": 0.5, "grad_norm": 1.0, "geometry/density_bf16": 0.75, "geometry/relative_norm": 0.02},
    {"step": 4, "accuracy": 0.75, "accuracy_low": 0.5, "accuracy_high": 0.875, "accuracy_count": 8.0},
]  # fmt: skip


def _run(directory: Path, rows: list[dict]) -> Path:
    config = {
        "schema": 1, "kind": "run", "version": "0.1.0", "objective": "sft", "settings": {"steps": 8, "seed": 3},
        "inputs": {"model": "start", "data": "rows.jsonl", "eval_data": [], "teacher": None},
        "contents": {"model": "ab" * 32, "data": "cd" * 32},
    }  # fmt: skip
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_log_becomes_curves_beside_their_nulls_over_all_matrices_alone():
    curves = geometry_curves(ROWS)
    assert curves["geometry"]["steps"] == [2, 4] and set(curves["geometry"]["summary"]) == {
        "density_bf16", "relative_norm",
    }  # fmt: skip
    density = curves["geometry"]["summary"]["density_bf16"]
    assert density == {"mean": [0.5, 0.75], "null": [0.25, None], "excess": [0.25, None]}
    assert "null" not in curves["geometry"]["summary"]["relative_norm"]
    assert curves["step_geometry"] == {"steps": [2], "summary": {"density_bf16": {"mean": [0.125]}}}
    assert geometry_curves(ROWS[:2]) == {}


def test_the_page_of_a_run_says_what_it_learned_and_what_it_changed(jaxgeom, tmp_path):
    run = _run(tmp_path / "run", ROWS)
    said = jaxgeom("report", run)
    assert said.status == 0, said.err
    page = (run / "report.html").read_text()
    for text in (
        "4 of 8 steps", "25.0 % at step 0, 75.0 % [50.0 %, 87.5 %] at step 4", "visible density (bf16) 75.0 %",
        "measured at step 2: visible density (bf16) 12.5 %", "abab", "rows.jsonl",
    ):  # fmt: skip
        assert text in page, text
    assert {path.name for path in (run / "figures").iterdir()} == {
        "learning.svg", "learning.png", "live.svg", "live.png",
    }  # fmt: skip
    assert contents_of(run, KINDS["run"]).foreign == []  # what `--force` may delete with the run


def test_a_run_that_measured_nothing_has_a_page_that_says_so(jaxgeom, tmp_path):
    run = _run(tmp_path / "run", ROWS[:2])
    assert jaxgeom("report", run).status == 0
    page = (run / "report.html").read_text()
    assert "--geometry-every asks for it" in page and not (run / "figures" / "live.svg").exists()


@pytest.mark.parametrize("content", ["", '{"step": 1}\nnothing\n', None])
def test_a_log_that_is_empty_damaged_or_missing_is_one_line(jaxgeom, tmp_path, content):
    run = _run(tmp_path / "run", [])
    (run / "metrics.jsonl").unlink()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    said = jaxgeom("report", run)
    assert said.status == 2 and "metrics.jsonl" in said.err and said.err.count("\n") == 1


def test_a_folder_that_is_no_run_is_said(jaxgeom, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    said = jaxgeom("report", tmp_path)
    assert said.status == 2 and "is no training run" in said.err


def test_the_runs_of_a_study_are_drawn_beside_each_other():
    methods = examples.study_report(seeds=2)["methods"]
    assert live_geometry(methods) is None
    for method in ("opd", "rlvr"):
        methods[method]["live"] = geometry_curves(ROWS)
    drawing = live_geometry(methods)
    assert drawing is not None and "OPD 75.0 %, RLVR 75.0 %" in drawing.alt
    assert len(drawing.figure.axes) == 3
