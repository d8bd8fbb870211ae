"""How a parameter leaf is read as a weight matrix `[..., out, in]`, and how a function of matrices maps over a tree.

A weight matrix is `W [out, in]` (`y = W x`). Flax kernels are stored the other way round and often with split axes
(`[layer, in, heads, head_dim]`), so every leaf that is a matrix carries a `MatrixSpec`. A left/right swap is the
classic silent error of spectral diagnostics; this file is the only place where axes are moved.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class MatrixSpec(NamedTuple):
    """Which axes of a leaf are the output side, the input side, and the batch (layers, experts) of a matrix.

    Every axis of the leaf appears exactly once, counted from 0. Several axes on one side are merged in the order given.

    Attributes:
      out: axes of the output side (left singular vectors).
      in_: axes of the input side (right singular vectors).
      batch: axes that index independent matrices.

    Example:
      A query kernel `[layer, in, heads, head_dim]`:

      >>> MatrixSpec(out=(2, 3), in_=(1,), batch=(0,))
      MatrixSpec(out=(2, 3), in_=(1,), batch=(0,))
    """

    out: tuple[int, ...]
    in_: tuple[int, ...]
    batch: tuple[int, ...] = ()


def _order(spec: MatrixSpec, ndim: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    order = (*spec.batch, *spec.out, *spec.in_)
    if sorted(order) != list(range(ndim)) or not spec.out or not spec.in_:
        raise ValueError(
            f"spec {spec} does not name every axis of an array of shape {tuple(shape)} once, with at least one axis "
            f"each in `out` and `in_`"
        )
    return order


def matrix_shape(shape: tuple[int, ...], spec: MatrixSpec) -> tuple[int, ...]:
    """The shape `[*batch, out, in]` that `as_matrix` gives a leaf of shape `shape`.

    Args:
      shape: shape of the leaf.
      spec: its axes.

    Returns:
      The sizes of the batch axes, then `out`, then `in`.

    Raises:
      ValueError: where `spec` does not name every axis exactly once.

    >>> matrix_shape((28, 1024, 16, 128), MatrixSpec(out=(2, 3), in_=(1,), batch=(0,)))
    (28, 2048, 1024)
    """
    _order(spec, len(shape), shape)
    return (
        *(shape[axis] for axis in spec.batch),
        math.prod(shape[axis] for axis in spec.out),
        math.prod(shape[axis] for axis in spec.in_),
    )


def as_matrix(array: ArrayLike, spec: MatrixSpec) -> jax.Array:
    """Reads a leaf as matrices: axes moved to `[*batch, *out, *in]`, then each side merged.

    Args:
      array: a parameter leaf, any dtype, `ndim` axes.
      spec: its axes.

    Returns:
      The same numbers, `[*batch, out, in]`.

    Raises:
      ValueError: where `spec` does not name every axis exactly once.

    >>> kernel = jnp.arange(6.0).reshape(3, 2)  # Flax: [in, out]
    >>> as_matrix(kernel, MatrixSpec(out=(1,), in_=(0,))).shape
    (2, 3)
    """
    array = jnp.asarray(array)
    shape = matrix_shape(array.shape, spec)
    return jnp.transpose(array, _order(spec, array.ndim, array.shape)).reshape(shape)


def from_matrix(matrix: ArrayLike, spec: MatrixSpec, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `as_matrix`: writes `[*batch, out, in]` back in the layout of the leaf.

    Args:
      matrix: `[*batch, out, in]`.
      spec: axes of the leaf.
      shape: shape of the leaf.

    Returns:
      The same numbers in an array of shape `shape`.

    Raises:
      ValueError: where the shapes do not belong together.
    """
    matrix = jnp.asarray(matrix)
    order = _order(spec, len(shape), shape)
    expected = matrix_shape(shape, spec)
    if matrix.shape != expected:
        raise ValueError(f"matrix has shape {matrix.shape}; spec {spec} and shape {tuple(shape)} need {expected}")
    inverse = tuple(order.index(axis) for axis in range(len(order)))
    return jnp.transpose(matrix.reshape(tuple(shape[axis] for axis in order)), inverse)


def is_spec(node: Any) -> bool:
    """Whether a node of a tree of specs stands for a leaf, a `MatrixSpec` or None: the `is_leaf` of JAX's functions."""
    return node is None or isinstance(node, MatrixSpec)


def map_matrices(fn: Callable[..., Any], specs: Any, *trees: Any) -> Any:
    """Maps a function of matrices over the matrix leaves of parameter trees.

    Args:
      fn: takes one `[*batch, out, in]` array per tree.
      specs: a tree like the parameters, with a `MatrixSpec` at each matrix and `None` at every other leaf.
      *trees: parameter trees of one structure.

    Returns:
      A tree of the same structure with `fn`'s result at each matrix and `None` elsewhere.

    Raises:
      ValueError: where a tree does not have the structure of `specs`, or a spec does not fit its leaf.

    >>> params = {"kernel": jnp.ones((3, 2)), "scale": jnp.ones(3)}
    >>> specs = {"kernel": MatrixSpec(out=(1,), in_=(0,)), "scale": None}
    >>> map_matrices(lambda w: w.shape, specs, params)
    {'kernel': (2, 3), 'scale': None}
    """

    def one(spec: MatrixSpec | None, *leaves: Any) -> Any:
        return None if spec is None else fn(*(as_matrix(leaf, spec) for leaf in leaves))

    return jax.tree.map(one, specs, *trees, is_leaf=is_spec)
