"""Exactly the k smallest or largest entries of a matrix, without a sort and the same on every device.

The threshold is found by bisection on the bit pattern of the magnitudes (for non-negative floats the order of the
bits is the order of the numbers), one counting pass per bit; ties at the threshold go to the lower row-major index by
a prefix sum. Counts are kept in two words, so matrices beyond 2³¹ entries are exact too.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._layout import WORD, add_counts, cumulative_counts, gather_matrix, split_count
from .precision import require_matrix


def selection_count(fraction: float, size: int) -> int:
    """How many of `size` entries a fraction selects: `⌊fraction·size + ½⌋`.

    Args:
      fraction: in [0, 1].
      size: number of entries.

    Returns:
      The count.

    Raises:
      ValueError: where the fraction is outside [0, 1].

    >>> selection_count(0.3, 5)
    2
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; a share in [0, 1] is needed")
    return min(size, math.floor(fraction * size + 0.5))


def _ordered_bits(magnitude: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the magnitudes (sign bit cleared)."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}.get(magnitude.dtype.itemsize)
    if unsigned is None or not jnp.issubdtype(magnitude.dtype, jnp.floating):
        raise ValueError(f"magnitudes have dtype {magnitude.dtype}; 16, 32 or 64 bit floats are needed")
    bits = lax.bitcast_convert_type(magnitude, unsigned)
    return bits & jnp.asarray((1 << (8 * magnitude.dtype.itemsize - 1)) - 1, unsigned)


def _at_least(high: jax.Array, low: jax.Array, want_high: jax.Array, want_low: jax.Array) -> jax.Array:
    return (high > want_high) | ((high == want_high) & (low >= want_low))


def _select(bits: jax.Array, count: int) -> jax.Array:
    if count == 0:
        return jnp.zeros_like(bits, dtype=bool)
    if count == bits.shape[-1] * bits.shape[-2]:
        return jnp.ones_like(bits, dtype=bool)
    # The count is data, not structure: one compilation serves every fraction.
    return _smallest(bits, *(jnp.asarray(word, jnp.uint32) for word in split_count(count)))


@jax.jit
def _smallest(bits: jax.Array, want_high: jax.Array, want_low: jax.Array) -> jax.Array:
    """Mask of the wanted number (1 to all) of smallest entries of each matrix, ties to the lower row-major index.

    Compiled here, because an uncompiled loop would be compiled anew in every call.
    """
    one = jnp.asarray(1, bits.dtype)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + ((high - low) >> one)
        rows = jnp.sum(bits <= middle[..., None, None], axis=-1, dtype=jnp.uint32)
        enough = _at_least(*add_counts(rows), want_high, want_low)
        return jnp.where(enough, low, jnp.minimum(middle + one, high)), jnp.where(enough, middle, high)

    # The bounds come from the data and not from constants: inside shard_map they vary over the mesh as the data does.
    bounds = (jnp.min(bits, axis=(-2, -1)), jnp.max(bits, axis=(-2, -1)))
    _, threshold = lax.fori_loop(0, 8 * bits.dtype.itemsize, halve, bounds)
    threshold = threshold[..., None, None]

    below = bits < threshold
    ties = gather_matrix(bits == threshold)
    rank = jnp.cumsum(ties, axis=-1, dtype=jnp.uint32)
    tie_rows = rank[..., -1]
    taken_high, taken_low = add_counts(jnp.sum(below, axis=-1, dtype=jnp.uint32))
    before_high, before_low = cumulative_counts(tie_rows)
    # Ties of all rows up to and including this one, and entries below the threshold: what is used after this row.
    used_low = before_low + taken_low[..., None]
    used_high = before_high + taken_high[..., None] + (used_low >> WORD)
    used_low = used_low & ((1 << WORD) - 1)
    # Left for this row: count − used + its own ties, clipped; the high words are clipped first so that int32 holds it.
    spare = jnp.clip(want_high.astype(jnp.int32) - used_high.astype(jnp.int32), -(1 << 20), 1 << 20) * (1 << WORD)
    spare = spare + want_low.astype(jnp.int32) - used_low.astype(jnp.int32) + tie_rows.astype(jnp.int32)
    quota = jnp.clip(spare, 0, bits.shape[-1]).astype(jnp.uint32)
    return below | (ties & (rank <= quota[..., None]))


def smallest_mask(magnitude: Float[ArrayLike, "*batch out in"], fraction: float) -> Bool[Array, "*batch out in"]:
    """Mask of the `⌊fraction·n + ½⌋` entries of smallest magnitude, ties to the lower row-major index.

    Args:
      magnitude: `[..., out, in]`, signs ignored; any 16, 32 or 64 bit float.
      fraction: share of the entries, a Python number in [0, 1].

    Returns:
      Boolean mask with exactly that many true entries per matrix.

    Raises:
      ValueError: where the fraction is outside [0, 1] or the array is no matrix.
    """
    magnitude = jnp.asarray(magnitude)
    require_matrix(magnitude, "magnitude")
    return _select(_ordered_bits(magnitude), selection_count(fraction, magnitude.shape[-1] * magnitude.shape[-2]))


def largest_mask(magnitude: Float[ArrayLike, "*batch out in"], fraction: float) -> Bool[Array, "*batch out in"]:
    """Mask of the `⌊fraction·n + ½⌋` entries of largest magnitude, ties to the lower row-major index.

    Args:
      magnitude: `[..., out, in]`, signs ignored; any 16, 32 or 64 bit float.
      fraction: share of the entries, a Python number in [0, 1].

    Returns:
      Boolean mask with exactly that many true entries per matrix.

    Raises:
      ValueError: where the fraction is outside [0, 1] or the array is no matrix.
    """
    magnitude = jnp.asarray(magnitude)
    require_matrix(magnitude, "magnitude")
    bits = _ordered_bits(magnitude)
    top = jnp.asarray((1 << (8 * bits.dtype.itemsize - 1)) - 1, bits.dtype)
    return _select(top - bits, selection_count(fraction, magnitude.shape[-1] * magnitude.shape[-2]))
