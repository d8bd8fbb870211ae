"""Parameter trees measured by one jitted transform, sharded or not: no matrix of a cheap statistic is ever whole."""

import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from . import _leaf_statistics as leaf
from . import _matrix_statistics as matrix
from ._leaf_statistics import LeafPair, Numbers
from ._matrix_statistics import MatrixPair, Source
from .matrix_spec import MatrixSpec, as_matrix, is_spec
from .statistics import CHEAP, is_counted, split_key

OPTIONS: Mapping[str, Any] = {
    "eta": 1e-3,
    "angle_k": 512,
    "mask_rank": 64,
    "mask_fraction": 0.3,
    "hill_k": None,
    "subspace_k": 16,
    "projection_fraction": 0.1,
    "null_draws": 5,
    "permutation_draws": 0,
    "seed": 0,
}
"""Parameters of the statistics, with the names and defaults of `CompareSettings`."""

NEEDS_BASIS = ("basis_similarity", "leakage")
"""Statistics of an update beside a given subspace."""


class Family(NamedTuple):
    """Statistics that one function gives.

    Attributes:
      function: of a `LeafPair` or, matrix by matrix, of a `MatrixPair`.
      keys: names that it gives, of families of keys the part before what varies (`energy_top_`).
      whole: whether it takes the matrices whole.
      kinds: kinds of nulls that it gives; None for the values alone, "" for the first null.
    """

    function: Callable[[Any], Numbers]
    keys: tuple[str, ...]
    whole: bool = False
    kinds: tuple[str | None, ...] = (None, "")


COUNTED = (
    "sparsity_bf16", "density_bf16", "sparsity_stored", "sparsity_abs_1e-5", "sparsity_rms_",
    "share_beyond_half_ulp", "fro_norm", "relative_norm", "decay", "parameters",
)  # fmt: skip

ENTRYWISE = ("sparsity_bf16", "overlap_low", "overlap_principal")

