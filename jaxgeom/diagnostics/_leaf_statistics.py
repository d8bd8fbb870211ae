"""The cheap statistics of the matrices of one leaf, from sums over entries and products with thin blocks alone."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._layout import safe_sqrt
from ._namespace import divide, real
from .entry_counts import RMS_TOLERANCES, EntryCounts, entry_counts
from .leading import leading_triplets
from .leaf_matrix import LeafMatrix, block_inner, block_squares, unit_columns
from .matrix_spec import MatrixSpec, as_matrix
from .moments import NullMoments, triple
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
    def norm(self) -> jax.Array:
        """`‖A‖_F`, with derivative 0 at 0."""
        return safe_sqrt(self.squares) * self.scale


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
        self.w0, self.w1 = (LeafMatrix.read(leaf.astype(wide), spec) for leaf in (leaf0, leaf1))
        self.basis, self.options = basis, options
        self.count = float(self.w0.shape[0]) * float(self.w0.shape[1])

    @functools.cached_property
    def initial(self) -> Scaled:
        """W0."""
        return Scaled.of(self.w0)

    @functools.cached_property
    def delta(self) -> Scaled:
        """`ΔW = W+ − W0`, formed after widening."""
        return Scaled.of(self.w0.over(self.w1.array - self.w0.array))

    @functools.cached_property
    def counts(self) -> EntryCounts:
        """Counts of entries, without histograms."""
        return entry_counts(*self.leaves, eta=self.options["eta"], histograms=False)

    @functools.cached_property
    def kurtosis(self) -> jax.Array:
        """Kurtosis of the entries of ΔW about zero."""
        unit = self.delta.unit
        fourths = unit.total(jnp.square(jnp.square(unit.array)))
        return kurtosis_from_sums(self.count, self.delta.squares, fourths)

    def top(self, k: int, *, vectors: bool) -> tuple[jax.Array, jax.Array]:
        """Right vectors `[*batch, *in, k]` of ΔW, held, and its leading σ² `[*batch, k]` in units of the scale.

        With the vectors held, `‖A v_i‖²` has the value and the derivative of σ_i².
        """
        unit = self.delta.unit
        right = jax.lax.stop_gradient(leading_triplets(unit, k=k, vectors=vectors).right)
        return right, block_squares(unit.times(right), unit.batches)


def entries(pair: LeafPair) -> Numbers:
    """Shares of entries that changed, by each test."""
    counts = pair.counts
    tolerances = zip(RMS_TOLERANCES, jnp.moveaxis(counts.beyond_rms, -1, 0), strict=True)
    moving = counts.initial_norm > 0
    return {
        "density_bf16": counts.density,
        "sparsity_bf16": 1 - counts.density,
        "sparsity_stored": 1 - counts.differs / counts.count,
        "sparsity_abs_1e-5": 1 - counts.beyond_absolute / counts.count,
        "share_beyond_half_ulp": counts.beyond_half_ulp / counts.count,
        **{f"sparsity_rms_{t:g}": jnp.where(moving, 1 - beyond / counts.count, jnp.nan) for t, beyond in tolerances},
    }


def norms(pair: LeafPair) -> Numbers:
    """Norms of the update and its component along W0, whose null is zero."""
    delta, initial = pair.delta, pair.initial
    inner = delta.unit.total(delta.unit.array * initial.unit.array)
    decay = divide(inner, initial.squares) * (delta.scale / initial.scale)
    spread = divide(delta.norm, initial.norm) / pair.count**0.5
    return {
        "fro_norm": delta.norm,
        "relative_norm": divide(delta.norm, initial.norm),
        **triple("decay", decay, NullMoments(jnp.zeros_like(decay), spread)),
    }


def leading(pair: LeafPair, *, only_first: bool) -> Numbers:
    """What the leading singular values of ΔW say, and how its leading right subspace lies to a given basis."""
    delta, k = pair.delta, pair.options["subspace_k"]
    wanted = 1 if only_first else k
    if pair.basis is not None:
        wanted = max(wanted, pair.basis.shape[-1])
    right, energies = pair.top(min(wanted, *delta.unit.shape), vectors=pair.basis is not None)
    first, shape = energies[..., 0], delta.unit.shape
    found = {"op_norm": safe_sqrt(first) * delta.scale}
    found |= stable_rank_statistics(delta.squares, first, shape=shape, kurtosis=pair.kurtosis)
    if not only_first:
        share = divide(jnp.sum(energies[..., :k], axis=-1), delta.squares)
        found |= beside_isotropic(
            f"energy_top_{k}", "energy_top", share, shape, pair.kurtosis, first > 0, min(k, *shape)
        )
    if pair.basis is not None:
        basis = delta.unit.split_columns(pair.basis.astype(right.dtype))
        held = right[..., : basis.shape[-1]]
        cosines = block_inner(held, basis, delta.unit.batches)
        similarity = jnp.sum(jnp.square(cosines), axis=(-2, -1)) / basis.shape[-1]
        # A direction whose σ² is rounding of the largest one is none.
        resolved = energies[..., basis.shape[-1] - 1] > RESOLVED * jnp.finfo(energies.dtype).eps * first
        found["basis_similarity"] = jnp.where(resolved, similarity, jnp.full_like(similarity, jnp.nan))
    return found


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
    return beside_isotropic(name, name, ratio, unit.shape, pair.kurtosis, pair.delta.squares > 0)


def leakage(pair: LeafPair) -> Numbers:
    """Share of the update's energy outside the given right subspace, from what is left and not as 1 − share."""
    assert pair.basis is not None
    unit = pair.delta.unit
    basis = unit.split_columns(pair.basis.astype(unit.array.dtype))
    letters = "abcdefghijklmnopqrstuvw"
    batch, out = letters[: unit.batches], letters[unit.batches : unit.batches + unit.outs]
    in_ = letters[unit.batches + unit.outs : unit.array.ndim]
    inside = jnp.einsum(
        f"{batch}{out}z,{batch}{in_}z->{batch}{out}{in_}",
        unit.times(basis),
        basis,
        precision=jax.lax.Precision.HIGHEST,
    )
    return {"leakage": divide(unit.total(jnp.square(unit.array - inside)), pair.delta.squares)}
