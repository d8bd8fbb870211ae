"""What is counted entry by entry of a pair of matrices: the sufficient statistics of everything visible in bfloat16.

The predicates stand here once, for blocks of NumPy arrays and for JAX arrays. `entry_counts` counts JAX arrays, of any
batch and sharding; the host engine adds up blocks (`EntrySums`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ._layout import count_true, gather_matrix, safe_sqrt
from ._namespace import bitcast, namespace, real
from .precision import bf16_bits, bf16_view, grid_bits, require_matrix, widen, widen_pair
from .storage_grids import BINS, SMALLEST_BF16_GAP

ABSOLUTE_TOLERANCE = 1e-5
"""Tolerance of `sparsity_abs_1e-5`, https://arxiv.org/abs/2606.13657 and https://arxiv.org/abs/2505.11711."""

RMS_TOLERANCES = (1e-4, 1e-3, 1e-2)
"""Tolerances of `sparsity_rms_*`, in units of RMS(W0), https://arxiv.org/abs/2606.13657."""

_MAGNITUDE = 0x7FFF


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EntryCounts:
    """Counts and norms of a pair W0, W+; one number per matrix unless a shape is given.

    Attributes:
      storage: format by whose magnitudes the histograms are taken: `float16` where W0 is stored so, else `bfloat16`.
      final_storage: the same of W+: its dtype is float16, or another.
      count: entries.
      changed: entries that fail the unchanged test of the bfloat16 view.
      differs: entries that differ as stored.
      beyond_absolute: entries with `|ΔW|` above `ABSOLUTE_TOLERANCE`.
      beyond_rms: the same for each of `RMS_TOLERANCES` times RMS(W0), `[..., 3]`.
      beyond_half_ulp: entries with `|ΔW|` above half the bfloat16 spacing at W0.
      delta_norm: `‖ΔW‖_F`.
      initial_norm: `‖W0‖_F`.
      decay: `⟨ΔW, W0⟩/‖W0‖²`; NaN where W0 is zero.
      bf16_delta_norm: Frobenius norm of the update in the bfloat16 view.
      on_grid: every entry of W0 is a bfloat16 number.
      final_on_grid: every entry of W+ is one.
      histogram: entries of W0 per magnitude, `[..., 2¹⁵]`; None where not asked for.
      changed_histogram: changed ones of them.
      hidden_histogram: changed ones whose `|ΔW|` the absolute tolerance hides.
    """

    storage: str = dataclasses.field(metadata={"static": True})
    final_storage: str = dataclasses.field(metadata={"static": True})
    count: Any
    changed: Any
    differs: Any
    beyond_absolute: Any
    beyond_rms: Any
    beyond_half_ulp: Any
    delta_norm: Any
    initial_norm: Any
    decay: Any
    bf16_delta_norm: Any
    on_grid: Any
    final_on_grid: Any
    histogram: Any = None
    changed_histogram: Any = None
    hidden_histogram: Any = None

    @property
    def density(self) -> Any:
        """Share of changed entries in the bfloat16 view."""
        return self.changed / self.count

    # What became of W+ when it was stored: rounded to bfloat16 (`final_on_grid`), to float16, or nothing that shows.

    @property
    def final_is_half(self) -> Any:
        """Whether W+ was rounded to float16: it is stored so, and is not made of bfloat16 numbers."""
        return _no(self.final_on_grid) if self.final_storage == "float16" else False

    @property
    def is_bf16(self) -> Any:
        """Whether both sides are made of bfloat16 numbers: who reads them as bfloat16 sees what is stored."""
        return self.on_grid & self.final_on_grid

    @property
    def is_rounded(self) -> Any:
        """Whether W+ was rounded to the grid of the histograms, which W0 is on: ΔW is what that left of an update."""
        return self.final_is_half if self.storage == "float16" else self.is_bf16

    @property
    def is_coarser(self) -> Any:
        """Whether W+ was rounded to a grid that W0 is not on, or that is not the histograms': nulls of a norm are lost.

        ΔW then holds the rounding error of W0's own places too, which no noise put there. An update of zero holds none.
        """
        if self.storage == "float16":
            return self.final_on_grid & (self.differs > 0)
        return (self.final_is_half | (self.final_on_grid & self.is_open)) & (self.differs > 0)

    @property
    def is_half_alone(self) -> Any:
        """Whether W+ was rounded to float16 and W0 was not: its bfloat16 view was rounded twice, that of W0 once."""
        return False if self.storage == "float16" else self.final_is_half

    @property
    def is_open(self) -> Any:
        """Whether W0 is stored finer than the format of the histograms."""
        return False if self.storage == "float16" else _no(self.on_grid)


def _no(flag: Any) -> Any:
    return namespace(flag).logical_not(flag)


def storage_of(dtype: Any) -> str:
    """The format by whose magnitudes weights of a dtype are counted."""
    return "float16" if np.dtype(dtype).name == "float16" else "bfloat16"


