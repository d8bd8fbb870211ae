"""A report's numbers beside those of the public functions on the same arrays: pairs, runs, how near they must be."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxgeom as jg
from jaxgeom import diagnostics as jd
from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.diagnostics.statistics import split_key, statistic

KINDS = (
    "dense", "low rank", "rank deficient", "decay only", "sparse", "heavy tailed", "identical", "one entry changed",
)  # fmt: skip
STORAGES = ("float32", "bfloat16", "float16")
SHAPES = {"tall": (24, 16), "wide": (16, 24), "square": (20, 20)}
K = 3
OPTIONS: dict[str, Any] = {"angle_k": 6, "mask_rank": 4, "subspace_k": K}
NAME = "mlp.experts.up_proj"
SPECS = {NAME: jg.MatrixSpec(out=(1,), in_=(2,), batch=(0,))}
LABELS = ("name", "shape", "layer", "module", "group", "parameters", "digests")

Numbers = dict[str, float | None]


def stored_as(w: np.ndarray, storage: str) -> np.ndarray:
    """Float64 weights in a storage format, by way of float32."""
    return w.astype(np.float32).astype(ml_dtypes.bfloat16 if storage == "bfloat16" else storage)


def make_run(
    shape: tuple[int, int],
    storage: str,
    seed: int,
    *,
    size: float = 0.0,
    steps: int = 1,
    kinds: Sequence[str] = KINDS,
    origin: str | None = None,
) -> list[np.ndarray]:
    """Stored W0 and what follows it, `[kinds, out, in]` each: one run for every kind of update.

    Args:
        shape: (out, in).
        storage: format of the checkpoints.
        seed: of the first kind; the others follow.
        size: every update is `10^size` times the usual.
        steps: how many checkpoints follow W0.
        kinds: of the updates.
        origin: format of W0, where it is another.
    """
    runs = []
    for place, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, place])
        w0 = 0.02 * rng.standard_normal(shape)
        if kind == "rank deficient":
            w0 = 0.02 * rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
        path = [stored_as(w0, origin or storage)]
        for _ in range(steps):
            w = path[-1].astype(np.float64)
            path.append(stored_as(w + 10.0**size * _update(rng, w, kind), storage))
        runs.append(path)
    return [np.stack(side) for side in zip(*runs, strict=True)]


def _update(rng: np.random.Generator, w: np.ndarray, kind: str) -> np.ndarray:
    shape, update = w.shape, np.zeros(w.shape)
    noise = rng.standard_normal(shape)
    match kind:
        case "dense" | "rank deficient":
            update = 1e-3 * noise
        case "low rank":
            update = 1e-3 * rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
        case "decay only":
            update = -0.03 * w
        case "sparse":
            update = np.where(rng.random(shape) < 0.1, 2e-3 * noise, 0.0)
        case "heavy tailed":
            update = 1e-4 * rng.standard_t(1.5, shape)
        case "one entry changed":
            update[rng.integers(shape[0]), 1] = 0.5
    return update


def checkpoint(w: np.ndarray, name: str) -> Checkpoint:
    """A checkpoint that holds the matrices `[kinds, out, in]` as experts, in memory."""
    tensor = Tensor(NAME, w.shape, w.dtype.name, lambda start, stop: w[start:stop])
    return Checkpoint(name, {NAME: tensor}, config=None, fingerprint=name)


def numbers_of(row: dict[str, Any]) -> Numbers:
    """The numbers of a report's row: values, nulls, excesses and deviations, without labels, notes and lists."""
    return {
        key: value
        for key, value in row.items()
        if key not in LABELS and not isinstance(value, str | list | bool) and not key.endswith("_note")
    }


