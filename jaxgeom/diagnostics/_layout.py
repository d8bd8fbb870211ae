"""Layout and exact counting: what the other files need so that sharding and size change no number."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Integer, Shaped, UInt32

WORD = 10  # bits of the low word of a count: good for 2^22 rows of 2^32 entries


def gather_matrix(x: Shaped[jax.Array, "*batch out in"]) -> Shaped[jax.Array, "*batch out in"]:
    """Each matrix whole on its device, batch axes left as they are.

    Decompositions and prefix sums need the two trailing axes unsharded. Under Auto axis types XLA gathers by itself;
    under Explicit ones the type says so and the gather is written here. Inside `shard_map` nothing is done.
    """
    spec = jax.typeof(x).sharding.spec
    if len(spec) < x.ndim:
        return x
    if all(axis is None for axis in spec[-2:]):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec[:-2], None, None))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` (`[..., m, k]` by `[..., k, n]` or `[k]`) in full precision on every device.

    TPUs and recent GPUs default to less.
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transpose(a: Shaped[jax.Array, "*batch m n"]) -> Shaped[jax.Array, "*batch n m"]:
    """The two trailing axes exchanged."""
    return jnp.swapaxes(a, -1, -2)


def split_count(count: int) -> tuple[int, int]:
    """A Python count as (high, low) words, low below 2^WORD."""
    return count >> WORD, count & ((1 << WORD) - 1)


def add_counts(
    rows: Integer[jax.Array, "*batch rows"],
) -> tuple[UInt32[jax.Array, "*batch"], UInt32[jax.Array, "*batch"]]:
    """Sums per-row counts over the last axis as (high, low) uint32 words: exact beyond 2^31 entries."""
    rows = rows.astype(jnp.uint32)
    high = jnp.sum(rows >> WORD, axis=-1, dtype=jnp.uint32)
    low = jnp.sum(rows & ((1 << WORD) - 1), axis=-1, dtype=jnp.uint32)
    return high + (low >> WORD), low & ((1 << WORD) - 1)


def cumulative_counts(
    rows: Integer[jax.Array, "*batch rows"],
) -> tuple[UInt32[jax.Array, "*batch rows"], UInt32[jax.Array, "*batch rows"]]:
    """Inclusive prefix sums of per-row counts over the last axis as (high, low) uint32 words."""
    rows = rows.astype(jnp.uint32)
    high = jnp.cumsum(rows >> WORD, axis=-1, dtype=jnp.uint32)
    low = jnp.cumsum(rows & ((1 << WORD) - 1), axis=-1, dtype=jnp.uint32)
    return high + (low >> WORD), low & ((1 << WORD) - 1)


def count_true(mask: Bool[jax.Array, "*batch out in"]) -> Float[jax.Array, "*batch"]:
    """How many entries of each matrix are true, as a float (float64 under x64): exact below 2^24, else rounded once."""
    high, low = add_counts(jnp.sum(mask, axis=-1, dtype=jnp.uint32))
    dtype = jnp.result_type(float)
    return high.astype(dtype) * (1 << WORD) + low.astype(dtype)


def safe_sqrt(x: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """`√x` with derivative 0 instead of infinity at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))
