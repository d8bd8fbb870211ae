"""Scale-profile and permutation nulls against sampling and against sums over the entries in float64."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from scipy import optimize, stats

from jaxgeom.comparison import CompareSettings
from jaxgeom.comparison.files.summary import statistics_of, summarize
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement
from jaxgeom.comparison.one_matrix.rows import put_null
from jaxgeom.comparison.one_matrix.scan import EntrySums
from jaxgeom.comparison.one_matrix.update_cells import MASKS, count_cells
from jaxgeom.comparison.one_matrix.update_nulls import PermutationNull, profile_null
from jaxgeom.errors import UserError

BF16 = ml_dtypes.bfloat16
STORED = {"bf16": (BF16, BF16), "bf16 to fp32": (BF16, np.float32), "fp32": (np.float32, np.float32)}
NULLED = ("sparsity_bf16", *MASKS)


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


def cells_of(w0: np.ndarray, w1: np.ndarray, eta: float = 1e-3):
    a, b = w0.astype(np.float32), w1.astype(np.float32)
    totals = EntrySums()
    totals.add(w0, w1, eta=eta, rms=0.02)
    masks = masks_of(w0)
    return count_cells(w0, a, b, totals.histogram, eta=eta, on_grid=totals.on_grid, masks=masks), totals, masks


def exact_profile(w0: np.ndarray, w1: np.ndarray) -> np.ndarray:
    squares = np.square(w1.astype(np.float64) - w0.astype(np.float64))
    product = squares.mean(1, keepdims=True) * squares.mean(0, keepdims=True)
    return np.sqrt(product) / squares.mean() ** 0.5 / squares.mean() ** 0.5


def gaps(w0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each bfloat16 magnitude to the ends of its rounding cell, outwards and inwards."""
    rounded = np.abs(w0.astype(np.float32).astype(BF16))
    bits, value = rounded.view(np.uint16), rounded.astype(np.float64)
    above = ((bits + np.uint16(1)).view(BF16).astype(np.float64) - value) / 2
    return above, (value - (np.maximum(bits, 1) - np.uint16(1)).view(BF16).astype(np.float64)) / 2


