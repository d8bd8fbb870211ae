"""The rounding null: what direction-free noise plus bfloat16 rounding gives, in closed form.

Update `s·G`, G iid standard normal, on the actual W0. An entry w becomes visible with probability `p(w, s)`, the
Gaussian mass outside the interval that rounds to the same bfloat16 value; s is set so that the expected visible
density equals the observed one. For weights on the bfloat16 grid p depends on the 15 magnitude bits alone, so one
histogram per mask replaces the matrix (`*_from_histogram`); for other weights the sums run over the entries.

Results are NaN where the observed density is 0 (nothing changed) or not finite.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import erfc
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ._layout import gather_matrix
from .precision import bf16_bits, bf16_magnitude_value, bf16_view, require_matrix, widen
from .sparsity import magnitude_deciles

MAGNITUDES = 0x7F80
"""Number of finite bfloat16 magnitudes; the bins of a magnitude histogram."""

LOG2_RANGE = (-110.0, 60.0)
BISECTIONS = 44


class NullMoments(NamedTuple):
    """A statistic under its null.

    Attributes:
      mean: expectation.
      std: standard deviation.
    """

    mean: jax.Array
    std: jax.Array


def excess(value: ArrayLike, null: NullMoments) -> jax.Array:
    """Observed value minus its expectation under the null."""
    return jnp.asarray(value) - null.mean


def z_score(value: ArrayLike, null: NullMoments) -> jax.Array:
    """Excess in standard deviations of the null; NaN where that is zero."""
    return jnp.where(null.std > 0, excess(value, null) / jnp.where(null.std > 0, null.std, 1.0), jnp.nan)


def _half_gaps(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances from a bfloat16 magnitude to the rounding boundaries above and below it."""
    value = bf16_magnitude_value(bits)
    above = 0.5 * (bf16_magnitude_value(bits + 1) - value)
    below = 0.5 * (value - bf16_magnitude_value(jnp.maximum(bits, 1) - 1))
    return above, jnp.where(bits == 0, above, below)


def _outside(above: jax.Array, below: jax.Array, scale: jax.Array) -> jax.Array:
    """Mass of a centred normal of standard deviation `scale` outside `[−below, above]`."""
    inverse = (0.5**0.5) / scale
    return 0.5 * (erfc(above * inverse) + erfc(below * inverse))