def allowed(key: str, row: Numbers, suite: str, condition: float) -> float:
    """The absolute difference that the table of statistics allows a number: of an excess, its value's and null's."""
    base, kind, what = split_key(key)
    entry = statistic(base)
    assert entry is not None, key
    bound = entry.over_gap * condition
    bound += entry.agreement if suite == "full" or entry.agreement_fast is None else entry.agreement_fast
    value, null = row[base] or 0.0, row.get(f"{base}{'_' * bool(kind)}{kind}_null") or 0.0
    if entry.unit == "deg":
        bound, size = max(bound, 1e-9), 1.0
    else:
        size = abs(value) + abs(null)
    if what != "z":
        return bound * size + 1e-12
    z, excess = row[key], row[key.removesuffix("_z") + "_excess"]
    return (bound * size + 1e-12) * abs(z / excess) + bound * abs(z) + 1e-9 if z and excess else 1e-9


def check(key: str, row: Numbers, found: Any, where: str, *, suite: str = "full", condition: float = 0.0) -> None:
    """Equality within the bound that the table of statistics states; `condition` is σ₁²/(σ_K² − σ_{K+1}²)."""
    reported, number = row[key], float(found)
    if reported is None:
        assert math.isnan(number), f"{where} {key}: the report has none, the function gives {number}"
        return
    least = allowed(key, row, suite, condition)
    assert abs(number - reported) <= least, f"{where} {key}: {reported} in the report, {number} here ({suite})"


