"""The nulls that keep something of the real update, of JAX arrays: scale profile and permutation, entry by entry.

The same functions of the same sums as the host engine's, which counts entries into tables; here an entry is its own
cell. One matrix at a time is whole; a batch is gone through in turn.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._layout import count_true, gather_matrix
from ._namespace import as_real, divide
from .counting import EntryCounts, entry_counts
from .null_permutation import (  # fmt: skip
    UPDATE_BINS,
    PermutationCounts,
    pattern_classes,
    permutation_statistics,
    update_bins,
    update_values,
)
from .null_profile import ProfileCells, averages, estimation, profile_statistics
from .precision import grid_bits, widen_pair
from .rounding_cells import ENDS, RoundingCells, cells_of
from .row_column_scales import (  # fmt: skip
    OCTAVES,
    STEPS_PER_OCTAVE,
    ScaleProfile,
    fit_profile,
    is_active,
    kinds_of,
    look_up,
    places,
    rounding_table,
    scale_of_levels,
)
from .sparsity import changed_mask
from .storage_grids import grid_classes

_LEVELS = 2 * OCTAVES * STEPS_PER_OCTAVE
"""Sums of a row's and a column's level that may occur."""


class _ArraySums:
    """Sums over the rows and columns of ΔW² `[out, in]`, in units of a power of two near its largest entry."""

    def __init__(self, bits: jax.Array, delta: jax.Array, storage: str, eta: float) -> None:
        self.kinds, table = kinds_of(storage), rounding_table(storage, eta)
        self.tables = [as_real(part.reshape(-1), jnp) for part in (table.square, table.slope)]
        _, exponent = jnp.frexp(jnp.max(jnp.abs(delta)))
        self.unit = jnp.clip(exponent, -125, 125)
        self.squares = jnp.square(delta / jnp.ldexp(jnp.ones((), delta.dtype), self.unit))
        self.start = jnp.asarray(places(storage))[bits] + STEPS_PER_OCTAVE * self.kinds * self.unit

    def rows(self, weights: Any) -> jax.Array:
        return jnp.sum(self.squares * as_real(weights, jnp), axis=1)

    def columns(self, weights: Any) -> jax.Array:
        return jnp.sum(self.squares * as_real(weights, jnp)[:, None], axis=0)

    def _left(self, profile: ScaleProfile) -> tuple[jax.Array, jax.Array]:
        rows, columns = (jnp.where(is_active(side), side, 0) * self.kinds for side in profile)
        keys = self.start + rows[:, None] + columns[None, :]
        square, slope = (look_up(table, keys) for table in self.tables)
        return square, slope

    def left_rows(self, profile: ScaleProfile) -> tuple[jax.Array, jax.Array]:
        active = as_real(is_active(profile.columns), jnp)
        square, slope = (jnp.sum(part * active, axis=1) for part in self._left(profile))
        return square, slope

    def left_columns(self, profile: ScaleProfile) -> tuple[jax.Array, jax.Array]:
        active = as_real(is_active(profile.rows), jnp)[:, None]
        square, slope = (jnp.sum(part * active, axis=0) for part in self._left(profile))
        return square, slope


def _profile(bits: jax.Array, delta: jax.Array, counts: EntryCounts, eta: float) -> tuple[ScaleProfile, _ArraySums]:
    sums = _ArraySums(bits, delta, counts.storage, eta)
    return fit_profile(sums, (delta.shape[0], delta.shape[1]), counts.is_rounded), sums


def _profile_cells(
    bits: jax.Array, delta: jax.Array, counts: EntryCounts, masks: Mapping[str, jax.Array], eta: float
) -> ProfileCells:
    """Every entry a cell of its own, `[out·in]`."""
    profile, sums = _profile(bits, delta, counts, eta)
    active = [is_active(side) for side in profile]
    lowest = [jnp.min(jnp.where(on, side, np.iinfo(np.int32).max)) for side, on in zip(profile, active, strict=True)]
    own, other = (jnp.where(on, side - low, _LEVELS) for side, low, on in zip(profile, lowest, active, strict=True))
    base = lowest[0] + lowest[1]
    found = averages(cells_of(counts, eta), base, _LEVELS, sums.unit)
    sizes = [as_real(on, jnp) for on in active]
    drift, noise, fitted, thin = estimation(found, own, other, sizes[0], sizes[1])
    level = (own[:, None] + other[None, :]).reshape(-1)
    inside = level < _LEVELS
    level = jnp.where(inside, level, 0)
    table = grid_classes(counts.storage, eta)
    of = jnp.asarray(table.of)[(bits & 0x7FFF).astype(jnp.int32)].reshape(-1)
    weight = as_real(inside, jnp)
    cells = RoundingCells(
        counts=weight, histogram=None, is_open=counts.is_open, is_rounded=counts.is_rounded, eta=eta,
        storage=counts.storage, kept=of, **{name: as_real(getattr(table, name), jnp)[of] for name in ENDS},
    )  # fmt: skip
    scale = jnp.ldexp(jnp.exp2(as_real(base + level, jnp) / STEPS_PER_OCTAVE), sums.unit)
    chosen = {name: weight * as_real(mask, jnp).reshape(-1) for name, mask in masks.items()}
    size = as_real(counts.count, jnp)
    return ProfileCells(cells, scale, drift[level], noise[level], fitted, thin, size, sum(delta.shape), chosen)


def _permutation_counts(
    bits: jax.Array, delta: jax.Array, counts: EntryCounts, masks: Mapping[str, jax.Array], eta: float
) -> PermutationCounts:
    table = pattern_classes(counts.storage, eta)
    of = jnp.asarray(table.of.astype(np.int32))[bits.astype(jnp.int32)]

    def per_class(mask: jax.Array | None) -> jax.Array:
        weight = jnp.ones(of.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
        return as_real(jnp.zeros(table.magnitude.size, jnp.int32).at[of].add(weight), jnp)

    updates = jnp.zeros(UPDATE_BINS, jnp.int32).at[update_bins(delta.astype(jnp.float32))].add(1)
    values = as_real(update_values(), jnp)
    return PermutationCounts(
        per_class(None), {name: per_class(mask) for name, mask in masks.items()},
        jnp.arange(table.magnitude.size), as_real(updates, jnp), values, counts.storage, eta, counts.is_open,
        counts.is_rounded,
    )  # fmt: skip


def update_null_statistics(
    w0: Float[ArrayLike, "*batch out in"],
    w1: Float[ArrayLike, "*batch out in"],
    masks: Mapping[str, Bool[ArrayLike, "*batch out in"]] | None = None,
    *,
    eta: float = 1e-3,
    kinds: tuple[str, ...] = ("profile", "permutation"),
) -> dict[str, Float[Array, "*batch"]]:
    """Visible sparsity and overlaps with masks of W0 beside the nulls that keep something of the update.

    Args:
      w0: initial weights as stored, `[..., out, in]`.
      w1: final weights, same shape.
      masks: masks of W0 by the key of their overlap (`overlap_low`), same shape.
      eta: relative tolerance η of the unchanged test.
      kinds: which of the two nulls.

    Returns:
      `{report key: [...]}`: `<name>_<kind>_null`, `_excess`, `_z` of `sparsity_bf16` and of every mask. NaN where the
      update is zero or stored unlike W0 (`EntryCounts.is_coarser`), for overlaps where no entry changed.
    """
    w0, w1 = jnp.asarray(w0), jnp.asarray(w1)
    a, b = widen_pair(w0, w1)
    held = {name: gather_matrix(jnp.asarray(mask)) for name, mask in (masks or {}).items()}
    counts = entry_counts(w0, w1, eta=eta)
    changed = gather_matrix(changed_mask(w0, w1, eta=eta))
    bits, delta = gather_matrix(grid_bits(w0)), gather_matrix(b - a)

    def one(arguments: tuple[Any, ...]) -> dict[str, jax.Array]:
        bits, delta, changed, counts, masks = arguments
        size = count_true(changed)
        values = {"sparsity_bf16": (counts.count - size) / counts.count}
        values |= {name: divide(count_true(mask & changed), size) for name, mask in masks.items()}
        found: dict[str, jax.Array] = {}
        if "profile" in kinds:
            found |= profile_statistics(_profile_cells(bits, delta, counts, masks, eta), values, size)
        if "permutation" in kinds:
            found |= permutation_statistics(_permutation_counts(bits, delta, counts, masks, eta), values)
        moved = jnp.any(delta != 0) & jnp.logical_not(counts.is_coarser)
        return {key: jnp.where(moved, value, jnp.nan) for key, value in found.items()}

    batch, arguments = a.shape[:-2], (bits, delta, changed, counts, held)
    if not batch:
        return one(arguments)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), arguments)
    return jax.tree.map(lambda x: x.reshape(batch), lax.map(one, flat))


def scale_profile(
    w0: Float[ArrayLike, "out in"], w1: Float[ArrayLike, "out in"], *, eta: float = 1e-3
) -> tuple[Float[Array, " out"], Float[Array, " in"]]:
    """Scales of an update's rows and columns: over their product it is equally loud in every row and column.

    Where both sides are stored in one 16-bit format they are those of the noise before rounding.

    Args:
      w0: initial weights as stored, `[out, in]`.
      w1: final weights, same shape.
      eta: relative tolerance η of the unchanged test.

    Returns:
      Scales `[out]` and `[in]`, on a grid of 64 steps an octave; 0 for rows and columns without an update. Their
      product is the standard deviation of the entry's noise.
    """
    a, b = widen_pair(w0, w1)
    counts = entry_counts(w0, w1, eta=eta)
    profile, sums = _profile(grid_bits(jnp.asarray(w0)), b - a, counts, eta)
    unit = jnp.ldexp(jnp.ones((), a.dtype), sums.unit)
    return scale_of_levels(profile.rows) * unit, scale_of_levels(profile.columns)
