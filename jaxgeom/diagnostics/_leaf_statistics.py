"""The cheap statistics of the matrices of one leaf, from sums over entries and products with thin blocks alone."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._layout import safe_sqrt
from ._namespace import divide, real
from .counting import RMS_TOLERANCES as RMS_TOLERANCES
from .counting import EntryCounts, entry_counts
from .entry_numbers import entry_statistics, hidden_by_decile
from .leading import leading_triplets
from .leaf_matrix import LeafMatrix, block_inner, block_squares, unit_columns
from .matrix_spec import MatrixSpec, as_matrix
from .moments import NullMoments, triple
from .null_projection import norm_matched_projection
from .precision import bf16_view
from .similarity_numbers import similarity_beside_chance
from .update_numbers import beside_isotropic, kurtosis_from_sums, stable_rank_statistics

CHUNK = 128
"""Columns of AᵀA that are there at a time."""

RESOLVED = 64
"""Roundings of σ₁² above which a σ² is a direction of the update's own: σ ≥ 3e-3·σ₁ in float32, 1e-7 in float64."""

Numbers = dict[str, jax.Array]
"""Statistics of a leaf by report key, each `[*batch]`."""


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A matrix as a power of two times entries of order one, so that neither squares nor their squares underflow.

    Attributes:
      unit: entries at most one in magnitude.
      scale: `[*batch]` powers of two.
    """

    unit: LeafMatrix
    scale: jax.Array

    @classmethod
    def of(cls, matrix: LeafMatrix) -> "Scaled":
        """The matrix and the power of two above its largest entry; 1 for a zero matrix."""
        exponent = jnp.clip(jnp.frexp(jax.lax.stop_gradient(matrix.largest()))[1], -120, 120)
        scale = jnp.ldexp(jnp.ones(exponent.shape, matrix.array.dtype), exponent)
        return cls(matrix.over(matrix.array / matrix.spread(scale)), scale)

    @functools.cached_property
    def squares(self) -> jax.Array:
        """`‖A‖_F²` in units of the squared scale."""
        return self.unit.total(jnp.square(self.unit.array))

    @functools.cached_property
    def kurtosis(self) -> jax.Array:
        """Kurtosis of the entries about zero."""
        rows, columns = self.unit.shape
        fourths = self.unit.total(jnp.square(jnp.square(self.unit.array)))
        return kurtosis_from_sums(float(rows) * float(columns), self.squares, fourths)

    def top(self, k: int, *, vectors: bool = False) -> tuple[jax.Array, jax.Array]:
        """Right vectors `[*batch, *in, k]`, held, and the leading σ² `[*batch, k]` in units of the squared scale.

        With the vectors held, `‖A v_i‖²` has the value and the derivative of σ_i².
        """
        right = jax.lax.stop_gradient(leading_triplets(self.unit, k=k, vectors=vectors).right)
        return right, block_squares(self.unit.times(right), self.unit.batches)


class LeafPair:
    """W0 and W+ of one leaf; what several statistics need is computed once.

    Args:
      leaf0, leaf1: the leaf of the initial and of the final tree, any floating dtype.
      spec: their axes.
      basis: `[*batch, in, K]` orthonormal right basis, None where there is none.
      options: parameters of the statistics by name.
    """

    def __init__(
        self, leaf0: jax.Array, leaf1: jax.Array, spec: MatrixSpec, basis: jax.Array | None, options: Mapping[str, Any]
    ) -> None:
        self.leaves = as_matrix(leaf0, spec), as_matrix(leaf1, spec)
        wide = real(jnp)
        self.w0, self.w1 = (LeafMatrix(leaf.astype(wide), spec) for leaf in (leaf0, leaf1))
        self.basis, self.options = basis, options
        self.count = float(self.w0.shape[0]) * float(self.w0.shape[1])

    @functools.cached_property
    def delta(self) -> Scaled:
        """`ΔW = W+ − W0`, formed after widening."""
        return Scaled.of(self.w0.over(self.w1.array - self.w0.array))


def entries(pair: LeafPair) -> Numbers:
    """Shares of entries that changed, by each test; norms of the update; its component along W0."""
    counts = entry_counts(*pair.leaves, eta=pair.options["eta"], histograms=False)
    found = entry_statistics(counts, eta=pair.options["eta"], nulls=False)
    return found | {"parameters": jnp.full_like(counts.delta_norm, pair.count)}


def entry_nulls(pair: LeafPair) -> Numbers:
    """The same with their nulls, which take a histogram of W0's magnitudes."""
    counts = entry_counts(*pair.leaves, eta=pair.options["eta"])

    def one(counts: EntryCounts) -> Numbers:
        return entry_statistics(counts, eta=pair.options["eta"]) | {"hidden_by_decile": hidden_by_decile(counts)}

    for _ in range(pair.w0.batches):
        one = jax.vmap(one)
    return one(counts)


