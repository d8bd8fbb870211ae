"""The optimizer's state by name: what a checkpoint keeps of it, and what it is put together from again."""

from collections import Counter
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

Path = tuple[str, ...]


def leaf_names(state: Any) -> list[Path]:
    """The name of every leaf of an optimizer's state, in the order of `jax.tree.leaves`.

    A state in a chain is called by its type, so that `("ScaleByAdamState", "mu", "embed", "embedding")` is the first
    moment of the embedding wherever in the chain Adam is; several of one type in a chain are numbered from the second.

    Args:
        state: of an Optax transformation, or its shapes.
    """
    return _names(state, ())


def by_name(state: Any) -> dict[str, Any]:
    """The leaves of an optimizer's state as nested dicts by their names.

    Args:
        state: of an Optax transformation.
    """
    tree: dict[str, Any] = {}
    for path, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def from_names(tree: dict[str, Any], like: Any) -> Any:
    """The inverse of `by_name`.

    Args:
        tree: nested dicts.
        like: a state of the same transformation, or its shapes.
    """

    def leaf(path: Path) -> Any:
        node: Any = tree
        for name in path:
            node = node[name]
        return node

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(path) for path in leaf_names(like)])


def _names(node: Any, path: Path) -> list[Path]:
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)
    if len(children) == 1 and not children[0][0]:
        return [path]  # a leaf
    called = [_called(keys[0], child) for keys, child in children]
    seen: Counter[str] = Counter()
    found = []
    for name, (_, child) in zip(called, children, strict=True):
        seen[name] += 1
        numbered = name if seen[name] == 1 else f"{name}{seen[name]}"
        found += _names(child, (*path, numbered))
    return found


def _called(key: Any, child: Any) -> str:
    """A dict's key, a field's name; in a sequence the type of a state, the place of anything else."""
    if isinstance(key, DictKey):
        return str(key.key)
    if isinstance(key, GetAttrKey):
        return key.name
    assert isinstance(key, SequenceKey | FlattenedIndexKey)
    if isinstance(child, tuple) and hasattr(child, "_fields"):
        return type(child).__name__
    return str(key.idx if isinstance(key, SequenceKey) else key.key)