def visibility_probability(w0: Float[ArrayLike, "..."], scale: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Probability that `w0 + scale·g`, g standard normal, rounds to another bfloat16 value than `w0` does.

    Args:
      w0: weights, any floating dtype, on the bfloat16 grid or off it.
      scale: standard deviation of the update, broadcast against w0.

    Returns:
      float32 probabilities.
    """
    w0 = jnp.asarray(w0)
    bits = (bf16_bits(w0) & 0x7FFF).astype(jnp.uint32)
    above, below = _half_gaps(bits)
    offset = jnp.abs(widen(w0).astype(jnp.float32)) - jnp.abs(bf16_view(w0))
    return _outside(above - offset, below + offset, jnp.asarray(scale, jnp.float32))


def visibility_table(scale: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch magnitudes"]:
    """`visibility_probability` of every finite bfloat16 magnitude, indexed by its 15 bits.

    Args:
      scale: standard deviations `[...]`.

    Returns:
      `[..., 32640]` probabilities, float32.
    """
    above, below = _half_gaps(jnp.arange(MAGNITUDES, dtype=jnp.uint32))
    return _outside(above, below, jnp.asarray(scale, jnp.float32)[..., None])


def magnitude_histogram(
    w0: Float[ArrayLike, "*batch out in"], mask: Bool[ArrayLike, "*batch out in"] | None = None
) -> Int[Array, "*batch magnitudes"]:
    """How many entries (of a mask) have each bfloat16 magnitude.

    Args:
      w0: weights `[..., out, in]`; those off the bfloat16 grid are counted at the value they round to.
      mask: which entries to count; all where it is not given.

    Returns:
      int32 counts `[..., 32640]`, indexed by the 15 magnitude bits. Infinities and NaN are left out.
    """
    w0 = jnp.asarray(w0)
    require_matrix(w0, "w0")
    bits = gather_matrix((bf16_bits(w0) & 0x7FFF).astype(jnp.int32))
    if mask is not None:
        bits = jnp.where(gather_matrix(jnp.asarray(mask)), bits, MAGNITUDES)

    def count(one: jax.Array) -> jax.Array:
        return jnp.zeros(MAGNITUDES, jnp.int32).at[one].add(1, mode="drop")

    for _ in range(w0.ndim - 2):
        count = jax.vmap(count)
    return count(bits)


def _solve(expected_density: Callable[[jax.Array], jax.Array], density: jax.Array, anchor: jax.Array) -> jax.Array:
    """The scale at which an increasing density reaches the observed one, by bisection on its logarithm.

    `anchor` is a zero that carries the shape and the mesh axes over which the result varies.
    """

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = expected_density(jnp.exp2(middle)) >= density
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    low, high = lax.fori_loop(0, BISECTIONS, halve, (anchor + LOG2_RANGE[0], anchor + LOG2_RANGE[1]))
    return jnp.where((density > 0) & (density <= 1), jnp.exp2(0.5 * (low + high)), jnp.nan)


def _weighted(histogram: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.sum(histogram.astype(jnp.float32) * table, axis=-1)


# The two solvers are compiled here, because an uncompiled loop would be compiled anew in every call.
@jax.jit
def _scale_of_histogram(histogram: jax.Array, density: jax.Array) -> jax.Array:
    total = jnp.sum(histogram.astype(jnp.float32), axis=-1)
    density = density + 0.0 * total
    return _solve(lambda s: _weighted(histogram, visibility_table(s)) / total, density, 0.0 * density)


@jax.jit
def _scale_of_entries(w0: jax.Array, weight: jax.Array, density: jax.Array) -> jax.Array:
    size = float(w0.shape[-1]) * float(w0.shape[-2])
    density = density + 0.0 * jnp.max(jnp.abs(widen(w0).astype(jnp.float32)), axis=(-2, -1))

    def expected(s: jax.Array) -> jax.Array:
        return _total(visibility_probability(w0, s[..., None, None] * weight)) / size

    return _solve(expected, density, 0.0 * density)


def rounding_scale_from_histogram(
    histogram: Int[ArrayLike, "*batch magnitudes"], density: Float[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    """The update scale s at which the expected visible density equals the observed one.

    Args:
      histogram: `magnitude_histogram` of the whole matrix, `[..., 32640]`.
      density: observed visible density in (0, 1].

    Returns:
      Standard deviations s, float32; NaN where the density is 0. At density 1 any large s serves.
    """
    return _scale_of_histogram(jnp.asarray(histogram), jnp.asarray(density, jnp.float32))


def _ratio_moments(
    inside: jax.Array, total: jax.Array, inside_variance: jax.Array, total_variance: jax.Array
) -> NullMoments:
    """Mean and delta-method deviation of `Σ_{M★} X / Σ X`, X independent Bernoulli."""
    mean = jnp.where(total > 0, inside / jnp.where(total > 0, total, 1.0), jnp.nan)
    # Σ p(1−p)(1{M★} − mean)², split in the mask and its complement.
    variance = inside_variance * (1 - mean) ** 2 + jnp.maximum(total_variance - inside_variance, 0.0) * mean**2
    return NullMoments(mean, jnp.sqrt(variance) / total)


def rounding_null_from_histogram(
    histogram: Int[ArrayLike, "*batch magnitudes"],
    mask_histogram: Int[ArrayLike, "*batch magnitudes"],
    density: Float[ArrayLike, "*batch"],
) -> NullMoments:
    """Overlap of the changed mask with a reference mask under the rounding null, from magnitude histograms.

    `Σ_{M★} p / Σ p`, for weights on the bfloat16 grid.

    Args:
      histogram: `magnitude_histogram(w0)`.
      mask_histogram: `magnitude_histogram(w0, reference)`.
      density: observed visible density.

    Returns:
      `NullMoments(mean, std)`, float32; NaN where the density is 0.
    """
    histogram, mask_histogram = jnp.asarray(histogram), jnp.asarray(mask_histogram)
    p = visibility_table(rounding_scale_from_histogram(histogram, density))
    spread = p * (1 - p)
    return _ratio_moments(
        _weighted(mask_histogram, p),
        _weighted(histogram, p),
        _weighted(mask_histogram, spread),
        _weighted(histogram, spread),
    )


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=(-2, -1))


def rounding_scale(
    w0: Float[ArrayLike, "*batch out in"],
    density: Float[ArrayLike, "*batch"],
    *,
    profile: Float[ArrayLike, "*batch out in"] | None = None,
) -> Float[Array, "*batch"]:
    """The update scale s at which the expected visible density equals the observed one, for any weights.

    bfloat16 weights go through their histogram, other dtypes are summed entry by entry (44 passes): cast weights
    that lie on the bfloat16 grid to bfloat16 first.

    Args:
      w0: weights `[..., out, in]`.
      density: observed visible density in (0, 1].
      profile: relative scale of each entry (`scale_profile`), broadcast against w0; 1 where it is not given.

    Returns:
      Standard deviations s, float32; NaN where the density is 0.
    """
    w0 = jnp.asarray(w0)
    require_matrix(w0, "w0")
    if w0.dtype == jnp.bfloat16 and profile is None:
        return rounding_scale_from_histogram(magnitude_histogram(w0), density)
    weight = jnp.ones((), jnp.float32) if profile is None else jnp.asarray(profile, jnp.float32)
    return _scale_of_entries(w0, weight, jnp.asarray(density, jnp.float32))


def rounding_probability(
    w0: Float[ArrayLike, "*batch out in"],
    density: Float[ArrayLike, "*batch"],
    *,
    profile: Float[ArrayLike, "*batch out in"] | None = None,
) -> Float[Array, "*batch out in"]:
    """Each entry's probability to be visible under the rounding null at the observed density.

    Args:
      w0: weights `[..., out, in]`.
      density: observed visible density in (0, 1].
      profile: relative scale of each entry, see `rounding_scale`.

    Returns:
      float32 `[..., out, in]`; NaN where the density is 0.
    """
    weight = jnp.ones((), jnp.float32) if profile is None else jnp.asarray(profile, jnp.float32)
    return visibility_probability(w0, rounding_scale(w0, density, profile=profile)[..., None, None] * weight)


def rounding_null(
    w0: Float[ArrayLike, "*batch out in"],
    reference_mask: Bool[ArrayLike, "*batch out in"],
    density: Float[ArrayLike, "*batch"],
    *,
    profile: Float[ArrayLike, "*batch out in"] | None = None,
) -> NullMoments:
    """Overlap of the changed mask with a reference mask that direction-free noise plus rounding would give.

    `Σ_{M★} p / Σ p`, `p = p(w, s)` the probability to be visible, s set by the observed density; its deviation is
    that of a ratio of sums of independent Bernoulli variables, to first order. Closed form, no sampling.

    Args:
      w0: initial weights as stored, `[..., out, in]`, on the bfloat16 grid or off it. bfloat16 arrays take the cheap
        path over a magnitude histogram.
      reference_mask: M★, same shape.
      density: observed visible density, one per matrix.
      profile: relative scale of each entry's noise (`scale_profile(delta)`), which gives the scale-profile null.

    Returns:
      `NullMoments(mean, std)`: expected overlap and its standard deviation, float32; NaN where the density is 0.
    """
    w0, reference = jnp.asarray(w0), jnp.asarray(reference_mask)
    if w0.shape != reference.shape:
        raise ValueError(f"w0 has shape {w0.shape} and reference_mask has shape {reference.shape}; equal needed")
    if w0.dtype == jnp.bfloat16 and profile is None:
        return rounding_null_from_histogram(magnitude_histogram(w0), magnitude_histogram(w0, reference), density)
    p = rounding_probability(w0, density, profile=profile)
    spread = p * (1 - p)
    inside = reference.astype(jnp.float32)
    return _ratio_moments(_total(p * inside), _total(p), _total(spread * inside), _total(spread))


def rounding_null_by_decile(
    w0: Float[ArrayLike, "*batch out in"], density: Float[ArrayLike, "*batch"], *, parts: int = 10
) -> NullMoments:
    """Visible density by decile of `|W0|` under the rounding null: the expected side of `density_by_decile`.

    Args:
      w0: initial weights `[..., out, in]`.
      density: observed visible density of the whole matrix.
      parts: how many parts of equal count.

    Returns:
      `NullMoments` of `[..., parts]`, smallest weights first.
    """
    p, index = rounding_probability(w0, density), magnitude_deciles(w0, parts=parts)
    means, deviations = [], []
    for part in range(parts):
        inside = (index == part).astype(jnp.float32)
        count = _total(inside)
        means.append(_total(p * inside) / count)
        deviations.append(jnp.sqrt(_total(p * (1 - p) * inside)) / count)
    return NullMoments(jnp.stack(means, axis=-1), jnp.stack(deviations, axis=-1))


class CrossRunNull(NamedTuple):
    """Overlaps of two runs' changed masks A and B under independent rounding nulls.

    Attributes:
      a_in_b: `|A ∩ B| / |B|`.
      b_in_a: `|A ∩ B| / |A|`.
      jaccard: `|A ∩ B| / |A ∪ B|`.
    """

    a_in_b: NullMoments
    b_in_a: NullMoments
    jaccard: NullMoments


def _cross(sum_of: Callable[[jax.Array], jax.Array], pa: jax.Array, pb: jax.Array) -> CrossRunNull:
    both, either = pa * pb, pa + pb - pa * pb
    n_both, n_a, n_b, n_either = sum_of(both), sum_of(pa), sum_of(pb), sum_of(either)

    def moments(numerator: jax.Array, denominator: jax.Array, spread: Callable[[jax.Array], jax.Array]) -> NullMoments:
        mean = jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), jnp.nan)
        return NullMoments(mean, jnp.sqrt(sum_of(spread(mean[..., None]))) / denominator)

    # First order: Var(AB − rB) = P(AB)(1−r)² + P(B, not A) r² − (P(AB) − r P(B))², entry by entry.
    def one_sided(p_other: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda r: both * (1 - r) ** 2 + (p_other - both) * r**2 - (both - r * p_other) ** 2

    def two_sided(r: jax.Array) -> jax.Array:
        return both * (1 - r) ** 2 + (either - both) * r**2 - (both - r * either) ** 2

    return CrossRunNull(
        moments(n_both, n_b, one_sided(pb)), moments(n_both, n_a, one_sided(pa)), moments(n_both, n_either, two_sided)
    )


def cross_run_null_from_histogram(
    histogram: Int[ArrayLike, "*batch magnitudes"],
    density_a: Float[ArrayLike, "*batch"],
    density_b: Float[ArrayLike, "*batch"],
) -> CrossRunNull:
    """`cross_run_null` for weights on the bfloat16 grid, from their magnitude histogram.

    Args:
      histogram: `magnitude_histogram(w0)` of the common origin.
      density_a: observed visible density of run A.
      density_b: observed visible density of run B.

    Returns:
      `CrossRunNull`.
    """
    counts = jnp.asarray(histogram).astype(jnp.float32)
    tables = (visibility_table(rounding_scale_from_histogram(histogram, d)) for d in (density_a, density_b))
    return _cross(lambda x: jnp.sum(counts * x, axis=-1), *tables)


def cross_run_null(
    w0: Float[ArrayLike, "*batch out in"],
    density_a: Float[ArrayLike, "*batch"],
    density_b: Float[ArrayLike, "*batch"],
) -> CrossRunNull:
    """Overlaps that the changed masks of two runs from one origin would have if both updates were noise plus rounding.

    `Σ p_A p_B / Σ p_B` and so on: two independent noises still meet where weights are small, so that independence of
    the masks is the wrong baseline.

    Args:
      w0: common initial weights `[..., out, in]`.
      density_a: observed visible density of run A.
      density_b: observed visible density of run B.

    Returns:
      `CrossRunNull` of means and standard deviations.
    """
    w0 = jnp.asarray(w0)
    if w0.dtype == jnp.bfloat16:
        return cross_run_null_from_histogram(magnitude_histogram(w0), density_a, density_b)
    flat = (rounding_probability(w0, d) for d in (density_a, density_b))
    rows = [gather_matrix(p).reshape(*p.shape[:-2], -1) for p in flat]
    return _cross(lambda x: jnp.sum(x, axis=-1), *rows)
