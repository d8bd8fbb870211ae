"""Layout and exact counting: what the other files need so that sharding and size change no number."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

WORD = 10  # bits of the low word of a count: good for 2^22 rows of 2^32 entries


def gather_matrix(x: jax.Array) -> jax.Array:
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


def qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reduced QR decomposition, also of batches that an Explicit mesh axis shards.

    JAX 0.10 cannot lower a QR whose batch axis is sharded explicitly, so the batch is gathered for it and put back.
    """
    if not _shards_batch(x):
        q, r = _matrix_by_matrix(jnp.linalg.qr, x)
        return q, r
    spec = jax.typeof(x).sharding.spec
    factors = jnp.linalg.qr(jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim)))
    back = PartitionSpec(*spec[:-2], None, None)
    return jax.sharding.reshard(factors[0], back), jax.sharding.reshard(factors[1], back)


def svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reduced singular value decomposition `u, σ, vᵀ` of each matrix."""
    u, s, vt = _matrix_by_matrix(partial(jnp.linalg.svd, full_matrices=False), x)
    return u, s, vt


def svd_values(x: jax.Array) -> jax.Array:
    """Singular values of each matrix, descending."""
    return _matrix_by_matrix(partial(jnp.linalg.svd, compute_uv=False), x)


def _shards_batch(x: jax.Array) -> bool:
    spec = jax.typeof(x).sharding.spec
    return len(spec) == x.ndim and any(axis is not None for axis in spec)


def _matrix_by_matrix(decompose: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """A decomposition over the batch axes; on CPUs in a loop, elsewhere all at once.

    On a CPU, jaxlib spreads the batch of one LAPACK call over XLA's thread pool and waits for it on a thread of that
    pool. As many such calls side by side as there are threads (two leaves of a model on two cores) wait for ever. A
    call for one matrix spreads nothing, so that any number of them may run at once.
    """
    batch = x.shape[:-2]
    if math.prod(batch) <= 1 or _shards_batch(x):
        return decompose(x)

    def loop(whole: jax.Array) -> Any:
        found = jax.lax.map(decompose, whole.reshape(-1, *whole.shape[-2:]))
        return jax.tree.map(lambda part: part.reshape(*batch, *part.shape[1:]), found)

    return jax.lax.platform_dependent(x, cpu=loop, default=decompose)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in full precision on every device (TPUs and recent GPUs default to less)."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transpose(a: jax.Array) -> jax.Array:
    """The two trailing axes exchanged."""
    return jnp.swapaxes(a, -1, -2)


def split_count(count: int) -> tuple[int, int]:
    """A Python count as (high, low) words, low below 2^WORD."""
    return count >> WORD, count & ((1 << WORD) - 1)


def add_counts(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums per-row counts over the last axis as (high, low) uint32 words: exact beyond 2^31 entries."""
    rows = rows.astype(jnp.uint32)
    high = jnp.sum(rows >> WORD, axis=-1, dtype=jnp.uint32)
    low = jnp.sum(rows & ((1 << WORD) - 1), axis=-1, dtype=jnp.uint32)
    return high + (low >> WORD), low & ((1 << WORD) - 1)


def cumulative_counts(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inclusive prefix sums of per-row counts over the last axis as (high, low) uint32 words."""
    rows = rows.astype(jnp.uint32)
    high = jnp.cumsum(rows >> WORD, axis=-1, dtype=jnp.uint32)
    low = jnp.cumsum(rows & ((1 << WORD) - 1), axis=-1, dtype=jnp.uint32)
    return high + (low >> WORD), low & ((1 << WORD) - 1)


def count_true(mask: jax.Array) -> jax.Array:
    """How many entries of each matrix are true, as a float (float64 under x64): exact below 2^24, else rounded once."""
    high, low = add_counts(jnp.sum(mask, axis=-1, dtype=jnp.uint32))
    dtype = jnp.result_type(float)
    return high.astype(dtype) * (1 << WORD) + low.astype(dtype)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, NaN where the denominator is zero, with clean gradients elsewhere."""
    defined = denominator != 0
    quotient = numerator / jnp.where(defined, denominator, jnp.ones_like(denominator))
    return jnp.where(defined, quotient, jnp.full_like(quotient, jnp.nan))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """`√x` with derivative 0 instead of infinity at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))
