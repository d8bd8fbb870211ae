import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jaxtyping import TypeCheckError

from jaxgeom import diagnostics as jd

from . import tolerances as tol
from .matrices import BF16, as_bf16, gaussian, numpy_mask


def sampled_changed(w0: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    return as_bf16(w0 + s * rng.standard_normal(w0.shape)) != as_bf16(w0)


@jax.jit
def null_of_low_magnitudes(w0: jax.Array, density: jax.Array) -> jd.NullMoments:
    return jd.rounding_null(w0, jd.low_magnitude_mask(w0, fraction=0.3), density)


@pytest.mark.parametrize(
    ("density", "overlap"), [(0.9273, 0.319), (0.4628, 0.545), (0.2776, 0.758)], ids=["SFT", "OPD", "RLVR"]
)
def test_the_published_overlaps_are_what_rounding_gives(density, overlap):
    """science.md, section 4: Gaussian W0 of σ = 0.02 in bfloat16, α = 0.3."""
    w0 = gaussian((512, 1024)).astype(BF16)
    null = null_of_low_magnitudes(jnp.asarray(w0), density)
    assert float(null.mean) == pytest.approx(overlap, abs=tol.PUBLISHED_OVERLAP)
    assert 0 < float(null.std) < 0.002


@pytest.mark.parametrize("grid", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("scale", [2e-6, 1e-4])
def test_visibility_probability_against_scipy_and_sampling(grid, scale):
    rng = np.random.default_rng(0)
    w = gaussian((60, 1), 3)
    w = as_bf16(w) if grid else w.astype(np.float32).astype(np.float64)
    bits = (np.abs(as_bf16(w)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint32)
    value = [((bits + d) << 16).astype(np.uint32).view(np.float32).astype(np.float64) for d in (0, 1)]
    below = ((bits - 1) << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    upper, lower = (value[0] + value[1]) / 2 - np.abs(w), np.abs(w) - (value[0] + below) / 2
    exact = scipy.stats.norm.sf(upper / scale) + scipy.stats.norm.sf(lower / scale)
    p = np.asarray(jd.visibility_probability(w.astype(BF16 if grid else np.float32), scale))
    np.testing.assert_allclose(p, exact, atol=2e-4)
    draws = 1500
    hits = np.mean([sampled_changed(w, scale, rng) for _ in range(draws)], axis=0)
    assert np.all(np.abs(hits - exact) <= tol.SIGMAS * np.sqrt(exact * (1 - exact) / draws) + 1e-3)


@pytest.mark.parametrize("grid", [True, False], ids=["bf16", "fp32"])
def test_overlaps_against_sampling(grid):
    rng = np.random.default_rng(1)
    w = gaussian((64, 80), 5)
    w = as_bf16(w) if grid else w.astype(np.float32).astype(np.float64)
    stored = w.astype(BF16 if grid else np.float32)
    low, density = numpy_mask(w, 0.3, False), 0.35
    s, s_other = (float(jd.rounding_scale(stored, d)) for d in (density, 0.6))
    masks = np.stack([sampled_changed(w, s, rng) for _ in range(300)])
    other = np.stack([sampled_changed(w, s_other, rng) for _ in range(300)])
    assert np.mean(masks) == pytest.approx(density, abs=2e-3)
    both = (masks & other).sum((1, 2))
    null, cross = jd.rounding_null(stored, low, density), jd.cross_run_null(stored, density, 0.6)
    for moments, values in (
        (null, (masks & low).sum((1, 2)) / masks.sum((1, 2))),
        (cross.a_in_b, both / other.sum((1, 2))),
        (cross.b_in_a, both / masks.sum((1, 2))),
        (cross.jaccard, both / (masks | other).sum((1, 2))),
    ):
        assert abs(float(moments.mean) - values.mean()) < tol.SIGMAS * values.std() / np.sqrt(300) + 1e-3
        assert float(moments.std) == pytest.approx(values.std(), rel=0.2)
    deciles = jd.rounding_null_by_decile(stored, density)
    order = np.argsort(np.abs(w).ravel(), kind="stable").reshape(10, -1)
    observed = masks.reshape(300, -1)[:, order].mean(-1)
    np.testing.assert_allclose(deciles.mean, observed.mean(0), atol=5e-3)
    np.testing.assert_allclose(deciles.std, observed.std(0), rtol=0.25, atol=1e-4)


def test_histogram_and_entries_give_the_same_null_and_the_same_over_batches():
    w = gaussian((3, 30, 40)).astype(BF16)
    mask = jd.low_magnitude_mask(w, fraction=0.3)
    density = jnp.array([0.1, 0.5, 0.9])
    by_histogram = jd.rounding_null(w, mask, density)
    by_entry = jd.rounding_null(w.astype(np.float32), mask, density)
    np.testing.assert_allclose(by_histogram, by_entry, rtol=1e-4)
    one = jd.rounding_null(w[1], mask[1], 0.5)
    np.testing.assert_allclose([float(x) for x in one], [float(x[1]) for x in by_histogram], rtol=1e-5)
    histogram = np.asarray(jd.magnitude_histogram(w[0], mask[0]))
    expected = np.bincount(w[0].view(np.uint16)[np.asarray(mask[0])] & 0x7FFF, minlength=0x7F80)
    np.testing.assert_array_equal(histogram, expected)


def test_degenerate_densities():
    w = gaussian((20, 30)).astype(BF16)
    mask = jd.low_magnitude_mask(w, fraction=0.3)
    assert np.isnan(jd.rounding_null(w, mask, 0.0).mean)
    assert float(jd.rounding_null(w, mask, 1.0).mean) == pytest.approx(0.3, abs=1e-3)
    zeros = jnp.zeros((4, 4), jnp.bfloat16)  # a moved zero is always visible
    assert np.isfinite(float(jd.rounding_null(zeros, jnp.eye(4, dtype=bool), 1.0).mean))
    with pytest.raises((ValueError, TypeCheckError), match="reference_mask"):  # whichever check comes first
        jd.rounding_null(w.astype(np.float32), mask[:5], 0.5)


def test_profile_puts_the_changes_where_the_scale_is():
    w = gaussian((40, 50)).astype(np.float32)
    profile = np.where(np.arange(40)[:, None] < 20, 4.0, 1.0) * np.ones((1, 50))
    top = np.zeros((40, 50), bool)
    top[:20] = True
    flat = jd.rounding_null(w, top, 0.4)
    shaped = jd.rounding_null(w, top, 0.4, profile=profile.astype(np.float32))
    rng = np.random.default_rng(0)
    s = float(jd.rounding_scale(w, 0.4, profile=profile.astype(np.float32)))
    masks = [as_bf16(w + s * profile * rng.standard_normal(w.shape)) != as_bf16(w) for _ in range(60)]
    sampled = np.mean([np.sum(m & top) / np.sum(m) for m in masks])
    assert float(flat.mean) == pytest.approx(0.5, abs=0.03)
    assert float(shaped.mean) == pytest.approx(sampled, abs=0.01)
    assert float(shaped.mean) > float(flat.mean) + 0.1


def test_z_and_excess():
    null = jd.NullMoments(jnp.array([0.5, 0.5]), jnp.array([0.1, 0.0]))
    np.testing.assert_allclose(jd.z_score(jnp.array([0.7, 0.7]), null), [2.0, np.nan], rtol=1e-5)
    np.testing.assert_allclose(jd.excess(jnp.array([0.7, 0.7]), null), [0.2, 0.2], rtol=1e-5)
    assert np.isnan(jax.jit(jd.z_score)(0.7, jd.NullMoments(jnp.float32(jnp.nan), jnp.float32(jnp.nan))))
