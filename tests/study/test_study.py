"""The whole study on real input, as a user runs it: the command, its files, a kill in the middle, bad input."""

import csv
import json
import math
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, between_runs
from tests.command_line import command, process
from tests.study import populations
from tests.study.conftest import EXPERIMENT, read_report


@pytest.fixture(scope="module")
def study(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    result = process("study", EXPERIMENT, "--out", out)
    assert result.status == 0, result.err[-2000:]
    return out, result.out


def test_the_command_leaves_what_the_contract_names(study):
    out, said = study
    for name in ("report.json", "matrices.csv", "report.html", "config.json", "done"):
        assert (out / name).is_file(), name
    assert list((out / "figures").glob("*.svg")) and list((out / "figures").glob("*.png"))
    assert "report.html" in said and "OPD" in said and "RLVR" in said
    for name in ("sft_anchor", "opd/seed0", "rlvr/seed0", "sft_continued/seed0"):
        run = out / "runs" / name
        assert (run / "done").exists() and (run / "metrics.jsonl").exists()
        saved = [0, 20, 40, 60] if name == "sft_anchor" else [0, 2, 4, 6]
        assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == saved


def test_the_report_stands_on_the_checkpoints(study):
    """Stable rank, norm and visible sparsity of one matrix, from the files, in float64 numpy."""
    out, _ = study
    report = read_report(out)
    assert set(report["methods"]) == {"sft_anchor", "opd", "rlvr", "sft_continued"}
    name = "model.layers.1.self_attn.q_proj.weight"
    ends = [open_checkpoint(f"{out}/runs/{run}") for run in ("sft_anchor@60", "opd/seed0@6")]
    before, after = (end[name].read() for end in ends)
    delta = after.astype(np.float64) - before.astype(np.float64)
    sigma = np.linalg.svd(delta, compute_uv=False)
    with (out / "matrices.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["method"] == "opd" and r["name"] == name)
    assert math.isclose(float(row["stable_rank"]), (sigma**2).sum() / sigma[0] ** 2, rel_tol=1e-5)
    assert math.isclose(float(row["fro_norm"]), np.linalg.norm(delta), rel_tol=1e-5)
    import ml_dtypes

    same = before.astype(ml_dtypes.bfloat16) == after.astype(ml_dtypes.bfloat16)
    assert math.isclose(float(row["sparsity_bf16"]), same.mean(), abs_tol=1e-9)
    similarity = report["methods"]["opd"]["trajectory"]["summary"]["sim_to_final"]["mean"]
    assert math.isclose(similarity[-1], 1.0, abs_tol=1e-6)


def test_every_run_starts_at_its_origin(study):
    out, _ = study
    report = read_report(out)
    assert report["methods"]["sft_anchor"]["origin"] == "base"
    anchor = open_checkpoint(f"{out}/runs/sft_anchor@60")
    for name in ("opd", "rlvr", "sft_continued"):
        assert report["methods"][name]["origin"] == "anchor"
        start = open_checkpoint(f"{out}/runs/{name}/seed0@0")
        for tensor in start:
            np.testing.assert_array_equal(start[tensor].read(), anchor[tensor].read())


def test_matched_comparisons_are_at_a_shared_place(study):
    report = read_report(study[0])
    assert report["matched"]["step"]["step"] == 6
    rows = {row["method"]: row for row in report["matched"]["relative_norm"]["rows"]}
    target = report["matched"]["relative_norm"]["relative_norm"]
    assert set(rows) == {"opd", "rlvr", "sft_continued"}
    found = [row["relative_norm"] for row in rows.values() if row["step"] is not None]
    assert found and all(math.isclose(norm, target, rel_tol=1e-9) for norm in found)


@pytest.mark.parametrize("check", populations.CHECKS)
def test_every_triple_is_over_one_population(study, check):
    check(populations.read(study[0]))


def test_every_triple_between_two_runs_is_over_one_population(study):
    ends = [open_checkpoint(f"{study[0]}/runs/{run}") for run in ("sft_anchor@60", "opd/seed0@6", "rlvr/seed0@6")]
    report = between_runs(*ends, CompareSettings(subspace_k=4))
    assert populations.check_report(report) > 20
    assert report["summary"]["jaccard"]["rounding_null"] != report["summary"]["jaccard"]["null"]


@pytest.mark.slow
def test_a_killed_study_ends_as_an_undisturbed_one(models, study, tmp_path):
    out = tmp_path / "out"
    line, environment = command("study", EXPERIMENT, "--out", out)
    progress = out / "runs" / "opd" / "seed0" / "metrics.jsonl"
    victim = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (progress.exists() and '"step": 3' in progress.read_text()):
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (out / "report.json").exists()
    result = process("study", EXPERIMENT, "--out", out)
    assert result.status == 0, result.err[-2000:]
    assert "goes on from step" in result.out
    assert (out / "matrices.csv").read_text() == (study[0] / "matrices.csv").read_text()
    for name in ("findings", "matched", "between", "methods"):
        assert read_report(out)[name] == read_report(study[0])[name]
    steps = [row["step"] for row in map(json.loads, progress.read_text().splitlines()) if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_study_is_not_run_again(jaxgeom, models, study):
    before = (study[0] / "runs" / "opd" / "seed0" / "metrics.jsonl").stat().st_mtime_ns
    assert jaxgeom("study", EXPERIMENT, "--out", study[0]).status == 0
    assert (study[0] / "runs" / "opd" / "seed0" / "metrics.jsonl").stat().st_mtime_ns == before


def test_an_exported_step_is_what_the_run_holds(models, study, tmp_path):
    to = tmp_path / "exported"
    result = process("export", study[0] / "runs/opd/seed0", "--step", 4, "--to", to, "--dtype", "float32")
    assert result.status == 0, result.err
    held = open_checkpoint(f"{study[0]}/runs/opd/seed0@4")
    tensors = load_file(to / "model.safetensors")
    assert set(tensors) == set(held)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, held[name].read())


def test_a_directory_that_holds_another_run_is_left_alone(jaxgeom, models, study, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = jaxgeom("study", EXPERIMENT, "--out", tmp_path)
    assert result.status == 2 and str(tmp_path) in result.err and result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    other = tmp_path / "experiment.py"
    other.write_text(EXPERIMENT.read_text().replace("learning_rate=1e-2", "learning_rate=2e-2"))
    result = jaxgeom("study", other, "--out", study[0])
    assert result.status == 2 and result.err.count("\n") == 1
    assert "anchor.optimizer.learning_rate: 0.01 there, 0.02 asked for" in result.err and "--force" in result.err


@pytest.mark.slow
@pytest.mark.long
def test_more_seeds_train_those_alone_and_other_measures_train_nothing(models, study, tmp_path):
    out = shutil.copytree(study[0], tmp_path / "out")

    def trained():
        return {path: path.stat().st_mtime_ns for path in out.glob("runs/**/metrics.jsonl")}

    first = trained()
    result = process("study", EXPERIMENT, "--out", out, "--seeds", 2)
    assert result.status == 0, result.err[-2000:]
    assert "training OPD, seed 1" in result.out and "training OPD, seed 0" not in result.out
    assert "measuring OPD, seed 1" in result.out and "measuring OPD, seed 0" not in result.out
    second = trained()
    assert first.items() <= second.items() and len(second) == len(first) + 3
    report = read_report(out)
    assert report["seeds"] == [0, 1]
    opd = report["methods"]["opd"]
    values = [seed["summary"]["stable_rank"]["mean"] for seed in opd["per_seed"]]
    assert math.isclose(opd["summary"]["stable_rank"]["mean"], np.mean(values))
    low, high = opd["summary"]["stable_rank"]["ci"]
    half = 12.706204736 * np.std(values, ddof=1) / math.sqrt(2)
    assert math.isclose(high - low, 2 * half, rel_tol=1e-6)
    assert len(report["methods"]["sft_anchor"]["per_seed"]) == 1
    assert "interval" in (out / "report.html").read_text()
    held = populations.read(out)
    for check in populations.CHECKS:
        check(held)
    other = tmp_path / "experiment.py"
    other.write_text(EXPERIMENT.read_text().replace("angle_k=4", "suite='fast', angle_k=4"))
    result = process("study", other, "--out", out)
    assert result.status == 0, result.err[-2000:]
    assert trained() == second and "training" not in result.out and "measuring OPD, seed 0" in result.out
    assert read_report(out)["settings"]["measure"]["suite"] == "fast"
