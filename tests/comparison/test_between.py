"""Two runs from one origin: every statistic against float64 NumPy, its nulls against SciPy and against sampling."""

import json

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, between_runs
from jaxgeom.comparison.one_matrix.two_runs import measure_pair
from jaxgeom.diagnostics import changed_overlaps, independence_null
from jaxgeom.errors import UserError
from tests.comparison import disk

K = 3
MASKS = ("jaccard", "overlap_a_in_b", "overlap_b_in_a")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An origin and two runs whose updates have a part in common."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    origin = disk.weights()
    common = {name: rng.standard_normal(w.shape) for name, w in origin.items()}
    sides = [origin]
    for scale in (3e-5, 6e-5):
        sides.append(
            {n: (w + scale * (common[n] + rng.standard_normal(w.shape))).astype(np.float32) for n, w in origin.items()}
        )
    return sides, [disk.write(folder / name, side) for name, side in zip(("origin", "a", "b"), sides, strict=True)]


def _right(delta: np.ndarray) -> np.ndarray:
    return np.linalg.svd(delta, full_matrices=False)[2][:K].T


def test_every_matrix_equals_the_oracle(runs, tmp_path):
    sides, paths = runs
    out = tmp_path / "out"
    result = between_runs(*map(open_checkpoint, paths), CompareSettings(subspace_k=K), out=out)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(result, allow_nan=False))
    assert len((out / "matrices.csv").read_text().splitlines()) == 15
    for row in result["matrices"]:
        w, a, b = (side[row["name"]].astype(np.float64) for side in sides)
        first, second = (disk.bf16(side[row["name"]]) != disk.bf16(sides[0][row["name"]]) for side in sides[1:])
        both, da, db = (first & second).sum(), first.mean(), second.mean()
        assert row["jaccard"] == pytest.approx(both / (first | second).sum())
        assert row["overlap_a_in_b"] == pytest.approx(both / second.sum())
        assert row["overlap_b_in_a"] == pytest.approx(both / first.sum())
        assert row["jaccard_null"] == pytest.approx(da * db / (da + db - da * db))
        assert row["overlap_a_in_b_null"] == pytest.approx(da) and row["overlap_b_in_a_null"] == pytest.approx(db)
        for name in MASKS:
            assert row[f"{name}_excess"] == row[name] - row[f"{name}_null"]
            assert row[f"{name}_rounding_excess"] == row[name] - row[f"{name}_rounding_null"]
        cosine = ((a - w) * (b - w)).sum() / np.linalg.norm(a - w) / np.linalg.norm(b - w)
        assert row["orthogonal_share"] == pytest.approx(1 - cosine**2, rel=1e-9)
        spread = (((a - w) * (b - w)) ** 2).sum() / ((a - w) ** 2).sum() / ((b - w) ** 2).sum()
        assert row["orthogonal_share_null"] == pytest.approx(1 - spread)
        tail = 2 * stats.norm.sf(abs(cosine) / np.sqrt(spread))
        assert row["orthogonal_share_z"] == pytest.approx(stats.norm.ppf(tail), rel=1e-6)
        shared = np.linalg.norm(_right(a - w).T @ _right(b - w)) ** 2 / K
        assert row["subspace_similarity"] == pytest.approx(shared, abs=1e-3)
        assert row["subspace_similarity_null"] == pytest.approx(K / w.shape[1])
    values = [row["jaccard"] for row in result["matrices"]]
    entry = result["summary"]["jaccard"]
    assert entry["mean"] == pytest.approx(np.mean(values)) and entry["median"] == pytest.approx(np.median(values))
    assert entry["rounding_null"] == pytest.approx(np.mean([r["jaccard_rounding_null"] for r in result["matrices"]]))
    assert list(result["groups"]["module"]) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert set(result["groups"]["layer"]) == {"0", "1"}
    assert result["coverage"]["jaccard"]["matrices"] == 14 and 0.5 < result["coverage"]["jaccard"]["parameters"] < 1
    assert all(len(side["sha256"]) == 64 for side in result["inputs"].values())


@pytest.mark.parametrize("on_grid", [True, False])
def test_independent_updates_meet_the_rounding_null(on_grid):
    """z of independent Gaussian updates has mean 0 and deviation 1; the overlap itself is far above independence."""
    rng = np.random.default_rng(1)
    origin = (rng.standard_normal((80, 60)) * 0.02).astype(np.float32)
    if on_grid:
        origin = origin.astype(ml_dtypes.bfloat16).astype(np.float32)
    rows = []
    for _ in range(60):
        finals = [(origin + s * rng.standard_normal(origin.shape)).astype(np.float32) for s in (2e-5, 5e-5)]
        rows.append(measure_pair(origin, *finals, CompareSettings(subspace_k=K)))
    for name in MASKS:
        z = np.array([row[f"{name}_rounding_z"] for row in rows])
        assert abs(z.mean()) < 3.5 / np.sqrt(60), name
        assert 0.75 < z.std(ddof=1) < 1.3, name
        assert np.mean([row[name] - row[f"{name}_null"] for row in rows]) > 0.03, name
    for name in ("orthogonal_share", "subspace_similarity"):
        z = np.array([row[f"{name}_z"] for row in rows])
        assert abs(z.mean()) < 4 / np.sqrt(60) and z.std() < 1.6, name


