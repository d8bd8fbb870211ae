"""Scale-profile and permutation nulls against sampling and against sums over the entries in float64."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from jaxgeom.comparison import CompareSettings
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement
from jaxgeom.comparison.one_matrix.scan import EntrySums
from jaxgeom.comparison.one_matrix.update_cells import UpdateSums, count_cells
from jaxgeom.diagnostics import isotropic_stable_rank
from jaxgeom.diagnostics.entry_numbers import OVERLAPS
from jaxgeom.diagnostics.null_permutation import permutation_statistics
from jaxgeom.diagnostics.null_profile import profile_statistics
from jaxgeom.diagnostics.rounding_cells import change
from jaxgeom.diagnostics.row_column_scales import fit_profile, scale_of_levels
from jaxgeom.errors import UserError

BF16 = ml_dtypes.bfloat16
STORED = {"bf16": (BF16, BF16), "bf16 to fp32": (BF16, np.float32), "fp32": (np.float32, np.float32)}
NULLED = ("sparsity_bf16", *OVERLAPS)


def bf16(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).astype(BF16).astype(np.float64)


def pair(stored: str, shape=(192, 160), *, spread: float = 0.6, scale: float = 4e-5, seed: int = 0):
    """W0 and W+ whose update has log-normal row and column scales, and those scales."""
    rng = np.random.default_rng(seed)
    before, after = STORED[stored]
    rows, columns = (np.exp(spread * rng.standard_normal(side)) for side in ((shape[0], 1), (1, shape[1])))
    w0 = (0.02 * rng.standard_normal(shape)).astype(before)
    w1 = (w0.astype(np.float64) + scale * rows * columns * rng.standard_normal(shape)).astype(after)
    return w0, w1


def masks_of(w0: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows, which have scales of their own, and the smallest magnitudes."""
    rows = np.zeros(w0.shape, bool)
    rows[: w0.shape[0] // 4] = True
    magnitude = np.abs(w0.astype(np.float64)).reshape(-1)
    low = np.zeros(w0.size, bool)
    low[np.argsort(magnitude, kind="stable")[: round(0.3 * w0.size)]] = True
    return {"overlap_principal": rows.reshape(-1), "overlap_low": low}


def counted(w0: np.ndarray, w1: np.ndarray, eta: float = 1e-3):
    """Cells of both nulls, what was counted, the masks, and the observed statistics."""
    a, b = w0.astype(np.float32), w1.astype(np.float32)
    totals, changed = EntrySums(), np.empty(w0.size, bool)
    totals.add(w0, w1, eta=eta, rms=0.02, changed_out=changed)
    masks = masks_of(w0)
    values = {"sparsity_bf16": 1 - changed.mean()}
    values |= {name: (mask & changed).sum() / max(changed.sum(), 1) for name, mask in masks.items()}
    return *count_cells(w0, a, b, totals, masks, eta=eta), totals, masks, values


def moments(found: dict, name: str, kind: str) -> tuple[float, float]:
    """Mean and deviation of a null, read from a report's keys."""
    excess, z = found[f"{name}_{kind}_excess"], found[f"{name}_{kind}_z"]
    return float(found[f"{name}_{kind}_null"]), float(excess / z)


def gaps(w0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each bfloat16 magnitude to the ends of its rounding cell, outwards and inwards."""
    rounded = np.abs(w0.astype(np.float32).astype(BF16))
    bits, value = rounded.view(np.uint16), rounded.astype(np.float64)
    above = ((bits + np.uint16(1)).view(BF16).astype(np.float64) - value) / 2
    return above, (value - (np.maximum(bits, 1) - np.uint16(1)).view(BF16).astype(np.float64)) / 2


@pytest.mark.parametrize("shape", [(192, 160), (1, 3000), (900, 2)])
def test_the_profile_makes_the_update_equally_loud(shape):
    """Against the alternation of Sinkhorn and Knopp on ΔW² in float64, to the grid's resolution."""
    w0, w1 = pair("bf16 to fp32", shape, spread=1.0)
    a, b = w0.astype(np.float32), w1.astype(np.float32)
    update = UpdateSums(w0, a, b, "bfloat16", 1e-3)
    profile = fit_profile(update, shape, False)
    squares = np.square(b.astype(np.float64) - a)
    rows, columns = np.ones((shape[0], 1)), np.ones((1, shape[1]))
    for _ in range(200):
        rows = (squares / columns).mean(1, keepdims=True)
        columns = (squares / rows).mean(0, keepdims=True)
    found = np.outer(*(scale_of_levels(side) for side in profile)) * 2.0**update.unit
    np.testing.assert_allclose(found, np.sqrt(rows * columns), rtol=0.012)


@pytest.mark.parametrize("stored", ["bf16 to fp32", "fp32"])
def test_tables_of_cells_equal_sums_over_the_entries(stored):
    """Expected changes at the fitted scales against SciPy, entry by entry (off the grid: over the cell)."""
    w0, w1 = pair(stored)
    cells, _, totals, masks, _ = counted(w0, w1)
    update = UpdateSums(w0, w0.astype(np.float32), w1.astype(np.float32), "bfloat16", 1e-3)
    profile = fit_profile(update, w0.shape, False)
    scale = np.outer(*(scale_of_levels(side) for side in profile)) * 2.0**update.unit
    (above, below), places = gaps(w0), np.zeros(1)
    if stored == "fp32":
        nodes, weights = np.polynomial.legendre.leggauss(200)
        places = (nodes + 1) / 2
    else:
        weights = np.full(1, 2.0)
    p = np.zeros(w0.shape)
    for place, weight in zip(places, weights / 2, strict=True):
        offset = (above + below) * place - below if stored == "fp32" else 0.0
        p += weight * (stats.norm.sf((above - offset) / scale) + stats.norm.sf((below + offset) / scale))
    chance = change(cells.cells, cells.scale).probability
    assert float(cells.cells.counts @ chance) == pytest.approx(p.sum(), rel=1e-4)
    for name, mask in masks.items():
        assert float(cells.masks[name] @ chance) == pytest.approx(p.reshape(-1)[mask].sum(), rel=1e-4)
    assert float(cells.size) == totals.count


def test_loud_columns_do_not_blur_the_rows():
    """With log-normal scales of σ = 2 a plain RMS is that of few entries: ours knows every row to `1/√(2n)`."""
    rng = np.random.default_rng(0)
    shape = (120, 200)
    rows, columns = (np.exp(2 * rng.standard_normal(n)) for n in shape)
    w0 = (0.02 * rng.standard_normal(shape)).astype(np.float32)
    w1 = (w0 + 1e-5 * np.outer(rows, columns) * rng.standard_normal(shape)).astype(np.float32)
    profile = fit_profile(UpdateSums(w0, w0, w1, "bfloat16", 1e-3), shape, False)
    error = np.log(scale_of_levels(profile.rows) / rows)
    plain = 0.5 * np.log(np.square(w1.astype(np.float64) - w0).mean(1)) - np.log(rows)
    assert np.std(error) == pytest.approx(1 / np.sqrt(2 * shape[1]), rel=0.2) and np.std(plain) > 3 * np.std(error)


@pytest.mark.parametrize("stored", STORED)
def test_permutation_null_equals_permuting(stored):
    w0, w1 = pair(stored)
    _, cells, _, masks, values = counted(w0, w1)
    # The deviation over permutations of what was rounded is right too, though no noise that is rounded has it.
    if stored == "bf16":
        assert np.isnan(permutation_statistics(cells, values)["sparsity_bf16_permutation_z"])
    found, rng = permutation_statistics(cells._replace(is_rounded=False), values), np.random.default_rng(2)
    delta = w1.astype(np.float32) - w0.astype(np.float32)
    samples: dict[str, list[float]] = {name: [] for name in NULLED}
    for _ in range(60):
        wide = w0.astype(np.float64)
        if stored == "fp32":  # the closed form averages over the place in the rounding cell
            above, below = gaps(w0)
            wide = np.sign(w0) * (np.abs(bf16(w0)) + rng.uniform(-below, above) * (1 - 1e-6))
        changed = (bf16(wide + rng.permutation(delta.reshape(-1)).reshape(w0.shape)) != bf16(wide)).reshape(-1)
        samples["sparsity_bf16"].append(1 - changed.mean())
        for name, mask in masks.items():
            samples[name].append((changed & mask).sum() / changed.sum())
    for name in NULLED:
        mean, deviation = moments(found, name, "permutation")
        sample = np.array(samples[name])
        assert sample.mean() == pytest.approx(mean, abs=4 * sample.std(ddof=1) / np.sqrt(60)), name
        assert 0.7 < deviation / sample.std(ddof=1) < 1.45, name


@pytest.mark.parametrize("eta", [0.0, 1e-3, 0.02])
@pytest.mark.parametrize("stored", ["bf16", "bf16 to fp32"])
def test_permutation_null_is_exact_on_the_grid(stored, eta):
    """Every entry of ΔW on every entry of W0: ties of halves of a unit, signs, powers of two, zeros."""
    w0, w1 = pair(stored, (26, 20), scale=1e-4)
    w0[0] = np.array([0.0, -0.0, 2**-6, -(2**-6), 2**-7] * 4, BF16)
    w1[0] = (w0[0].astype(np.float32) + np.float32(2**-14) * np.arange(-10, 10)).astype(w1.dtype)
    _, cells, _, masks, values = counted(w0, w1, eta)
    kept = permutation_statistics(cells, values)
    found = permutation_statistics(cells._replace(is_rounded=False), values)
    for key, value in kept.items():  # entries that were rounded where they stand are not exchangeable
        assert np.isnan(value) if key.endswith("_z") and stored == "bf16" else value == found[key]
    start = w0.astype(np.float32).reshape(-1, 1)
    delta = w1.astype(np.float32).reshape(1, -1) - w0.astype(np.float32).reshape(1, -1)
    before, after = bf16(start), bf16(start + delta)
    changes = np.abs(before - after) > eta * np.maximum(np.abs(before), np.abs(after))

    def exact(weights: np.ndarray) -> tuple[float, float]:
        table = weights[:, None] * changes
        centred = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
        return table.mean(1).sum(), np.sqrt(np.square(centred).sum() / (w0.size - 1))

    count, deviation = exact(np.ones(w0.size))
    assert moments(found, "sparsity_bf16", "permutation") == pytest.approx(
        (1 - count / w0.size, deviation / w0.size), rel=1e-8
    )
    for name in OVERLAPS:
        overlap = exact(masks[name].astype(float))[0] / count
        spread = exact(masks[name] - overlap)[1] / count
        assert moments(found, name, "permutation") == pytest.approx((overlap, spread), rel=1e-8)


def measured(w0, w1, **options) -> dict:
    settings = CompareSettings(**{"angle_k": 8, "mask_rank": 5} | options)
    digest = hashlib.sha256(w0.tobytes()).hexdigest()
    return MatrixMeasurement("m", w0, w1, settings, BaseCache(None), digest).measure()


@pytest.mark.parametrize("stored", STORED)
def test_loud_rows_leave_an_excess_over_noise_of_equal_scales_only(stored):
    rng = np.random.default_rng(3)
    w0 = (0.02 * rng.standard_normal((300, 256))).astype(STORED[stored][0])
    loud = np.where(np.arange(300) < 60, 8.0, 1.0)[:, None]
    w1 = (w0.astype(np.float64) + 2e-5 * loud * rng.standard_normal(w0.shape)).astype(STORED[stored][1])
    row = measured(w0, w1)
    assert abs(row["overlap_low_excess"]) > 0.03 and abs(row["overlap_low_z"]) > 15
    assert abs(row["sparsity_bf16_excess"]) > 0.04
    assert abs(row["overlap_low_profile_excess"]) < 0.008 and abs(row["overlap_low_profile_z"]) < 3.5
    assert abs(row["sparsity_bf16_profile_excess"]) < 0.004 and abs(row["sparsity_bf16_profile_z"]) < 3.5
    for name in NULLED:
        for kind in ("profile", "permutation"):
            null, excess = row[f"{name}_{kind}_null"], row[f"{name}_{kind}_excess"]
            assert excess == pytest.approx(row[name] - null, abs=1e-15)


def test_storage_in_bf16_does_not_steepen_the_profile():
    """The rounded update of quiet rows is quieter than the noise; the null is that of the noise before rounding."""
    rng = np.random.default_rng(4)
    wide = (0.02 * rng.standard_normal((400, 320))).astype(BF16).astype(np.float64)
    scales = 1.5e-5 * np.exp(0.7 * rng.standard_normal((400, 1))) * np.exp(0.7 * rng.standard_normal((1, 320)))
    row = measured(wide.astype(BF16), (wide + scales * rng.standard_normal(wide.shape)).astype(BF16))
    draws = [bf16(wide + scales * rng.standard_normal(wide.shape)) != wide for _ in range(20)]
    low = masks_of(wide)["overlap_low"].reshape(wide.shape)
    overlap = np.mean([(changed & low).sum() / changed.sum() for changed in draws])
    assert row["sparsity_bf16_profile_null"] == pytest.approx(1 - np.mean(draws), abs=0.003)
    assert row["overlap_low_profile_null"] == pytest.approx(overlap, abs=0.008)


def test_zero_and_invisible_updates_have_no_nulls_of_overlaps():
    w0 = (0.02 * np.random.default_rng(5).standard_normal((20, 16))).astype(BF16)
    row = measured(w0, w0.copy(), permutation_draws=2)
    for name in (*NULLED, "stable_rank", "participation_ratio"):
        for kind in ("profile", "permutation"):
            assert row.get(f"{name}_{kind}_null") is None and row.get(f"{name}_{kind}_excess") is None
    hidden = measured(w0, w0.astype(np.float32) * np.float32(1 + 1e-6))
    assert hidden["sparsity_bf16"] == 1 and hidden["sparsity_bf16_profile_null"] > 0.95
    assert hidden["sparsity_bf16_permutation_null"] > 0.95 and hidden["overlap_low_profile_null"] is None
    assert hidden["overlap_low_permutation_null"] is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (3, 50)])