# The first family that gives a key computes it: what is had where the leaves lie stands before what takes them whole.
FAMILIES: tuple[Family, ...] = (
    Family(leaf.entries, COUNTED, kinds=(None,)),
    Family(leaf.entry_nulls, ("sparsity_bf16", "density_bf16", "decay", "hidden_by_decile")),
    Family(partial(leaf.leading, only_first=True), ("op_norm", "stable_rank")),
    Family(partial(leaf.leading, only_first=False), ("energy_top_", "basis_similarity")),
    Family(leaf.bf16_rank, ("stable_rank_bf16",)),
    Family(leaf.participation, ("participation_ratio",)),
    Family(leaf.leakage, ("leakage",)),
    Family(matrix.update, ("entropy_rank", "hill", "hill_k"), whole=True),
    Family(matrix.shifts, ("nss", "nss_bf16", "nss_without_decay"), whole=True),
    Family(matrix.angles, ("angle_",), whole=True),
    Family(matrix.projections, ("projection_",), whole=True),
    Family(matrix.permuted_ranks, ("stable_rank", "participation_ratio"), whole=True, kinds=("permutation",)),
    Family(partial(matrix.update_nulls, kind="profile"), ENTRYWISE, whole=True, kinds=("profile",)),
    Family(partial(matrix.update_nulls, kind="permutation"), ENTRYWISE, whole=True, kinds=("permutation",)),
    Family(matrix.overlaps, ("overlap_low", "overlap_principal", "rounding_scale", "mask_rank"), whole=True),
)


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
    device or sharded over any mesh, Auto or Explicit; called outside of all of them it is one program, compiled once
    for a structure, its shapes and the options. The statistics of `CHEAP` are had where the leaves lie: sums over
    entries and products with thin blocks, so that no device holds more of a matrix than its own part. (Of several axes
    that make up one side of a matrix, the first may be split over devices.) What needs a spectrum, subspaces or masks
    of the whole matrix takes one matrix after the other, whole.

    Args:
      params0: tree of initial parameters, floating leaves.
      params1: tree of final parameters, same structure and shapes.
      specs: a tree like the parameters, `MatrixSpec` at each matrix and None at every other leaf.
      statistics: keys of a matrix in `report.json`, with `_null`, `_excess` and `_z` where there is a null. A family's
        key (`energy_top_K`) stands for the members that the options name (`energy_top_16`).
      bases: a tree like the parameters, orthonormal right bases `[*batch, in, K]` at matrices, None elsewhere; needed
        by `basis_similarity` and `leakage`, which are left out of `CHEAP` without them.
      key: random key of sampled nulls. Without one they have the draws of `jg.compare`, from the option `seed` and the
        names of the matrices there, drawn on the host.
      **options: parameters of the statistics, with the names and defaults of `CompareSettings`.

    Returns:
      `{statistic: tree}`, each tree like the parameters with an array `[*batch]` at each matrix (`hidden_by_decile`:
      `[*batch, 10]`) and None elsewhere; float32, float64 under x64; NaN where the statistic is not defined. With a
      statistic that is averaged over parameters comes `parameters`, the size of each matrix, as its weight.

    Raises:
      ValueError: for an unknown statistic or option, naming those that are near; where trees differ in structure or
        shape, or a statistic needs bases and has none.

    >>> w = jnp.eye(4)
    >>> measure({"w": w}, {"w": 1.5 * w}, {"w": MatrixSpec((0,), (1,))}, statistics=["relative_norm"])
    {'relative_norm': {'w': Array(0.5, dtype=float32)}}
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ValueError(_unknown("option", unknown[0], OPTIONS))
    settings = {**OPTIONS, **options}
    wanted = _wanted(statistics, settings, bases is not None)
    found, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    first, second = (_leaves(tree, structure, name) for tree, name in ((params0, "params0"), (params1, "params1")))
    held = [None] * len(found) if bases is None else _leaves(bases, structure, "bases")
    arrays = []
    for (_, spec), w0, w1, basis in zip(found, first, second, held, strict=True):
        if spec is None:
            arrays.append(())
            continue
        w0, w1 = jnp.asarray(w0), jnp.asarray(w1)
        if w0.shape != w1.shape:
            raise ValueError(f"params0 has a leaf of shape {w0.shape} where params1 has {w1.shape}; they must be equal")
        if basis is None and any(split_key(name)[0] in NEEDS_BASIS for name in wanted):
            raise ValueError(f"bases has None at a matrix of shape {w0.shape}; [*batch, in, K] is needed")
        arrays.append((w0, w1) if basis is None else (w0, w1, jnp.asarray(basis)))
    paths = tuple(_name(path) for path, _ in found)
    plan = _Plan(
        paths,
        tuple(None if spec is None else MatrixSpec(*map(tuple, spec)) for _, spec in found),
        tuple(wanted),
        tuple(settings.items()),
    )
    rows = _measure_leaves(plan, arrays, key)
    return {name: jax.tree.unflatten(structure, [row[name] for row in rows]) for name in wanted}


class _Plan(NamedTuple):
    """What is measured of which leaves: all of `measure`'s arguments that are no arrays.

    Attributes:
      paths: names of the leaves.
      specs: of each, None where it is no matrix.
      wanted: keys of the result.
      settings: of the statistics.
    """

    paths: tuple[str, ...]
    specs: tuple[MatrixSpec | None, ...]
    wanted: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]


@partial(jax.jit, static_argnums=0)  # so that a call outside of any `jit` is one program, and not one an operation
def _measure_leaves(
    plan: _Plan, arrays: Sequence[tuple[jax.Array, ...]], key: jax.Array | None
) -> list[dict[str, jax.Array | None]]:
    """The numbers of every leaf by name, None for those that are no matrix."""
    rows = []
    for place, (path, spec, given) in enumerate(zip(plan.paths, plan.specs, arrays, strict=True)):
        if spec is None:
            rows.append(dict.fromkeys(plan.wanted))
            continue
        own = None if key is None else jax.random.fold_in(key, place)
        names = _names(path, [given[1].shape[axis] for axis in spec.batch])
        numbers = partial(_numbers, spec=spec, wanted=plan.wanted, settings=dict(plan.settings), names=names, key=own)
        rows.append(_placed(numbers, given, spec, plan.wanted))
    return rows


def _placed(
    numbers: Callable[..., Numbers], arrays: tuple[jax.Array, ...], spec: MatrixSpec, wanted: Sequence[str]
) -> Numbers:
    """The numbers of a leaf, sharded like its batch axes where the mesh is Explicit.

    The shardings of thin blocks follow from those of the leaf, which the compiler is left to do.
    """
    sharding = jax.typeof(arrays[1]).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return numbers(*arrays)
    place = tuple(sharding.spec) + (None,) * (arrays[1].ndim - len(sharding.spec))
    out = PartitionSpec(*(place[axis] for axis in spec.batch))
    placed: Any = jax.sharding.auto_axes(numbers, out_sharding=dict.fromkeys(wanted, out))
    return placed(*arrays)


