"""`measure` gives what a report gives, by the same names; `summarize` keeps triples together; the page's loop runs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxgeom as jg
from jaxgeom import diagnostics as jd
from jaxgeom.diagnostics import MatrixSpec
from jaxgeom.diagnostics.measure_trees import OPTIONS
from jaxgeom.diagnostics.statistics import KINDS, statistics_of

from .matrices import gaussian

SPECS = {"w": MatrixSpec((1,), (2,), (0,))}
SETTINGS = {"angle_k": 6, "mask_rank": 5, "subspace_k": 4, "null_draws": 3, "permutation_draws": 2}

FLOAT32_PATHS = ("projection_", "stable_rank_bf16", "angle_", "_permutation_")
"""What a report takes from float32 products: the update on W0's bases, leading values of the bfloat16 view, ranks of
permuted updates; angles below 1e-5 rad."""


def pair(dtype, shape=(2, 40, 32)) -> tuple[np.ndarray, np.ndarray]:
    w0 = gaussian(shape)
    loud = np.exp(0.5 * gaussian((*shape[:2], 1), 1, 1.0))
    return w0.astype(dtype), (w0 + gaussian(shape, 2, 1e-3) * loud).astype(dtype)


def test_options_are_the_settings_of_a_comparison():
    fields = {field.name: field.default for field in dataclasses.fields(jg.CompareSettings)}
    assert OPTIONS.items() <= fields.items()


@pytest.mark.slow
@pytest.mark.parametrize("is_x64", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_every_number_of_a_report_by_its_name(dtype, is_x64):
    w0, w1 = pair(dtype)
    rows = jg.compare({"w": w0}, {"w": w1}, SPECS, jg.CompareSettings(**SETTINGS)).to_json()["matrices"]
    labels = ("shape", "layer", "name", "tensor", "module", "group")
    keys = [key for key, value in rows[0].items() if key not in labels and not isinstance(value, str | bool)]
    with jax.enable_x64(is_x64):
        measured = jax.jit(lambda a, b: jd.measure({"w": a}, {"w": b}, SPECS, statistics=keys, **SETTINGS))(w0, w1)
    assert set(keys) <= set(measured)
    for layer, row in enumerate(rows):
        for key in keys:
            value = np.array(row[key], float)  # None is NaN
            single = any(part in key for part in FLOAT32_PATHS)
            # Excess and z are small differences: errors of the value and of the null, in their own units.
            size = 1.0
            if single and row[key] is not None and key.endswith(("_excess", "_z")):
                size = abs(row[re.sub("(_excess|_z)$", "_null", key)] / row[re.sub("_z$", "_excess", key)])
                size *= max(1.0, abs(row[key]) if key.endswith("_z") else 1.0)
            bound, least = 3e-6 * max(size, 1.0) if single else 1e-9, 1e-12
            if not is_x64:  # float32 throughout: the reason why a report is not; z in units of a deviation
                bound, least = 2e-3, 1e-3 if key.endswith("_z") else 1e-5
            np.testing.assert_allclose(
                measured[key]["w"][layer], value, rtol=bound, atol=least, equal_nan=True, err_msg=key
            )


def test_every_statistic_of_the_table_has_its_name_here():
    """Names alone, without measuring: a statistic of `compare` that no family gives is an error."""
    w = {"w": jnp.ones((1, 4, 4))}
    for entry in statistics_of("compare"):
        if entry.key in ("functional_distance",):  # of models, not of matrices
            continue
        key = entry.key.replace("energy_top_K", "energy_top_16").replace("TOLERANCE", "0.001").replace("SHARE", "10")
        names = [key] + [f"{key}_{what}" for what in KINDS if entry.null]
        names += [f"{key}_{kind}_{what}" for kind in entry.further for what in KINDS]
        with pytest.raises(ValueError, match="params1"):
            jd.measure(w, {"v": w["w"]}, SPECS, statistics=names)


def test_sampled_nulls_have_the_draws_of_a_key_where_one_is_given():
    w0, w1 = pair(np.float32, (1, 12, 10))
    fn = jax.jit(
        lambda key: jd.measure(
            {"w": w0}, {"w": w1}, SPECS, statistics=("angle_left_mean_deg_null",), key=key, angle_k=3
        )["angle_left_mean_deg_null"]["w"]
    )
    first, again, other = (float(fn(jax.random.key(seed))[0]) for seed in (0, 0, 1))
    assert first == again and first != other and abs(first - other) < 0.5 * first


def test_a_summary_is_over_one_population():
    specs = {"a": MatrixSpec((1,), (2,), (0,)), "b": MatrixSpec((0,), (1,)), "embed": None, "scale": None}

    def tree(a, b):
        return {"a": jnp.array(a), "b": jnp.array(b), "embed": jnp.array(99.0), "scale": None}

    nan = jnp.nan
    found = jax.jit(lambda measured: jd.summarize(measured, specs))(
        {
            "parameters": tree([10.0, 10.0], 30.0),
            "sparsity_bf16": tree([0.5, 0.7], 0.9),
            "sparsity_bf16_null": tree([0.4, 0.4], 0.6),
            "sparsity_bf16_excess": tree([0.1, 0.3], 0.3),
            "sparsity_bf16_profile_null": tree([0.2, nan], 0.6),
            "sparsity_bf16_profile_excess": tree([0.3, nan], 0.3),
            "nss": tree([1.0, 2.0], 6.0),
            "nss_null": tree([1.0, 2.0], nan),
            "nss_excess": tree([0.0, 0.0], nan),
            "nss_z": tree([0.0, 0.0], nan),
            "angle_k": tree([3.0, 3.0], 3.0),
        }
    )
    expected = {
        "sparsity_bf16": (5 + 7 + 27) / 50, "sparsity_bf16_null": (4 + 4 + 18) / 50, "sparsity_bf16_count": 3,
        "sparsity_bf16_excess": 13 / 50, "sparsity_bf16_profile_mean": (5 + 27) / 40,
        "sparsity_bf16_profile_null": (2 + 18) / 40, "sparsity_bf16_profile_excess": 12 / 40,
        "sparsity_bf16_profile_count": 2, "nss": 1.5, "nss_null": 1.5, "nss_excess": 0.0, "nss_z": 0.0, "nss_count": 2,
        "nss_z_count": 2,
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6, err_msg=key)
    with pytest.raises(ValueError, match="parameters"):
        jd.summarize({"sparsity_bf16": tree([0.5, 0.7], 0.9)}, specs)
    assert jd.summarize({"nss": tree([1.0, 2.0], 6.0) | {"b": None}}, specs)["nss"] == 1.5


@pytest.mark.slow
def test_float32_is_the_report_too():
    """Without x64, and after x64 in the same process: tables that live as long as it does serve both widths."""
    names = [f"{name}_{kind}_{what}" for name in ("sparsity_bf16", "overlap_low") for kind in ("profile", "permutation")
             for what in ("null", "excess", "z")]  # fmt: skip
    w0, w1 = pair(np.float32)
    rows = jg.compare({"w": w0}, {"w": w1}, SPECS, jg.CompareSettings(**SETTINGS)).to_json()["matrices"]
    with jax.enable_x64(True):
        jd.rounding_null_by_decile(w0, 0.3), jd.visibility_probability(w0, 1e-3)
    with jax.enable_x64(False):
        jd.rounding_null_by_decile(w0, 0.3), jd.visibility_probability(w0, 1e-3)
        found = jax.jit(lambda a, b: jd.measure({"w": a}, {"w": b}, SPECS, statistics=names, **SETTINGS))(w0, w1)
    for layer, row in enumerate(rows):
        for key in names:
            assert found[key]["w"].dtype == jnp.float32
            # z in units of a deviation; sums of a few thousand probabilities in float32.
            room = 2e-3 if key.endswith("_z") else 1e-5
            expected = np.array(row[key], float)  # None is NaN
            assert float(found[key]["w"][layer]) == pytest.approx(expected, abs=room, nan_ok=True), key
