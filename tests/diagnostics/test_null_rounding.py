import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jaxtyping import TypeCheckError

from jaxgeom import diagnostics as jd
from jaxgeom.diagnostics import NullMoments
from jaxgeom.diagnostics._namespace import newton_root
from jaxgeom.diagnostics.between import rounding_overlaps
from jaxgeom.diagnostics.null_profile import Levels, estimation
from jaxgeom.diagnostics.rounding_cells import overlap_law, rounding_cells, scale_for_density
from jaxgeom.diagnostics.stored_noise import sum_by_class

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


@pytest.mark.slow
@pytest.mark.parametrize("grid", [True, False], ids=["bf16", "fp32"])
def test_overlaps_against_sampling(grid):
    """Means at the scales that were drawn from; deviations of the excess over the null at each draw's own densities."""
    rng, draws = np.random.default_rng(1), 120
    w = gaussian((64, 80), 5)
    w = as_bf16(w) if grid else w.astype(np.float32).astype(np.float64)
    stored = w.astype(BF16 if grid else np.float32)
    low, densities = numpy_mask(w, 0.3, False), (0.35, 0.6)
    scales = [float(jd.rounding_scale(stored, density)) for density in densities]
    masks, other = (np.stack([sampled_changed(w, s, rng) for _ in range(draws)]) for s in scales)
    assert np.mean(masks) == pytest.approx(densities[0], abs=2e-3 if grid else 1e-2)
    both, a, b = (x.sum((1, 2)) for x in (masks & other, masks, other))
    inside = (masks & low).sum((1, 2))
    observed = {"low": inside / a, "a_in_b": both / b, "b_in_a": both / a, "jaccard": both / (a + b - both)}

    bits = w.astype(np.float32).astype(BF16).view(np.uint16) & 0x7FFF
    histogram, marked = (np.bincount(x, minlength=1 << 15) for x in (bits.ravel(), bits[low]))
    cells = rounding_cells(histogram, "bfloat16", 1e-3, is_open=not grid, is_rounded=False)
    marked = sum_by_class(marked, "bfloat16", 1e-3)[cells.kept]
    excess: dict[str, list[float]] = {name: [] for name in observed}
    for draw in range(draws):
        scale = scale_for_density(cells, a[draw] / w.size)
        between = rounding_overlaps(cells, float(a[draw]), float(b[draw]))
        nulls = between._asdict() | {"low": NullMoments(overlap_law(cells, marked, scale)[0], 0.0)}
        for name in observed:
            excess[name].append(observed[name][draw] - float(nulls[name].mean))

    null, cross = jd.rounding_null(stored, low, densities[0]), jd.cross_run_null(stored, *densities)
    for name, moments in ({"low": null} | cross._asdict()).items():
        values = np.array(excess[name])
        # Off the grid the closed form averages over places, which in one matrix lie where they lie.
        room = tol.SIGMAS * values.std() / np.sqrt(draws) + (0 if grid else 3 * values.std())
        assert abs(values.mean()) < room, name
        assert float(moments.mean) == pytest.approx(observed[name].mean(), abs=room + 1e-3), name
        assert float(moments.std) == pytest.approx(values.std(), rel=0.25), name
    deciles = jd.rounding_null_by_decile(stored, densities[0])
    view = np.abs(as_bf16(w)).ravel()
    decile = np.array([np.count_nonzero(view < x) for x in view]) * 10 // view.size
    shares = np.stack([masks.reshape(draws, -1)[:, decile == part].mean(-1) for part in range(10)], axis=1)
    np.testing.assert_allclose(deciles.mean, shares.mean(0), atol=5e-3 if grid else 4e-2)
    np.testing.assert_allclose(deciles.std, shares.std(0), rtol=0.35, atol=1e-4 if grid else 1e-2)