def leading(pair: LeafPair, *, only_first: bool) -> Numbers:
    """What the leading singular values of ΔW say, and how its leading right subspace lies to a given basis."""
    delta, k = pair.delta, pair.options["subspace_k"]
    wanted = 1 if only_first else k
    if pair.basis is not None:
        wanted = max(wanted, pair.basis.shape[-1])
    right, energies = delta.top(min(wanted, *delta.unit.shape), vectors=pair.basis is not None)
    first, shape = energies[..., 0], delta.unit.shape
    found = {"op_norm": safe_sqrt(first) * delta.scale}
    found |= stable_rank_statistics(delta.squares, first, shape=shape, kurtosis=delta.kurtosis)
    if not only_first:
        share = divide(jnp.sum(energies[..., :k], axis=-1), delta.squares)
        found |= beside_isotropic(
            f"energy_top_{k}", "energy_top", share, shape, delta.kurtosis, first > 0, min(k, *shape)
        )
    if pair.basis is not None:
        basis = delta.unit.split_columns(pair.basis.astype(right.dtype))
        held = right[..., : basis.shape[-1]]
        cosines = block_inner(held, basis, delta.unit.batches)
        similarity = jnp.sum(jnp.square(cosines), axis=(-2, -1)) / basis.shape[-1]
        # A direction whose σ² is rounding of the largest one is none.
        least = RESOLVED * jnp.finfo(energies.dtype).eps * first
        resolved = (energies[..., held.shape[-1] - 1] > least) & (held.shape[-1] == basis.shape[-1])
        similarity = jnp.where(resolved, similarity, jnp.full_like(similarity, jnp.nan))
        found |= similarity_beside_chance("basis_similarity", similarity, shape=shape, k=basis.shape[-1])
    return found


def bf16_rank(pair: LeafPair) -> Numbers:
    """Stable rank of the difference of the bfloat16 views."""
    dtype, (before, after) = pair.w0.array.dtype, (bf16_view(one.array) for one in (pair.w0, pair.w1))
    delta = Scaled.of(pair.w0.over(after.astype(dtype) - before.astype(dtype)))
    _, energies = delta.top(1)
    return stable_rank_statistics(
        delta.squares, energies[..., 0], shape=delta.unit.shape, kurtosis=delta.kurtosis, key="stable_rank_bf16"
    )


def participation(pair: LeafPair) -> Numbers:
    """`(Σσ²)²/Σσ⁴ = ‖A‖⁴/‖AᵀA‖²`, the Gram matrix of the smaller side a few columns at a time."""
    unit = pair.delta.unit
    rows, columns = unit.shape
    tall = rows >= columns

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        side = unit.in_ if tall else unit.out
        block = unit_columns(side, start, min(CHUNK, rows, columns), unit.array.dtype)
        block = jnp.broadcast_to(block, (*unit.batch, *block.shape))
        gram = unit.transposed_times(unit.times(block)) if tall else unit.times(unit.transposed_times(block))
        return total + jnp.sum(block_squares(gram, unit.batches), axis=-1), None

    starts = jnp.arange(0, min(rows, columns), CHUNK, dtype=jnp.int32)
    fourth, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros_like(pair.delta.squares), starts)
    ratio = divide(jnp.square(pair.delta.squares), fourth)
    name = "participation_ratio"
    return beside_isotropic(name, name, ratio, unit.shape, pair.delta.kurtosis, pair.delta.squares > 0)


def leakage(pair: LeafPair) -> Numbers:
    """Share of the update's energy outside the given right subspace, from what is left and not as 1 − share."""
    assert pair.basis is not None
    unit = pair.delta.unit
    basis = unit.split_columns(pair.basis.astype(unit.array.dtype))
    inside = unit.outer(unit.times(basis), basis)
    share = divide(unit.total(jnp.square(unit.array - inside)), pair.delta.squares)
    return leakage_beside_chance(share, pair.delta.kurtosis, shape=unit.shape, k=basis.shape[-1])


def leakage_beside_chance(share: jax.Array, kurtosis: jax.Array, *, shape: tuple[int, int], k: int) -> Numbers:
    """The leakage beside that of independent entries: the share outside k of n input directions."""
    mean, std = (part.right for part in norm_matched_projection(shape, k=k, kurtosis=kurtosis))
    hidden = jnp.isnan(share)
    return triple("leakage", share, NullMoments(*(jnp.where(hidden, jnp.nan, x) for x in (1 - mean, std))))
