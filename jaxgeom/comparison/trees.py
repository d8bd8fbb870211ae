"""Comparing two parameter trees in memory: the same engine, fed from leaves instead of files."""

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.comparison.files.population import MODULES, Part
from jaxgeom.comparison.files.report import Report
from jaxgeom.comparison.run.plan import admitted, check_pair
from jaxgeom.comparison.run.processes import Team
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.comparison.two_checkpoints import compare_parts
from jaxgeom.diagnostics.matrix_spec import MatrixSpec, is_spec
from jaxgeom.errors import UserError, listed

_GROUPS = {
    "embed": "embedding",
    "embedding": "embedding",
    "head": "head",
    "lm_head": "head",
    "router": "router",
    "bias": "bias",
}


class _LeafReader:
    """Reads one matrix (or all) of a leaf as `[out, in]`, fetching that part only."""

    def __init__(self, leaf: Any, spec: MatrixSpec | None, index: tuple[int, ...]) -> None:
        self.leaf, self.spec, self.index = leaf, spec, index

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        array = self.leaf
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            array = array.addressable_data(0)  # replicated, so the whole
        if self.spec is None:
            return np.asarray(array if start is None else array[start:stop])
        rows, columns, batch = self.spec.out, self.spec.in_, self.spec.batch
        where: list[Any] = [slice(None)] * array.ndim
        for axis, position in zip(batch, self.index, strict=True):
            where[axis] = position
        if start is not None and len(rows) == 1:
            where[rows[0]] = slice(start, stop)
            start = None
        array = np.asarray(array[tuple(where)] if where != [slice(None)] * array.ndim else array)
        kept = [axis for axis in range(len(where)) if axis not in batch]
        order = [kept.index(axis) for axis in (*rows, *columns)]
        count = int(np.prod([array.shape[kept.index(axis)] for axis in rows]))
        matrix = np.ascontiguousarray(np.transpose(array, order)).reshape(count, -1)
        return matrix if start is None else matrix[start:stop]


def _words(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]


def _place(words: list[str], spec: MatrixSpec | None) -> tuple[str, str]:
    """Group and module of a leaf by the keys that lead to it."""
    for word in reversed(words):
        if word in _GROUPS:
            return _GROUPS[word], _GROUPS[word]
        if spec is not None and word in MODULES:
            return "matrices", word
        if "norm" in word:
            return "norm", "norm"
    return ("matrices", "other") if spec is not None else ("other", "other")


def _pieces(words: list[str], leaf: Any, spec: MatrixSpec | None) -> Iterator[tuple[Part, _LeafReader]]:
    name = ".".join(words)
    group, module = _place(words, spec)
    shape = tuple(leaf.shape)
    if spec is None:
        yield Part(name, name, group, module, None, shape), _LeafReader(leaf, None, ())
        return
    rows = int(np.prod([shape[axis] for axis in spec.out]))
    columns = int(np.prod([shape[axis] for axis in spec.in_]))
    for index in itertools.product(*(range(shape[axis]) for axis in spec.batch)):
        label = f"{name}[{','.join(map(str, index))}]" if index else name
        layer = index[0] if index and "layers" in words else None
        yield Part(label, label, group, module, layer, (rows, columns)), _LeafReader(leaf, spec, index)


def _as_checkpoint(tree: Any, specs: Any, name: str) -> tuple[Checkpoint, list[Part]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    known = {
        tuple(_words(path)): spec for path, spec in jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)[0]
    }
    tensors: dict[str, Tensor] = {}
    parts = []
    absent = [".".join(_words(path)) for path, _ in leaves if tuple(_words(path)) not in known]
    if absent:
        raise UserError(f"specs have no entry for {listed(absent)}")
    for path, leaf in leaves:
        for part, reader in _pieces(_words(path), leaf, known[tuple(_words(path))]):
            tensors[part.name] = Tensor(part.name, part.shape, np.dtype(leaf.dtype).name, reader)
            parts.append(part)
    return Checkpoint(name, tensors, config=None, fingerprint=name), parts


def _check_held(tree: Any, name: str) -> None:
    """Refuses leaves of which this process holds a part only: they cannot be fetched matrix by matrix."""
    odd = [
        ".".join(_words(path))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    ]
    if odd:
        raise UserError(
            f"{name}: {listed(odd)} are spread over several processes; jaxgeom.diagnostics.measure measures them "
            "where they are, and checkpoints on disk are compared by several processes"
        )


def compare(
    params0: Mapping[str, Any],
    params1: Mapping[str, Any],
    specs: Any,
    settings: CompareSettings | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    team: Team | None = None,
) -> Report:
    """Every diagnostic, each with its null, between two parameter trees.

    Leaves may be NumPy or JAX arrays, on one device or sharded over those of this process; each matrix is fetched
    alone.

    Args:
        params0: tree of initial parameters, floating leaves of any layout.
        params1: tree of final parameters, same structure and shapes.
        specs: tree of `MatrixSpec` per leaf (None where a leaf is no matrix), as `parameter_specs` gives.
        settings: what is measured and how.
        out: folder for `report.json` and `matrices.csv`, and for finished matrices while the comparison runs: called
            again with the same weights it goes on. What the weights are is then taken from all of their bytes first.
        team: the processes that call this together with the same trees; each measures its share into `out`, which they
            share, and process 0 writes the report there.

    Returns:
        The report; matrices are named by their path, `layers.attention.q.kernel[3]` for the slice of layer 3.

    Raises:
        UserError: the trees differ in names or shapes, a leaf has no spec or is spread over several processes, weights
            are not finite, `out` holds something else, another process failed.
    """
    settings = settings or CompareSettings()
    _check_held(params0, "params0")
    _check_held(params1, "params1")
    initial, parts = _as_checkpoint(params0, specs, "params0")
    final, _ = _as_checkpoint(params1, specs, "params1")
    names = set(check_pair(initial, final, settings))
    chosen = admitted([part for part in parts if part.name in names and part.size], settings)
    if out is not None:
        for side in (initial, final):
            side.fingerprint = side.sha256()
    return compare_parts(chosen, initial, final, settings, out=out, command="jg.compare", team=team)
