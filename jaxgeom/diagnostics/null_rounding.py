"""The rounding null of single matrices: what direction-free noise plus bfloat16 rounding gives, in closed form.

Update `s·G`, G iid standard normal, on the actual W0. An entry becomes visible with probability `p(w, s)`, the Gaussian
mass outside the interval that rounds to the same bfloat16 value; s is set so that the expected visible density equals
the observed one. For a weight on the grid of a 16-bit format p depends on its 15 magnitude bits alone; for one that is
stored finer, on its place within its rounding cell too, over which p is averaged. So one histogram per mask stands for
the matrix.

Results are NaN where the observed density is 0 or 1: no finite scale has it.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._namespace import as_real
from .counting import entry_counts, magnitude_histogram, storage_of
from .entry_numbers import DECILES, decile_of_bins, isotropic_null
from .moments import NullMoments
from .precision import bf16_bits, bf16_view, grid_bits, require_matrix, widen
from .rounding_cells import change, moments_of_share, origin_cells, overlap_law, scale_for_density
from .rounding_response import change_at_place
from .storage_grids import grid_classes
from .stored_noise import sum_by_class


def visibility_probability(w0: Float[ArrayLike, "..."], scale: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Probability that `w0 + scale·g`, g standard normal, rounds to another bfloat16 value than `w0` does.

    Args:
      w0: weights, any floating dtype, on the bfloat16 grid or off it, each at its own place.
      scale: standard deviation of the update, broadcast against w0.

    Returns:
      Probabilities, float64 under x64, else float32.
    """
    w0 = jnp.asarray(w0)
    table, wide = grid_classes("bfloat16", 0.0), widen(w0)
    own = jnp.asarray(table.of)[(bf16_bits(w0) & 0x7FFF).astype(jnp.int32)]
    offset = jnp.abs(wide) - jnp.abs(bf16_view(w0))
    low, high = (as_real(end, jnp)[own] - offset for end in (table.low, table.high))
    return change_at_place(low, high, jnp.asarray(scale).astype(wide.dtype)).probability


def rounding_scale(
    w0: Float[ArrayLike, "*batch out in"], density: Float[ArrayLike, "*batch"], *, eta: float = 1e-3
) -> Float[Array, "*batch"]:
    """The update scale s at which the expected visible density equals the observed one.

    Args:
      w0: weights as stored, `[..., out, in]`.
      density: observed visible density.
      eta: relative tolerance η of the unchanged test.

    Returns:
      Standard deviations s; NaN where the density is 0 or 1.
    """
    w0 = jnp.asarray(w0)
    require_matrix(w0, "w0")
    cells = origin_cells(w0, eta)
    return scale_for_density(cells, jnp.asarray(density).astype(cells.counts.dtype))


def rounding_null(
    w0: Float[ArrayLike, "*batch out in"],
    reference_mask: Bool[ArrayLike, "*batch out in"],
    density: Float[ArrayLike, "*batch"],
    *,
    eta: float = 1e-3,
) -> NullMoments:
    """Overlap of the changed mask with a reference mask that direction-free noise plus rounding would give.

    `Σ_{M★} p / Σ p`, `p = p(w, s)` the probability to be visible, s set by the observed density. The deviation is that
    over draws in which s is set by the draw's own density. Closed form, no sampling.

    Args:
      w0: initial weights as stored, `[..., out, in]`.
      reference_mask: M★, same shape.
      density: observed visible density, one per matrix.
      eta: relative tolerance η of the unchanged test.

    Returns:
      `NullMoments(mean, std)`: expected overlap and its standard deviation; NaN where the density is 0 or 1, std also
      where less than one entry is at stake.

    Raises:
      ValueError: where the shapes differ.
    """
    w0, reference = jnp.asarray(w0), jnp.asarray(reference_mask)
    if w0.shape != reference.shape:
        raise ValueError(f"w0 has shape {w0.shape} and reference_mask has shape {reference.shape}; equal needed")
    require_matrix(w0, "w0")
    cells = origin_cells(w0, eta)
    changed = jnp.asarray(density).astype(cells.counts.dtype) * cells.counts.sum(-1)
    scale = scale_for_density(cells, changed / cells.counts.sum(-1))
    inside = sum_by_class(magnitude_histogram(grid_bits(w0), reference), cells.storage, eta)
    mean, variance = overlap_law(cells, inside, jnp.where(jnp.isnan(scale), jnp.ones_like(scale), scale))
    known = ~jnp.isnan(scale)
    return NullMoments(*(jnp.where(known, part, jnp.nan) for part in moments_of_share(mean, variance, changed)))


def rounding_sparsity_null(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"], *, eta: float = 1e-3
) -> NullMoments:
    """Visible sparsity that isotropic noise of the update's Frobenius norm would leave, rounded to bfloat16.

    Where both sides are stored in a 16-bit format the norm is that after storage.

    Args:
      w0: initial weights as stored, `[..., out, in]`.
      w1: final weights, same shape.
      eta: relative tolerance η of the unchanged test.

    Returns:
      `NullMoments(mean, std)`; 1 and 0 for an update of zero.
    """
    return isotropic_null(entry_counts(w0, w1, eta=eta), eta=eta).sparsity


def rounding_null_by_decile(
    w0: Float[ArrayLike, "*batch out in"], density: Float[ArrayLike, "*batch"], *, eta: float = 1e-3
) -> NullMoments:
    """Visible density by decile of `|W0|` under the rounding null: the expected side of `density_by_decile`.

    Args:
      w0: initial weights `[..., out, in]`.
      density: observed visible density of the whole matrix.
      eta: relative tolerance η of the unchanged test.

    Returns:
      `NullMoments` of `[..., 10]`, smallest weights first; NaN for a decile without entries.
    """
    w0 = jnp.asarray(w0)
    require_matrix(w0, "w0")
    cells = origin_cells(w0, eta)
    p = change(cells, scale_for_density(cells, jnp.asarray(density).astype(cells.counts.dtype))).probability
    histogram = magnitude_histogram(grid_bits(w0))
    by_bin = p[..., jnp.asarray(grid_classes(storage_of(w0.dtype), eta).of)]
    decile, counts = decile_of_bins(histogram), as_real(histogram, jnp)
    means, deviations = [], []
    for part in range(DECILES):
        inside = counts * as_real(decile == part, jnp)
        size = inside.sum(-1)
        size = jnp.where(size > 0, size, jnp.nan)
        means.append((inside * by_bin).sum(-1) / size)
        deviations.append(jnp.sqrt((inside * by_bin * (1 - by_bin)).sum(-1)) / size)
    return NullMoments(jnp.stack(means, axis=-1), jnp.stack(deviations, axis=-1))
