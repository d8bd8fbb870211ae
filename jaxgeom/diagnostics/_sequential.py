"""Decompositions that may be batched, mapped and differentiated anywhere, however many of them run side by side.

On a CPU, jaxlib spreads the batch of one LAPACK call over XLA's thread pool and waits for it on a thread of that pool.
As many such calls side by side as there are threads (two leaves of a model on two cores) wait for ever. A call for one
matrix spreads nothing, so on CPUs a batch is a loop of such calls, whether it comes as batch axes or from `jax.vmap`:
each decomposition has a batching rule of its own, and with it derivatives of its own.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec


def _shards_batch(x: jax.Array) -> bool:
    spec = jax.typeof(x).sharding.spec
    return len(spec) == x.ndim and any(axis is not None for axis in spec)


def _matrix_by_matrix(decompose: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """A decomposition over the batch axes; on CPUs in a loop, elsewhere all at once."""
    batch = x.shape[:-2]
    if math.prod(batch) <= 1 or _shards_batch(x):
        return decompose(x)

    def loop(whole: jax.Array) -> Any:
        found = jax.lax.map(decompose, whole.reshape(-1, *whole.shape[-2:]))
        return jax.tree.map(lambda part: part.reshape(*batch, *part.shape[1:]), found)

    return jax.lax.platform_dependent(x, cpu=loop, default=decompose)


def _sequential(decompose: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """The decomposition of `[..., m, n]` with a batching rule that adds a batch axis instead of batching the call."""

    @custom_vmap
    def call(x: jax.Array) -> Any:
        return _matrix_by_matrix(decompose, x)

    @call.def_vmap
    def batched(_: int, in_batched: list[bool], x: jax.Array) -> tuple[Any, Any]:
        found = call(x)
        return found, jax.tree.map(lambda _: in_batched[0], found)

    return call


def _dagger(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _matmul(*factors: jax.Array) -> jax.Array:
    product = factors[0]
    for factor in factors[1:]:
        product = jnp.matmul(product, factor, precision=jax.lax.Precision.HIGHEST)
    return product


def _inverse_gaps(values: jax.Array) -> jax.Array:
    """`1/(x_j − x_i)` `[..., i, j]`, 0 between equal values, whose vectors have no derivative of their own."""
    gaps = values[..., None, :] - values[..., :, None]
    distinct = gaps != 0
    return jnp.where(distinct, 1 / jnp.where(distinct, gaps, jnp.ones_like(gaps)), jnp.zeros_like(gaps))


_svd = _sequential(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))
_values = _sequential(partial(jnp.linalg.svd, compute_uv=False))
_qr = _sequential(lambda x: tuple(jnp.linalg.qr(x)))
_eigh = _sequential(lambda x: tuple(jnp.linalg.eigh(x)))


@jax.custom_jvp
def svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reduced singular value decomposition `u [..., m, r], σ [..., r], vᵀ [..., r, n]` of each matrix."""
    return _svd(x)


@svd.defjvp
def _svd_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """Of a simple spectrum; vectors of equal values are held against each other.

    Reference:
      Townsend, *Differentiating the singular value decomposition* (2016).
    """
    u, s, vt = svd(primals[0])
    dx, v = tangents[0], _dagger(vt)
    inner = _matmul(_dagger(u), dx, v)
    inverse = _inverse_gaps(jnp.square(s))
    row, column = inner * s[..., None, :], s[..., :, None] * inner
    du = _matmul(u, inverse * (row + _dagger(row)))
    dv = _matmul(v, inverse * (column + _dagger(column)))
    positive = s > 0
    reciprocal = jnp.where(positive, 1 / jnp.where(positive, s, jnp.ones_like(s)), jnp.zeros_like(s))[..., None, :]
    outside, across = _matmul(dx, v), _matmul(_dagger(dx), u)
    if u.shape[-2] > u.shape[-1]:
        du = du + (outside - _matmul(u, _dagger(u), outside)) * reciprocal
    if v.shape[-2] > v.shape[-1]:
        dv = dv + (across - _matmul(v, _dagger(v), across)) * reciprocal
    return (u, s, vt), (du, jnp.diagonal(inner, axis1=-2, axis2=-1), _dagger(dv))


@jax.custom_jvp
def svd_values(x: jax.Array) -> jax.Array:
    """Singular values `[..., r]` of each matrix, descending."""
    return _values(x)


@svd_values.defjvp
def _values_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    u, s, vt = svd(primals[0])
    return s, jnp.sum(u * _matmul(tangents[0], _dagger(vt)), axis=-2)


def _solve_for_identity(r: jax.Array) -> jax.Array:
    return jax.scipy.linalg.solve_triangular(r, jnp.broadcast_to(jnp.eye(r.shape[-1], dtype=r.dtype), r.shape))


_triangular_inverse = _sequential(_solve_for_identity)


@jax.custom_jvp
def _inverse(r: jax.Array) -> jax.Array:
    return _triangular_inverse(r)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse(primals[0])
    return inverse, -_matmul(inverse, tangents[0], inverse)


@jax.custom_jvp
def _tall_qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _qr(x)


@_tall_qr.defjvp
def _qr_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """Of full column rank: `dQ = Q(Ω − QᵀdX R⁻¹) + dX R⁻¹`, Ω the skew part below the diagonal."""
    q, r = _tall_qr(primals[0])
    scaled = _matmul(tangents[0], _inverse(r))
    inner = _matmul(_dagger(q), scaled)
    below = jnp.tril(inner, -1)
    skew = below - _dagger(below)
    return (q, r), (_matmul(q, skew - inner) + scaled, _matmul(inner - skew, r))


def qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reduced QR decomposition `q [..., m, n], r [..., n, n]` of tall matrices, m ≥ n.

    JAX 0.10 cannot lower a QR whose batch axis an Explicit mesh axis shards, so the batch is gathered for it and put
    back.

    Raises:
      ValueError: where the matrices are wide, which has no derivative.
    """
    if x.shape[-2] < x.shape[-1]:
        raise ValueError(f"x has shape {x.shape}; a tall matrix is needed")
    if not _shards_batch(x):
        return _tall_qr(x)
    spec = jax.typeof(x).sharding.spec
    factors = _tall_qr(jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim)))
    back = PartitionSpec(*spec[:-2], None, None)
    return jax.sharding.reshard(factors[0], back), jax.sharding.reshard(factors[1], back)


@jax.custom_jvp
def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues `[..., n]`, ascending, and eigenvectors `[..., n, n]` of each symmetric matrix."""
    return _eigh(x)


@eigh.defjvp
def _eigh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    values, vectors = eigh(primals[0])
    symmetric = (tangents[0] + _dagger(tangents[0])) / 2
    inner = _matmul(_dagger(vectors), symmetric, vectors)
    moved = jnp.diagonal(inner, axis1=-2, axis2=-1)
    return (values, vectors), (moved, _matmul(vectors, _inverse_gaps(values) * inner))
