"""The whole study on real input, as a user runs it: the command, its files, a kill in the middle, bad input."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom.checkpoints import open_checkpoint
from tests.tiny import write_tiny_model

EXPERIMENT = Path(__file__).with_name("experiment_tiny.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_tiny_model(directory / "base", seed=0, dtype="bfloat16")
    write_tiny_model(directory / "teacher", seed=1, hidden_size=48)
    return directory


def _command(models, *arguments):
    environment = os.environ | {"TINY_MODELS": str(models), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return [sys.executable, "-m", "jaxgeom.cli", *map(str, arguments)], environment


def _run(models, *arguments):
    command, environment = _command(models, *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def study(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    result = _run(models, "study", EXPERIMENT, "--out", out)
    assert result.returncode == 0, result.stderr[-2000:]
    return out, result.stdout


def _report(out):
    def refuse(constant):
        raise AssertionError(f"{constant} in report.json")

    return json.loads((out / "report.json").read_text(), parse_constant=refuse)


def test_the_command_leaves_what_the_contract_names(study):
    out, said = study
    for name in ("report.json", "matrices.csv", "report.html", "config.json", "done"):
        assert (out / name).is_file(), name
    assert list((out / "figures").glob("*.svg")) and list((out / "figures").glob("*.png"))
    assert "report.html" in said and "OPD" in said and "RLVR" in said
    for name in ("sft_anchor", "opd/seed0", "rlvr/seed0", "sft_continued/seed0"):
        run = out / "runs" / name
        assert (run / "done").exists() and (run / "metrics.jsonl").exists()
        assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [0, 2, 4, 6]


def test_the_report_stands_on_the_checkpoints(study):
    """Stable rank, norm and visible sparsity of one matrix, from the files, in float64 numpy."""
    out, _ = study
    report = _report(out)
    assert set(report["methods"]) == {"sft_anchor", "opd", "rlvr", "sft_continued"}
    name = "model.layers.1.self_attn.q_proj.weight"
    ends = [open_checkpoint(f"{out}/runs/{run}@6") for run in ("sft_anchor", "opd/seed0")]
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
    report = _report(out)
    assert report["methods"]["sft_anchor"]["origin"] == "base"
    anchor = open_checkpoint(f"{out}/runs/sft_anchor@6")
    for name in ("opd", "rlvr", "sft_continued"):
        assert report["methods"][name]["origin"] == "anchor"
        start = open_checkpoint(f"{out}/runs/{name}/seed0@0")
        for tensor in start:
            np.testing.assert_array_equal(start[tensor].read(), anchor[tensor].read())


def test_matched_comparisons_are_at_a_shared_place(study):
    report = _report(study[0])
    assert report["matched"]["step"]["step"] == 6
    rows = {row["method"]: row for row in report["matched"]["relative_norm"]["rows"]}
    target = report["matched"]["relative_norm"]["relative_norm"]
    assert set(rows) == {"opd", "rlvr", "sft_continued"}
    found = [row["relative_norm"] for row in rows.values() if row["step"] is not None]
    assert found and all(math.isclose(norm, target, rel_tol=1e-9) for norm in found)


def test_a_killed_study_ends_as_an_undisturbed_one(models, study, tmp_path):
    out = tmp_path / "out"
    command, environment = _command(models, "study", EXPERIMENT, "--out", out)
    progress = out / "runs" / "opd" / "seed0" / "metrics.jsonl"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (progress.exists() and '"step": 3' in progress.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "report.json").exists()
    result = _run(models, "study", EXPERIMENT, "--out", out)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "goes on from step" in result.stdout
    assert (out / "matrices.csv").read_text() == (study[0] / "matrices.csv").read_text()
    for name in ("findings", "matched", "between", "methods"):
        assert _report(out)[name] == _report(study[0])[name]
    steps = [row["step"] for row in map(json.loads, progress.read_text().splitlines()) if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_study_is_not_run_again(models, study):
    before = (study[0] / "runs" / "opd" / "seed0" / "metrics.jsonl").stat().st_mtime_ns
    result = _run(models, "study", EXPERIMENT, "--out", study[0])
    assert result.returncode == 0
    assert (study[0] / "runs" / "opd" / "seed0" / "metrics.jsonl").stat().st_mtime_ns == before


def test_an_exported_step_is_what_the_run_holds(models, study, tmp_path):
    to = tmp_path / "exported"
    result = _run(models, "export", study[0] / "runs/opd/seed0", "--step", 4, "--to", to, "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    held = open_checkpoint(f"{study[0]}/runs/opd/seed0@4")
    tensors = load_file(to / "model.safetensors")
    assert set(tensors) == set(held)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, held[name].read())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name=", "nmae="), "nmae"),
        (('models / "base"', 'models / "absent"'), "absent"),
        (("import os", "import os, absent_module"), "absent_module"),
        (("steps=6", "steps=0"), "steps=0"),
        (("experiment = Experiment(", "other = Experiment("), "experiment"),
        (("common = dict(", "common = dict(("), "line"),
    ],
)
def test_a_bad_experiment_file_is_one_line_and_leaves_no_trace(models, tmp_path, change, words):
    file = tmp_path / "experiment.py"
    text = EXPERIMENT.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    out = tmp_path / "out"
    result = _run(models, "study", file, "--out", out)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and words in result.stderr, result.stderr
    assert not out.exists()


@pytest.mark.parametrize("kind", ["nan", "truncated", "shape", "vocabulary"])
def test_a_bad_model_is_named_before_anything_is_written(models, tmp_path, kind):
    broken = tmp_path / "models"
    for name in ("base", "teacher"):
        shutil.copytree(models / name, broken / name)
    file, tensor = broken / "teacher" / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
    elif kind == "vocabulary":
        shutil.rmtree(broken / "teacher")
        write_tiny_model(broken / "teacher", vocab_size=128)
    else:
        tensors = load_file(file)
        tensors[tensor] = tensors[tensor] * np.float32("nan") if kind == "nan" else tensors[tensor][:-1]
        save_file(tensors, file, metadata={"format": "pt"})
    out = tmp_path / "out"
    result = _run(broken, "study", EXPERIMENT, "--out", out)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    words = {"nan": tensor, "shape": tensor, "truncated": "model.safetensors", "vocabulary": "128"}
    assert words[kind] in result.stderr
    assert not out.exists()


@pytest.mark.slow
def test_several_seeds_give_intervals(models, tmp_path):
    """Only the methods' runs are repeated; the anchor is shared."""
    out = tmp_path / "out"
    result = _run(models, "study", EXPERIMENT, "--out", out, "--seeds", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    report = _report(out)
    assert report["seeds"] == [0, 1]
    opd = report["methods"]["opd"]
    values = [seed["summary"]["stable_rank"]["mean"] for seed in opd["per_seed"]]
    assert math.isclose(opd["summary"]["stable_rank"]["mean"], np.mean(values))
    low, high = opd["summary"]["stable_rank"]["ci"]
    half = 12.706204736 * np.std(values, ddof=1) / math.sqrt(2)
    assert math.isclose(high - low, 2 * half, rel_tol=1e-6)
    assert len(report["methods"]["sft_anchor"]["per_seed"]) == 1
    assert "interval" in (out / "report.html").read_text()


def test_a_directory_that_holds_another_run_is_left_alone(models, study, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = _run(models, "study", EXPERIMENT, "--out", tmp_path)
    assert result.returncode == 2 and str(tmp_path) in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    result = _run(models, "study", EXPERIMENT, "--out", study[0], "--seeds", 2)
    assert result.returncode == 2 and "seeds" in result.stderr
