"""Whole comparisons of real directories against float64 NumPy, and what each refuses."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, Report, compare_checkpoints
from jaxgeom.errors import UserError
from tests.comparison import disk

EXACT = ("sparsity_bf16", "density_bf16", "sparsity_stored", "sparsity_abs_1e-5", "overlap_principal", "overlap_low")
SPECTRAL = (
    "fro_norm", "relative_norm", "op_norm", "stable_rank", "stable_rank_bf16", "entropy_rank", "participation_ratio",
    "hill", "nss", "nss_bf16", "nss_without_decay", "decay", "projection_joint", "projection_left", "projection_right",
)  # fmt: skip
SPECTRAL_RELATIVE = 1e-5
DEGREES = 1e-4

SETTINGS = CompareSettings(angle_k=8, mask_rank=5, hill_k=6)


def run(tmp_path, initial, final, settings=SETTINGS, config=None, **options) -> Report:
    a = disk.write(tmp_path / "initial", initial, config)
    b = disk.write(tmp_path / "final", final, config)
    return compare_checkpoints(open_checkpoint(a), open_checkpoint(b), settings, **options)


def check_row(row: dict, w0: np.ndarray, w1: np.ndarray) -> None:
    truth = disk.oracle(w0, w1, angle_k=8, rank=5, fraction=0.3, hill_k=6, share=0.1)
    for name in EXACT:
        assert row[name] == pytest.approx(truth[name], rel=1e-14, abs=1e-14), name
    for name in SPECTRAL:
        assert row[name] == pytest.approx(truth[name], rel=SPECTRAL_RELATIVE), name
    for name in ("angle_left_mean_deg", "angle_right_mean_deg"):
        if row[name] is None:
            assert "ill-posed" in row["angle_note"]
            continue
        assert row[name] == pytest.approx(truth[name], abs=DEGREES), name
    for name in ("angle_left_max_deg", "angle_right_max_deg"):
        if row[name] is not None:
            assert row[name] == pytest.approx(truth[name], rel=1e-6, abs=DEGREES), name
    assert row["angle_gap"] == pytest.approx(truth["angle_gap"], rel=1e-9)


@pytest.mark.parametrize("scale", [3e-6, 1e-4, 2e-3])
def test_every_statistic_equals_the_float64_oracle(tmp_path, scale):
    initial = disk.weights()
    final = disk.moved(initial, scale)
    report = run(tmp_path, initial, final)
    assert [row["name"] for row in report.matrices] == [name for name in initial if "_proj" in name]
    for row in report.matrices:
        check_row(row, initial[row["name"]], final[row["name"]])


def _updates(shape: tuple[int, int], rng: np.random.Generator):
    m, n = shape
    w0 = rng.standard_normal(shape) * 0.02
    u, s, v = np.linalg.svd(w0, full_matrices=False)
    low = rng.standard_normal((m, 2)) @ rng.standard_normal((2, n)) * 1e-3
    spectrum = np.linspace(2.0, 0.5, s.size)
    clustered = np.where(np.arange(s.size) < 8, 1.0, 0.3) * (1 + 1e-3 * spectrum)
    deficient = np.where(np.arange(s.size) < s.size - 5, spectrum, 0)
    yield "low rank", w0, w0 + low
    yield "clustered", (u * clustered) @ v, (u * clustered) @ v + rng.standard_normal(shape) * 1e-4
    yield "rank deficient", (u * deficient) @ v, (u * deficient) @ v + rng.standard_normal(shape) * 1e-6
    yield "decay only", w0, w0 * (1 - 1e-3)


@pytest.mark.parametrize("shape", [(disk.INNER, disk.HIDDEN), (disk.HIDDEN, disk.INNER), (40, 40)])
def test_special_updates_equal_the_float64_oracle(tmp_path, shape):
    cases = list(_updates(shape, np.random.default_rng(3)))
    name = "model.layers.{}.mlp.gate_proj.weight"
    initial = {name.format(index): w0.astype(np.float32) for index, (_, w0, _) in enumerate(cases)}
    final = {name.format(index): w1.astype(np.float32) for index, (_, _, w1) in enumerate(cases)}
    for row in run(tmp_path, initial, final).matrices:
        check_row(row, initial[row["name"]], final[row["name"]])


def test_a_tiny_rotation_is_measured_to_a_ten_thousandth_of_a_degree(tmp_path):
    rng = np.random.default_rng(5)
    q = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    w0 = (q * np.linspace(3, 1, 48)) @ np.linalg.qr(rng.standard_normal((48, 48)))[0]
    turn = np.eye(48)
    angle = np.radians(1e-4)
    turn[np.ix_([2, 40], [2, 40])] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    w1 = q @ turn @ q.T @ w0
    from jaxgeom.comparison.one_matrix.rotation import angles_from_bases

    left0, left1 = np.linalg.svd(w0)[0][:, :8], np.linalg.svd(w1)[0][:, :8]
    angles = np.degrees(angles_from_bases(np.asfortranarray(left0), np.asfortranarray(left1)))
    assert angles[-1] == pytest.approx(1e-4, rel=1e-6)
    assert angles[:-1].max() < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_nulls_hold_for_isotropic_noise(tmp_path, seed):
    rng = np.random.default_rng(seed)
    w0 = {"model.layers.0.mlp.up_proj.weight": (rng.standard_normal((150, 100)) * 0.02).astype(np.float32)}
    row = run(tmp_path, w0, disk.moved(w0, 3e-5, seed + 10), CompareSettings(angle_k=20, mask_rank=8)).matrices[0]
    scores = {name: value for name, value in row.items() if name.endswith("_z") and value is not None}
    assert len(scores) > 20
    loud = {name: value for name, value in scores.items() if abs(value) > 5 and "max" not in name}
    assert not loud
    for name in (
        "nss",
        "stable_rank",
        "entropy_rank",
        "overlap_low",
        "overlap_principal",
        "angle_left_mean_deg",
        "angle_right_mean_deg",
    ):
        assert row[name] == pytest.approx(row[f"{name}_null"], rel=0.2), name


def test_large_updates_have_their_rotation_null_sampled(tmp_path):
    rng = np.random.default_rng(7)
    w0 = {"model.layers.0.mlp.up_proj.weight": (rng.standard_normal((90, 60)) * 0.02).astype(np.float32)}
    row = run(tmp_path, w0, disk.moved(w0, 6e-3), CompareSettings(angle_k=20, mask_rank=8)).matrices[0]
    assert "SVD" in row["angle_null_form"]
    for name in ("angle_left_mean_deg", "angle_right_mean_deg"):
        value = row[name] if row[name] is not None else row[f"{name}_null"]
        assert value == pytest.approx(row[f"{name}_null"], rel=0.15)


def test_nothing_changed_gives_nulls_and_no_numbers_where_undefined(tmp_path):
    initial = disk.weights()
    report = run(tmp_path, initial, initial)
    for row in report.matrices:
        assert row["sparsity_bf16"] == 1.0 and row["nss"] == 0.0 and row["angle_left_max_deg"] == 0.0
        for name in ("overlap_low", "overlap_principal", "stable_rank", "hill", "entropy_rank", "projection_joint"):
            assert row[name] is None, name
    assert report.summary["overlap_low"]["mean"] is None
    json.dumps(report.to_json(), allow_nan=False)


def test_zero_matrices_and_hidden_updates_are_reported_not_crashed(tmp_path):
    initial = disk.weights()
    initial["model.layers.0.mlp.up_proj.weight"][:] = 0
    final = {name: array * np.float32(1 + 1e-6) for name, array in initial.items()}
    final["model.layers.1.mlp.up_proj.weight"][:] = 0
    json.dumps(run(tmp_path, initial, final).to_json(), allow_nan=False)


def test_report_has_the_contracts_keys_and_weights(tmp_path):
    initial, out = disk.weights(), tmp_path / "out"
    final = disk.moved(initial, 1e-4)
    report = run(tmp_path, initial, final, out=out)
    held = json.loads((out / "report.json").read_text())
    assert held == json.loads(json.dumps(report.to_json()))
    assert (
        held["schema"] == 1
        and held["inputs"]["initial"]["dtype"] == "float32"
        and len(held["inputs"]["final"]["sha256"]) == 64
    )
    assert (out / "matrices.csv").read_text().count("\n") == 15
    assert sorted(path.name for path in out.iterdir()) == ["matrices.csv", "report.json"]
    changed = sum(int((disk.bf16(initial[n]) != disk.bf16(final[n])).sum()) for n in initial)
    total = sum(array.size for array in initial.values())
    assert held["summary"]["sparsity_bf16"]["mean"] == pytest.approx(1 - changed / total, rel=1e-12)
    norms = [np.linalg.norm(final[n].astype(float) - initial[n]) for n in initial if "_proj" in n]
    assert held["summary"]["fro_norm"]["mean"] == pytest.approx(np.mean(norms))
    assert set(held["groups"]["module"]) == {"q", "k", "v", "o", "gate", "up", "down"} and set(
        held["groups"]["layer"]
    ) == {"0", "1"}
    assert set(held["groups"]["sparsity"]) == {"all", "matrices", "embedding", "norm", "head"}
    assert held["coverage"]["sparsity_bf16"]["parameters"] == 1.0 and held["coverage"]["nss"]["matrices"] == 14
    assert held["settings"]["angle_k"] == 8 and held["settings"]["null_forms"]


def test_the_same_comparison_twice_gives_the_same_bits(tmp_path):
    initial = disk.weights()
    final = disk.moved(initial, 1e-3)
    first, second = (run(tmp_path, initial, final).to_json() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_cached_bases_change_nothing(tmp_path):
    initial = disk.weights()
    final = disk.moved(initial, 1e-3)
    cold = run(tmp_path, initial, final, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 14
    warm = run(tmp_path, initial, final, cache=tmp_path / "cache")
    assert json.dumps(cold.to_json()) == json.dumps(warm.to_json())


def test_sharding_of_files_does_not_change_content_hash_or_numbers(tmp_path):
    initial = disk.weights()
    final = disk.moved(initial, 1e-3)
    whole = run(tmp_path, initial, final)
    a = disk.write(tmp_path / "sharded", initial, shards=3)
    sharded = compare_checkpoints(open_checkpoint(a), open_checkpoint(tmp_path / "final"), SETTINGS)
    assert whole.inputs["initial"]["sha256"] == sharded.inputs["initial"]["sha256"]
    by_name = {row["name"]: row for row in sharded.matrices}
    assert all(by_name[row["name"]] == row for row in whole.matrices)


def test_bf16_files_say_that_the_views_coincide(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    from safetensors.torch import save_file

    initial = disk.weights()
    final = disk.moved(initial, 1e-3)
    for name, side in (("a", initial), ("b", final)):
        disk.write(tmp_path / name, side)
        save_file({k: torch.from_numpy(v).bfloat16() for k, v in side.items()}, tmp_path / name / "model.safetensors")
    report = compare_checkpoints(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"), SETTINGS)
    assert report.settings["views_coincide"] and report.inputs["initial"]["dtype"] == "bfloat16"
    for row in report.matrices:
        check_row(row, *(side[row["name"]].astype(ml_dtypes.bfloat16).astype(np.float32) for side in (initial, final)))
        assert row["nss"] == row["nss_bf16"] and row["stable_rank"] == row["stable_rank_bf16"]


def test_fast_suite_leaves_out_full_spectra_and_agrees_on_the_rest(tmp_path):
    initial = disk.weights()
    final = disk.moved(initial, 1e-3)
    full = run(tmp_path, initial, final)
    fast = run(tmp_path, initial, final, CompareSettings(suite="fast", angle_k=8, mask_rank=5, hill_k=6))
    for one, other in zip(full.matrices, fast.matrices, strict=True):
        assert "nss" not in other and "entropy_rank" not in other and "angle_left_mean_deg" not in other
        for name in ("stable_rank", "stable_rank_bf16", "participation_ratio", "op_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), name
        assert other["overlap_low"] == one["overlap_low"]
        assert other["overlap_principal"] == pytest.approx(one["overlap_principal"], abs=5e-3)


def test_crossed_levels_are_called_ill_posed(tmp_path):
    rng = np.random.default_rng(2)
    u, v = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
    sigma = np.concatenate([np.full(20, 1.0), np.full(20, 0.5)])
    initial = {"model.layers.0.mlp.up_proj.weight": ((u * sigma) @ v).astype(np.float32)}
    row = run(tmp_path, initial, disk.moved(initial, 1e-3)).matrices[0]
    assert (
        "ill-posed" in row["angle_note"] and row["angle_left_max_deg"] is None and row["angle_right_mean_deg"] is None
    )


def test_k_larger_than_a_matrix_is_capped_and_said(tmp_path):
    initial = disk.weights()
    rows = run(tmp_path, initial, disk.moved(initial, 1e-3), CompareSettings()).matrices
    assert {row["angle_k"] for row in rows} == {23, 39}
    assert {row["mask_rank"] for row in rows} == {24, 40}


def test_include_and_exclude_select_parameters(tmp_path):
    initial = disk.weights()
    settings = CompareSettings(include="self_attn", exclude=r"layers\.1", angle_k=8)
    report = run(tmp_path, initial, disk.moved(initial, 1e-3), settings)
    assert [row["module"] for row in report.matrices] == ["q", "k", "v", "o"] and not report.parameters
    with pytest.raises(UserError, match="leave no parameter"):
        run(tmp_path, initial, initial, CompareSettings(include="nothing_like_it"))


def test_all_mismatches_are_listed(tmp_path):
    initial, final = disk.weights(), disk.weights()
    final["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 4), np.float32)
    del final["lm_head.weight"], final["model.norm.weight"]
    final["extra.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(UserError) as error:
        run(tmp_path, initial, final, out=tmp_path / "out")
    for word in ("lm_head.weight", "model.norm.weight", "extra.weight", "up_proj.weight has shape [72, 40] and [3, 4]"):
        assert word in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_non_finite_weights_are_named_counted_and_nothing_is_written(tmp_path, name):
    initial, final = disk.weights(), disk.weights()
    final[name][3, :2] = np.nan
    final[name][4, 0] = np.inf
    with pytest.raises(UserError, match=f"{name}: 3 of .* NaN or infinite"):
        run(tmp_path, initial, final, out=tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["int8", "int32", "float64"])
def test_integer_and_quantised_dtypes_are_refused(tmp_path, dtype):
    initial, final = disk.weights(), disk.weights()
    final["lm_head.weight"] = final["lm_head.weight"].astype(dtype)
    with pytest.raises(UserError, match=rf"lm_head.weight \({dtype}\)|quantized weights, such as lm_head.weight"):
        run(tmp_path, initial, final)


def test_a_folder_of_another_comparison_is_left_alone(tmp_path):
    initial = disk.weights()
    out = tmp_path / "out"
    run(tmp_path, initial, disk.moved(initial, 1e-3), out=out)
    before = (out / "report.json").read_bytes()
    with pytest.raises(UserError, match=r"of another comparison \(angle_k: \d+ there, 5 asked for; .*--force"):
        run(tmp_path, initial, disk.moved(initial, 1e-3), CompareSettings(angle_k=5), out=out)
    assert (out / "report.json").read_bytes() == before
    run(tmp_path, initial, disk.moved(initial, 1e-3), CompareSettings(angle_k=5), out=out, force=True)
    assert (out / "report.json").read_bytes() != before


def test_a_report_of_files_that_have_changed_since_is_left_alone(tmp_path):
    initial, out = disk.weights(), tmp_path / "out"
    run(tmp_path, initial, disk.moved(initial, 1e-3), out=out)
    before = (out / "report.json").read_bytes()
    with pytest.raises(UserError, match=r"content has changed since \(final: .* has other content now\); .*--force"):
        run(tmp_path, initial, disk.moved(initial, 3e-3), out=out)
    assert (out / "report.json").read_bytes() == before
    paths = [tmp_path / side for side in ("initial", "final")]
    changed = compare_checkpoints(*map(open_checkpoint, paths), out=out, force=True)
    assert (out / "report.json").read_bytes() != before
    again = compare_checkpoints(*map(open_checkpoint, paths), out=out)
    assert again.to_json() == changed.to_json()


@pytest.mark.parametrize(
    "field, value", [("angle_k", 0), ("mask_fraction", 1.0), ("eta", -1.0), ("include", "("), ("hill_k", 1)]
)
def test_settings_name_the_field_and_the_value(field, value):
    with pytest.raises(UserError, match=field):
        CompareSettings(**{field: value})
