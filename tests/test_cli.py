"""The command line as a user meets it: help, one line for a mistake, real comparisons of real directories."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.command_line import process
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model and the same a little moved."""
    directory = tmp_path_factory.mktemp("pair")
    first, second = (write_tiny_model(directory / name, seed=0) for name in ("first", "second"))
    tensors = load_file(second / "model.safetensors")
    generator = np.random.default_rng(0)
    moved = {n: t + 1e-3 * generator.standard_normal(t.shape).astype(t.dtype) for n, t in tensors.items()}
    save_file(moved, second / "model.safetensors", metadata={"format": "pt"})
    return first, second


def test_help_names_every_command(jaxgeom):
    result = jaxgeom("--help")
    assert result.status == 0
    for name in (
        "study",
        "compare",
        "between",
        "trajectory",
        "train sft",
        "train rlvr",
        "train opd",
        "report",
        "export",
    ):
        assert name in result.out


def test_compare_writes_the_contract(jaxgeom, pair, tmp_path):
    out = tmp_path / "out"
    result = process("compare", *pair, "--out", out, "--angle-k", 4, "--mask-rank", 4)
    assert result.status == 0, result.err
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 1 and "compare" in report["command"]
    assert {"version", "inputs", "settings", "coverage", "summary", "groups", "matrices"} <= set(report)
    assert len(report["matrices"]) == 14
    row = next(r for r in report["matrices"] if r["name"] == "model.layers.0.mlp.down_proj.weight")
    assert row["shape"] == [32, 48] and row["layer"] == 0 and row["module"] == "down"
    before, after = (load_file(side / "model.safetensors")[row["name"]].astype(np.float64) for side in pair)
    sigma, start, end = (np.linalg.svd(x, compute_uv=False) for x in (after - before, before, after))
    np.testing.assert_allclose(row["stable_rank"], (sigma**2).sum() / sigma[0] ** 2, rtol=1e-5)
    np.testing.assert_allclose(row["nss"], np.linalg.norm(end - start) / np.linalg.norm(start), rtol=1e-5)
    for name in ("overlap_low", "stable_rank", "nss", "angle_left_mean_deg", "projection_joint"):
        assert f"{name}_null" in row and f"{name}_excess" in row
    assert (out / "report.html").is_file() and (out / "matrices.csv").is_file()
    again = jaxgeom("compare", *pair, "--out", out, "--angle-k", 5, "--mask-rank", 4)
    assert again.status == 2 and str(out) in again.err and "--force" in again.err


def test_between_writes_the_contract_and_report_rewrites_its_page(jaxgeom, pair, tmp_path):
    out = tmp_path / "out"
    result = process("between", pair[0], pair[1], pair[1], "--out", out, "--subspace-k", 4)
    assert result.status == 0, result.err
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 1 and report["kind"] == "between" and report["command"].startswith("jaxgeom between")
    assert len(report["matrices"]) == 14 and report["summary"]["jaccard"]["mean"] == 1
    assert report["summary"]["orthogonal_share"]["mean"] < 1e-12
    assert report["summary"]["subspace_similarity"]["mean"] == pytest.approx(1, abs=1e-5)
    page = (out / "report.html").read_bytes()
    assert (out / "matrices.csv").is_file() and b"rounding null" in page and b"https://" not in page
    (out / "report.html").unlink()
    assert process("report", out).status == 0 and (out / "report.html").read_bytes() == page
    again = jaxgeom("between", pair[0], pair[1], pair[0], "--out", out)
    assert again.status == 2 and again.err.count("\n") == 1 and "--force" in again.err