def redrawn(w0: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Off the bfloat16 grid each weight anywhere in its rounding cell, over which the closed forms average."""
    if w0.dtype == BF16:
        return w0.astype(np.float64)
    above, below = gaps(w0)
    return np.sign(w0) * (np.abs(bf16(w0)) + rng.uniform(-below, above) * (1 - 1e-6))


def check_against_draws(draw, masks: dict, moments: dict, draws: int) -> None:
    """Means within four standard errors of the sample, deviations within what that many draws can tell."""
    samples = {name: [] for name in moments}
    for _ in range(draws):
        changed = draw().reshape(-1)
        samples["sparsity_bf16"].append(1 - changed.mean())
        for name, mask in masks.items():
            samples[name].append((changed & mask).sum() / changed.sum())
    for name, (mean, deviation) in moments.items():
        found = np.array(samples[name])
        assert found.mean() == pytest.approx(mean, abs=4 * found.std(ddof=1) / np.sqrt(draws)), name
        assert 0.75 < deviation / found.std(ddof=1) < 1.4, name


@pytest.mark.parametrize("stored", ["bf16 to fp32", "fp32"])
def test_profile_null_equals_sampling(stored):
    w0, w1 = pair(stored)
    cells, totals, masks = cells_of(w0, w1)
    assert totals.on_grid == (stored != "fp32")
    null, rng = profile_null(cells), np.random.default_rng(7)
    scale = null.rounding.scale_for_density(totals.density)
    moments = {name: null.overlap(name, scale) for name in MASKS} | {"sparsity_bf16": null.rounding.sparsity(scale)}
    assert moments["sparsity_bf16"][0] == pytest.approx(1 - totals.density, abs=1e-9)
    profile = exact_profile(w0, w1)

    def draw() -> np.ndarray:
        wide = redrawn(w0, rng)
        return bf16(wide + scale * profile * rng.standard_normal(w0.shape)) != bf16(wide)

    check_against_draws(draw, masks, moments, 100)


@pytest.mark.parametrize("shape", [(512, 384), (1, 3000), (900, 2)])
def test_the_grid_of_scales_costs_far_less_than_the_nulls_deviation(shape):
    """Against the sum over the entries with their unrounded scales, a mask of whole rows being the worst case."""
    w0, w1 = pair("bf16 to fp32", shape)
    cells, totals, masks = cells_of(w0, w1)
    null = profile_null(cells)
    profile, (above, below) = exact_profile(w0, w1), gaps(w0)

    def probability(scale: float) -> np.ndarray:
        return stats.norm.sf(above / (scale * profile)) + stats.norm.sf(below / (scale * profile))

    exact = np.exp(optimize.brentq(lambda x: probability(np.exp(x)).mean() - totals.density, -25, 0, xtol=1e-12))
    p = probability(exact).reshape(-1)
    for name in MASKS:
        mean, deviation = null.overlap(name, null.rounding.scale_for_density(totals.density))
        assert mean == pytest.approx(p[masks[name]].sum() / p.sum(), abs=0.25 * deviation)
        residual = masks[name] - mean
        assert deviation == pytest.approx(np.sqrt((p * (1 - p) * residual**2).sum()) / p.sum(), rel=1e-3)
    matched = np.sqrt(totals.delta_squares / totals.count)
    assert null.rounding.scale_for_squares(totals.delta_squares, stored_in_bf16=False) == pytest.approx(matched)
    sparsity, deviation = null.rounding.sparsity(matched)
    assert sparsity == pytest.approx(1 - probability(matched).mean(), abs=0.25 * deviation)


@pytest.mark.parametrize("stored", STORED)
def test_permutation_null_equals_permuting(stored):
    w0, w1 = pair(stored)
    cells, _, masks = cells_of(w0, w1)
    null, rng = PermutationNull(cells, MASKS), np.random.default_rng(2)
    moments = {name: null.overlap(name) for name in MASKS} | {"sparsity_bf16": null.sparsity()}
    delta = w1.astype(np.float32) - w0.astype(np.float32)

    def draw() -> np.ndarray:
        wide = redrawn(w0, rng)
        return bf16(wide + rng.permutation(delta.reshape(-1)).reshape(w0.shape)) != bf16(wide)

    check_against_draws(draw, masks, moments, 100)


@pytest.mark.parametrize("eta", [0.0, 1e-3, 0.02])
@pytest.mark.parametrize("stored", ["bf16", "bf16 to fp32"])
def test_permutation_null_is_exact_on_the_grid(stored, eta):
    """Every entry of ΔW on every entry of W0: ties of halves of a unit, signs, powers of two, zeros."""
    w0, w1 = pair(stored, (26, 20), scale=1e-4)
    w0[0] = np.array([0.0, -0.0, 2**-6, -(2**-6), 2**-7] * 4, BF16)
    w1[0] = (w0[0].astype(np.float32) + np.float32(2**-14) * np.arange(-10, 10)).astype(w1.dtype)
    cells, _, masks = cells_of(w0, w1, eta)
    null = PermutationNull(cells, MASKS)
    start = w0.astype(np.float32).reshape(-1, 1)
    delta = w1.astype(np.float32).reshape(1, -1) - w0.astype(np.float32).reshape(1, -1)
    before, after = bf16(start), bf16(start + delta)
    changes = np.abs(before - after) > eta * np.maximum(np.abs(before), np.abs(after))

    def moments(weights: np.ndarray) -> tuple[float, float]:
        table = weights[:, None] * changes
        centred = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
        return table.mean(1).sum(), np.sqrt(np.square(centred).sum() / (w0.size - 1))

    count, deviation = moments(np.ones(w0.size))
    assert null.sparsity() == pytest.approx((1 - count / w0.size, deviation / w0.size), rel=1e-9)
    for name in MASKS:
        overlap = moments(masks[name].astype(float))[0] / count
        spread = moments(masks[name] - overlap)[1] / count
        assert null.overlap(name) == pytest.approx((overlap, spread), rel=1e-9)


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
    assert abs(row["overlap_low_profile_excess"]) < 0.008 and abs(row["overlap_low_profile_z"]) < 5
    assert abs(row["sparsity_bf16_profile_excess"]) < 0.004
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
    cells, totals, _ = cells_of(w0, w1)
    null = profile_null(cells)
    most = 1 - null.rounding.sparsity(1e20)[0]
    assert most == pytest.approx(59 * 49 / 3000, abs=1e-12)
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
    assert (
        row["stable_rank_permutation_null"] < 0.7 * row["stable_rank_null"]
    )  # heavy tails are not in the Gaussian null
    again = measured(w0, w1, permutation_draws=60)
    assert again == row and "stable_rank_permutation_null" not in measured(w0, w1)


@pytest.mark.parametrize("value", [1, -1])
def test_permutation_draws_are_checked(value):
    with pytest.raises(UserError, match=f"permutation_draws = {value}"):
        CompareSettings(permutation_draws=value)
    assert CompareSettings().to_json()["permutation_draws"] == 0


def test_summary_averages_each_null_over_the_rows_that_have_it():
    rows = []
    for value, null, parameters in ((0.4, 0.3, 1), (0.8, 0.5, 3), (0.9, None, 4)):
        row = {"sparsity_bf16": value, "parameters": parameters}
        put_null(row, "sparsity_bf16", None if null is None else (null, 0.1), "_profile")
        rows.append(row)
    assert statistics_of(rows) == ["sparsity_bf16"]
    entry = summarize(rows, "sparsity_bf16", weighted=True)
    assert entry["profile_null"] == pytest.approx((0.3 + 3 * 0.5) / 4)
    assert entry["profile_excess"] == pytest.approx((0.1 + 3 * 0.3) / 4) and entry["profile_count"] == 2
    assert entry["null"] is None and "permutation_null" not in entry
    assert rows[0]["sparsity_bf16_profile_z"] == pytest.approx(1.0)