def test_the_same_over_batches_and_in_both_namespaces():
    w = gaussian((2, 30, 40)).astype(BF16)
    mask = jd.low_magnitude_mask(w, fraction=0.3)
    batched = jd.rounding_null(w, mask, jnp.array([0.1, 0.5]))
    one = jd.rounding_null(w[1], mask[1], 0.5)
    np.testing.assert_allclose([float(x) for x in one], [float(x[1]) for x in batched], rtol=1e-5)
    histogram = np.bincount(w[1].view(np.uint16).ravel() & 0x7FFF, minlength=1 << 15)
    cells = rounding_cells(histogram, "bfloat16", 1e-3, is_open=False, is_rounded=False)
    assert float(jd.rounding_scale(w[1], 0.5)) == pytest.approx(float(scale_for_density(cells, 0.5)), rel=1e-5)


def test_degenerate_densities():
    w = gaussian((20, 30)).astype(BF16)
    mask = jd.low_magnitude_mask(w, fraction=0.3)
    null = jax.jit(jd.rounding_null)
    assert np.isnan(null(w, mask, 0.0).mean) and np.isnan(null(w, mask, 1.0).mean)  # no finite scale
    assert float(null(w, mask, 0.9999).mean) == pytest.approx(0.3, abs=1e-2)
    assert np.isnan(null(jnp.zeros((20, 30), jnp.bfloat16), mask, 0.5).mean)  # a moved zero is always visible
    with pytest.raises((ValueError, TypeCheckError), match="reference_mask"):  # whichever check comes first
        jd.rounding_null(w.astype(np.float32), mask[:5], 0.5)


def test_weights_and_updates_far_below_one_lose_nothing_in_float32():
    """Everything is relative to powers of two: a pair and its shift by 2⁻⁶⁰ have the same statistics."""
    found = []
    for power in (0, -60):
        w0 = np.ldexp(gaussian((24, 16)), power).astype(np.float32)
        w1 = (w0 + np.ldexp(gaussian((24, 16), 1, 2e-5), power)).astype(np.float32)
        numbers = ENTRY(jnp.asarray(w0), jnp.asarray(w1))
        found.append({k: float(v) for k, v in numbers.items() if k.startswith(("sparsity_bf16", "decay", "relative"))})
    assert found[0] == pytest.approx(found[1], rel=1e-4) and np.isfinite(list(found[0].values())).all()


ENTRY = jax.jit(lambda a, b: jd.entry_statistics(jd.entry_counts(a, b), eta=1e-3))


def test_float16_pairs_are_rounded_twice():
    """Stored in float16 a weight stands at one of a few places in its bfloat16 cell, on its edges too; the null knows.

    Noise of a quarter of a float16 spacing.
    """
    rng = np.random.default_rng(7)  # not the weights' own stream: noise in proportion to them changes nothing
    w0 = gaussian((200, 160)).astype(np.float16)
    spacing = np.spacing(np.abs(w0)).astype(np.float64)
    scale = 0.25 * float(np.median(spacing))
    ends = [(w0.astype(np.float64) + scale * rng.standard_normal(w0.shape)).astype(np.float16) for _ in range(12)]
    observed = [float(np.mean(as_bf16(end) == as_bf16(w0))) for end in ends]
    numbers = [{k: float(v) for k, v in ENTRY(w0, end).items()} for end in ends[:3]]
    for found in numbers:
        assert found["sparsity_bf16_null"] == pytest.approx(np.mean(observed), abs=2e-3)
        assert abs(found["sparsity_bf16_z"]) < 4


def test_a_final_matrix_rounded_to_a_grid_that_the_first_is_not_on():
    """The rounding of W0's own places is no noise: it is taken off the norm, and no z is claimed."""
    w0 = gaussian((120, 100)).astype(np.float32)
    w1 = (w0 + gaussian((120, 100), 1, 1e-4)).astype(BF16)
    found = ENTRY(w0, w1)
    assert float(found["sparsity_bf16"]) == pytest.approx(float(found["sparsity_bf16_null"]), abs=0.02)
    assert np.isnan(float(found["sparsity_bf16_z"]))


