"""Parameter trees measured by one jitted transform, sharded or not: no matrix of a cheap statistic is ever whole."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from . import _leaf_statistics as leaf_statistics
from ._leaf_statistics import LeafPair, Numbers
from .matrix_spec import MatrixSpec
from .statistics import CHEAP, split_key

OPTIONS: Mapping[str, Any] = {"eta": 1e-3, "subspace_k": 16}
"""Parameters of the statistics, with the names and defaults of `CompareSettings`."""

NEEDS_BASIS = ("basis_similarity", "leakage")
"""Statistics of an update beside a given subspace."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "entries": (
        "sparsity_bf16",
        "density_bf16",
        "sparsity_stored",
        "sparsity_abs_1e-5",
        "sparsity_rms_TOLERANCE",
        "share_beyond_half_ulp",
    ),
    "norms": ("fro_norm", "relative_norm", "decay"),
    "leading": ("op_norm", "stable_rank", "energy_top_K", "basis_similarity"),
    "participation": ("participation_ratio",),
    "leakage": ("leakage",),
}
"""Which function gives which statistics, families of keys by the part in capitals."""


def measure(
    params0: Any,
    params1: Any,
    specs: Any,
    *,
    statistics: Sequence[str] = CHEAP,
    bases: Any = None,
    key: jax.Array | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Statistics of every matrix of a parameter tree, by the keys of `report.json`.

    A pure function for `jit`, `vmap`, `grad` (where the statistic has a derivative) and `shard_map`, of trees on one
    device or sharded over any mesh, Auto or Explicit. The statistics of `CHEAP` are had where the leaves lie: sums over
    entries and products with thin blocks, so that no device holds more of a matrix than its own part.

    Args:
      params0: tree of initial parameters, floating leaves.
      params1: tree of final parameters, same structure and shapes.
      specs: a tree like the parameters, `MatrixSpec` at each matrix and None at every other leaf.
      statistics: keys of `report.json`, with `_null`, `_excess` and `_z` where there is a null. A family's key
        (`energy_top_K`) stands for the members that the options name (`energy_top_16`).
      bases: a tree like the parameters, orthonormal right bases `[*batch, in, K]` at matrices, None elsewhere; needed
        by `basis_similarity` and `leakage`, which are left out of `CHEAP` without them.
      key: unused by closed forms.
      **options: parameters of the statistics, with the names and defaults of `CompareSettings`.

    Returns:
      `{statistic: tree}`, each tree like the parameters with an array `[*batch]` at each matrix and None elsewhere;
      float32, float64 under x64; NaN where the statistic is not defined.

    Raises:
      ValueError: for an unknown statistic or option, naming those that are near; where trees differ in structure or
        shape, or a statistic needs bases and has none.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ValueError(_unknown("option", unknown[0], OPTIONS))
    settings = {**OPTIONS, **options}
    wanted = _wanted(statistics, settings, bases is not None)
    leaves, structure = jax.tree.flatten(specs, is_leaf=_is_spec)
    first, second = (_leaves(tree, structure, name) for tree, name in ((params0, "params0"), (params1, "params1")))
    held = [None] * len(leaves) if bases is None else _leaves(bases, structure, "bases")
    rows = []
    for spec, w0, w1, basis in zip(leaves, first, second, held, strict=True):
        if spec is None:
            rows.append(dict.fromkeys(wanted))
            continue
        w0, w1 = jnp.asarray(w0), jnp.asarray(w1)
        basis = None if basis is None else jnp.asarray(basis)
        if w0.shape != w1.shape:
            raise ValueError(f"params0 has a leaf of shape {w0.shape} where params1 has {w1.shape}; they must be equal")
        if basis is None and any(name in NEEDS_BASIS for name in wanted):
            raise ValueError(f"bases has None at a matrix of shape {w0.shape}; [*batch, in, K] is needed")
        rows.append(_measure_leaf(w0, w1, spec, basis, tuple(wanted), settings))
    return {name: jax.tree.unflatten(structure, [row[name] for row in rows]) for name in wanted}


def _measure_leaf(
    w0: jax.Array, w1: jax.Array, spec: MatrixSpec, basis: jax.Array | None, wanted: tuple[str, ...], settings: Any
) -> Numbers:
    arrays = (w0, w1) if basis is None else (w0, w1, basis)

    def numbers(*arrays: jax.Array) -> Numbers:
        pair = LeafPair(arrays[0], arrays[1], spec, arrays[2] if len(arrays) > 2 else None, settings)
        found: Numbers = {}
        for function in _functions(wanted):
            found |= function(pair)
        for name in wanted:
            if name not in found:
                raise ValueError(_unknown("statistic", name, found))
        return {name: found[name].astype(jnp.result_type(float)) for name in wanted}

    sharding = jax.typeof(w1).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return numbers(*arrays)
    # The shardings of thin blocks follow from those of the leaf, which the compiler is left to do.
    place = tuple(sharding.spec) + (None,) * (w1.ndim - len(sharding.spec))
    out = PartitionSpec(*(place[axis] for axis in spec.batch))
    return jax.sharding.auto_axes(numbers, out_sharding=dict.fromkeys(wanted, out))(*arrays)


def _functions(wanted: Sequence[str]) -> list[Callable[[LeafPair], Numbers]]:
    """The functions that give the wanted statistics."""
    bases = {_family_key(split_key(name)[0]) for name in wanted}
    functions = []
    for family, keys in FAMILIES.items():
        if bases & set(keys):
            function: Callable[..., Numbers] = getattr(leaf_statistics, family)
            if family == "leading":
                only_first = not bases & {"energy_top_K", "basis_similarity"}
                function = functools.partial(function, only_first=only_first)
            functions.append(function)
    return functions


def _family_key(key: str) -> str:
    for family in ("energy_top_K", "sparsity_rms_TOLERANCE"):
        if key.startswith(family[: family.rindex("_") + 1]):
            return family
    return key


def _wanted(statistics: Sequence[str], settings: Mapping[str, Any], has_bases: bool) -> list[str]:
    """The keys of the result, checked, families by the members that the settings name."""
    if isinstance(statistics, str):
        raise ValueError(f"statistics is {statistics!r}; a sequence of keys is needed")
    available = {key for keys in FAMILIES.values() for key in keys}
    wanted: dict[str, None] = {}
    members = {
        "energy_top_K": [f"energy_top_{settings['subspace_k']}"],
        "sparsity_rms_TOLERANCE": [f"sparsity_rms_{tolerance:g}" for tolerance in (1e-4, 1e-3, 1e-2)],
    }
    for name in (member for given in statistics for member in members.get(given, [given])):
        base = split_key(name)[0]
        if _family_key(base) not in available:
            raise ValueError(_unknown("statistic", name, available))
        if base in NEEDS_BASIS and not has_bases:
            if statistics is CHEAP:
                continue
            raise ValueError(f"{name} needs bases: a tree of right bases [*batch, in, K]")
        wanted[name] = None
    return list(wanted)


def _unknown(what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=4, cutoff=0.5) or sorted(known)[:8]
    return f"unknown {what} {name!r}; near it: {', '.join(near)}"


def _is_spec(node: Any) -> bool:
    return node is None or isinstance(node, MatrixSpec)


def _leaves(tree: Any, structure: Any, name: str) -> list[Any]:
    try:
        return structure.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} does not have the structure of specs: {error}") from error