@pytest.mark.parametrize("stored", STORED)
def test_tiny_matrices(stored, shape):
    row = measured(*pair(stored, shape, scale=1e-3), angle_k=1, permutation_draws=2)
    for name in NULLED:
        null = row[f"{name}_permutation_null"]
        assert null is None or 0 <= null <= 1
    assert 0 <= row["sparsity_bf16_profile_null"] <= 1


def test_silent_rows_and_columns_and_large_tolerances():
    w0, w1 = pair("bf16 to fp32", (60, 50), scale=1e-4)
    w1[5], w1[:, 7] = w0[5].astype(np.float32), w0[:, 7].astype(np.float32)
    cells, _, totals, _, values = counted(w0, w1)
    assert cells.cells.counts.sum() == 59 * 49 and cells.size == 3000
    assert np.isfinite(list(profile_statistics(cells, values, totals.changed).values())).all()
    row = measured(w0, w1, eta=0.05)
    assert row["sparsity_bf16_profile_null"] > 0.9 and row["sparsity_bf16_permutation_null"] > 0.9


def test_fast_suite_takes_none_of_them():
    row = measured(*pair("fp32", (40, 30)), suite="fast", permutation_draws=3)
    assert not any("_profile" in key or "_permutation" in key for key in row)


def test_permuted_ranks_equal_svds_of_permuted_updates():
    rng = np.random.default_rng(6)
    w0 = (0.02 * rng.standard_normal((48, 30))).astype(np.float32)
    w1 = w0 + (1e-4 * rng.standard_t(2, w0.shape)).astype(np.float32)
    row = measured(w0, w1, permutation_draws=60)
    delta, found = (w1 - w0).astype(np.float64), []
    for _ in range(200):
        squares = np.square(np.linalg.svd(rng.permutation(delta.reshape(-1)).reshape(48, 30), compute_uv=False))
        found.append((squares.sum() / squares[0], squares.sum() ** 2 / np.square(squares).sum()))
    for name, values in zip(("stable_rank", "participation_ratio"), np.array(found).T, strict=True):
        spread = values.std(ddof=1)
        assert row[f"{name}_permutation_null"] == pytest.approx(
            values.mean(), abs=4 * spread * np.sqrt(1 / 60 + 1 / 200)
        )
        deviation = row[f"{name}_permutation_excess"] / row[f"{name}_permutation_z"]
        assert deviation == pytest.approx(spread, rel=0.5)
    # Heavy tails are not in the null of Gaussian entries.
    assert row["stable_rank_permutation_null"] < 0.7 * isotropic_stable_rank((48, 30))
    again = measured(w0, w1, permutation_draws=60)
    assert again == row and "stable_rank_permutation_null" not in measured(w0, w1)


@pytest.mark.parametrize("value", [1, -1])
def test_permutation_draws_are_checked(value):
    with pytest.raises(UserError, match=f"permutation_draws = {value}"):
        CompareSettings(permutation_draws=value)
    assert CompareSettings().to_json()["permutation_draws"] == 0
