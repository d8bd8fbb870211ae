"""Matrices at the edges of what a file can hold: every key in their rows, exact numbers, words where undefined."""

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, compare_checkpoints
from tests.comparison import disk

RNG = np.random.default_rng(5)
GAUSS = RNG.standard_normal((30, 20))
NOISE = RNG.standard_normal((30, 20))
PAIRS = {
    "ordinary": (0.02 * GAUSS, 0.02 * GAUSS + 1e-4 * NOISE),
    "still": (GAUSS, GAUSS),
    "from zero": (0 * GAUSS, NOISE),
    "zero": (0 * GAUSS, 0 * GAUSS),
    "to zero": (GAUSS, 0 * GAUSS),
    "row": (GAUSS[:1], GAUSS[:1] + 0.1 * NOISE[:1]),
    "column": (GAUSS[:, :1], GAUSS[:, :1] + 0.1 * NOISE[:, :1]),
    "entry": (GAUSS[:1, :1], 2 * GAUSS[:1, :1]),
    "sign": (GAUSS, -GAUSS),
    "everything": (GAUSS, 3 * NOISE),
    "rank 3": (GAUSS[:, :3] @ NOISE[:3], GAUSS[:, :3] @ NOISE[:3] + 1e-3 * NOISE),
    "equal values": (np.eye(30, 20), np.eye(30, 20) + 1e-3 * NOISE),
    "subnormal": (1e-40 * GAUSS, 1e-40 * NOISE),
    "tiny": (1e-30 * GAUSS, 1e-30 * GAUSS + 1e-32 * NOISE),
    "small": (1e-21 * GAUSS, 1e-21 * GAUSS + 1e-23 * NOISE),
    "huge": (1e19 * GAUSS, 1e19 * GAUSS + 1e17 * NOISE),
    "vast": (1e30 * GAUSS, 1e30 * GAUSS + 1e28 * NOISE),
}


def rows_of(tmp_path, pairs, settings) -> dict[str, dict]:
    names = {label: f"model.layers.{i}.self_attn.q_proj.weight" for i, label in enumerate(pairs)}
    sides = []
    for side in (0, 1):
        tensors = {names[label]: np.ascontiguousarray(pair[side], np.float32) for label, pair in pairs.items()}
        sides.append(open_checkpoint(disk.write(tmp_path / str(side), tensors)))
    report = compare_checkpoints(*sides, settings)
    found = {row["name"]: row for row in report.matrices}
    return {label: found[name] for label, name in names.items()}


@pytest.mark.parametrize("suite", ["full", "fast"])
@pytest.mark.filterwarnings("error")
def test_every_row_has_every_statistic_and_exact_ranks(tmp_path, suite):
    rows = rows_of(tmp_path, PAIRS, CompareSettings(suite=suite, angle_k=8, mask_rank=5, hill_k=6, null_draws=2))
    keys = {key for key in rows["ordinary"]}
    for label, row in rows.items():
        missing = keys - set(row)
        assert not missing, (label, missing)
        a, b = (np.asarray(side, np.float32).astype(np.float64) for side in PAIRS[label])
        sigma = np.linalg.svd(b - a, compute_uv=False)
        if not sigma[0]:
            assert row["stable_rank"] is None and row["op_norm"] == 0
            continue
        sigma16 = np.linalg.svd(disk.bf16(PAIRS[label][1]) - disk.bf16(PAIRS[label][0]), compute_uv=False)
        close = 1e-5 if suite == "full" else 1e-4
        assert row["op_norm"] == pytest.approx(sigma[0], rel=close), label
        scaled, scaled16 = sigma / sigma[0], sigma16 / sigma16[0]
        assert row["stable_rank"] == pytest.approx((scaled**2).sum(), rel=close), label
        assert row["stable_rank_bf16"] == pytest.approx((scaled16**2).sum(), rel=close), label
        ratio = (scaled**2).sum() ** 2 / (scaled**4).sum()
        assert row["participation_ratio"] == pytest.approx(ratio, rel=close), label
        if suite == "full":
            share = scaled[scaled > 0] / scaled.sum()
            assert row["entropy_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5), label


def test_a_matrix_that_starts_at_zero_says_what_it_cannot_have(tmp_path):
    row = rows_of(tmp_path, {"from zero": PAIRS["from zero"]}, CompareSettings(angle_k=8, null_draws=2))["from zero"]
    assert row["hill"] > 0 and row["entropy_rank"] > 10
    for name in ("nss", "angle_left_mean_deg", "projection_joint", "overlap_low", "decay"):
        assert row[name] is None and row[f"{name}_null"] is None
    assert row["nss_note"] == row["angle_note"] == row["overlap_note"] == "undefined: the initial matrix is zero"


def test_an_update_of_norm_zero_agrees_with_its_null(tmp_path):
    row = rows_of(tmp_path, {"still": PAIRS["still"]}, CompareSettings(angle_k=8, null_draws=2))["still"]
    for name in ("sparsity_bf16", "density_bf16", "nss", "nss_bf16", "nss_without_decay", "angle_right_mean_deg"):
        assert row[name] == row[f"{name}_null"] and row[f"{name}_excess"] == 0
        assert row[f"{name}_z"] is None  # of a null that is a point nothing is so many deviations off


def test_shrinking_turns_nothing_however_far(tmp_path):
    pairs = {str(factor): (GAUSS, factor * GAUSS) for factor in (1 - 2**-9, 0.75, 0.5, 1.5)}
    for row in rows_of(tmp_path, pairs, CompareSettings(angle_k=8, null_draws=2)).values():
        for side in ("left", "right"):
            assert row[f"angle_{side}_mean_deg"] == pytest.approx(0, abs=1e-4)
            assert row[f"angle_{side}_max_deg"] == pytest.approx(0, abs=1e-4)


def test_the_angle_of_a_single_row_is_that_of_two_vectors(tmp_path):
    rows = rows_of(tmp_path, {name: PAIRS[name] for name in ("row", "column", "entry")}, CompareSettings(null_draws=2))
    for name, side, other in (("row", "right", "left"), ("column", "left", "right")):
        a, b = (np.asarray(array, np.float64).ravel() for array in PAIRS[name])
        truth = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        assert rows[name][f"angle_{side}_mean_deg"] == pytest.approx(truth, abs=1e-4)
        assert rows[name][f"angle_{other}_mean_deg"] == pytest.approx(0, abs=1e-6)
    assert rows["entry"]["angle_left_max_deg"] == rows["entry"]["angle_right_max_deg"] == 0


def test_directions_of_equal_singular_values_are_not_reported(tmp_path):
    basis = np.linalg.qr(GAUSS)[0] * np.r_[np.full(10, 2.0), np.geomspace(1, 0.1, 10)]
    initial = (basis @ np.linalg.qr(NOISE[:20])[0]).astype(np.float32)
    pair = {"blocks": (initial, initial + 0.2 * NOISE), "eye": PAIRS["equal values"]}
    rows = rows_of(tmp_path, pair, CompareSettings(mask_rank=5, angle_k=10, projection_fraction=0.5, null_draws=2))
    eye = rows["eye"]
    assert eye["overlap_principal"] is None and "no gap after singular value 5" in eye["overlap_note"]
    assert eye["overlap_low"] is not None
    for size in ("", "_1pct", "_20pct"):
        assert eye[f"projection_joint{size}"] is None and eye[f"projection_left{size}_null"] is None
    assert "singular value 1, 2, 4, 10" in eye["projection_note"]
    assert rows["blocks"]["projection_joint"] == pytest.approx(0.5 * 10 / 30, abs=0.1)  # the gap after 10 is wide


@pytest.mark.parametrize("size", [60, 1700])  # by a tridiagonal form, and by block Krylov iteration
def test_the_fast_suite_sees_that_a_rank_is_open(tmp_path, size):
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((size, 40)))[0]
    side = np.linalg.qr(np.random.default_rng(4).standard_normal((size, 40)))[0]
    values = np.r_[np.full(10, 2.0), np.geomspace(1, 0.5, 30)]
    initial = ((turn * values) @ side.T).astype(np.float32)
    final = initial + 1e-3 * np.random.default_rng(5).standard_normal(initial.shape).astype(np.float32)
    for rank, is_open in ((5, True), (10, False), (45, False)):  # beyond 40 there is nothing to leave open
        row = rows_of(tmp_path / str(rank), {"w": (initial, final)}, CompareSettings(suite="fast", mask_rank=rank))["w"]
        assert (row["overlap_principal"] is None) == is_open
        assert ("no gap after singular value 5" in row.get("overlap_note", "")) == is_open


