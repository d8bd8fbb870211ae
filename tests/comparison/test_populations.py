"""One population a triple: value, null, excess and count of summaries, groups and curves, on rows made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom import diagnostics as jd
from jaxgeom.comparison.files.curves import curves_of, similarity_of
from jaxgeom.comparison.files.summary import coverage_of, groups_of, summary_of
from jaxgeom.diagnostics import MatrixSpec


def _row(name, *, parameters=10, group="matrices", **values):
    return {"name": name, "module": "q", "layer": 0, "group": group, "parameters": parameters} | values


def test_value_and_null_are_over_the_matrices_that_have_both():
    rows = [
        _row("a", nss=1.0, nss_null=0.5, nss_excess=0.5),
        _row("b", nss=4.0, nss_null=None, nss_excess=None),  # too large for the null's expansion
        _row("c", nss=None, nss_null=0.7, nss_excess=None),
        _row("d", nss=3.0, nss_null=1.0, nss_excess=2.0),
    ]
    entry = summary_of(rows)["nss"]
    assert (entry["mean"], entry["median"], entry["null"], entry["excess"]) == (2.0, 2.0, 0.75, 1.25)
    assert (entry["count"], entry["of"], entry["weights"]) == (2, 4, "none")
    assert coverage_of(rows, [], 100)["nss"] == {"parameters": 0.2, "matrices": 2}
    assert groups_of(rows)["module"]["q"]["nss"] == groups_of(rows)["layer"]["0"]["nss"] == entry


def test_without_any_null_the_value_stands_alone_over_all_that_have_it():
    entry = summary_of([_row("a", nss=1.0, nss_null=None), _row("b", nss=3.0, nss_null=None)])["nss"]
    assert (entry["mean"], entry["null"], entry["excess"], entry["count"]) == (2.0, None, None, 2)


def test_a_further_null_has_a_population_and_a_mean_of_its_own():
    rows = [
        _row("a", jaccard=0.2, jaccard_null=0.1, jaccard_rounding_null=0.15),
        _row("b", jaccard=0.6, jaccard_null=0.5, jaccard_rounding_null=None),
    ]
    entry = summary_of(rows)["jaccard"]
    assert (entry["mean"], entry["null"], entry["count"]) == (pytest.approx(0.4), pytest.approx(0.3), 2)
    assert (entry["rounding_mean"], entry["rounding_null"], entry["rounding_count"]) == (0.2, 0.15, 1)
    assert entry["rounding_excess"] == 0.2 - 0.15


def test_a_null_of_a_few_small_tensors_is_none_of_all_parameters():
    rows = [
        _row("q", parameters=60, sparsity_bf16=0.3, sparsity_bf16_null=None, sparsity_bf16_z=None),
        _row("k", parameters=39, sparsity_bf16=0.4, sparsity_bf16_null=None, sparsity_bf16_z=None),
        _row("norm", parameters=1, sparsity_bf16=1.0, sparsity_bf16_null=1.0, sparsity_bf16_z=2.0),
    ]
    entry = summary_of(rows)["sparsity_bf16"]
    assert entry["mean"] == pytest.approx(0.6 * 0.3 + 0.39 * 0.4 + 0.01) and entry["count"] == 3
    assert entry["null"] is entry["excess"] is entry["z"] is None
    rows[0] |= {"sparsity_bf16_null": 0.25}
    entry = summary_of(rows)["sparsity_bf16"]
    assert entry["mean"] == pytest.approx((60 * 0.3 + 1) / 61) and entry["null"] == pytest.approx(16 / 61)
    specs = {name: MatrixSpec((), (1,), (0,)) for name in ("q", "k", "norm")}
    measured = {
        "parameters": {"q": jnp.array(60.0), "k": jnp.array(39.0), "norm": jnp.array(1.0)},
        "sparsity_bf16": {"q": jnp.array(0.3), "k": jnp.array(0.4), "norm": jnp.array(1.0)},
        "sparsity_bf16_null": {"q": jnp.array(jnp.nan), "k": jnp.array(jnp.nan), "norm": jnp.array(1.0)},
    }
    found = jd.summarize(measured, specs)
    assert float(found["sparsity_bf16"]) == pytest.approx(0.346) and found["sparsity_bf16_count"] == 3
    assert jnp.isnan(found["sparsity_bf16_null"])


def test_groups_taken_together_are_each_that_of_its_own_rows():
    rng = np.random.default_rng(0)
    rows = []
    for place in range(40):
        row = _row(f"m{place}", parameters=int(rng.integers(5, 50))) | {"layer": place % 7, "module": "qkvo"[place % 4]}
        for key in ("nss", "nss_null", "nss_z", "sparsity_bf16", "sparsity_bf16_null", "sparsity_bf16_profile_null"):
            if rng.random() < 0.8 and not (place % 7 == 3 and key == "nss_null"):  # a layer without a null
                row[key] = float(rng.normal()) if rng.random() < 0.8 else None
        rows.append(row)
    groups = groups_of(rows)
    for label in ("module", "layer"):
        for name, found in groups[label].items():
            own = [row for row in rows if str(row[label]) == name]
            assert found["sparsity_bf16"]["of"] == len(own)
            for key, ahead in (("nss", "nss"), ("sparsity_bf16", "sparsity_bf16"), ("sparsity_bf16", "profile")):
                null = f"{key}_null" if ahead == key else f"{key}_{ahead}_null"
                over = [row for row in own if row.get(key) is not None and row.get(null) is not None]
                valued = [row for row in own if row.get(key) is not None]
                few = key == "sparsity_bf16" and 2 * sum(r["parameters"] for r in over) < sum(
                    r["parameters"] for r in valued
                )
                if (not over or few) and ahead == key:
                    over = valued
                weights = [row["parameters"] if key == "sparsity_bf16" else 1 for row in over]
                mean = found[key]["mean" if ahead == key else f"{ahead}_mean"]
                assert mean == pytest.approx(np.average([row[key] for row in over], weights=weights), rel=1e-12)
                if ahead == key:
                    assert found[key]["median"] == np.median([row[key] for row in over])


def test_what_is_counted_is_over_every_tensor_and_its_null_too():
    matrices = [_row("q", sparsity_bf16=0.5, sparsity_bf16_null=0.4)]
    others = [_row("embed", parameters=30, group="embedding", sparsity_bf16=0.9, sparsity_bf16_null=0.8)]
    entry = summary_of(matrices, others)["sparsity_bf16"]
    assert entry["mean"] == pytest.approx(0.8) and entry["null"] == pytest.approx(0.7) and entry["count"] == 2
    groups = groups_of(matrices, others)["sparsity"]
    assert groups["embedding"]["sparsity_bf16"]["mean"] == 0.9 and groups["all"]["sparsity_bf16"] == entry


def test_a_curve_has_a_population_at_every_step():
    rows = [
        _row("a", nss=[1.0, 2.0, 3.0], nss_null=[1.0, None, 2.0], nss_z=[0.5, None, 1.0]),
        _row("b", nss=[3.0, 4.0, None], nss_null=[2.0, 5.0, 1.0], nss_z=[1.5, 1.0, None]),
        _row("norm", group="norm", nss=[9.0, 9.0, 9.0], nss_null=[9.0, 9.0, 9.0], nss_z=[9.0, 9.0, 9.0]),
    ]
    entry = curves_of(rows, 3)["nss"]
    assert entry["mean"] == [2.0, 4.0, 3.0] and entry["null"] == [1.5, 5.0, 2.0] and entry["excess"] == [0.5, -1.0, 1.0]
    assert entry["count"] == [2, 1, 1] and entry["of"] == 2 and entry["z"] == [1.0, 1.0, 1.0]


def test_a_mean_z_is_over_those_of_the_population_that_have_one_and_says_how_many():
    rows = [_row("a", nss=[1.0], nss_null=[1.0], nss_z=[0.5]), _row("b", nss=[3.0], nss_null=[1.0], nss_z=[None])]
    entry = curves_of(rows, 1)["nss"]
    assert (entry["z"], entry["z_count"], entry["mean"], entry["count"]) == ([0.5], [1], [2.0], [2])


def test_a_mean_z_is_weighted_as_its_value_is():
    rows = [
        _row("q", sparsity_bf16=0.5, sparsity_bf16_null=0.4, sparsity_bf16_z=1.0),
        _row("embed", parameters=30, group="embedding", sparsity_bf16=0.9, sparsity_bf16_null=0.8, sparsity_bf16_z=3.0),
    ]
    assert summary_of(rows[:1], rows[1:])["sparsity_bf16"]["z"] == 2.5


def test_a_summary_of_a_measured_tree_and_of_a_reports_rows_are_one_number():
    """Rows without a z, without a null, without anything, of several sizes: every field by both."""
    table = {
        "sparsity_bf16": [0.5, 0.9, None, 0.7], "sparsity_bf16_null": [0.4, 0.8, None, None],
        "sparsity_bf16_z": [1.0, None, None, None], "nss": [1.0, 2.0, 4.0, None], "nss_null": [1.5, None, 3.0, None],
        "nss_z": [None, None, 2.0, None], "hill": [1.0, None, 3.0, 5.0], "hill_null": [None] * 4,
        "sparsity_bf16_profile_null": [0.3, None, None, 0.6], "sparsity_bf16_profile_z": [None, None, None, 7.0],
    }  # fmt: skip
    table |= {
        f"{key}_excess": [
            None if None in (a, b) else a - b for a, b in zip(table[key], table[f"{key}_null"], strict=True)
        ]
        for key in ("sparsity_bf16", "nss", "hill")
    }
    sizes = [10, 30, 20, 40]
    rows = [_row(str(i), parameters=size) | {k: v[i] for k, v in table.items()} for i, size in enumerate(sizes)]
    specs = {str(i): MatrixSpec((0,), (1,)) for i in range(4)}
    measured = {k: {str(i): jnp.array(jnp.nan if x is None else x) for i, x in enumerate(v)} for k, v in table.items()}
    found = jd.summarize(measured | {"parameters": {str(i): jnp.array(float(s)) for i, s in enumerate(sizes)}}, specs)
    summary = summary_of(rows)
    assert summary["hill"]["mean"] == 3.0 and summary["nss"]["count"] == 2 and summary["nss"]["z_count"] == 1
    for key in ("sparsity_bf16", "nss", "hill"):
        names = {"mean": key} | {what: f"{key}_{what}" for what in ("null", "excess", "count", "z", "z_count")}
        if key == "hill":  # its z was not measured
            names = {what: name for what, name in names.items() if "z" not in what}
        for what, name in names.items():
            np.testing.assert_allclose(found[name], np.array(summary[key][what], float), rtol=1e-6, err_msg=name)
    for what in ("mean", "null", "count", "z", "z_count"):
        own = summary["sparsity_bf16"][f"profile_{what}"]
        np.testing.assert_allclose(found[f"sparsity_bf16_profile_{what}"], own, rtol=1e-6, err_msg=what)


def test_a_trajectory_averages_sparsity_and_its_null_over_every_tensor():
    rows = [
        _row("q", sparsity_bf16=[0.5], sparsity_bf16_null=[0.4]),
        _row("embed", parameters=30, group="embedding", sparsity_bf16=[0.9], sparsity_bf16_null=[0.8]),
    ]
    entry = curves_of(rows, 1)["sparsity_bf16"]
    assert entry["mean"] == [pytest.approx(0.8)] and entry["null"] == [pytest.approx(0.7)] and entry["count"] == [2]


def test_similarities_of_steps_are_over_the_matrices_that_have_value_and_null():
    def table(value, null):
        return {"full": [[value]], "full_null": [[null]], "disjoint": [[None]], "disjoint_null": [[0.1]]}

    mean = similarity_of([table(1.0, 0.5), table(0.5, None), table(0.6, 0.1)], 1)
    assert mean["full"] == [[0.8]] and mean["full_null"] == [[0.3]] and mean["full_count"] == [[2]]
    assert mean["disjoint"] == [[None]] and mean["disjoint_null"] == [[None]] and mean["disjoint_count"] == [[0]]
    assert similarity_of([], 1)["full"] == [[None]]
