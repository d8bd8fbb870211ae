"""Entry-by-entry counts and masks against their definitions in float64."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxgeom.comparison.one_matrix.scan import EntrySums, bf16_view, low_magnitude_mask, require_finite
from jaxgeom.diagnostics.entry_numbers import MaskCounts, hidden_by_decile, overlap_statistics
from jaxgeom.diagnostics.precision import bf16_bits
from jaxgeom.diagnostics.rounding_cells import cells_of, scale_for_density
from jaxgeom.errors import UserError

FLOATS = st.floats(-(2.0**90), 2.0**90, width=32) | st.sampled_from(
    [0.0, -0.0, float(np.float32(1e-5)), 1.0, 1.0 + 2**-8, 1.00390625, 2.0**-140]
)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS)


@settings(max_examples=60, deadline=None)
@given(
    ARRAYS, st.sampled_from(["float32", "float16", "bfloat16"]), st.sampled_from([0.0, 1e-3, 2**-8, 0.02]), st.randoms()
)
def test_counts_equal_the_definitions(a, dtype, eta, random):
    scale = np.array([random.choice([1.0, 1.0, 1 + 2**-9, 1.004, 0.5]) for _ in range(a.size)], np.float32).reshape(
        a.shape
    )
    with np.errstate(over="ignore"):
        first, second = (
            np.clip(x, -6e4, 6e4).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))) for x in (a, a * scale)
        )
    totals, mask = EntrySums(), np.empty(a.size, bool)
    totals.add(first, second, eta=eta, rms=1.0, changed_out=mask)
    x, y = first.astype(np.float64), second.astype(np.float64)
    x16, y16 = (z.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64) for z in (first, second))
    changed = np.abs(x16 - y16) > eta * np.maximum(np.abs(x16), np.abs(y16))
    np.testing.assert_array_equal(mask.reshape(a.shape), changed)
    assert totals.differs == (x != y).sum() and totals.count == a.size
    assert totals.beyond_absolute == (np.abs(x - y) > 1e-5).sum()
    assert totals.delta_squares == pytest.approx(((x - y) ** 2).sum(), rel=1e-12)
    assert totals.histogram.sum() == a.size and totals.changed_histogram.sum() == changed.sum()
    take = int(np.floor(0.3 * a.size + 0.5))
    low, inside = low_magnitude_mask(first, totals, 0.3)
    order = np.argsort(np.abs(x).ravel(), kind="stable")[:take]
    assert set(np.flatnonzero(low)) == set(order) and inside.sum() == take


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.uint32, 50))
def test_rounding_to_bfloat16_is_to_nearest_even(bits):
    wide = bits.view(np.float32)
    wide = wide[np.isfinite(wide)]
    with np.errstate(over="ignore"):
        truth = wide.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bf16_bits(wide), truth.view(np.uint16))
    np.testing.assert_array_equal(bf16_view(wide), truth.astype(np.float32))


@pytest.mark.parametrize("on_grid", [True, False])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_rounding_null_equals_sampling(on_grid, density):
    rng = np.random.default_rng(0)
    w = (rng.standard_normal(60_000) * 0.02).astype(np.float32)
    w = bf16_view(w) if on_grid else w
    totals = EntrySums()
    totals.add(w, w, eta=1e-3, rms=0.02)
    assert totals.on_grid == on_grid
    cells = cells_of(totals.counts, 1e-3)
    scale = scale_for_density(cells, density)
    low, inside = low_magnitude_mask(w, totals, 0.3)
    at = dataclasses.replace(totals.counts, changed=density * w.size)
    found = overlap_statistics(at, {"overlap_low": MaskCounts(inside, 0.0)}, eta=1e-3)
    expected = found["overlap_low_null"]
    deviation = found["overlap_low_excess"] / found["overlap_low_z"]
    assert found["rounding_scale"] == scale
    draws = []
    for _ in range(12):
        noisy = (w + scale * rng.standard_normal(w.size)).astype(np.float32)
        changed = bf16_view(noisy) != bf16_view(w)
        draws.append((changed.mean(), (low & changed).sum() / changed.sum()))
    densities, overlaps = np.array(draws).T
    assert densities.mean() == pytest.approx(density, abs=4 * np.sqrt(density / w.size / 12) + 1e-4)
    one = 1 / (density * w.size)  # less than one entry at stake: no deviation
    assert overlaps.mean() == pytest.approx(expected, abs=4 * np.nan_to_num(deviation, nan=one))
    assert np.nan_to_num(deviation, nan=0.0) == pytest.approx(overlaps.std(ddof=1), rel=0.8, abs=one)


def test_no_finite_scale_explains_a_full_density():
    totals = EntrySums()
    totals.add(np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32), eta=1e-3, rms=1.0)
    assert np.isnan(scale_for_density(cells_of(totals.counts, 1e-3), 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_non_finite_entries_are_counted(dtype):
    array = np.zeros((7, 5), dtype)
    array[2, 3], array[4, 4] = np.nan, -np.inf
    with pytest.raises(UserError, match="here: 2 of 35 entries"):
        require_finite(array, "here")


def test_hidden_shares_by_decile():
    w = np.linspace(1e-4, 1.0, 1000).astype(np.float32)
    totals = EntrySums()
    totals.add(w, w * np.float32(1.02), eta=1e-3, rms=1.0)
    shares = hidden_by_decile(totals.counts)
    assert len(shares) == 10 and shares[-1] == 0.0