def test_a_mask_of_full_rank_is_that_of_the_weights_with_its_ties(tmp_path):
    initial = RNG.integers(-3, 4, (40, 25)).astype(np.float32)
    low_rank = np.outer(RNG.integers(-2, 3, 40), RNG.integers(-2, 3, 25)).astype(np.float32)
    pairs = {"full": (initial, initial + GAUSS[0, 0] * (RNG.random((40, 25)) < 0.4)), "rank 1": (low_rank, initial)}
    rows = rows_of(tmp_path, pairs, CompareSettings(mask_rank=64, mask_fraction=0.37, angle_k=4, null_draws=2))
    for label, (a, b) in pairs.items():
        changed = disk.bf16(a) != disk.bf16(b.astype(np.float32))
        mask = np.zeros(a.size, bool)
        mask[np.argsort(-np.abs(a).ravel(), kind="stable")[:370]] = True
        assert rows[label]["overlap_principal"] == (changed.ravel() & mask).sum() / changed.sum()


def test_tolerances_relative_to_the_rms_are_decided_in_float64(tmp_path):
    """Updates within a few float32 steps of the tolerance, where W0 is 0 and the difference exact."""
    initial = (0.02 * RNG.standard_normal((1200, 1000))).astype(np.float32)
    initial[:600] = 0
    wide = initial.astype(np.float64)
    rms = np.sqrt((wide**2).mean())
    final = initial.copy()
    for start, tolerance in enumerate((1e-4, 1e-3, 1e-2)):
        near = np.float32(tolerance * rms) * (1 + np.float32(2**-23) * RNG.integers(-40, 41, (1200, 1000)))
        final[start:600:3] = near[start:600:3].astype(np.float32)
    row = rows_of(tmp_path, {"near": (initial, final)}, CompareSettings(suite="fast"))["near"]
    for tolerance in (1e-4, 1e-3, 1e-2):
        truth = (np.abs(final.astype(np.float64) - wide) <= tolerance * rms).mean()
        assert row[f"sparsity_rms_{tolerance:g}"] == pytest.approx(truth, rel=1e-12)


def test_a_name_may_have_any_digits(tmp_path):
    """Those that Python reads as no number, and more than it reads as one."""
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in ("0", "²", "٣", "7" * 5000)] + ["model.layers.0.²"]
    first = open_checkpoint(disk.write(tmp_path / "side", {name: np.float32(GAUSS) for name in names}))
    report = compare_checkpoints(first, first, CompareSettings(suite="fast", subspace_k=2))
    assert {row["name"] for row in (*report.matrices, *report.parameters)} == set(names)