def test_independence_is_hypergeometric():
    count, a, b = 500, 120, 300
    nulls = independence_null(count, a, b)
    law = stats.hypergeom(count, a, b)
    assert nulls.a_in_b == pytest.approx((law.mean() / b, law.std() / b))
    assert nulls.b_in_a == pytest.approx((law.mean() / a, law.std() / a))
    draws = law.rvs(200_000, random_state=0)
    jaccard = draws / (a + b - draws)
    assert nulls.jaccard == pytest.approx((jaccard.mean(), jaccard.std()), rel=1e-2)


def test_overlaps_of_an_empty_mask_are_undefined_in_a_batch_of_which_others_are_not():
    a, b = np.zeros((2, 4, 3), bool), np.ones((2, 4, 3), bool)
    a[1, 0] = True
    nulls = independence_null(12, a.sum((1, 2)), b.sum((1, 2)))
    for found in (changed_overlaps(a, b), [part.mean for part in nulls]):
        assert all(np.isnan(part[0]) for part in found)
        assert [float(part[1]) for part in found] == pytest.approx([0.25, 1.0, 0.25])


def test_where_nothing_changed_the_statistics_are_null_with_a_note():
    rng = np.random.default_rng(2)
    origin = (rng.standard_normal((30, 20)) * 0.02).astype(np.float32)
    moved = origin * np.float32(1.5)
    row = measure_pair(origin, origin, moved, CompareSettings(subspace_k=K))
    # Values and both nulls: an overlap of 0 beside a null of 0 would be read as "they share nothing".
    for name in MASKS:
        undefined = [row[key] for key in row if key.startswith(name) and not key.endswith("_note")]
        assert len(undefined) == 7 and set(undefined) == {None}, name
    assert row["overlap_note"] == row["jaccard_note"] == "undefined: nothing changed in the bfloat16 view of run A"
    other = measure_pair(origin, moved, origin, CompareSettings(subspace_k=K))
    assert all(other[name] is None for name in MASKS) and "of run B" in other["overlap_note"]
    assert row["density_a"] == 0 and row["density_b"] == 1 and "exactly zero" in row["orthogonal_note"]
    assert row["orthogonal_share"] is None and row["subspace_similarity"] is None
    still = measure_pair(origin, origin, origin, CompareSettings(subspace_k=K))
    assert all(still[name] is None for name in MASKS) and "A and B" in still["overlap_note"]
    # Every entry changed: no finite noise does that.
    full = measure_pair(origin, moved, moved, CompareSettings(subspace_k=K))
    assert full["jaccard"] == full["jaccard_null"] == 1 and full["jaccard_rounding_null"] is None
    assert full["jaccard_excess"] == 0 and full["jaccard_rounding_z"] is None and full["orthogonal_share"] < 1e-12


def test_interrupted_it_goes_on_and_another_needs_force(runs, tmp_path):
    _, paths = runs
    out, seen = tmp_path / "out", []

    def stop(done, total, name):
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt

    settings = CompareSettings(subspace_k=K)
    with pytest.raises(KeyboardInterrupt):
        between_runs(*map(open_checkpoint, paths), settings, out=out, progress=stop)
    kept = [json.loads(line)["name"] for line in (out / ".partial.jsonl").read_text().splitlines()[1:]]
    assert kept[:4] == seen
    later = []
    result = between_runs(
        *map(open_checkpoint, paths), settings, out=out, progress=lambda done, total, name: later.append(name)
    )
    assert not set(later) & set(kept) and len(later) + len(kept) == 14
    assert result == between_runs(*map(open_checkpoint, paths), settings)
    assert not (out / ".partial.jsonl").exists()
    with pytest.raises(UserError, match="--force"):
        between_runs(*map(open_checkpoint, reversed(paths)), settings, out=out)
    other = between_runs(*map(open_checkpoint, reversed(paths)), settings, out=out, force=True)
    assert json.loads((out / "report.json").read_text())["inputs"] == other["inputs"] != result["inputs"]


def test_the_attention_population(runs):
    _, paths = runs
    result = between_runs(*map(open_checkpoint, paths), CompareSettings(subspace_k=K, population="attention"))
    assert {row["module"] for row in result["matrices"]} == {"q", "k", "v", "o"} and len(result["matrices"]) == 8
    assert result["settings"]["population"] == "attention"
