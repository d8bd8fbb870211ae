"""The geometry of a run's update while it runs: measured where the parameters lie, beside its nulls."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxgeom.diagnostics import MatrixSpec, as_matrix, measure, summarize, top_subspace
from jaxgeom.diagnostics.matrix_spec import is_spec

STATISTICS = ("density_bf16", "density_bf16_null", "relative_norm", "stable_rank", "stable_rank_null")
"""Of the update since the start of the run."""

BESIDE_A_STEP = ("basis_similarity", "basis_similarity_null", "leakage", "leakage_null")
"""Of the update beside the leading right subspace that it had at an earlier step."""

OF_A_STEP = ("density_bf16", "density_bf16_null", "relative_norm")
"""Of what one optimizer step changes."""


@dataclass(frozen=True)
class Geometry:
    """Programs that measure a run; static, without arrays.

    Attributes:
        specs: `MatrixSpec` at the matrices that are measured, None at other leaves.
        modules: by the name of a module the leaves that belong to it, as paths of keys.
        subspace_k: directions of a subspace.
    """

    specs: Any
    modules: Mapping[str, tuple[tuple[str, ...], ...]]
    subspace_k: int = 16

    def of_update(self, params: PyTree, start: PyTree, bases: PyTree | None = None) -> dict[str, Float[Array, ""]]:
        """The update since the start.

        Args:
            params: now.
            start: of the run, of any floating dtype.
            bases: from `subspaces`, of an earlier step; None while there is none.

        Returns:
            By `geometry/STATISTIC` its mean over all matrices, by `geometry/MODULE/STATISTIC` that over a module's.
        """
        return _of_pair(
            self, STATISTICS + (BESIDE_A_STEP if bases is not None else ()), "geometry", start, params, bases
        )

    def of_step(self, before: PyTree, after: PyTree) -> dict[str, Float[Array, ""]]:
        """What one optimizer step changes, by `step_geometry/STATISTIC` and `step_geometry/MODULE/STATISTIC`."""
        return _of_pair(self, OF_A_STEP, "step_geometry", before, after, None)

    def subspaces(self, params: PyTree, start: PyTree) -> PyTree:
        """The leading right subspaces of the update: `[*batch, in, K]` at matrices, None elsewhere."""
        return _subspaces(self, params, start)

    def __hash__(self) -> int:
        return hash((tuple(self.modules), self.subspace_k))


def geometry_of(specs: PyTree, subspace_k: int = 16) -> Geometry:
    """The programs for a tree of parameters.

    Args:
        specs: `MatrixSpec` at the matrices to measure, None elsewhere; nested dicts `… → module → "kernel"`.
        subspace_k: directions of a subspace, fewer at smaller matrices.
    """
    modules: dict[str, tuple[tuple[str, ...], ...]] = {}
    for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec):
        keys = tuple(str(key.key) for key in path)
        if spec is not None:
            modules[keys[-2]] = (*modules.get(keys[-2], ()), keys)
    return Geometry(specs, modules, subspace_k)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_pair(
    geometry: Geometry, statistics: tuple[str, ...], front: str, first: PyTree, second: PyTree, bases: PyTree | None
) -> dict[str, Array]:
    measured = measure(
        first, second, geometry.specs, statistics=statistics, bases=bases, subspace_k=geometry.subspace_k
    )
    found = {}
    for module, paths in {"": None, **geometry.modules}.items():
        specs = geometry.specs if paths is None else _only(geometry.specs, paths)
        means = summarize(measured, specs)
        ahead = f"{front}/{module}/" if module else f"{front}/"
        found |= {ahead + name: means[name] for name in statistics if name in means}
    return found


@functools.partial(jax.jit, static_argnums=0)
def _subspaces(geometry: Geometry, params: PyTree, start: PyTree) -> PyTree:
    def one(spec: MatrixSpec | None, now: Array, first: Array) -> Array | None:
        if spec is None:
            return None
        delta = as_matrix(now.astype(jnp.float32) - first.astype(jnp.float32), spec)
        k = min(geometry.subspace_k, *delta.shape[-2:])
        flat = delta.reshape(-1, *delta.shape[-2:])
        found = jax.lax.map(lambda matrix: top_subspace(matrix, k=k, method="krylov"), flat)
        return found.reshape(*delta.shape[:-2], *found.shape[-2:])

    return jax.tree.map(one, geometry.specs, params, start, is_leaf=is_spec)


def _only(specs: PyTree, paths: tuple[tuple[str, ...], ...]) -> PyTree:
    """The specs with None at all but the given leaves."""

    def one(path: Any, spec: MatrixSpec | None) -> MatrixSpec | None:
        return spec if tuple(str(key.key) for key in path) in paths else None

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=is_spec)
