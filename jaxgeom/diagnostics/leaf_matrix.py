"""A parameter leaf as a matrix that is multiplied where it lies.

A leaf `[layer, in, heads, head_dim]` is split over devices along axes of both sides. Read as one matrix `[out, in]` and
decomposed, it would be gathered; as an operator that is multiplied by tall thin blocks, it is not: the contraction runs
over the leaf's own axes, each device multiplies its part, and only the products, which are thin, are added up.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from .matrix_spec import MatrixSpec, matrix_shape

_LETTERS = "abcdefghijklmnopqrstuvw"  # x, y, z: columns of blocks


@dataclasses.dataclass(frozen=True)
class LeafMatrix:
    """The matrices of a leaf, its axes left in their order: what is not moved need not be copied.

    Attributes:
      array: the leaf, floating.
      spec: its axes.
    """

    array: jax.Array
    spec: MatrixSpec

    def __post_init__(self) -> None:
        matrix_shape(self.array.shape, self.spec)

    @property
    def batches(self) -> int:
        """Number of batch axes."""
        return len(self.spec.batch)

    @property
    def batch(self) -> tuple[int, ...]:
        """Sizes of the batch axes."""
        return tuple(self.array.shape[axis] for axis in self.spec.batch)

    @property
    def out(self) -> tuple[int, ...]:
        """Sizes of the axes of the output side."""
        return tuple(self.array.shape[axis] for axis in self.spec.out)

    @property
    def in_(self) -> tuple[int, ...]:
        """Sizes of the axes of the input side."""
        return tuple(self.array.shape[axis] for axis in self.spec.in_)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each matrix."""
        return math.prod(self.out), math.prod(self.in_)

    def over(self, array: jax.Array) -> "LeafMatrix":
        """Other matrices of the same axes."""
        return dataclasses.replace(self, array=array)

    def spread(self, per_matrix: jax.Array) -> jax.Array:
        """One number per matrix `[*batch]`, to be combined with the entries."""
        ordered = jnp.transpose(per_matrix, [self.spec.batch.index(axis) for axis in sorted(self.spec.batch)])
        return jnp.expand_dims(ordered, self._sides)

    def total(self, entries: jax.Array) -> jax.Array:
        """Sum over each matrix of an array like `array`: `[*batch]`."""
        return self._by_spec(jnp.sum(entries, axis=self._sides))

    def largest(self) -> jax.Array:
        """The largest magnitude of each matrix: `[*batch]`."""
        return self._by_spec(jnp.max(jnp.abs(self.array), axis=self._sides))

    def times(self, block: jax.Array) -> jax.Array:
        """`A X`: from `[*batch, *in, k]` to `[*batch, *out, k]`."""
        batch, out, in_, leaf = self._letters()
        return _einsum(f"{leaf},{batch}{in_}z->{batch}{out}z", self.array, block)

    def transposed_times(self, block: jax.Array) -> jax.Array:
        """`Aᵀ Y`: from `[*batch, *out, k]` to `[*batch, *in, k]`."""
        batch, out, in_, leaf = self._letters()
        return _einsum(f"{leaf},{batch}{out}z->{batch}{in_}z", self.array, block)

    def outer(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """`L Rᵀ` of blocks `[*batch, *out, k]` and `[*batch, *in, k]`, laid out like `array`."""
        batch, out, in_, leaf = self._letters()
        return _einsum(f"{batch}{out}z,{batch}{in_}z->{leaf}", left, right)

    def split_columns(self, block: jax.Array) -> jax.Array:
        """A block `[*batch, in, k]` of the input side with that side's axes apart: `[*batch, *in, k]`."""
        return block.reshape(*self.batch, *self.in_, block.shape[-1])

    @property
    def _sides(self) -> tuple[int, ...]:
        return (*self.spec.out, *self.spec.in_)

    def _by_spec(self, per_matrix: jax.Array) -> jax.Array:
        """`[*batch]` in the order of the spec, from that of the leaf."""
        return jnp.transpose(per_matrix, [sorted(self.spec.batch).index(axis) for axis in self.spec.batch])

    def _letters(self) -> tuple[str, str, str, str]:
        leaf = _LETTERS[: self.array.ndim]
        batch, out, in_ = ("".join(leaf[axis] for axis in axes) for axes in (self.spec.batch, *self.spec[:2]))
        return batch, out, in_, leaf


def block_inner(x: jax.Array, y: jax.Array, batches: int) -> jax.Array:
    """`Xᵀ Y` of two blocks `[*batch, *side, k]` over all axes of their side: `[*batch, k, l]`."""
    batch, side = _LETTERS[:batches], _LETTERS[batches : x.ndim - 1]
    return _einsum(f"{batch}{side}y,{batch}{side}z->{batch}yz", x, y)


def block_combine(x: jax.Array, small: jax.Array, batches: int) -> jax.Array:
    """`X S` of a block `[*batch, *side, k]` and small matrices `[*batch, k, l]`: `[*batch, *side, l]`."""
    batch, side = _LETTERS[:batches], _LETTERS[batches : x.ndim - 1]
    return _einsum(f"{batch}{side}y,{batch}yz->{batch}{side}z", x, small)


def block_squares(x: jax.Array, batches: int) -> jax.Array:
    """Sum of squares of each column of a block `[*batch, *side, k]`: `[*batch, k]`."""
    return jnp.sum(jnp.square(x), axis=tuple(range(batches, x.ndim - 1)))


def spread_columns(per_column: jax.Array, like: jax.Array) -> jax.Array:
    """One number per column `[*batch, k]`, to be combined with a block `[*batch, *side, k]`."""
    batch, k = per_column.shape[:-1], per_column.shape[-1]
    return per_column.reshape(*batch, *(1,) * (like.ndim - len(batch) - 1), k)


def _einsum(how: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(how, *arrays, precision=jax.lax.Precision.HIGHEST)


def unit_columns(sizes: tuple[int, ...], start: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
    """Columns `start … start + count − 1` of the identity over a side, its axes apart: `[*side, count]`.

    A product with them reads columns of a sharded matrix without indexing a sharded axis; beyond the side
    they are zero.
    """
    flat = jnp.zeros(sizes, jnp.int32)
    for axis, size in enumerate(sizes):
        flat = flat * size + jax.lax.broadcasted_iota(jnp.int32, sizes, axis)
    return (flat[..., None] == start + jnp.arange(count, dtype=jnp.int32)).astype(dtype)