def test_trajectory_takes_spectra_rates_and_the_attention_population(jaxgeom, pair, tmp_path):
    later = [
        _copy(side, tmp_path / f"checkpoint-{step}", lambda d: None) for step, side in ((5, pair[0]), (9, pair[1]))
    ]
    out, options = tmp_path / "out", ("--angle-k", 4, "--mask-rank", 4, "--subspace-k", 4, "--population", "attention")
    given = ("--spectra", "--cache", tmp_path / "cache", "--learning-rate", 1e-4)
    result = process("trajectory", pair[0], *later, "--out", out, *options, *given)
    assert result.status == 0, result.err
    held = json.loads((out / "trajectory.json").read_text())
    assert held["command"].startswith("jaxgeom trajectory") and len(held["matrices"]) == 8
    assert len(list((tmp_path / "cache").iterdir())) == 8
    compared = jaxgeom("compare", *pair, "--out", tmp_path / "pair", *options, "--cache", tmp_path / "cache")
    assert compared.status == 0, compared.err
    report = json.loads((tmp_path / "pair" / "report.json").read_text())
    for name in ("nss", "angle_left_mean_deg", "angle_right_mean_deg"):
        assert held["summary"][name]["mean"] == pytest.approx([0, report["summary"][name]["mean"]], rel=1e-9)
    ratio = held["matrices"][0]["lr_drift_ratio"][1] * 1e-4 * 9
    assert ratio == pytest.approx(report["matrices"][0]["fro_norm"] / np.sqrt(np.prod(report["matrices"][0]["shape"])))
    figures = {path.stem for path in (out / "figures").glob("*.svg")}
    assert {"spectra", "path"} <= figures and held["settings"]["population"] == "attention"
    unnamed = jaxgeom("trajectory", *pair, "--out", tmp_path / "none", "--learning-rate", 1e-4)
    assert unnamed.status == 2 and unnamed.err.count("\n") == 1 and "learning_rate" in unnamed.err


def _copy(source, target, change):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return target


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _with_tensors(edit):
    def change(directory):
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return change


NAME = "model.layers.1.self_attn.k_proj.weight"
_with_nan = _with_tensors(lambda t: t.update({NAME: np.full_like(t[NAME], np.nan)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "model.safetensors").unlink(), ["safetensors"]),
        (_truncate, ["model.safetensors"]),
        (_with_tensors(lambda t: t.update({NAME: t[NAME][:-1]})), [NAME]),
        (_with_tensors(lambda t: t.update({"other": t.pop(NAME)})), [NAME, "other"]),
        (_with_nan, [NAME]),
        (_with_tensors(lambda t: t.update({NAME: t[NAME].astype(np.int32)})), [NAME]),
    ],
    ids=["missing", "truncated", "shape", "name", "nan", "integer"],
)
def test_a_broken_checkpoint_is_one_line_and_leaves_nothing(jaxgeom, pair, tmp_path, change, words):
    broken = _copy(pair[1], tmp_path / "broken", change)
    out = tmp_path / "out"
    result = jaxgeom("compare", pair[0], broken, "--out", out)
    assert result.status == 2, result.out
    assert result.err.count("\n") == 1 and all(word in result.err for word in words), result.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["compare", "trajectory", "between", "train"])
def test_a_base_that_no_adapter_has_is_refused(jaxgeom, pair, tmp_path, command):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    run = ("sft", "--model", pair[0], "--data", rows, "--steps", 1, "--batch-size", 8, "--lr", 1e-3)
    given = run if command == "train" else (*pair, pair[1]) if command == "between" else pair
    said = jaxgeom(command, *given, "--base", pair[0], "--out", tmp_path / "out")
    assert said.status == 2 and said.err.count("\n") == 1, said.err
    assert f"base={pair[0]}: nothing reads it: no LoRA adapter is among" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fly",), "fly"),
        (("compare", "/absent/a", "/absent/b", "--out", "/tmp/never"), "/absent/a"),
        (("train", "sft", "--steps", "3"), "--out"),
        (("train", "sft", "--bogus", "3"), "--bogus"),
        (("report", "/absent"), "/absent"),
        (("study", "/absent.py"), "/absent.py"),
    ],
)
def test_a_mistake_is_one_line(jaxgeom, arguments, words):
    result = jaxgeom(*arguments)
    assert result.status == 2 and result.err.count("\n") == 1, result.err
    assert words in result.err and "Traceback" not in result.err


def test_a_mistake_is_one_line_of_a_process_too(pair, tmp_path):
    """Found late, with everything imported and a checkpoint read: no library adds a word of its own."""
    broken = _copy(pair[1], tmp_path / "broken", _with_nan)
    result = process("compare", pair[0], broken, "--out", tmp_path / "out")
    assert result.status == 2 and result.err.count("\n") == 1 and NAME in result.err, result.err