@functools.cache
def measured(keys: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """`measure` of the keys, compiled once for every pair of one shape and dtype."""
    return jax.jit(lambda a, b: jd.measure({NAME: a}, {NAME: b}, SPECS, statistics=keys, **OPTIONS))


def beside(key: str, value: Any, mean: Any, std: Any = math.nan, kind: str = "") -> dict[str, Any]:
    """A value, its null, excess and z by the public functions of triples."""
    null = jd.NullMoments(*(jnp.where(jnp.isnan(value), jnp.nan, part) for part in (jnp.asarray(mean), std)))
    found = {f"{kind}_null": null.mean, f"{kind}_excess": jd.excess(value, null), f"{kind}_z": jd.z_score(value, null)}
    return {key: value} | {key + end: number for end, number in found.items()}


def leading(deltas: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Right bases `[..., n, K]` of updates, whether they have so many directions, and `σ₁²/(σ_K² − σ_{K+1}²)`."""
    squares = jnp.square(jd.singular_values(deltas))
    gap = squares[..., K - 1] - squares[..., K]
    known = jd.has_directions(jnp.sqrt(squares), K)
    condition = jnp.where(known, squares[..., 0] / jnp.where(gap > 0, gap, jnp.inf), 0.0)
    return jd.top_subspace(deltas, k=K), known, condition


def similarities(first: tuple[Any, ...], second: tuple[Any, ...]) -> jax.Array:
    """`[S, T]` similarities of two lists of subspaces, NaN where one of the two is none."""
    both = first[1][:, None] & second[1][None, :]
    return jnp.where(both, jd.similarity_matrix(first[0], second[0]), jnp.nan)


_counts = jax.jit(jd.entry_counts)


def grid_of(path: Sequence[np.ndarray]) -> tuple[str | None, bool]:
    """The grid to which the checkpoints of stored runs `[kinds, out, in]` are rounded; an update of zero has none."""
    counts = jax.device_get([_counts(path[0], w) for w in path[1:]])
    grids = {
        jd.grid_of_run([jax.tree.map(lambda x, kind=kind: x[kind], one) for one in counts])
        for kind in range(len(path[0]))
        if any(one.differs[kind] for one in counts)
    }
    (found,) = grids
    assert found is not None
    return found


def spacings_of(w0: np.ndarray, grid: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Spacings and counts of W0 `[kinds, out, in]`, `[kinds, 24]`: those of the exponents that weights have."""
    if grid is None:
        return np.zeros((len(w0), 24)), np.zeros((len(w0), 24))
    counts = jax.device_get(_counts(w0, w0))
    found = [jd.spacing_counts(one, counts.storage, grid) for one in counts.histogram]
    kept = [np.sort(np.argsort(-number, kind="stable")[:24]) for _, number in found]
    assert all(number.sum() == number[few].sum() for (_, number), few in zip(found, kept, strict=True))
    spacings, numbers = (
        np.stack([side[few] for side, few in zip(sides, kept, strict=True)]) for sides in zip(*found, strict=True)
    )
    return spacings, numbers


def _follows(x: jax.Array) -> jax.Array:
    """What stands one later along the first axis, NaN at the end."""
    return jnp.concatenate([x[1:], jnp.full_like(x[:1], jnp.nan)])


@functools.cache
def walked(grid: str | None, is_open: bool) -> Callable[..., dict[str, Any]]:
    """The numbers along a run that belong to no single pair, of weights `[kinds, 1 + T, m, n]`."""

    def numbers(
        stored: jax.Array, spacings: jax.Array, counts: jax.Array, rate_sums: jax.Array, rate_roots: jax.Array
    ) -> dict[str, Any]:
        wide, shape = jd.widen(stored), stored.shape
        total, steps, rest = wide[1:] - wide[:1], wide[1:] - wide[:-1], wide[-1:] - wide[1:]
        after, increments = _follows(steps), jd.frobenius_norm(steps)
        squares, covariance = jd.inner_product(total, total), None
        if grid is not None:
            covariance = jd.walk_covariance(increments, spacings, counts, is_open=is_open)
        found = jd.path_statistics(
            squares, increments,
            step_products=jd.inner_product(steps, after), step_alignments=jd.inner_product(steps**2, after**2),
            rest_products=jd.inner_product(total, rest), rest_alignments=jd.inner_product(total**2, rest**2),
            rest_squares=jd.inner_product(rest, rest), covariance=covariance, shape=shape,
            kurtoses=[jd.entry_kurtosis(one) for one in (total, steps, rest)],
        )  # fmt: skip
        found |= jd.rate_statistics(squares, rate_sums, rate_roots, shape=shape)
        now, later = leading(total), leading(rest)
        full, disjoint = similarities(now, now), similarities(now, later)
        curve = jd.similarity_curve(shape, k=K)
        kurtoses = jd.entry_kurtosis(total), jd.entry_kurtosis(rest)
        found |= jd.similarity_statistics(
            full[:, -1], jnp.diagonal(disjoint), increments, curve, shape=shape, k=K, covariance=covariance,
            kurtoses=kurtoses,
        )  # fmt: skip
        carried = [jd.carried_directions(shape, kurtosis) for kurtosis in kurtoses]
        ahead = jnp.triu(jnp.ones(full.shape, bool))
        walk = jd.random_walk_similarity(curve, increments, covariance, updates=carried[0])
        apart = jd.disjoint_walk_similarity(
            curve, increments, covariance, shape=shape, k=K, updates=carried[0], rest=carried[1]
        )
        found |= {
            "full": full, "full_null": walk.mean, "disjoint": jnp.where(ahead, disjoint, jnp.nan),
            "disjoint_null": apart.mean, "condition": jnp.maximum(now[2].max(), later[2].max()),
            # The same by functions of the arrays alone.
            "plain": {
                "path_cosine": jd.path_cosine(wide[:-2], wide[1:-1], wide[2:]),
                "cosine_to_rest": jd.cosine(total[:-1], rest[:-1]),
            },
        }  # fmt: skip
        return found

    return jax.jit(jax.vmap(numbers, in_axes=(0, 0, 0, None, None)))


@jax.jit
@jax.vmap
def _views(stored: jax.Array, fixed: jax.Array) -> dict[str, Any]:
    """What a bfloat16 reader sees of a run, beside the final update at each step's norm, as he would see it."""
    view = jd.bf16_view(stored)
    seen, scaled = view[1:] - view[:1], jd.bf16_view(fixed) - view[0]
    now, null = leading(seen), leading(scaled)
    final = tuple(part[-1:] for part in now)
    moved = jd.frobenius_norm(seen) > 0
    shown = moved & (jd.frobenius_norm(scaled) > 0)
    mean = jnp.where(shown, jd.stable_rank(scaled), jnp.nan), jnp.where(shown, similarities(null, final)[:, 0], jnp.nan)
    return {
        "stable_rank_bf16": jd.stable_rank(seen), "stable_rank_bf16_null": mean[0],
        "sim_to_final_bf16": similarities(now, final)[:, 0], "sim_to_final_bf16_null": mean[1],
        "condition": jnp.maximum(now[2].max(), null[2].max()),
    }  # fmt: skip


def seen_in_bf16(weights: np.ndarray) -> dict[str, Any]:
    """The numbers along runs `[kinds, 1 + T, m, n]` that are a bfloat16 reader's own, `[kinds, T]`."""
    norms = np.linalg.norm(weights[:, 1:].astype(float) - weights[:, :1].astype(float), axis=(2, 3))
    share = norms / np.where(norms[:, -1:] > 0, norms[:, -1:], 1.0)
    # Not compiled as one: products that are fused with sums would be rounded once less.
    fixed = jd.along_update(jnp.asarray(weights[:, :1]), jnp.asarray(weights[:, -1:]), share[:, :, None, None])
    found = _views(jnp.asarray(weights), fixed)
    on_grid = (weights.astype(ml_dtypes.bfloat16).astype(float) == weights.astype(float)).all((2, 3))
    same = on_grid[:, :1] & on_grid[:, 1:]  # what is stored is what is seen
    for key in ("stable_rank_bf16", "sim_to_final_bf16"):
        null = jnp.where(same, jnp.nan, found[f"{key}_null"])
        found |= {f"{key}_null": null, f"{key}_excess": found[key] - null, f"{key}_z": jnp.full_like(null, jnp.nan)}
    return found


@jax.jit
@jax.vmap
def shared(origin: jax.Array, final_a: jax.Array, final_b: jax.Array) -> dict[str, Any]:
    """The numbers between two runs from one origin."""
    finals, shape = (final_a, final_b), origin.shape
    masks = [jd.changed_mask(origin, final) for final in finals]
    densities = [jd.visible_density(origin, final) for final in finals]
    sizes = [jnp.sum(mask).astype(float) for mask in masks]
    values = jd.changed_overlaps(*masks)
    found = dict(zip(("density_a", "density_b"), densities, strict=True))
    independent = jd.independence_null(jnp.asarray(float(origin.size)), *sizes)
    counts = [jd.entry_counts(origin, final) for final in finals]
    known = jd.rounds_alike(*counts)
    rounded = jax.tree.map(lambda part: jnp.where(known, part, jnp.nan), jd.cross_run_null(origin, *densities))
    for key, part in (("jaccard", "jaccard"), ("overlap_a_in_b", "a_in_b"), ("overlap_b_in_a", "b_in_a")):
        for kind, null in (("", independent), ("_rounding", rounded)):
            found |= beside(key, getattr(values, part), *getattr(null, part), kind)
    a, b = (jd.update(origin, final) for final in finals)
    expected = jd.shared_cosine(*counts)
    found |= jd.orthogonal_statistics(
        jd.orthogonal_share(a, b), jd.inner_product(a, b), jd.inner_product(a, a), jd.inner_product(b, b),
        alignment=jd.inner_product(a * a, b * b), expected=expected, shape=shape,
    )  # fmt: skip
    bases = leading(jnp.stack([a, b]))
    first, second = (tuple(part[place : place + 1] for part in bases) for place in (0, 1))
    similarity = similarities(first, second)[0, 0]
    found |= jd.similarity_between(
        similarity, expected=expected, curve=lambda: jd.similarity_curve(shape, k=K), shape=shape, k=K,
        kurtoses=[jd.entry_kurtosis(delta) for delta in (a, b)],
    )  # fmt: skip
    return found | {"subspace_k": jnp.asarray(jd.capped_rank(K, shape)), "condition": bases[2].max()}
