import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgeom import diagnostics as jd
from jaxgeom.diagnostics import _layout

from .matrices import from_spectrum, gaussian, numpy64, numpy_mask, weights


@functools.partial(jax.jit, static_argnames="fraction")
def both_masks(w: jax.Array, fraction: float) -> tuple[jax.Array, jax.Array]:
    return jd.low_magnitude_mask(w, fraction=fraction), jd.largest_mask(w, fraction)


@settings(max_examples=20, deadline=None)
@given(weights(), st.sampled_from([0.3, 0.77]))
def test_masks_equal_a_stable_sort(w, fraction):
    magnitude = numpy64(w)
    low, high = both_masks(w, fraction)
    np.testing.assert_array_equal(low, numpy_mask(magnitude, fraction, False))
    np.testing.assert_array_equal(high, numpy_mask(magnitude, fraction, True))


def test_batched_masks_count_and_break_ties_per_matrix():
    w = np.round(gaussian((3, 2, 30, 70)) * 200).astype(np.float32)  # a dozen distinct magnitudes
    mask = np.asarray(jd.low_magnitude_mask(w, fraction=0.3))
    for i in np.ndindex(3, 2):
        np.testing.assert_array_equal(mask[i], numpy_mask(w[i], 0.3, False))


def test_constant_matrix_takes_the_first_entries():
    mask = np.asarray(jd.low_magnitude_mask(jnp.ones((4, 5)), fraction=0.5)).ravel()
    np.testing.assert_array_equal(mask, np.arange(20) < 10)
    assert not jd.low_magnitude_mask(jnp.ones((4, 5)), fraction=0.0).any()
    assert jd.largest_mask(jnp.ones((4, 5)), 1.0).all()


def test_counts_stay_exact_beyond_two_to_the_31():
    rows = jnp.full((3, 70_000), 100_003, jnp.uint32)  # 7.0e9 entries
    high, low = _layout.add_counts(rows)
    assert int(high[0]) * (1 << _layout.WORD) + int(low[0]) == 70_000 * 100_003
    high, low = _layout.cumulative_counts(rows)
    assert int(high[1, -2]) * (1 << _layout.WORD) + int(low[1, -2]) == 69_999 * 100_003
    assert _layout.split_count(70_000 * 100_003) == (int(high[0, -1]), int(low[0, -1]))


def test_fraction_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="fraction is 1.5"):
        jd.low_magnitude_mask(jnp.ones((2, 2)), fraction=1.5)


@pytest.mark.parametrize("rank", [3, 16, 64])
def test_the_principal_mask_of_what_has_no_further_direction_is_that_of_the_weights_with_their_ties(rank):
    rng = np.random.default_rng(5)
    factors = rng.integers(-2, 3, (2, 24, 3)).astype(np.float32)
    full = np.asarray(jnp.asarray(rng.standard_normal((24, 16)), jnp.bfloat16).astype(jnp.float32))
    w = factors[0] @ factors[1, :16].T if rank == 3 else full  # of rank 3; or of more than every rank asked for
    for method in ("svd", "krylov"):
        mask = jd.principal_mask(w, rank=rank, fraction=0.3, method=method)
        np.testing.assert_array_equal(mask, numpy_mask(w, 0.3, True))


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_principal_mask_is_the_top_of_the_low_rank_reconstruction(shape):
    w = from_spectrum(*shape, 2.0 ** -np.arange(24.0))
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    reconstruction = (u[:, :4] * s[:4]) @ vt[:4]
    mask = jd.principal_mask(w.astype(np.float32), rank=4, fraction=0.3)
    np.testing.assert_array_equal(mask, numpy_mask(reconstruction, 0.3, True))


def test_overlap_enrichment_and_between_run_masks():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 20, 30)) < 0.4, rng.random((2, 20, 30)) < 0.3
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    np.testing.assert_allclose(jd.mask_overlap(a, b), both / b.sum((1, 2)), rtol=1e-6)
    overlaps = jd.changed_overlaps(a, b)
    np.testing.assert_allclose(overlaps.b_in_a, both / a.sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(overlaps.jaccard, both / either, rtol=1e-6)
    assert np.isnan(jd.mask_overlap(a[0], np.zeros((20, 30), bool)))
    assert float(jd.enrichment(0.6, 0.3)) == pytest.approx(2.0)
    null = jd.independence_null(600, 240, 180)
    assert float(null.jaccard.mean) == pytest.approx(0.12 / 0.58)
