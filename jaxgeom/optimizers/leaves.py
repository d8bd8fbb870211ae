"""Parameter trees walked together with a second tree of bases, masks or steps that has the same structure."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgeom.diagnostics.matrix_spec import MatrixSpec, as_matrix, from_matrix, is_spec

Side = Literal["right", "left"]


class Leaf(NamedTuple):
    """One leaf of a parameter tree and what belongs to it.

    Attributes:
        path: as `jax.tree_util.keystr` writes it, for error messages.
        value: the parameter, gradient or update, in its own layout.
        companion: the leaf at the same place of the second tree (a basis, a mask); None where that tree has none.
        spec: which axes of `value` are the matrix's out, in and batch axes; None where it is `[..., out, in]` already.
    """

    path: str
    value: Any
    companion: Any
    spec: MatrixSpec | None

    def matrix(self) -> Array:
        """The leaf as `[*batch, out, in]`; without a spec it already is."""
        return self.value if self.spec is None else as_matrix(self.value, self.spec)

    def restore(self, matrix: Array) -> Array:
        """A matrix `[*batch, out, in]` in the leaf's own layout."""
        return matrix if self.spec is None else from_matrix(matrix, self.spec, self.value.shape)


def map_leaves(fn: Callable[[Leaf], Any], tree: Any, companions: Any, specs: Any, *, name: str) -> Any:
    """`fn` of every leaf of `tree`, with its companion and its spec.

    Args:
        fn: takes a `Leaf`, returns the new leaf.
        tree: parameters, gradients or updates.
        companions: a tree of the same structure, None at leaves that have no companion.
        specs: a tree of `MatrixSpec` or None of the same structure; or None, where all leaves are `[..., out, in]`.
        name: what the companions are, for errors ("bases", "masks").

    Returns:
        a tree like `tree`.

    Raises:
        ValueError: trees of different structure.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    beside = _aligned(companions, structure, name, lambda node: node is None)
    spec_of: list[Any] = [None] * len(pairs)
    if specs is not None:
        spec_of = _aligned(specs, structure, "specs", is_spec)
    leaves = (
        Leaf(jax.tree_util.keystr(path), value, companion, spec)
        for (path, value), companion, spec in zip(pairs, beside, spec_of, strict=True)
    )
    return jax.tree.unflatten(structure, [fn(leaf) for leaf in leaves])


def _aligned(tree: Any, structure: Any, name: str, is_leaf: Callable[[Any], bool]) -> list[Any]:
    leaves, found = jax.tree.flatten(tree, is_leaf=is_leaf)
    if found != structure:
        raise ValueError(
            f"{name} have the structure {found}, not the parameters' {structure}; None stands for no entry"
        )
    return leaves


def check_basis(leaf: Leaf, side: Side) -> None:
    """Raises ValueError unless the leaf's companion is a basis of its input (right) or output (left) side."""
    if side not in ("right", "left"):
        raise ValueError(f"side is {side!r}; 'right' or 'left' is needed")
    if leaf.companion is None:
        return
    shape = jax.eval_shape(leaf.matrix).shape
    if len(shape) < 2:
        raise ValueError(f"bases{leaf.path}: the parameter has shape {shape}, which is no matrix; None is needed")
    expected = (*shape[:-2], shape[-1] if side == "right" else shape[-2])
    found = leaf.companion.shape
    if len(found) != len(shape) or found[:-1] != expected or found[-1] > expected[-1]:
        sizes = ", ".join(map(str, expected))
        raise ValueError(
            f"bases{leaf.path}: shape {found}; [{sizes}, K] with K ≤ {expected[-1]} is needed ({side} side)"
        )


def to_coordinates(matrix: Array, basis: Array, side: Side) -> Array:
    """`W V`, `[*batch, out, K]` (right), or `Uᵀ W`, `[*batch, K, in]` (left), float32 at full precision."""
    matrix, basis = matrix.astype(jnp.float32), basis.astype(jnp.float32)
    if side == "right":
        return jnp.matmul(matrix, basis, precision=jax.lax.Precision.HIGHEST)
    return jnp.matmul(basis.mT, matrix, precision=jax.lax.Precision.HIGHEST)


def from_coordinates(coordinates: Array, basis: Array, side: Side) -> Array:
    """`C Vᵀ` (right) or `U C` (left), `[*batch, out, in]`, float32 at full precision."""
    basis = basis.astype(jnp.float32)
    if side == "right":
        return jnp.matmul(coordinates, basis.mT, precision=jax.lax.Precision.HIGHEST)
    return jnp.matmul(basis, coordinates, precision=jax.lax.Precision.HIGHEST)


def own_copy(tree: Any) -> Any:
    """The same arrays in buffers of their own, so that donating one leaves the other alone."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
