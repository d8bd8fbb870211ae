"""One instrument: every number of a report equals the public function's, under x64, on the same arrays.

`compare`, `trajectory` and `between`, over drawn pairs of every kind of update. What is compiled is shared by all pairs
of one shape and dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxgeom as jg
from jaxgeom import diagnostics as jd
from jaxgeom.diagnostics.statistics import STATISTICS, split_key, statistic

from .agreement import (
    KINDS,
    LABELS,
    NAME,
    OPTIONS,
    SHAPES,
    SPECS,
    STORAGES,
    K,
    check,
    checkpoint,
    grid_of,
    make_run,
    measured,
    numbers_of,
    seen_in_bf16,
    shared,
    spacings_of,
    walked,
)

SUITES = ("full", "fast")
STEPS, RATE = (3, 5, 10), 1e-4
TABLES = ("full", "full_null", "disjoint", "disjoint_null")
DRAWS = (Phase.explicit, Phase.generate)  # a smaller seed says no more than the one that failed
DRAWN = {"seed": st.integers(0, 1 << 20), "size": st.sampled_from((0.0, -1.0, -0.5, 0.5, 1.0))}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def keys_of(shape: tuple[int, int], *, nulls: bool = False) -> tuple[str, ...]:
    """The numbers of a row of the full suite: without the further nulls, whose programs run for seconds, or of them."""
    row = numbers_of(rows_of(make_run(shape, "float32", 0, kinds=("dense",)), "full")[0])
    return tuple(sorted(key for key in row if bool(split_key(key)[1]) == nulls))


def rows_of(pair: list[np.ndarray], suite: Any) -> list[dict[str, Any]]:
    chosen = jg.CompareSettings(**OPTIONS, suite=suite, device="cpu")
    return jg.compare(*({NAME: w} for w in pair), SPECS, chosen).matrices


def same_pairs(pair: list[np.ndarray], keys: tuple[str, ...], where: str, *, wide: bool = False) -> None:
    """The report of pairs, by both suites, against `measure` of the same arrays, number by number.

    Args:
        pair: stored W0 and W+, `[kinds, out, in]`.
        keys: the numbers to look at.
        where: names them.
        wide: whether the public function is given the same numbers in float32.
    """
    found = jax.device_get(measured(keys)(*(jnp.asarray(w.astype(np.float32) if wide else w) for w in pair)))
    for suite in SUITES:
        for place, whole in enumerate(rows_of(pair, suite)):
            row = numbers_of(whole)
            assert suite == "fast" or set(keys) <= set(row)
            for key in set(keys) & set(row):
                check(key, row, found[key][NAME][place], f"{where} {KINDS[place]} {suite}", suite=suite)


def same_runs(path: list[np.ndarray], where: str, *, wide: bool = False) -> None:
    """A trajectory, by both suites, against the public functions of its pairs and of the whole path."""
    weights = [w.astype(np.float32) for w in path]
    stored, steps = weights if wide else path, np.stack(weights, axis=1)
    sides = [checkpoint(w, str(place)) for place, w in enumerate(path)]
    rates = jnp.asarray([RATE * step for step in STEPS]), jnp.asarray([RATE * step**0.5 for step in STEPS])
    grid, is_open = grid_of(stored)
    spacings = spacings_of(stored[0], grid)
    along, seen = jax.device_get((walked(grid, is_open)(steps, *spacings, *rates), seen_in_bf16(steps)))
    pairwise = measured(keys_of(path[0].shape[1:]))
    pairs = jax.device_get([pairwise(stored[0], w) for w in stored[1:]])
    conditions = np.maximum(along.pop("condition"), seen.pop("condition"))
    plain, tables = along.pop("plain"), {name: along.pop(name) for name in TABLES}
    for suite in SUITES:
        chosen = jg.CompareSettings(**OPTIONS, suite=suite, device="cpu")
        result = jg.trajectory_checkpoints(
            sides[0], list(zip(STEPS, sides[1:], strict=True)), chosen, learning_rates=RATE, spectra=suite == "full"
        )
        for kind, (row, condition) in enumerate(zip(result["matrices"], conditions, strict=True)):
            assert row["subspace_k"] == jd.capped_rank(K, tuple(row["shape"]))
            for place, step in enumerate(STEPS):
                numbers, at = _at_step(row, place), f"{where} {KINDS[kind]} at step {step}"
                assert set(numbers) >= {*along, *seen}
                for key in numbers:
                    if suite not in statistic(split_key(key)[0]).suites:
                        assert numbers[key] is None
                        continue
                    found = along.get(key, seen.get(key))
                    found = found[kind, place] if found is not None else pairs[place][key][NAME][kind]
                    check(key, numbers, found, at, suite=suite, condition=condition)
                for key, values in plain.items():
                    if place + 1 < len(STEPS):
                        check(key, numbers, values[kind, place], f"{at}, from the arrays")
        same_tables(result["similarity"], tables, conditions, where)


def _at_step(row: dict[str, Any], place: int) -> dict[str, Any]:
    lists = {key: values for key, values in row.items() if isinstance(values, list) and key not in LABELS}
    return {key: values[place] for key, values in lists.items() if not key.endswith(("_note", "_form"))}


def same_tables(reported: dict[str, Any], tables: dict[str, Any], conditions: np.ndarray, where: str) -> None:
    """The similarities of all steps, means over the matrices that have value and null."""
    entry = STATISTICS["sim_to_final"]
    for name in ("full", "disjoint"):
        value, null = tables[name], tables[f"{name}_null"]
        both = np.isfinite(value) & np.isfinite(null)
        count = np.maximum(both.sum(0), 1)
        for key, table, bound in (
            (name, value, entry.agreement_fast + entry.over_gap * conditions.max()), (f"{name}_null", null, 1e-9)
        ):  # fmt: skip
            mean = np.where(both.any(0), np.where(both, table, 0.0).sum(0) / count, np.nan)
            np.testing.assert_allclose(
                np.array(reported[key], float), mean, rtol=0, atol=bound, err_msg=f"{where} {key}"
            )


def same_between(path: list[np.ndarray], where: str) -> None:
    """Two runs from one origin against the public functions."""
    result = jg.between_runs(
        *(checkpoint(w, name) for w, name in zip(path, "oab", strict=True)),
        jg.CompareSettings(**OPTIONS, device="cpu"),
    )
    found = jax.device_get(shared(*map(jnp.asarray, path)))
    conditions = found.pop("condition")
    for kind, whole in enumerate(result["matrices"]):
        row = numbers_of(whole)
        for key in row:
            check(key, row, found[key][kind], f"{where} {KINDS[kind]}", condition=conditions[kind])


@settings(max_examples=1, phases=DRAWS)
@given(**DRAWN)
def test_compare(seed, size):
    for storage in ("float32", "bfloat16"):
        pair = make_run(SHAPES["tall"], storage, seed, size=size)
        same_pairs(pair, keys_of(SHAPES["tall"]), f"{storage} {seed} {size}", wide=True)


@settings(max_examples=1, phases=DRAWS)
@given(**DRAWN)
def test_trajectory(seed, size):
    same_runs(make_run(SHAPES["tall"], "bfloat16", seed, size=size, steps=3), f"{seed} {size}", wide=True)


@settings(max_examples=2, phases=DRAWS)
@given(**DRAWN)
def test_between(seed, size):
    same_between(make_run(SHAPES["wide"], "float16", seed, size=size, steps=2), f"{seed} {size}")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=2, phases=DRAWS)
@given(**DRAWN)
def test_any_shape_and_storage(storage, shape, seed, size):
    where = f"{storage} {shape} {seed} {size}"
    path = make_run(SHAPES[shape], storage, seed, size=size, steps=3)
    same_pairs(path[:2], keys_of(SHAPES[shape]), where)
    same_runs(path, where)
    same_between(path[:3], where)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("storage", "shape"), list(zip(STORAGES, SHAPES, strict=True)))
@settings(max_examples=1, phases=DRAWS)
@given(**DRAWN)
def test_further_nulls_of_any_shape_and_storage(storage, shape, seed, size):
    pair = make_run(SHAPES[shape], storage, seed, size=size)
    same_pairs(pair, keys_of(SHAPES[shape], nulls=True), f"{storage} {shape} {seed} {size}")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
@settings(max_examples=2, phases=DRAWS)
@given(**DRAWN)
def test_checkpoints_that_are_stored_coarser_than_their_origin(storage, seed, size):
    where = f"float32, {storage} {seed} {size}"
    path = make_run(SHAPES["tall"], storage, seed, size=size, steps=3, origin="float32")
    same_pairs(path[:2], keys_of(SHAPES["tall"]), where)
    same_runs(path, where)
    same_between(path[:3], where)
