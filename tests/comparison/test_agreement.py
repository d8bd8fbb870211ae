"""One instrument: every number of a report equals the public function's, under x64, on the same arrays."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxgeom as jg
from jaxgeom.diagnostics.statistics import split_key, statistic

KINDS = (
    "dense", "low rank", "rank deficient", "decay only", "sparse", "heavy tailed", "identical", "one entry changed",
)  # fmt: skip
OPTIONS = {"angle_k": 6, "mask_rank": 4, "subspace_k": 3}
SPECS = {"w": jg.MatrixSpec(out=(0,), in_=(1,))}
LABELS = ("name", "shape", "layer", "module", "group", "parameters")


def make_pair(shape: tuple[int, int], dtype: str, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored W0 and W+ of one kind of update."""
    rng = np.random.default_rng(seed)
    w0 = 0.02 * rng.standard_normal(shape)
    if kind == "rank deficient":
        w0 = 0.02 * rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    noise = rng.standard_normal(shape)
    update = {
        "dense": 1e-3 * noise,
        "low rank": 1e-3 * rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1])),
        "rank deficient": 1e-3 * noise,
        "decay only": -0.03 * w0,
        "sparse": np.where(rng.random(shape) < 0.1, 2e-3 * noise, 0.0),
        "heavy tailed": 1e-4 * rng.standard_t(1.5, shape),
        "identical": np.zeros(shape),
        "one entry changed": np.zeros(shape),
    }[kind]
    if kind == "one entry changed":
        update[shape[0] // 2, 1] = 0.5
    stored = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    first = w0.astype(np.float32).astype(stored)
    return first, (first.astype(np.float64) + update).astype(np.float32).astype(stored)


def numbers_of(row: dict) -> dict[str, float | None]:
    """The numbers of a report's row: values, nulls, excesses and deviations, without labels, notes and lists."""
    return {
        key: value
        for key, value in row.items()
        if key not in LABELS and not isinstance(value, str | list | bool) and not key.endswith("_note")
    }


def allowed(key: str, row: dict[str, float | None], suite: str) -> float:
    """The absolute difference that the table of statistics allows a number: of an excess, its value's and null's."""
    base, kind, what = split_key(key)
    entry = statistic(base)
    assert entry is not None, key
    bound = entry.agreement if suite == "full" or entry.agreement_fast is None else entry.agreement_fast
    value, null = row[base] or 0.0, row.get(f"{base}{'_' * bool(kind)}{kind}_null") or 0.0
    if entry.unit == "deg":
        bound, size = max(bound, 1e-9), 1.0
    else:
        size = abs(value) + abs(null)
    if what != "z":
        return bound * size + 1e-12
    z, excess = row[key], row[key.removesuffix("_z") + "_excess"]
    return (bound * size + 1e-12) * abs(z / excess) + bound * abs(z) + 1e-9 if z and excess else 1e-9


def check(key: str, row: dict[str, float | None], found: float, where: str, *, suite: str) -> None:
    """Equality within the bound that the table of statistics states."""
    reported = row[key]
    if reported is None:
        assert math.isnan(found), f"{where} {key}: the report has none, the function gives {found}"
        return
    assert abs(found - reported) <= allowed(key, row, suite), f"{where} {key}: {reported} in the report, {found} here"


@functools.cache
def measured(keys: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """`measure` of the keys, compiled once for every pair of one shape and dtype."""
    return jax.jit(lambda a, b: jg.diagnostics.measure(a, b, SPECS, statistics=keys, **OPTIONS))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def compared(shape: tuple[int, int], dtype: str, kind: str, seed: int) -> None:
    """The report of a pair against `measure` of the same arrays, number by number."""
    w0, w1 = make_pair(shape, dtype, kind, seed)
    report = jg.compare({"w": w0}, {"w": w1}, SPECS, jg.CompareSettings(**OPTIONS, device="cpu"))
    row = numbers_of(report.matrices[0])
    found = measured(tuple(row))({"w": jnp.asarray(w0)}, {"w": jnp.asarray(w1)})
    assert set(row) <= set(found)
    for key in row:
        check(key, row, float(found[key]["w"]), f"{dtype} {shape} {kind} {seed}", suite="full")


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_has_the_numbers_of_measure(kind):
    compared((24, 16), "bfloat16", kind, 7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_storage_has_the_numbers_of_measure(dtype, kind):
    compared((24, 16), dtype, kind, 7)
