"""What `measure` found of every matrix as one number a statistic, each triple over one population."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .matrix_spec import is_spec
from .population_means import population_means
from .statistics import is_counted, split_key, statistic


def summarize(measured: Mapping[str, Any], specs: Any) -> dict[str, jax.Array]:
    """Means over the matrices of a tree, each statistic with its own weighting.

    Value, null and excess of a statistic are taken over the same matrices: those where value and null are defined, or,
    where no matrix has a null (of what is weighted by parameters: where less than half of the parameters have one),
    those where the value is. Their number stands beside them, and the excess is the mean
    value minus the mean null. The mean z is over those of them that have one, `<name>_z_count`. A further null has a
    population of its own, with the value over it: `<name>_<kind>_mean`, `<name>_<kind>_count`. The summaries of a
    report follow the same rule (`population_means`). May be jitted.

    Args:
      measured: result of `measure`; statistics averaged over parameters come with `parameters` there.
      specs: the tree of `MatrixSpec`s. Where it has None and `measured` a matrix (embeddings, a router), that one is
        left out.

    Returns:
      `{key: scalar}`: the mean of every key but the settings of a statistic (`angle_k`), and `<name>_count`; NaN where
      no matrix has the statistic.

    Raises:
      ValueError: where a statistic is averaged over parameters and `parameters` is not there.

    >>> from jaxgeom.diagnostics import MatrixSpec
    >>> specs = {"w": MatrixSpec((1,), (2,), (0,))}
    >>> measured = {"stable_rank": {"w": jnp.array([2.0, 4.0])}, "stable_rank_null": {"w": jnp.array([5.0, jnp.nan])}}
    >>> {key: float(value) for key, value in summarize(measured, specs).items()}
    {'stable_rank': 2.0, 'stable_rank_null': 5.0, 'stable_rank_count': 1.0}
    """
    read = {key: _column(tree, specs) for key, tree in measured.items()}
    columns = {key: column for key, column in read.items() if column is not None}
    triples: dict[tuple[str, str], dict[str, str]] = {}
    for key in columns:
        name, kind, what = split_key(key)
        entry = statistic(name)
        if key != "parameters" and not (entry and entry.is_setting):
            triples.setdefault((name, kind), {})[what] = key
    found: dict[str, jax.Array] = {}
    for (name, kind), parts in triples.items():
        weights = _weights(columns, name)
        if kind and name in columns:
            parts = {**parts, "value": name}
        own = {what: columns[key] for what, key in parts.items()}
        parameters = weights if is_counted(name) else None
        means = population_means(own, weights, further=bool(kind), parameters=parameters)
        for what, key in parts.items():
            found[f"{name}_{kind}_mean" if kind and what == "value" else key] = means[what]
        ahead = f"{name}_{kind}_" if kind else f"{name}_"
        found |= {f"{ahead}{what}": means[what].astype(weights.dtype) for what in ("count", "z_count") if what in means}
    return found


def _column(tree: Any, specs: Any) -> jax.Array | None:
    """One number per matrix `[matrices]`; None where there is none."""
    leaves, structure = jax.tree.flatten(specs, is_leaf=is_spec)
    numbers = structure.flatten_up_to(tree)
    both = zip(leaves, numbers, strict=True)
    kept = [(number, len(spec.batch)) for spec, number in both if spec is not None and number is not None]
    if any(number.ndim > batch for number, batch in kept):
        return None  # a list per matrix (`hidden_by_decile`)
    return jnp.concatenate([jnp.reshape(number, -1) for number, _ in kept]) if kept else None


def _weights(columns: Mapping[str, jax.Array], name: str) -> jax.Array:
    if not is_counted(name):
        return jnp.ones_like(next(iter(columns.values())))
    if "parameters" not in columns:
        raise ValueError(f"measured has {name}, which is averaged over parameters, and no 'parameters' to weigh it by")
    return columns["parameters"]