def bits_changed(bits_a: Any, bits_b: Any, eta: Any) -> Any:
    """The unchanged test's failures, `|a − b| > η·max(|a|, |b|)`, from the bits of two bfloat16 views.

    For a Python η below 2⁻⁸ this is inequality of the bits, +0 and −0 being equal.

    Args:
      bits_a, bits_b: uint16 arrays of one shape.
      eta: η ≥ 0; a traced η takes the formula.

    Returns:
      Boolean array.
    """
    if isinstance(eta, float | int) and eta < SMALLEST_BF16_GAP:
        changed = bits_a != bits_b
        changed &= ((bits_a | bits_b) & np.uint16(_MAGNITUDE)) != 0
        return changed
    xp = namespace(bits_a, bits_b)
    a, b = (bitcast(bits.astype(np.uint32) << np.uint32(16), np.float32).astype(real(xp)) for bits in (bits_a, bits_b))
    return xp.abs(a - b) > xp.asarray(eta, real(xp)) * xp.maximum(xp.abs(a), xp.abs(b))


def exceeds(magnitude: Any, a: Any, b: Any, tolerance: Any) -> Any:
    """`|b − a| > tolerance`, decided exactly also where float32 differences round.

    Args:
      magnitude: `|b − a|` as rounded to the dtype of `a` and `b`.
      a, b: arrays of one shape and dtype, float32 or float64.
      tolerance: a Python number; JAX arrays also take an array of it, compared as rounded.

    Returns:
      Boolean array.
    """
    if namespace(magnitude) is np:
        nearest = magnitude.dtype.type(tolerance)
        above = magnitude > nearest
        edge = np.flatnonzero(magnitude == nearest)
        if edge.size:
            above[edge] = np.abs(b[edge].astype(np.float64) - a[edge].astype(np.float64)) > tolerance
        return above
    if magnitude.dtype == jnp.float64 or not isinstance(tolerance, float | int):
        return magnitude > jnp.asarray(tolerance, magnitude.dtype)
    nearest = np.float32(tolerance)
    rest = np.float32(tolerance - float(nearest))
    if float(rest) > tolerance - float(nearest):  # rounded down: no float32 number lies between it and the remainder
        rest = np.nextafter(rest, np.float32(-np.inf))
    # What the rounded difference lost (Knuth's two-sum) decides the entries that fall on the rounded tolerance.
    delta = b - a
    virtual = delta + a
    lost = (b - virtual) - (a - (virtual - delta))
    lost = jnp.where(delta < 0, -lost, lost)
    return (magnitude > nearest) | ((magnitude == nearest) & (lost > rest))


def above_half_ulp(magnitude: Any, bits: Any) -> Any:
    """Which magnitudes exceed half the bfloat16 spacing `2^(E−135)` at the numbers of the given bits.

    E is the exponent field, at least 1. Read as integers, positive floats keep their order, and half a spacing is a
    power of two, below float32's normal numbers too.

    Args:
      magnitude: float32 or float64 array, not negative.
      bits: uint16 array of its shape.

    Returns:
      Boolean array.
    """
    xp = namespace(magnitude, bits)
    field = bits & np.uint16(0x7F80)
    if magnitude.dtype == np.float64:
        exponent = xp.maximum(field >> np.uint16(7), np.uint16(1)).astype(np.uint64)
        return bitcast(magnitude, np.uint64) > (exponent + np.uint64(1023 - 135)) << np.uint64(52)
    eight = np.uint16(8 << 7)
    half = (xp.maximum(field, eight) - eight).astype(np.uint32) << np.uint32(16)
    if xp is np:
        above = magnitude.view(np.uint32) > half
        tiny = np.flatnonzero(field <= eight)
        if tiny.size:
            exponent = np.maximum(field[tiny] >> np.uint16(7), np.uint16(1)).astype(np.uint32)
            above[tiny] = magnitude[tiny].view(np.uint32) > np.uint32(1) << (exponent + np.uint32(14))
        return above
    exponent = jnp.clip(field >> np.uint16(7), 1, 8).astype(np.uint32)
    half = jnp.where(field <= eight, jnp.uint32(1) << (exponent + np.uint32(14)), half)
    return bitcast(magnitude, np.uint32) > half


def is_equal(a: Any, b: Any) -> Any:
    """`a == b` of arrays of one shape and dtype, of subnormal numbers too, all of which XLA takes for zero."""
    if namespace(a, b) is np:
        return a == b
    kind = jnp.uint64 if a.dtype == jnp.float64 else jnp.uint32
    bits, others = bitcast(a, kind), bitcast(b, kind)
    return ((bits == others) & (a == a)) | (((bits | others) << kind(1)) == 0)


def is_on_bf16_grid(w: Any) -> Any:
    """Whether every entry of each matrix `[..., out, in]` is a bfloat16 number; boolean `[...]`."""
    if w.dtype.name == "bfloat16":
        return jnp.ones(w.shape[:-2], bool) | jnp.all(w == w, axis=(-2, -1))
    wide = widen(w)
    return jnp.all((wide == bf16_view(w)) | (wide != wide), axis=(-2, -1))