def test_z_and_excess():
    null = jd.NullMoments(jnp.array([0.5, 0.5, 0.5]), jnp.array([0.1, 0.0, 0.0]))
    value = jnp.array([0.7, 0.7, 0.5])
    np.testing.assert_allclose(jd.z_score(value, null), [2.0, np.nan, np.nan], rtol=1e-5)
    np.testing.assert_allclose(jd.excess(value, null), [0.2, 0.2, 0.0], rtol=1e-5)
    assert np.isnan(jax.jit(jd.z_score)(0.7, jd.NullMoments(jnp.float32(jnp.nan), jnp.float32(jnp.nan))))


@pytest.mark.parametrize("stored", [np.float32, BF16], ids=["fp32", "bf16"])
def test_sparsity_of_equal_noise_is_that_of_draws(stored):
    """Forty updates of one origin by isotropic noise: visible sparsity lies about its null by the null's deviation."""
    rng = np.random.default_rng(11)
    w0 = np.broadcast_to(gaussian((48, 32)).astype(stored), (40, 48, 32))
    w1 = (w0.astype(np.float64) + 4e-5 * rng.standard_normal(w0.shape)).astype(stored)
    seen = np.mean(as_bf16(w0.astype(np.float32)) == as_bf16(w1.astype(np.float32)), axis=(1, 2))
    null = jax.jit(jd.rounding_sparsity_null)(jnp.asarray(w0), jnp.asarray(w1))
    z = (seen - np.asarray(null.mean)) / np.asarray(null.std)
    assert 0.2 < seen.mean() < 0.9 and abs(z.mean()) < 4 / np.sqrt(40) and 0.6 < z.std() < 1.5
    assert np.count_nonzero(np.abs(z) > 3) <= 2


def test_an_update_of_zero_leaves_all_as_it_was():
    w0 = jnp.asarray(gaussian((8, 6)))
    assert [float(part) for part in jax.jit(jd.rounding_sparsity_null)(w0, w0)] == [1.0, 0.0]


def test_counts_beyond_the_whole_numbers_of_float32():
    """6000 rows and columns of one level, each pair's scale with its own bias and variance, `∓1/n` of closed form."""
    n = 6000
    levels = Levels(*(jnp.full(3, x, jnp.float32) for x in (0.3, 0.25, 2.0, 4.0, 2.0, 0.25)))
    ones, zeros = jnp.ones(n, jnp.float32), jnp.zeros(n, jnp.int32)
    drift, noise, _, _ = estimation(levels, zeros, zeros, ones, ones)
    # Var t = ΣW/(Σh)² = n·2/(2n)² on either side, bias −½·Σk/Σh·Var t: together 1/n and −1/n.
    assert float(noise[0]) == pytest.approx(1 / n, rel=1e-4) and float(drift[0]) == pytest.approx(-1 / n, rel=1e-4)


@pytest.mark.parametrize("xp", [np, jnp])
def test_newton_root_is_brents_whatever_the_guess(xp):
    shift = np.array([-3.0, 0.0, 0.4, 30.0])

    def function(x):
        z = x - shift
        return xp.tanh(z) + 1e-3 * z, 1 / xp.cosh(z) ** 2 + 1e-3

    low, high = xp.full(4, -20.0), xp.full(4, 60.0)
    roots = [scipy.optimize.brentq(lambda x, s=s: np.tanh(x - s) + 1e-3 * (x - s), -20, 60, xtol=1e-14) for s in shift]
    for guess in (-20.0, 0.0, 59.0):
        found = newton_root(function, xp.full(4, guess), low, high)
        np.testing.assert_allclose(found, roots, rtol=0, atol=1e-12 if xp is np else 2e-5)


def test_newton_root_beyond_its_bounds_is_the_bound_and_nan_stays():
    def function(x):
        return np.array([x[0] - 9.0, x[1] + 9.0, np.nan]), np.ones(3)

    found = newton_root(function, np.zeros(3), np.full(3, -1.0), np.full(3, 1.0))
    np.testing.assert_allclose(found, [1.0, -1.0, np.nan], atol=1e-12)
