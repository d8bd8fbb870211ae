import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgeom import diagnostics as jd

from .matrices import BF16, as_bf16, gaussian, numpy64, numpy_changed, weights


@functools.partial(jax.jit, static_argnames="eta")
def changed_and_sparsity(w0: jax.Array, w1: jax.Array, eta: float) -> tuple[jax.Array, jax.Array]:
    return jd.changed_mask(w0, w1, eta=eta), jd.visible_sparsity(w0, w1, eta=eta)


@settings(max_examples=25, deadline=None)
@given(weights(), st.integers(0, 2**31), st.sampled_from([1e-5, 1e-3, 0.1]), st.sampled_from([0.0, 1e-3, 3.9e-3]))
def test_changed_mask_equals_numpy_entry_for_entry(w0, seed, step, eta):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(w0.shape) * step * (rng.random(w0.shape) < 0.7)
    w1 = (w0.astype(jnp.float32) + noise.astype(np.float32)).astype(w0.dtype)
    changed, sparsity = changed_and_sparsity(w0, w1, eta)
    np.testing.assert_array_equal(changed, numpy_changed(numpy64(w0), numpy64(w1), eta))
    np.testing.assert_allclose(sparsity, 1 - np.mean(np.asarray(changed)), rtol=1e-6)


def test_every_eta_below_the_smallest_gap_is_bitwise_inequality():
    values = np.arange(0x0080, 0x7F80, dtype=np.uint16).view(BF16)  # every positive normal number
    a, b = jnp.asarray(values[:-1]), jnp.asarray(values[1:])
    for eta in (0.0, 1e-3, 2.0**-8 - 2.0**-20):
        assert bool(jd.changed_mask(a, b, eta=eta).all())
    # At 2⁻⁸ itself the pairs just below a power of two are no longer told apart.
    assert not bool(jd.changed_mask(a, b, eta=2.0**-8).all())


def test_the_formula_and_the_bits_agree_for_a_traced_eta():
    w0 = jnp.asarray(gaussian((16, 32)), jnp.float32)
    w1 = w0 + jnp.asarray(gaussian((16, 32), 1, 1e-4), jnp.float32)
    traced = jax.jit(lambda a, b, eta: jd.changed_mask(a, b, eta=eta))(w0, w1, 1e-3)
    np.testing.assert_array_equal(traced, jd.changed_mask(w0, w1, eta=1e-3))


def test_signed_zeros_are_equal_and_negative_eta_refused():
    assert not bool(jd.changed_mask(jnp.zeros((1, 1)), -jnp.zeros((1, 1))).any())
    with pytest.raises(ValueError, match="eta"):
        jd.changed_mask(jnp.zeros((1, 1)), jnp.zeros((1, 1)), eta=-1e-3)


def test_sparsity_variants_equal_numpy():
    a, b = gaussian((40, 50)).astype(np.float32), gaussian((40, 50), 1, 1e-5).astype(np.float32)
    w1 = a + b * (gaussian((40, 50), 2) > 0)
    delta = w1.astype(np.float64) - a
    tiny = np.abs(np.float32(w1 - a))
    rms = np.sqrt(np.mean(a.astype(np.float64) ** 2))
    assert float(jd.stored_sparsity(a, w1)) == pytest.approx(np.mean(a == w1))
    assert float(jd.absolute_sparsity(a, w1, tolerance=1e-5)) == pytest.approx(np.mean(tiny <= np.float32(1e-5)))
    assert float(jd.relative_sparsity(a, w1, tolerance=1e-3)) == pytest.approx(np.mean(np.abs(delta) <= 1e-3 * rms))
    ulp = 2.0 ** (np.floor(np.log2(np.abs(as_bf16(a)))) - 7)
    np.testing.assert_allclose(jd.ulp_distance(a, w1), tiny / ulp, rtol=1e-6)
    assert float(jd.ulp_share(a, w1)) == pytest.approx(np.mean(tiny / ulp > 0.5))


def test_bf16_view_under_jit_is_not_simplified_away():
    x = jnp.asarray(gaussian((64, 64)), jnp.float32)
    view = jax.jit(jd.bf16_view)(x)
    np.testing.assert_array_equal(np.asarray(view, np.float64), as_bf16(np.asarray(x)))
    np.testing.assert_array_equal(jd.bf16_bits(x), np.asarray(x).astype(BF16).view(np.uint16))


def test_an_absolute_tolerance_hides_small_weights():
    w0 = jnp.asarray(gaussian((50, 40)), jnp.float32)
    w1 = w0 * jnp.float32(1.01)  # every weight moves by about one ULP of bfloat16
    counts = jax.jit(jd.entry_counts)(w0, w1)
    hidden, density = np.asarray(jd.hidden_by_decile(counts)), np.asarray(jd.density_by_decile(counts))
    view, changed = np.abs(as_bf16(np.asarray(w0))).ravel(), np.asarray(jd.changed_mask(w0, w1)).ravel()
    seen = np.abs(numpy64(w1) - numpy64(w0)).ravel() > 1e-5
    # Cut between magnitudes: a decile holds those of which no more than its share of the entries is smaller.
    decile = np.array([np.count_nonzero(view < x) for x in view]) * 10 // view.size
    for part in range(10):
        inside = decile == part
        assert density[part] == pytest.approx(changed[inside].mean(), rel=1e-6)
        assert hidden[part] == pytest.approx(np.mean(~seen[inside & changed]), rel=1e-6)
    assert hidden[0] > 0.3 and hidden[9] == 0.0


def test_shapes_and_dtypes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        jd.update(jnp.ones((2, 3)), jnp.ones((3, 2)))
    assert jd.widen(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            assert jd.update(jnp.ones((2, 2), dtype), jnp.ones((2, 2), dtype)).dtype == jnp.float64