def magnitude_histogram(bits: Any, mask: Any = None) -> Any:
    """Entries (of a mask) per magnitude.

    Args:
      bits: uint16 bits of a 16-bit format, `[..., out, in]`.
      mask: which entries to count, same shape; all where it is None.

    Returns:
      int32 `[..., 2¹⁵]`, by exponent and mantissa.
    """
    bins = gather_matrix((bits & np.uint16(_MAGNITUDE)).astype(jnp.int32))
    if mask is not None:
        bins = jnp.where(gather_matrix(jnp.asarray(mask)), bins, BINS)

    def count(one: jax.Array) -> jax.Array:
        return jnp.zeros(BINS, jnp.int32).at[one].add(1, mode="drop")

    for _ in range(bits.ndim - 2):
        count = jax.vmap(count)
    return count(bins)


def norm_and_unit(
    x: Float[jax.Array, "*batch out in"],
) -> tuple[Float[jax.Array, "*batch"], Float[jax.Array, "*batch"]]:
    """Frobenius norm, and the power of two near the largest magnitude by which it is formed without underflow."""
    peak = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(peak) & (peak > 0), peak, jnp.ones_like(peak)))
    unit = jnp.ldexp(jnp.ones_like(peak), jnp.clip(exponent, -125, 125))
    squares = jnp.sum(jnp.square(x / unit), axis=(-2, -1))
    unit = unit[..., 0, 0]
    return safe_sqrt(squares) * unit, unit


def decay_in_units(
    a: Float[jax.Array, "*batch out in"],
    delta: Float[jax.Array, "*batch out in"],
    norm: Float[jax.Array, "*batch"],
    unit: Float[jax.Array, "*batch"],
    delta_unit: Float[jax.Array, "*batch"],
) -> Float[jax.Array, "*batch"]:
    """`⟨ΔW, W0⟩/‖W0‖²` without underflow, from what `norm_and_unit` gives of W0 and of ΔW; NaN where W0 is zero."""
    inner = jnp.sum((a / unit[..., None, None]) * (delta / delta_unit[..., None, None]), axis=(-2, -1))
    relative = norm / unit
    defined = relative > 0
    decay = inner / jnp.square(jnp.where(defined, relative, jnp.ones_like(relative))) * (delta_unit / unit)
    return jnp.where(defined, decay, jnp.full_like(decay, jnp.nan))


def entry_counts(
    w0: Float[ArrayLike, "*batch out in"],
    w1: Float[ArrayLike, "*batch out in"],
    *,
    eta: float | jax.Array = 1e-3,
    histograms: bool = True,
) -> EntryCounts:
    """Counts of pairs of matrices; every other statistic of single entries follows from them.

    Without histograms only sums over the matrix are formed, so that no leaf that is sharded is gathered.

    Args:
      w0: initial weights as stored, `[..., out, in]`, any floating dtype.
      w1: final weights, same shape.
      eta: relative tolerance η of the unchanged test.
      histograms: whether the histograms over magnitudes are taken, which the nulls need.

    Returns:
      `EntryCounts` of arrays of the batch's shape, float64 under x64, else float32.

    Raises:
      ValueError: where the shapes differ or an array is no floating-point matrix.
    """
    w0, w1 = jnp.asarray(w0), jnp.asarray(w1)
    a, b = widen_pair(w0, w1)
    require_matrix(a, "w0")
    bits, final_bits = bf16_bits(w0), bf16_bits(w1)
    changed, delta = bits_changed(bits, final_bits, eta), b - a
    magnitude = jnp.abs(delta)
    initial_norm, unit = norm_and_unit(a)
    delta_norm, delta_unit = norm_and_unit(delta)
    size = float(a.shape[-1]) * float(a.shape[-2])
    rms = (initial_norm / math.sqrt(size))[..., None, None]
    beyond = exceeds(magnitude, a, b, ABSOLUTE_TOLERANCE)
    counted_changed = count_true(changed)
    counted = [magnitude_histogram(grid_bits(w0), mask) for mask in (None, changed, changed & ~beyond)] * histograms
    return EntryCounts(
        storage_of(w0.dtype),
        storage_of(w1.dtype),
        0 * counted_changed + size,
        counted_changed,
        count_true(~is_equal(a, b)),
        count_true(beyond),
        jnp.stack([count_true(exceeds(magnitude, a, b, share * rms)) for share in RMS_TOLERANCES], axis=-1),
        count_true(above_half_ulp(magnitude, bits)),
        delta_norm,
        initial_norm,
        decay_in_units(a, delta, initial_norm, unit, delta_unit),
        norm_and_unit(bf16_view(w1) - bf16_view(w0))[0],
        is_on_bf16_grid(w0),
        is_on_bf16_grid(w1),
        *counted,
    )