def _numbers(
    w0: jax.Array,
    w1: jax.Array,
    basis: jax.Array | None = None,
    *,
    spec: MatrixSpec,
    wanted: Sequence[str],
    settings: Mapping[str, Any],
    names: Sequence[str],
    key: jax.Array | None,
) -> Numbers:
    """The wanted numbers of one leaf."""
    families = list(dict.fromkeys(_family(name) for name in wanted))
    pair, found = LeafPair(w0, w1, spec, basis, settings), {}
    for family in families:
        if not family.whole:
            found = family.function(pair) | found
    functions = [family.function for family in families if family.whole]
    if functions:
        missing = [name for name in wanted if name not in found]
        leaves = as_matrix(w0, spec), as_matrix(w1, spec)
        found |= _matrix_by_matrix(functions, missing, *leaves, settings, names, key)
    for name in wanted:
        if name not in found:
            raise ValueError(_unknown("statistic", name, found))
    return {name: found[name].astype(jnp.result_type(float)) for name in wanted}


def _matrix_by_matrix(
    functions: Sequence[Callable[[MatrixPair], Numbers]],
    wanted: Sequence[str],
    w0: jax.Array,
    w1: jax.Array,
    settings: Mapping[str, Any],
    names: Sequence[str],
    key: jax.Array | None,
) -> Numbers:
    """What takes a matrix whole, of every matrix of `[*batch, out, in]` in turn."""
    batch = w0.shape[:-2]

    def one(parts: tuple[jax.Array, jax.Array, jax.Array]) -> Numbers:
        index, a, b = parts
        own = None if key is None else jax.random.fold_in(key, index)
        pair, found = MatrixPair(a, b, Source(names, index, own), settings), {}
        for function in functions:
            found = function(pair) | found
        for name in wanted:
            if name not in found:
                raise ValueError(_unknown("statistic", name, found))
        return {name: found[name] for name in wanted}

    index = jnp.arange(math.prod(batch), dtype=jnp.int32)
    found = jax.lax.map(one, (index, *(w.reshape(-1, *w.shape[-2:]) for w in (w0, w1))))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), found)


def _family(name: str) -> Family:
    """The first family that gives a key.

    Raises:
      ValueError: where none does.
    """
    base, kind, what = split_key(name)
    asked = None if what == "value" else kind
    for family in FAMILIES:
        known = any(base == key or (key.endswith("_") and base.startswith(key)) for key in family.keys)
        if asked in family.kinds and (known or base.removesuffix("_enrichment") in family.keys):
            return family
    raise ValueError(_unknown("statistic", name, [key for family in FAMILIES for key in family.keys]))


def _wanted(statistics: Sequence[str], settings: Mapping[str, Any], has_bases: bool) -> list[str]:
    """The keys of the result, checked, families by the members that the settings name."""
    if isinstance(statistics, str):
        raise ValueError(f"statistics is {statistics!r}; a sequence of keys is needed")
    members = {
        "energy_top_K": [f"energy_top_{settings['subspace_k']}"],
        "sparsity_rms_TOLERANCE": [f"sparsity_rms_{tolerance:g}" for tolerance in leaf.RMS_TOLERANCES],
    }
    wanted: dict[str, None] = {}
    for name in (member for given in statistics for member in members.get(given, [given])):
        _family(name)
        if split_key(name)[0] in NEEDS_BASIS and not has_bases:
            if statistics is CHEAP:
                continue
            raise ValueError(f"{name} needs bases: a tree of right bases [*batch, in, K]")
        wanted[name] = None
        if is_counted(split_key(name)[0]):
            wanted.setdefault("parameters")
    return list(wanted)


def _name(path: Any) -> str:
    """What a report of `jg.compare` calls a leaf."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _names(name: str, batch: Sequence[int]) -> list[str]:
    """What a report calls the matrices of a leaf, in row-major order."""
    if not batch:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in itertools.product(*map(range, batch))]


def _unknown(what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=4, cutoff=0.5) or sorted(set(known))
    return f"unknown {what} {name!r}; near it: {', '.join(near)}"


def _leaves(tree: Any, structure: Any, name: str) -> list[Any]:
    try:
        return structure.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} does not have the structure of specs: {error}") from error
